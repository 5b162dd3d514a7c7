"""Shifts as fixed depthwise convolutions with a single 1, and long ones along each axis. macs: N tokens, C = dim.

A shift moves zeros in at the border, and is one operator with static weights on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search_spaces.layers import ACTIVATION_LAYERS, Add, norm_affine
from search_spaces.mixers.contract import TokenMixer
from search_spaces.mixers.fixed import FixedDepthwise


def one_hot_kernels(chans: int, height: int, width: int, places: list[tuple[int, int]]) -> Tensor:
    """Kernels [chans, height, width] of one 1 each: channel c has it at places[c mod n], so that it keeps its role."""
    kernels = torch.zeros(chans, height, width)
    for turn, (row, column) in enumerate(places):
        kernels[turn :: len(places), row, column] = 1
    return kernels


@torch.no_grad()
def fold_norm_after_sum(norm: nn.BatchNorm2d, convs: list[nn.Conv2d]) -> None:
    """Merge `norm`, which reads the sum of `convs`, into them: all are scaled, the first is shifted."""
    scale, shift = norm_affine(norm)
    for position, conv in enumerate(convs):
        assert conv.bias is not None
        conv.weight.copy_(conv.weight.double() * scale[:, None, None, None])
        conv.bias.copy_(conv.bias.double() * scale + (shift if position == 0 else 0))


class ShiftMLP(TokenMixer):
    """1x1, activation, shift by a pixel in one of four directions, 1x1 (S2-MLP, arXiv:2106.07477, section 3.3).

    Channel c goes in direction c mod 4. macs: N (2 C^2 + 9 C).
    """

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        self.pwconv1 = nn.Conv2d(dim, dim, 1)
        self.act = ACTIVATION_LAYERS[activation]()
        self.shift = FixedDepthwise(one_hot_kernels(dim, 3, 3, [(1, 0), (1, 2), (0, 1), (2, 1)]))
        self.pwconv2 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pwconv2(self.shift(self.act(self.pwconv1(x))))

    def norm_consumers(self) -> list[nn.Conv2d | nn.Linear]:
        return [self.pwconv1]

    def output_layer(self) -> nn.Module:
        return self.pwconv2


class MixShift(TokenMixer):
    """Shifts by -2 to 2 pixels along each axis, channel c by (c mod 5) - 2, each followed by a depthwise 5x5; summed.

    After MS-MLP (arXiv:2202.06510, section 3.2), whose kernels grow with the shift. macs: 60 N C.
    """

    norm_after = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        self.shift_w = FixedDepthwise(one_hot_kernels(dim, 1, 5, [(0, place) for place in range(5)]))
        self.shift_h = FixedDepthwise(one_hot_kernels(dim, 5, 1, [(place, 0) for place in range(5)]))
        self.dwconv_w = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.dwconv_h = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.add = Add()

    def forward(self, x: Tensor) -> Tensor:
        return self.add(self.dwconv_w(self.shift_w(x)), self.dwconv_h(self.shift_h(x)))

    def fold_norm_after_(self, norm: nn.BatchNorm2d) -> None:
        fold_norm_after_sum(norm, [self.dwconv_w, self.dwconv_h])


class AxialConv(TokenMixer):
    """Depthwise convolutions along the rows and along the columns, as long as every pixel of a line sees every other.

    The global convolution of SGConv (arXiv:2210.09298), one axis at a time and without its Fourier transform, which
    does not pay on maps as small as here. A smaller map takes the middle of the kernels. macs: 2 N C (2 side - 1).
    """

    norm_after = True
    sized = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str, size: int) -> None:
        super().__init__()
        self.dwconv_w = nn.Conv2d(dim, dim, (1, 2 * size - 1), padding=(0, size - 1), groups=dim)
        self.dwconv_h = nn.Conv2d(dim, dim, (2 * size - 1, 1), padding=(size - 1, 0), groups=dim)
        self.add = Add()

    def forward(self, x: Tensor) -> Tensor:
        return self.add(self.dwconv_w(x), self.dwconv_h(x))

    def fold_norm_after_(self, norm: nn.BatchNorm2d) -> None:
        fold_norm_after_sum(norm, [self.dwconv_w, self.dwconv_h])
