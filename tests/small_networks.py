"""Architectures and networks small enough to be quantized and exported in a test."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from search_spaces.architecture import Architecture, Block, BlockBits, Stage
from search_spaces.menu import MENU
from search_spaces.network import MetaFormerNet, build_network

T = TypeVar("T", bound=nn.Module)

MIXER_KERNELS = [(name, facts.kernels[-1]) for name, facts in MENU.items() if facts.group == "core"]
"""The core mixers with their largest kernels: what tests take that need several; all are in `test_mixers`."""


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


def randomize(module: T, seed: int = 0) -> T:
    """Weights, biases and BatchNorm statistics that hide no mistake (no zeros, no ones)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if isinstance(tensor, nn.Parameter) or "running" in name:
                noise = torch.rand(tensor.shape, generator=generator)
                fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
                positive = "running_var" in name or (tensor.ndim == 1 and name.endswith("weight"))
                tensor.copy_(noise + 0.5 if positive else (noise - 0.5) * 2 / fan_in**0.5)
    return module


def random_images(count: int, seed: int = 1) -> Tensor:
    """[count, 3, 16, 16], smooth enough that neighbours resemble each other as in a photograph."""
    coarse = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (16, 16), mode="bicubic")
