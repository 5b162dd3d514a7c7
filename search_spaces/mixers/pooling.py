"""Mixers without parameters."""

from __future__ import annotations

from torch import Tensor, nn


class SkipMixer(nn.Module):
    """No token mixing: the block is its channel mixer alone.

    IdentityFormer (arXiv:2210.13452) keeps `x + norm(x)` here, a per-channel affine map of the residual stream; without
    it the sub-block costs nothing on any device.
    """

    kernels = (0,)
    norm_after = False
    replaces_block = False
    late_only = False

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


class Pooling(nn.Module):
    """Average over 3x3 neighbours minus the pixel itself (PoolFormer, arXiv:2111.11418, Eq. 4); padding not counted."""

    kernels = (0,)
    norm_after = True
    replaces_block = False
    late_only = False

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) - x
