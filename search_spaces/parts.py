"""A network as the sub-blocks that are costed one by one: stem, downsamplings, blocks, head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from search_spaces.architecture import STEMS, Architecture
from search_spaces.layers import ConvNorm
from search_spaces.mixers import MIXERS
from search_spaces.network import Head, MetaFormerBlock, block_kwargs, bound_size, fold_
from search_spaces.stems import Stem


@dataclass(frozen=True)
class NetworkPart:
    """A piece of a network that is costed by itself.

    name: module path. spec: equal for parts of equal cost, bits apart. build: makes the folded module (call it under
    `torch.device("meta")` to trace it). input_shape: [batch, channels, height, width] with batch 1. module: equal where
    the module is, whatever the size of its input.
    """

    name: str
    spec: tuple[Any, ...]
    build: Callable[[], nn.Module]
    input_shape: tuple[int, int, int, int]
    module: tuple[Any, ...] = ()


def folded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """What makes the module of `make` in the form in which it runs: folded, in evaluation mode."""

    def build() -> nn.Module:
        return fold_(nn.Sequential(make()))[0].eval()  # type: ignore[index]

    return build


def network_parts(arch: Architecture, num_classes: int, in_chans: int = 3) -> Iterator[NetworkPart]:
    """Stem, downsamplings, blocks and head of `arch` in order of execution, in the folded form in which they run."""

    def part(name: str, cls: type[nn.Module], side: int, chans: int, source: str = "", **kwargs: Any) -> NetworkPart:
        spec = (cls.__name__, source, chans, side, *sorted(kwargs.items()))
        module = (cls.__name__, source, *sorted(kwargs.items()))
        return NetworkPart(name, spec, folded(lambda: cls(**kwargs)), (1, chans, side, side), module)

    first, size = arch.stages[0], arch.resolution
    yield part(
        "stem",
        Stem,
        size,
        in_chans,
        kind=arch.stem,
        in_chans=in_chans,
        dim=first.width,
        activation=first.activation,
    )
    for _ in range(STEMS[arch.stem].bit_length() - 1):
        size = (size + 1) // 2
    before = first.width
    for index, stage in enumerate(arch.stages):
        if index > 0:
            name = f"stages.{index}.downsample"
            yield part(name, ConvNorm, size, before, in_chans=before, out_chans=stage.width, kernel=3, stride=2)
            size = (size + 1) // 2
        for number, block in enumerate(stage.blocks):
            yield part(
                f"stages.{index}.blocks.{number}",
                MetaFormerBlock,
                size,
                stage.width,
                MIXERS[block.mixer].__module__ if block.mixer in MIXERS else "",  # a plugin's names its text
                dim=stage.width,
                **block_kwargs(block),
                norm=stage.norm,
                activation=stage.activation,
                role_width=stage.role_width,
                **bound_size(block.mixer, size),
            )
        before = stage.width
    norm = arch.stages[-1].norm
    yield part("head", Head, size, before, dim=before, num_classes=num_classes, norm=norm)
