"""Blocks of timm networks as parts that are measured and costed by themselves.

A block is a module that a network calls once and that makes a square map from a square map: an inverted bottleneck, a
squeeze and excitation gate, a stem. Blocks of transformers, which make tokens from tokens, stand between the copies
that make tokens of a map and a map of tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

MOST_LAYERS = 12
"""Convolutions and linear layers of a block; a module with more is a stage."""

_LAYERS = (nn.Conv2d, nn.Linear)


class TimmPart(nn.Module):
    """A module of a timm network, merged as deployment merges it.

    model: a timm name; module: its path in that network; in_chans, out_chans, stride: of the maps it reads and writes;
    tokens: whether it works on [batch, positions, channels].
    """

    def __init__(self, model: str, module: str, in_chans: int, out_chans: int, stride: int, tokens: bool) -> None:
        super().__init__()
        self.tokens = tokens
        self.part = copy.deepcopy(_network(model, torch.empty(0).device.type).get_submodule(module))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in_chans, side, side] -> [batch, out_chans, side / stride, side / stride], rounded up."""
        if not self.tokens:
            return self.part(x)
        height, width = x.shape[2:]
        made = self.part(x.flatten(2).transpose(1, 2))
        return made.transpose(1, 2).reshape(made.shape[0], made.shape[2], height, width)


@contextmanager
def separate_attention() -> Iterator[None]:
    """Networks that timm makes in here multiply, take softmax and multiply, as graphs show it, in place of torch's one
    call."""
    from timm.layers import set_fused_attn, use_fused_attn

    enabled, experimental = use_fused_attn(), use_fused_attn(experimental=True)
    set_fused_attn(False)
    try:
        yield
    finally:
        set_fused_attn(enabled, experimental)


@lru_cache(maxsize=32)
def _network(name: str, device: str) -> nn.Module:
    """In evaluation mode, with branches merged; merging computes, so it needs weights."""
    import timm
    from timm.utils import reparameterize_model

    with separate_attention(), torch.device("cpu"):
        model = reparameterize_model(timm.create_model(name).eval())
    return model.to(device)


def timm_descriptions(model: str) -> Iterator[dict[str, Any]]:
    """Descriptions (`nas.subjects.part_subject`) of all blocks of a timm network, in order of execution, equal ones
    once.
    """
    network = _network(model, "meta")
    size = network.default_cfg["input_size"]  # type: ignore[index]
    seen: dict[str, list[tuple[Any, Any]]] = {}
    hooks = [
        module.register_forward_hook(_keeping(seen.setdefault(name, [])), with_kwargs=True)
        for name, module in network.named_modules()
        if name and 1 <= sum(isinstance(layer, _LAYERS) for layer in module.modules()) <= MOST_LAYERS
    ]
    try:
        with torch.no_grad():
            network(torch.empty((1, *size), device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    known: set[tuple[Any, ...]] = set()
    for name, calls in seen.items():
        module = network.get_submodule(name)
        if isinstance(module, _LAYERS):
            continue
        shapes = _shapes(*calls[0]) if len(calls) == 1 else None  # no call, or several
        if shapes is None:
            continue
        (channels, side), (out_chans, out_side), tokens = shapes
        stride = round(side / out_side)
        if out_side != -(-side // stride):
            continue
        identity = (str(module), channels, side, out_chans, stride)
        if identity in known:
            continue
        known.add(identity)
        arguments = {"model": model, "module": name, "in_chans": channels, "out_chans": out_chans, "stride": stride}
        yield {"part": "TimmPart", "channels": channels, "size": side, "arguments": arguments | {"tokens": tokens}}


def _keeping(calls: list[tuple[Any, Any]]) -> Callable[[nn.Module, Any, dict[str, Any], Any], None]:
    """A hook that keeps what a module is given and what it makes."""

    def keep(_: nn.Module, given: Any, options: dict[str, Any], made: Any) -> None:
        calls.append(((*given, *(value for value in options.values() if value is not None)), made))

    return keep


def _shapes(given: Any, made: Any) -> tuple[tuple[int, int], tuple[int, int], bool] | None:
    """((channels, side) read, (channels, side) written, whether of tokens); None for anything but that."""
    if len(given) != 1 or not isinstance(given[0], Tensor) or not isinstance(made, Tensor):
        return None
    if given[0].dim() == made.dim() == 4:
        (_, channels, height, width), (_, out_chans, out_height, out_width) = given[0].shape, made.shape
        square = height == width and out_height == out_width and height >= out_height > 1
        return ((channels, height), (out_chans, out_height), False) if square else None
    if given[0].dim() == made.dim() == 3 and given[0].shape == made.shape:
        _, positions, channels = made.shape
        side = isqrt(positions)
        is_square = side > 1 and positions - side * side in (0, 1)  # with a class token or without
        return ((channels, side), (channels, side), True) if is_square else None
    return None
