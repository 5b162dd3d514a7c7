"""Convolutional mixers. macs in the docstrings are per image, with N = height * width tokens and C = dim."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search_spaces.layers import ACTIVATION_LAYERS, ConvNorm, fold_norm_after, fold_star_relu, make_divisible
from search_spaces.mixers.contract import TokenMixer


class DepthwiseConv(TokenMixer):
    """Depthwise k x k convolution, the token mixer of ConvNeXt (arXiv:2201.03545). macs: k^2 C N."""

    kernels = (3, 5, 7)
    norm_after = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.dwconv(x)

    def fold_norm_after_(self, norm: nn.Module) -> None:
        fold_norm_after(norm, [self.dwconv])


class SepConv(TokenMixer):
    """Inverted separable convolution of ConvFormer (arXiv:2210.13452, Eq. 7): 1x1 to 2C, depthwise k x k, 1x1 to C.

    macs: N (4 C^2 + 2 k^2 C).
    """

    kernels = (3, 5, 7)

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        self.pwconv1 = nn.Conv2d(dim, 2 * dim, 1)
        self.act = ACTIVATION_LAYERS[activation]()
        self.dwconv = nn.Conv2d(2 * dim, 2 * dim, kernel, padding=kernel // 2, groups=2 * dim)
        self.pwconv2 = nn.Conv2d(2 * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pwconv2(self.dwconv(self.act(self.pwconv1(x))))

    def norm_consumers(self) -> list[nn.Conv2d | nn.Linear]:
        return [self.pwconv1]

    def output_layer(self) -> nn.Module:
        return self.pwconv2


class InceptionConv(TokenMixer):
    """Depthwise 3x3, 1x11 and 11x1 on three groups of channels, the rest untouched (InceptionNeXt, arXiv:2303.16900).

    The groups have role_width / 8 channels each and come first, so that a channel has one role at every width.
    macs: 31 g N with g = role_width / 8.
    """

    norm_after = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        group = role_width // 8
        self.split_sizes = [group, group, group, dim - 3 * group]
        self.dwconv_hw = nn.Conv2d(group, group, 3, padding=1, groups=group)
        self.dwconv_w = nn.Conv2d(group, group, (1, 11), padding=(0, 5), groups=group)
        self.dwconv_h = nn.Conv2d(group, group, (11, 1), padding=(5, 0), groups=group)

    def forward(self, x: Tensor) -> Tensor:
        hw, w, h, rest = torch.split(x, self.split_sizes, dim=1)
        return torch.cat((self.dwconv_hw(hw), self.dwconv_w(w), self.dwconv_h(h), rest), dim=1)


class MBConv(TokenMixer):
    """Inverted bottleneck (MobileNetV2, arXiv:1801.04381): 1x1 to eC, depthwise k x k, 1x1 to C, BatchNorm after each.

    Token and channel mixer in one; a gate may stand on its hidden layer. macs: N (2 e C^2 + k^2 e C).
    """

    kernels = (3, 5)
    norm_inside = True
    replaces_block = True
    gated = True
    channel_matrices = (("expand.conv.weight", "fc1"), ("project.conv.weight", "fc2"))

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        hidden = make_divisible(dim * expansion)
        self.expand = ConvNorm(dim, hidden, 1)
        self.act1 = ACTIVATION_LAYERS[activation]()
        self.dwconv = ConvNorm(hidden, hidden, kernel, groups=hidden)
        self.act2 = ACTIVATION_LAYERS[activation]()
        self.gate: nn.Module = nn.Identity()
        self.project = ConvNorm(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.gate(self.act2(self.dwconv(self.act1(self.expand(x))))))

    def fold_(self) -> None:
        if isinstance(self.gate, nn.Identity):
            self.act2 = fold_star_relu(self.act2, self.project.conv)

    def output_layer(self) -> nn.Module:
        return self.project.norm


class FusedMBConv(TokenMixer):
    """MBConv with its first two layers fused (EfficientNetV2, arXiv:2104.00298, Fig. 2): dense 3x3 to eC, 1x1 to C.

    Token and channel mixer in one; a gate may stand on its hidden layer. macs: N (9 e C^2 + e C^2).
    """

    kernels = (3,)
    norm_inside = True
    replaces_block = True
    gated = True
    channel_matrices = (("project.conv.weight", "fc2"),)

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        hidden = make_divisible(dim * expansion)
        self.expand = ConvNorm(dim, hidden, kernel)
        self.act = ACTIVATION_LAYERS[activation]()
        self.gate: nn.Module = nn.Identity()
        self.project = ConvNorm(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.gate(self.act(self.expand(x))))

    def fold_(self) -> None:
        if isinstance(self.gate, nn.Identity):
            self.act = fold_star_relu(self.act, self.project.conv)

    def output_layer(self) -> nn.Module:
        return self.project.norm


class ConvFirst(TokenMixer):
    """A grouped 3x3 convolution, groups of 8 channels, before the inverted bottleneck: 3x3 to C, 1x1 to eC, 1x1 to C.

    The block of A. Lavin's SPIO (github.com/andravin/spio), BatchNorm after each convolution and no activation behind
    the first. Token and channel mixer in one. macs: N (72 C + 2 e C^2) (C a multiple of 8).
    """

    norm_inside = True
    replaces_block = True
    gated = True
    channel_matrices = (("expand.conv.weight", "fc1"), ("project.conv.weight", "fc2"))
    group_width = 8

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        if dim % self.group_width:
            raise ValueError(f"convfirst needs a width that is a multiple of {self.group_width}, but got {dim}")
        hidden = make_divisible(dim * expansion)
        self.grouped = ConvNorm(dim, dim, 3, groups=dim // self.group_width)
        self.expand = ConvNorm(dim, hidden, 1)
        self.act = ACTIVATION_LAYERS[activation]()
        self.gate: nn.Module = nn.Identity()
        self.project = ConvNorm(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.gate(self.act(self.expand(self.grouped(x)))))

    def fold_(self) -> None:
        if isinstance(self.gate, nn.Identity):
            self.act = fold_star_relu(self.act, self.project.conv)

    def output_layer(self) -> nn.Module:
        return self.project.norm
