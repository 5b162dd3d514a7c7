"""Norms, [batch, channels, height, width] to the same shape.

Those that are a per-channel affine map at inference fold into a neighbouring convolution (`norm_affine`). LayerNorm,
whose statistics are those of the pixel itself, does not.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn


class Affine2d(nn.Module):
    """a x + b per channel, without statistics (ResMLP, arXiv:2105.03404, Eq. 1)."""

    def __init__(self, chans: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(chans))
        self.bias = nn.Parameter(torch.zeros(chans))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None] + self.bias[:, None, None]

    def affine(self) -> tuple[Tensor, Tensor]:
        return self.weight.double(), self.bias.double()


class RepBatchNorm2d(nn.Module):
    """LayerNorm that fades into BatchNorm while it is trained (PRepBN of SLAB, arXiv:2405.11582, Eq. 4 and 5).

    Training: s LN(x) + (1 - s) (BN(x) + alpha x), s = `layernorm_share`, which `set_progress` lets fall from 1 to 0.
    Inference: BN(x) + alpha x whatever s is, so a network is worth scoring once s is 0. s starts at 0: whoever trains
    without a schedule gets the re-parameterized BatchNorm alone.
    """

    layernorm_share: Tensor

    def __init__(self, chans: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(chans)
        self.alpha = nn.Parameter(torch.ones(1))
        self.ln = LayerNorm2d(chans)
        self.register_buffer("layernorm_share", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(x) + self.alpha.to(x.dtype) * x
        if self.training:
            out = torch.lerp(out, self.ln(x).to(out.dtype), self.layernorm_share.to(out.dtype))
        return out

    def affine(self) -> tuple[Tensor, Tensor]:
        scale, shift = norm_affine(self.bn)
        return scale + self.alpha.double(), shift


NORM_LAYERS: dict[str, type[nn.Module]] = {
    "batchnorm": nn.BatchNorm2d,
    "layernorm": LayerNorm2d,
    "repbn": RepBatchNorm2d,
    "affine": Affine2d,
}

FADED_AT = 0.5
"""Share of the training after which LayerNorm is gone: the rest trains and settles what is deployed."""


def progressive_norms(network: nn.Module) -> list[RepBatchNorm2d]:
    """The norms of a network, or supernet, that change while it is trained."""
    return [module for module in network.modules() if isinstance(module, RepBatchNorm2d)]


@torch.no_grad()
def set_progress(norms: Iterable[RepBatchNorm2d], done: float) -> None:
    """Tell progressive norms how much of the training is done, 0 to 1."""
    for norm in norms:
        norm.layernorm_share.fill_(max(0.0, 1.0 - done / FADED_AT))


def is_affine(norm: nn.Module) -> bool:
    """Whether `norm` is a per-channel affine map at inference, so that it can fold."""
    return isinstance(norm, nn.BatchNorm2d) or hasattr(norm, "affine")


def norm_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Per-channel (scale, shift) that an affine `norm` applies at inference, each [channels], in float64."""
    if not isinstance(norm, nn.BatchNorm2d):
        pair: tuple[Tensor, Tensor] = norm.affine()  # type: ignore[operator]
        return pair
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale
