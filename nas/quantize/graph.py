"""Which tensors of a network are quantized: rules on a torch.fx graph of the folded network.

A quantizer stands behind every operation whose result an accelerator writes to memory, except: a layer or a
sum that only an activation function reads is fused with it; a tensor that only a concatenation reads is
written into it, on its grid; views and arithmetic with a constant keep the grid of what they read; logits
stay float.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from nas.bits import bits_at
from search_spaces.architecture import Architecture
from search_spaces.channel_mixers import ResponseNorm
from search_spaces.layers import Add, Constant, Cosine, MatMul, Multiply, Sine, SquaredReLU, StarReLU
from search_spaces.mixers.sparse import UnitLength
from search_spaces.norms import LayerNorm2d

INPUT = "input"
"""Name of the network's input among the quantized tensors."""

_ACTIVATIONS = (nn.ReLU, nn.Hardswish, nn.Hardsigmoid, nn.GELU, StarReLU, SquaredReLU, Sine, Cosine)
_WEIGHTED = (nn.Conv2d, nn.Linear)
_FUSES_ACTIVATION = (*_WEIGHTED, Add)
_WRITING_MODULES = (
    *_FUSES_ACTIVATION,
    *_ACTIVATIONS,
    Multiply,
    MatMul,
    Constant,
    LayerNorm2d,
    ResponseNorm,
    UnitLength,
    nn.Softmax,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
)
_VIEW_MODULES = (nn.Identity, nn.Dropout, nn.Flatten, nn.PixelShuffle)
_VIEW_FUNCTIONS = (operator.getitem, torch.split, torch.nn.functional.pad)  # zero is on every grid
_VIEW_METHODS = ("reshape", "view", "transpose", "permute", "flatten", "contiguous", "split")
_ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.truediv)
_WRITING_METHODS = ("sum", "mean")


@dataclass(frozen=True)
class Point:
    """A tensor that gets a quantizer.

    name: unique, stable across processes: the module path, or for a bare operation its owner's path and its name.
    bits: 8 (asymmetric, unsigned) or 16 (symmetric, signed).
    """

    name: str
    node: fx.Node
    bits: int


class _Tracer(fx.Tracer):
    """Stops at modules without children: torch's layers, the norms, the small operation modules."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return next(m.children(), None) is None


def trace(network: nn.Module) -> fx.Graph:
    """Graph of `network` with its layers as `call_module` nodes. Weights are not touched."""
    return _Tracer().trace(network)


def weighted_layers(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers whose weights are quantized, by module path, in order of definition."""
    return {name: module for name, module in network.named_modules() if isinstance(module, _WEIGHTED)}


def quantization_points(network: nn.Module, graph: fx.Graph, arch: Architecture) -> list[Point]:
    """The tensors of `graph` that get a quantizer, in order of execution, with their bits by `arch`'s policy.

    Raises ValueError for an operation that has no rule, naming it.
    """
    modules = dict(network.named_modules())
    tensors: set[fx.Node] = set()
    points: list[Point] = []
    names: set[str] = set()
    for node in graph.nodes:
        if node.op == "output" or not _is_tensor(node, tensors):
            continue
        tensors.add(node)
        if not _writes(node, modules, tensors) or _fused(node, modules) or _feeds_output(node, modules):
            continue
        path, name = _names(node)
        suffix = 2
        while name in names:
            name, suffix = f"{_names(node)[1]}{suffix}", suffix + 1
        names.add(name)
        role = getattr(modules[path], "role", "") if node.op == "call_module" else ""
        bits = 8 if name == INPUT else bits_at(path, role, arch)[1]
        points.append(Point(name, node, bits))
    return points


def tensors_read(network: nn.Module, graph: fx.Graph, points: list[Point]) -> dict[str, str]:
    """Path of each weighted layer -> name of the quantized tensor that it reads, through views.

    Raises ValueError when a layer reads something that is not on the grid of one tensor.
    """
    modules = dict(network.named_modules())
    names = {point.node: point.name for point in points}
    found = {}
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(modules[str(node.target)], _WEIGHTED):
            source = node.all_input_nodes[0]
            while source not in names:
                if not _is_view(source, modules):
                    raise ValueError(f"the layer {node.target} reads {source}, which is on no grid")
                source = source.all_input_nodes[0]
            found[str(node.target)] = names[source]
    return found


def _is_view(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _VIEW_MODULES)
    return node.target in (_VIEW_METHODS if node.op == "call_method" else _VIEW_FUNCTIONS)


def _is_tensor(node: fx.Node, tensors: set[fx.Node]) -> bool:
    """Shapes and the numbers computed from them are nodes too; they are what does not come from a tensor."""
    if node.op in ("placeholder", "call_module"):
        return True
    if node.op == "call_function" and node.target is getattr:
        return False
    return any(source in tensors for source in node.all_input_nodes)


def _writes(node: fx.Node, modules: dict[str, nn.Module], tensors: set[fx.Node]) -> bool:
    """Whether `node` computes a tensor, rather than viewing another one. Raises ValueError when unknown."""
    if node.op == "placeholder":
        return True
    if _is_view(node, modules):
        return False
    if node.op == "call_module":
        module = modules[str(node.target)]
        if isinstance(module, _WRITING_MODULES):
            return True
        raise ValueError(f"no quantization rule for the layer {type(module).__name__} at {node.target}")
    if node.target is torch.cat or node.target in _WRITING_METHODS:
        return True
    if node.target in _ARITHMETIC:
        return all(isinstance(source, fx.Node) and source in tensors for source in node.args)
    raise ValueError(f"no quantization rule for {node.target} in {_names(node)[0] or 'the network'}")


def _fused(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the result of `node` is never written: its one reader is the layer's activation, or a concatenation."""
    reader = node
    while len(reader.users) == 1:
        reader = next(iter(reader.users))
        if reader.op == "call_function":
            return reader.target is torch.cat
        following = modules.get(str(reader.target)) if reader.op == "call_module" else None
        if isinstance(following, _ACTIVATIONS):
            return node.op == "call_module" and isinstance(modules[str(node.target)], _FUSES_ACTIVATION)
        if not isinstance(following, nn.Identity):  # an Identity is where a BatchNorm was
            return False
    return False


def _feeds_output(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether `node` is what the network returns, views aside."""
    return any(
        reader.op == "output" or (_is_view(reader, modules) and _feeds_output(reader, modules)) for reader in node.users
    )


def _names(node: fx.Node) -> tuple[str, str]:
    """(path of the owning module, name of the tensor)."""
    if node.op == "placeholder":
        return "", INPUT
    if node.op == "call_module":
        return str(node.target), str(node.target)
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {"": ("", None)}
    owner = list(stack.values())[-1][0]
    operation = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return owner, f"{owner}.{operation}"
