"""Convolutional mixers with several paths. macs in the docstrings are per image, with N tokens and C = dim."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from search_spaces.layers import ACTIVATION_LAYERS, Add, ConvNorm
from search_spaces.mixers.contract import TokenMixer
from search_spaces.mixers.reparam import ParallelDepthwise


class GatedConv(TokenMixer):
    """Recursive gated convolution, gnConv (HorNet, arXiv:2207.14284, Eq. 3.3 to 3.5), with 7x7 depthwise convolutions.

    z_0 = p(x) * s dw(q_0(x)), z_i = w_i(z_{i-1}) * s dw(q_i(x)), then a 1x1 convolution; z_i has C / 2^(order-1-i)
    channels. Every group of channels has tensors of its own, so that a prefix of each is a narrower mixer.
    macs: N [3 C^2 + 49 C (2 - 2^(1-n)) + (2/3) C^2 (1 - 4^(1-n))] for order n.
    """

    order: ClassVar[int]
    scale = 1 / 3

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        widths = [dim // 2 ** (self.order - 1 - step) for step in range(self.order)]
        self.gate = nn.Conv2d(dim, widths[0], 1)
        self.value = nn.ModuleList(nn.Conv2d(dim, width, 1) for width in widths)
        self.dwconv = nn.ModuleList(nn.Conv2d(width, width, 7, padding=3, groups=width) for width in widths)
        self.widen = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(widths))
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.gate(x)
        for step in range(self.order):
            if step:
                z = self.widen[step - 1](z)
            mixed = self.dwconv[step](self.value[step](x))
            z = z * (mixed if self.scale == 1.0 else mixed * self.scale)
        return self.proj(z)

    def norm_consumers(self) -> list[nn.Conv2d | nn.Linear]:
        return [self.gate, *self.value]

    def output_layer(self) -> nn.Module:
        return self.proj

    @torch.no_grad()
    def fold_(self) -> None:
        layer: Any
        for layer in self.dwconv:
            layer.weight.mul_(self.scale)
            layer.bias.mul_(self.scale)
        self.scale = 1.0


class GatedConv2(GatedConv):
    """`GatedConv` of order 2."""

    order = 2


class GatedConv3(GatedConv):
    """`GatedConv` of order 3."""

    order = 3


class FFNAttention(TokenMixer):
    """FFN-ified attention (MetaMixer, arXiv:2406.02021): 1x1 query, depthwise k x k, activation, depthwise k x k.

    Convolutions with kernels as keys and values take the place of attention's products. A 7x7 is trained with a 3x3
    beside it. macs: N (C^2 + 2 k^2 C).
    """

    kernels = (3, 7)
    norm_inside = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        branches = {"main": (kernel, 1)} | ({"small": (3, 1)} if kernel > 3 else {})
        self.query = ConvNorm(dim, dim, 1)
        self.keys = ParallelDepthwise(dim, kernel, branches)
        self.act = ACTIVATION_LAYERS[activation]()
        self.values = ConvNorm(dim, dim, kernel, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.values(self.act(self.keys(self.query(x))))

    def output_layer(self) -> nn.Module:
        return self.values.norm


class DilatedConv(TokenMixer):
    """Multi-level dilated convolution (RapidNet, arXiv:2412.10995): x + dw7x7(x), 1x1, dense 3x3 convolutions of
    dilation 2 and 3 side by side, each with its activation, summed, 1x1. Every convolution has its BatchNorm.

    The first sum folds into the depthwise kernel. macs: N (20 C^2 + 49 C).
    """

    norm_inside = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.pwconv1 = ConvNorm(dim, dim, 1)
        self.dilated2 = ConvNorm(dim, dim, 3, dilation=2)
        self.dilated3 = ConvNorm(dim, dim, 3, dilation=3)
        self.act2 = ACTIVATION_LAYERS[activation]()
        self.act3 = ACTIVATION_LAYERS[activation]()
        self.add = Add()
        self.pwconv2 = ConvNorm(dim, dim, 1)
        self.folded = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.pwconv1(self.dwconv(x) if self.folded else x + self.dwconv(x))
        return self.pwconv2(self.add(self.act2(self.dilated2(x)), self.act3(self.dilated3(x))))

    def output_layer(self) -> nn.Module:
        return self.pwconv2.norm

    @torch.no_grad()
    def fold_(self) -> None:
        if not self.folded:
            conv: Any = self.dwconv
            conv.weight[:, :, 3, 3] += 1
            conv.role = "residual"
            self.folded = True
