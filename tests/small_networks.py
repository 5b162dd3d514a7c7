"""Architectures and networks small enough to be quantized and exported in a test."""

from __future__ import annotations

import torch
from torch import Tensor

from search_spaces.architecture import Architecture, Block, BlockBits, Stage
from search_spaces.mixers import MIXERS
from search_spaces.network import MetaFormerNet, build_network

MIXER_KERNELS: list[tuple[str, int]] = [
    (name, mixer.kernels[-1])  # type: ignore[attr-defined]
    for name, mixer in MIXERS.items()
]
"""Every mixer with its largest kernel."""


def small_architecture(
    blocks: list[tuple[str, int]],
    bits: str = "w8a8",
    norm: str = "batchnorm",
    activation: str = "relu",
    stages: int = 2,
) -> Architecture:
    """`stages` stages of the given (mixer, kernel) blocks at 16 px."""
    made = tuple(Block(mixer, kernel, 2.0, BlockBits.parse(bits)) for mixer, kernel in blocks)
    return Architecture(16, "conv3s2", tuple(Stage(32, 16, norm, activation, made) for _ in range(stages)))


def random_network(arch: Architecture, num_classes: int = 10) -> MetaFormerNet:
    """Random weights, large enough that every branch counts, and BatchNorms far from the identity."""
    torch.manual_seed(0)
    network = build_network(arch, num_classes).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.5)
    return network


def random_images(count: int, seed: int = 1) -> Tensor:
    """[count, 3, 16, 16], smooth enough that neighbours resemble each other as in a photograph."""
    coarse = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (16, 16), mode="bicubic")
