"""Depthwise convolutions that are trained as several branches and run as one.

macs in the docstrings are those of the folded form, per image, with N = height * width tokens and C = dim.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from search_spaces.layers import ConvNorm, fold_norm_after, norm_affine
from search_spaces.mixers.contract import TokenMixer

LAYER_SCALE = 0.1
"""Where the layer scale of a RepMixer starts: small, so that a block begins near the identity. Estimated."""


class ParallelDepthwise(nn.Module):
    """Sum of depthwise convolutions of several kernels and dilations, each with BatchNorm; folded, one k x k.

    branches: name -> (kernel, dilation), each spanning at most `kernel` pixels (RepVGG, arXiv:2101.03697;
    dilated ones: UniRepLKNet, arXiv:2311.15599). A dilated kernel is a large one with zeros between.
    """

    def __init__(self, dim: int, kernel: int, branches: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        self.kernel = kernel
        self.conv: nn.Module = nn.Identity()
        self.branches = nn.ModuleDict(
            {name: ConvNorm(dim, dim, k, groups=dim, dilation=dilation) for name, (k, dilation) in branches.items()}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)  # nothing, or when folded everything
        if not self.branches:
            return x
        first, *others = self.branches.values()
        out = first(x)
        for branch in others:
            out = out + branch(x)
        return out

    @torch.no_grad()
    def fold_(self) -> None:
        convs: list[Any] = [branch.conv for branch in self.branches.values()]
        if not convs:
            return
        merged = nn.Conv2d(
            convs[0].out_channels, convs[0].out_channels, self.kernel, padding=self.kernel // 2,
            groups=convs[0].out_channels, device=convs[0].weight.device, dtype=convs[0].weight.dtype,
        )  # fmt: skip
        assert merged.bias is not None
        kernels = torch.zeros_like(merged.weight, dtype=torch.float64)
        for conv in convs:
            step = conv.dilation[0]
            span = step * (conv.kernel_size[0] - 1) + 1
            start = (self.kernel - span) // 2
            kernels[:, :, start : start + span : step, start : start + span : step] += conv.weight.double()
        merged.weight.copy_(kernels)
        merged.bias.copy_(torch.stack([conv.bias.double() for conv in convs]).sum(0))
        self.conv, self.branches = merged, nn.ModuleDict()


class LargeKernelConv(TokenMixer):
    """Depthwise k x k convolution, k = 9, 11, 13, with smaller and dilated ones beside it in training.

    The branches are those of UniRepLKNet (arXiv:2311.15599): every dilation at which a kernel fits. macs: k^2 C N.
    """

    kernels = (9, 11, 13)
    norm_after = True
    branch_table: ClassVar = {
        9: {1: 5, 2: 5, 3: 3, 4: 3},
        11: {1: 5, 2: 5, 3: 3, 4: 3, 5: 3},
        13: {1: 5, 2: 7, 3: 3, 4: 3, 5: 3},
    }
    """Kernel -> dilation of a branch -> its kernel."""

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        small = {f"dilated{d}": (k, d) for d, k in self.branch_table[kernel].items()}
        self.dwconv = ParallelDepthwise(dim, kernel, {"main": (kernel, 1), **small})

    def forward(self, x: Tensor) -> Tensor:
        return self.dwconv(x)

    def fold_norm_after_(self, norm: nn.BatchNorm2d) -> None:
        fold_norm_after(norm, [self.dwconv.conv])  # type: ignore[list-item]


class DilatedDepthwise(TokenMixer):
    """Depthwise 3x3 convolutions with dilations 1, 2, 3, summed: multi-level dilated convolution, depthwise.

    After RapidNet's multi-level dilated convolution (arXiv:2412.10995), whose dense branches are `mldc`;
    without activations on its branches the sum is one 7x7 depthwise convolution. macs: 49 C N.
    """

    norm_after = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        self.dwconv = ParallelDepthwise(dim, 7, {f"dilated{d}": (3, d) for d in (1, 2, 3)})

    def forward(self, x: Tensor) -> Tensor:
        return self.dwconv(x)

    def fold_norm_after_(self, norm: nn.BatchNorm2d) -> None:
        fold_norm_after(norm, [self.dwconv.conv])  # type: ignore[list-item]


class RepMixer(TokenMixer):
    """x + g (BN(dw k x k) + BN(dw 1x1) + BN(x) - BN'(x)), folded to one depthwise convolution (FastViT,
    arXiv:2303.14189, section 3.2; g is its layer scale).

    macs: k^2 C N, the residual included.
    """

    kernels = (3, 5)
    norm_inside = True
    residual_inside = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        self.dwconv = ParallelDepthwise(dim, kernel, {"main": (kernel, 1), "scale": (1, 1)})
        self.skip: nn.Module = nn.BatchNorm2d(dim)
        self.norm: nn.Module = nn.BatchNorm2d(dim)
        self.layer_scale: nn.Parameter | None = nn.Parameter(torch.full((dim,), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        if self.layer_scale is None:
            return self.dwconv(x)
        return x + self.layer_scale[:, None, None] * (self.dwconv(x) + self.skip(x) - self.norm(x))

    @torch.no_grad()
    def fold_(self) -> None:
        if self.layer_scale is None:
            return
        assert isinstance(self.skip, nn.BatchNorm2d)
        assert isinstance(self.norm, nn.BatchNorm2d)
        conv: Any = self.dwconv.conv
        (scale, shift), (less, down) = norm_affine(self.skip), norm_affine(self.norm)
        gain = self.layer_scale.double()
        weight = conv.weight.double() * gain[:, None, None, None]
        middle = conv.kernel_size[0] // 2
        weight[:, 0, middle, middle] += 1 + gain * (scale - less)
        conv.weight.copy_(weight)
        conv.bias.copy_(gain * (conv.bias.double() + shift - down))
        conv.role = "residual"
        self.skip, self.norm, self.layer_scale = nn.Identity(), nn.Identity(), None
