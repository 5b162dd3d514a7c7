"""Results of common ops on the meta device, made directly: meta's own way takes half a millisecond an op.

They have the shape, type and memory order that torch gives them on a processor (tested against it); whatever is out of
the ordinary, mixed types, layouts with gaps, wrong sizes, is left to torch. Meta itself forgets the order of some
results: a convolution's always begins with the channels, since meta cannot know which kernel would run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from nas.aten import ACTIVATIONS, ARITHMETIC

POINTWISE = frozenset(ACTIVATIONS) | {
    name for name, function in ARITHMETIC.items() if function not in ("compare", "select")
}

CONVOLUTIONS = frozenset({"convolution", "_convolution"})
KEEP_ORDER = frozenset({"roll", "pixel_shuffle", "reflection_pad2d", "replication_pad2d", "channel_shuffle"})
"""Ops whose result has the memory order of their operand, which meta forgets."""


def in_map_order(name: str, args: tuple[Any, ...], result: Any) -> Any:
    """What meta returned, [batch, channels, height, width] of a convolution always channels last: the order in which
    accelerators write their maps.
    """
    if name in CONVOLUTIONS or (name in KEEP_ORDER and _is_channels_last(args[0])):
        return result.contiguous(memory_format=torch.channels_last) if result.dim() == 4 else result
    return result


def meta_result(name: str, args: tuple[Any, ...], arguments: Mapping[str, Any]) -> Any:
    """What the aten op `name` (with its final underscore, if it works in place) returns; None to ask torch."""
    plain = name.removesuffix("_")
    if plain in POINTWISE:
        return _pointwise(args, arguments, in_place=name != plain)
    rule = _RULES.get(name)
    return rule(args) if rule is not None and not arguments else None


def _pointwise(args: tuple[Any, ...], arguments: Mapping[str, Any], in_place: bool) -> torch.Tensor | None:
    first = args[0]
    if not isinstance(first, torch.Tensor) or not _is_ordinary(first) or not arguments.keys() <= {"alpha"}:
        return None
    for other in args[1:]:
        if isinstance(other, torch.Tensor):
            if not _is_ordinary(other) or not _spreads_over(other, first):
                return None
            if other.stride() != first.stride() and _has_both_orders(first):
                return None  # then the order of the result is that of the other
    return first if in_place else _like(first)


def _convolution(args: tuple[Any, ...]) -> torch.Tensor | None:
    """[batch, channels, height, width] only."""
    data, weight, bias, stride, padding, dilation, transposed, _, groups = args
    if transposed or data.dim() != 4 or weight.dim() != 4 or data.dtype != weight.dtype:
        return None
    if data.shape[1] != weight.shape[1] * groups or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    sides = [
        (data.shape[axis] + 2 * padding[axis - 2] - dilation[axis - 2] * (weight.shape[axis] - 1) - 1)
        // stride[axis - 2]
        + 1
        for axis in (2, 3)
        if len(stride) == len(padding) == len(dilation) == 2
    ]
    if len(sides) != 2 or min(sides) < 1:
        return None
    shape = (data.shape[0], weight.shape[0], *sides)
    return torch.empty(shape, dtype=data.dtype, device=data.device, memory_format=torch.channels_last)


def _layer_norm(args: tuple[Any, ...]) -> tuple[torch.Tensor, ...] | None:
    data, normalized = args[0], args[1]
    if not data.is_contiguous() or list(data.shape[-len(normalized) :]) != list(normalized):
        return None
    statistics = (*data.shape[: -len(normalized)], *(1 for _ in normalized))
    return _like(data), data.new_empty(statistics), data.new_empty(statistics)


def _like(value: torch.Tensor) -> torch.Tensor:
    """As `torch.empty_like`, which takes fifteen times as long on the meta device."""
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


_RULES: Mapping[str, Callable[[tuple[Any, ...]], Any]] = {
    "convolution": _convolution,
    "native_layer_norm": _layer_norm,
}


def _is_ordinary(value: torch.Tensor) -> bool:
    return value.dtype == torch.float32 and (value.is_contiguous() or _is_channels_last(value))


def _is_channels_last(value: torch.Tensor) -> bool:
    return value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)


def _spreads_over(small: torch.Tensor, large: torch.Tensor) -> bool:
    """Whether both together have the shape of `large`."""
    if small.shape == large.shape:
        return True
    sizes = zip(reversed(small.shape), reversed(large.shape), strict=False)
    return small.dim() <= large.dim() and all(one in (1, other) for one, other in sizes)


def _has_both_orders(value: torch.Tensor) -> bool:
    return value.is_contiguous() and _is_channels_last(value)
