"""Mixing in the wavelet domain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search_spaces.layers import ACTIVATION_LAYERS, norm_affine
from search_spaces.mixers.contract import TokenMixer
from search_spaces.mixers.fixed import fix_


class HaarConv(nn.Conv2d):
    """One level of the Haar transform as a fixed convolution: [batch, chans, side, side] to four bands half as wide.

    Channel 4 c + band: mean, horizontal, vertical and diagonal detail of channel c, so that a channel keeps its role.
    An odd side begins with a line of zeros.
    """

    def __init__(self, chans: int, side: int) -> None:
        super().__init__(chans, 4 * chans, 2, stride=2, padding=side % 2, groups=chans)
        low, high = torch.tensor([0.5, 0.5]), torch.tensor([0.5, -0.5])
        bands = [2 * torch.outer(down, right) for down in (low, high) for right in (low, high)]
        fix_(self, torch.stack(bands).repeat(chans, 1, 1)[:, None])


class WaveletMixer(TokenMixer):
    """1x1 to C/4, Haar transform, two 1x1 convolutions with an activation between on its four bands, and a transposed
    4x4 convolution of stride 2 back to the map (WaveMix, arXiv:2205.14375, section 3), one level.

    The transposed convolution is written as the 2x2 one to four channels each, laid out as 2x2 pixels, that it equals;
    each of the four has its own bias.
    macs: N (C^2/4 + C + C^2) + 16 C^2 (side/2 + 1)^2 for an even side and C a multiple of 4.
    """

    norm_after = True
    sized = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str, size: int) -> None:
        super().__init__()
        self.size = size
        quarter = max(1, dim // 4)
        self.reduce = nn.Conv2d(dim, quarter, 1)
        self.haar = HaarConv(quarter, size)
        self.pwconv1 = nn.Conv2d(4 * quarter, 8 * quarter, 1)
        self.act = ACTIVATION_LAYERS[activation]()
        self.pwconv2 = nn.Conv2d(8 * quarter, 4 * quarter, 1)
        self.enlarge = nn.Conv2d(4 * quarter, 4 * dim, 2, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        bands = self.pwconv2(self.act(self.pwconv1(self.haar(self.reduce(x)))))
        first = 1 + self.size % 2  # the padding of this convolution, and of an odd side's transform
        last = first + self.size
        return self.shuffle(self.enlarge(bands))[:, :, first:last, first:last]

    @torch.no_grad()
    def fold_norm_after_(self, norm: nn.Module) -> None:
        scale, shift = (vector.repeat_interleave(4) for vector in norm_affine(norm))
        conv = self.enlarge
        assert conv.bias is not None
        conv.weight.copy_(conv.weight.double() * scale[:, None, None, None])
        conv.bias.copy_(conv.bias.double() * scale + shift)
