"""Mixers without parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search_spaces.layers import fold_norm_after
from search_spaces.mixers.contract import TokenMixer
from search_spaces.mixers.fixed import FixedDepthwise


class SkipMixer(TokenMixer):
    """No token mixing: the block is its channel mixer alone.

    IdentityFormer (arXiv:2210.13452) keeps `x + norm(x)` here, a per-channel affine map of the residual stream; without
    it the sub-block costs nothing on any device.
    """

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


class Pooling(TokenMixer):
    """Average over 3x3 neighbours minus the pixel itself (PoolFormer, arXiv:2111.11418, Eq. 4); padding not counted."""

    norm_after = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) - x


class PoolingConv(TokenMixer):
    """`Pooling` with padding counted as zeros: a fixed depthwise 3x3 convolution, into which BatchNorm folds.

    It equals `Pooling` except at the border. macs: 9 C N.
    """

    norm_after = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        average = torch.full((dim, 3, 3), 1 / 9)
        average[:, 1, 1] -= 1
        self.dwconv = FixedDepthwise(average)

    def forward(self, x: Tensor) -> Tensor:
        return self.dwconv(x)

    def fold_norm_after_(self, norm: nn.BatchNorm2d) -> None:
        fold_norm_after(norm, [self.dwconv])
