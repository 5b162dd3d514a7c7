"""Stems: image to features. Tensors are [batch, channels, height, width]."""

from __future__ import annotations

import math

from torch import Tensor, nn

from search_spaces.layers import ACTIVATION_LAYERS, ConvNorm


class Stem(nn.Module):
    """`conv3s2`: one 3x3 convolution of stride 2. `conv3s2x2`: two, and an activation between. `conv7s4`: one 7x7
    convolution of stride 4 (PoolFormer, arXiv:2111.11418), which devices with small kernels or strides cannot run.

    BatchNorm follows each. Raises ValueError for another kind.
    """

    def __init__(self, kind: str, in_chans: int, dim: int, activation: str) -> None:
        super().__init__()
        self.act: nn.Module = nn.Identity()
        self.conv2: nn.Module = nn.Identity()
        if kind == "conv3s2x2":
            self.conv1 = ConvNorm(in_chans, dim // 2, 3, stride=2)
            self.act = ACTIVATION_LAYERS[activation]()
            self.conv2 = ConvNorm(dim // 2, dim, 3, stride=2)
        elif kind == "conv3s2":
            self.conv1 = ConvNorm(in_chans, dim, 3, stride=2)
        elif kind == "conv7s4":
            self.conv1 = ConvNorm(in_chans, dim, 7, stride=4)
        else:
            raise ValueError(f"stem must be 'conv3s2', 'conv3s2x2' or 'conv7s4', but got {kind!r}")
        self.reduction = math.prod(m.stride[0] for m in self.modules() if isinstance(m, nn.Conv2d))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.act(self.conv1(x)))
