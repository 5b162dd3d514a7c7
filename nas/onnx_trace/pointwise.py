"""ONNX ops that work element by element, and reductions, in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nas.onnx_trace.call import Call, Handler


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor], call: Call) -> Tensor:
    data = call.tensor(0)
    axes = call.ints(1, "axes")
    if not axes:
        if call.get("noop_with_empty_axes", 0):
            return data
        axes = tuple(range(data.dim()))
    counted = sorted(axis % data.dim() for axis in axes)  # never as pooling has them
    return function(data, counted, bool(call.get("keepdims", 1)))


def _global_pool(function: Callable[[Tensor, list[int], bool], Tensor], call: Call) -> Tensor:
    return function(call.tensor(0), list(range(-1, 1 - call.tensor(0).dim(), -1)), True)


def _arg(call: Call) -> Tensor:
    return torch.argmax(call.tensor(0), call.get("axis", 0), bool(call.get("keepdims", 1)))


def _clip(call: Call) -> Tensor:
    data = call.tensor(0)
    low, high = (
        call.numbers(index)[0] if call.has(index) else call.get(name, None) for index, name in ((1, "min"), (2, "max"))
    )
    if low == 0 and (high is None or high > 1e30):
        return F.relu(data)
    return F.relu6(data) if (low, high) == (0, 6) else torch.clamp(data, low, high)


def _prelu(call: Call) -> Tensor:
    return F.prelu(call.tensor(0), call.tensor(1).flatten())


def _gelu_bias(call: Call) -> Tensor:
    return F.gelu(call.tensor(0) + call.tensor(1))


def _unary(function: Callable[[Tensor], Tensor], call: Call) -> Tensor:
    return function(call.tensor(0))


def _binary(function: Callable[[Any, Any], Tensor], call: Call) -> Tensor:
    left, right = call.operand(0), call.operand(1)
    if not isinstance(left, Tensor) and not isinstance(right, Tensor):
        left = call.tensor(0)
    return function(left, right)


def _variadic(function: Callable[[Any, Any], Tensor], call: Call) -> Tensor:
    return reduce(function, (call.tensor(index) for index in range(len(call.values))))


def _mean_of(call: Call) -> Tensor:
    return _variadic(torch.add, call) / len(call.values)


def _where(call: Call) -> Tensor:
    return torch.where(call.tensor(0).bool(), call.tensor(1), call.tensor(2))


def _divide(left: Tensor | float, right: Tensor | float) -> Tensor:
    if not isinstance(left, Tensor):
        return torch.reciprocal(right) * left if left != 1 else torch.reciprocal(right)  # type: ignore[arg-type]
    return left / right


def _l1(data: Tensor, axes: list[int], keep: bool) -> Tensor:
    return data.abs().sum(axes, keep)


def _l2(data: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.linalg.vector_norm(data, 2, axes, keep)


def _square_sum(data: Tensor, axes: list[int], keep: bool) -> Tensor:
    return (data * data).sum(axes, keep)


ACTIVATIONS: Mapping[str, Handler] = {
    "Relu": partial(_unary, F.relu),
    "LeakyRelu": partial(_unary, F.leaky_relu),
    "Elu": partial(_unary, F.elu),
    "Celu": partial(_unary, F.elu),
    "Selu": partial(_unary, F.elu),
    "HardSigmoid": partial(_unary, F.hardsigmoid),
    "HardSwish": partial(_unary, F.hardswish),
    "Sigmoid": partial(_unary, torch.sigmoid),
    "Swish": partial(_unary, F.silu),
    "QuickGelu": partial(_unary, F.silu),
    "Tanh": partial(_unary, torch.tanh),
    "Gelu": partial(_unary, F.gelu),
    "FastGelu": partial(_unary, F.gelu),
    "BiasGelu": _gelu_bias,
    "Mish": partial(_unary, F.mish),
    "Softplus": partial(_unary, F.softplus),
    "Abs": partial(_unary, torch.abs),
    "Neg": partial(_unary, torch.neg),
    "Exp": partial(_unary, torch.exp),
    "Log": partial(_unary, torch.log),
    "Sqrt": partial(_unary, torch.sqrt),
    "Reciprocal": partial(_unary, torch.reciprocal),
    "Erf": partial(_unary, torch.erf),
    "Sin": partial(_unary, torch.sin),
    "Cos": partial(_unary, torch.cos),
    "Floor": partial(_unary, torch.floor),
    "Ceil": partial(_unary, torch.ceil),
    "Round": partial(_unary, torch.round),
    "Sign": partial(_unary, torch.sign),
    "Not": partial(_unary, torch.logical_not),
    "Clip": _clip,
    "PRelu": _prelu,
}

POINTWISE: Mapping[str, Handler] = {
    **ACTIVATIONS,
    "ReduceMean": partial(_reduction, torch.mean),
    "ReduceSum": partial(_reduction, torch.sum),
    "ReduceMax": partial(_reduction, torch.amax),
    "ReduceMin": partial(_reduction, torch.amin),
    "ReduceL1": partial(_reduction, _l1),
    "ReduceL2": partial(_reduction, _l2),
    "ReduceSumSquare": partial(_reduction, _square_sum),
    "ReduceLogSumExp": partial(_reduction, torch.logsumexp),
    "GlobalAveragePool": partial(_global_pool, torch.mean),
    "GlobalMaxPool": partial(_global_pool, torch.amax),
    "ArgMax": _arg,
    "ArgMin": _arg,
    "Add": partial(_binary, torch.add),
    "Sub": partial(_binary, lambda left, right: left - right),
    "Mul": partial(_binary, torch.mul),
    "Div": partial(_binary, _divide),
    "Pow": partial(_binary, torch.pow),
    "Mod": partial(_binary, torch.remainder),
    "Sum": partial(_variadic, torch.add),
    "Max": partial(_variadic, torch.maximum),
    "Min": partial(_variadic, torch.minimum),
    "Mean": _mean_of,
    "Where": _where,
    "Equal": partial(_binary, torch.eq),
    "Greater": partial(_binary, torch.gt),
    "GreaterOrEqual": partial(_binary, torch.ge),
    "Less": partial(_binary, torch.lt),
    "LessOrEqual": partial(_binary, torch.le),
    "And": partial(_binary, torch.logical_and),
    "Or": partial(_binary, torch.logical_or),
}
"""ONNX op -> what it is in torch."""
