"""ONNX products, normalizations, softmax and pooling in torch: a table of one small function a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nas.onnx_trace.call import Call, Handler
from nas.onnx_trace.pointwise import ACTIVATIONS
from nas.trace import TraceError


def _convolution(call: Call) -> Tensor | tuple[Tensor, ...]:
    data, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    axes = data.dim() - 2
    strides, dilations = call.get("strides", [1] * axes), call.get("dilations", [1] * axes)
    kernel = list(weight.shape[2:])
    data, padding = _padded(data, _pads(call, kernel, strides, dilations), 0.0)
    function = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    out = function(data, weight, bias, strides, padding, dilations, call.get("group", 1))
    activation = call.get("activation", "")
    return ACTIVATIONS[activation](Call(call.node, (out,), call.opset, call.constant)) if activation else out


def _pads(call: Call, kernel: list[int], strides: list[int], dilations: list[int]) -> list[tuple[int, int]]:
    """(before, after) per spatial axis."""
    axes = len(kernel)
    auto = call.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = []
        for size, side, stride, dilation in zip(call.tensor(0).shape[2:], kernel, strides, dilations, strict=True):
            total = max(0, (-(-size // stride) - 1) * stride + dilation * (side - 1) + 1 - size)
            small, large = total // 2, total - total // 2
            pads.append((small, large) if auto == "SAME_UPPER" else (large, small))
        return pads
    given = [0] * (2 * axes) if auto == "VALID" else call.get("pads", [0] * (2 * axes))
    return list(zip(given[:axes], given[axes:], strict=True))


def _padded(data: Tensor, pads: list[tuple[int, int]], value: float, limit: int | None = None) -> tuple[Tensor, Any]:
    """(data, symmetric padding): other padding is done before. limit: the most a pooling may pad by itself."""
    if all(before == after and (limit is None or before <= limit) for before, after in pads):
        return data, [before for before, _ in pads]
    flat = [amount for pair in reversed(pads) for amount in pair]
    return F.pad(data, flat, value=value), [0] * len(pads)


def _transposed_convolution(call: Call) -> Tensor:
    data, weight = call.tensor(0), call.tensor(1)
    axes = data.dim() - 2
    strides, dilations = call.get("strides", [1] * axes), call.get("dilations", [1] * axes)
    pads, extra = call.get("pads", [0] * (2 * axes)), call.get("output_padding", [0] * axes)
    wanted = call.get("output_shape", None)
    if wanted is None and call.get("auto_pad", "NOTSET").startswith("SAME"):
        wanted = [size * stride for size, stride in zip(data.shape[2:], strides, strict=True)]
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    arguments = (call.optional(2), strides)
    if wanted is None and pads[:axes] == pads[axes:]:
        return function(data, weight, *arguments, pads[:axes], extra, call.get("group", 1), dilations)
    out = function(data, weight, *arguments, 0, 0, call.get("group", 1), dilations)
    if wanted is None:
        cut = [before + after - more for before, after, more in zip(pads[:axes], pads[axes:], extra, strict=True)]
        wanted = [size - less for size, less in zip(out.shape[2:], cut, strict=True)]
    for axis, size in enumerate(wanted[-axes:]):
        out = out.narrow(2 + axis, 0, min(size, out.shape[2 + axis]))
    return out


def _gemm(call: Call) -> Tensor:
    left, right = call.tensor(0), call.tensor(1)
    left = left.t() if call.get("transA", 0) else left
    right = right.t() if call.get("transB", 0) else right
    return torch.addmm(call.tensor(2), left, right) if call.has(2) else torch.mm(left, right)


def _matmul(call: Call) -> Tensor:
    left, right = call.tensor(0), call.tensor(1)
    left = left.transpose(-1, -2) if call.get("transA", 0) else left
    right = right.transpose(-1, -2) if call.get("transB", 0) else right
    return torch.matmul(left, right)


def _attention(call: Call) -> Tensor:
    """ONNX Attention: [batch, heads, tokens, width], or [batch, tokens, heads * width] with the numbers of heads."""
    parts = [call.tensor(index) for index in range(3)]
    flat = parts[0].dim() == 3
    if flat:
        heads = (call.get("q_num_heads", 1), *(call.get("kv_num_heads", 1),) * 2)
        parts = [part.unflatten(-1, (count, -1)).transpose(1, 2) for part, count in zip(parts, heads, strict=True)]
    query, key, value = parts
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=call.optional(3))
    return out.transpose(1, 2).flatten(2) if flat else out


def _batch_norm(call: Call) -> Tensor:
    data, weight, bias, mean, variance = (call.tensor(index) for index in range(5))
    return F.batch_norm(data, mean, variance, weight, bias, training=False)


def _instance_norm(call: Call) -> Tensor:
    return F.group_norm(call.tensor(0), call.tensor(0).shape[1], call.tensor(1), call.tensor(2))


def _group_norm(call: Call) -> Tensor:
    data, weight, bias = call.tensor(0), call.optional(1), call.optional(2)
    if weight is not None and weight.numel() != data.shape[1]:  # before opset 21: one number a group
        weight = bias = None
    return F.group_norm(data, call.get("num_groups", 1), weight, bias)


def _layer_norm(call: Call) -> Tensor:
    data = call.tensor(0)
    axis = call.get("axis", -1) % data.dim()
    return _normalized(call, data, tuple(range(axis, data.dim())))


def _normalized_layer(call: Call) -> Tensor:
    data = call.tensor(0)
    return _normalized(call, data, tuple(sorted(axis % data.dim() for axis in call.get("axes", (-1,)))))


def _normalized(call: Call, data: Tensor, axes: tuple[int, ...]) -> Tensor:
    """LayerNorm over any axes: they are brought to the end, which costs where the bytes must move."""
    others = [axis for axis in range(data.dim()) if axis not in axes]
    order = [*others, *axes]
    moved = data.permute(order)
    shape = moved.shape[len(others) :]
    weight, bias = (
        value.reshape(shape) if value is not None and value.numel() == prod(shape) else None
        for value in (call.optional(1), call.optional(2))
    )
    out = F.layer_norm(moved, tuple(shape), weight, bias)
    return out.permute([order.index(axis) for axis in range(data.dim())])


def _rms_norm(call: Call) -> Tensor:
    data = call.tensor(0)
    return F.rms_norm(data, tuple(data.shape[call.get("axis", -1) % data.dim() :]), call.optional(1))


def _skip_layer_norm(call: Call) -> tuple[Tensor, ...]:
    total = call.tensor(0) + call.tensor(1)
    out = F.layer_norm(total, (total.shape[-1],), call.optional(2), call.optional(3))
    return out, out, out, total


def _unit_norm(call: Call) -> Tensor:
    data = call.tensor(0)
    return data / torch.linalg.vector_norm(data, call.get("p", 2), call.get("axis", -1), keepdim=True)


def _local_response_norm(call: Call) -> Tensor:
    data = call.tensor(0)
    total = squares = data * data
    for _ in range(call.get("size", 1) - 1):
        total = total + squares
    return data / torch.pow(total, call.get("beta", 0.75))


def _softmax(function: Callable[[Tensor, int], Tensor], call: Call) -> Tensor:
    data = call.tensor(0)
    if call.opset >= 13:
        return function(data, call.get("axis", -1))
    axis = call.get("axis", 1) % data.dim()  # before opset 13: over that axis and all behind it
    if prod(data.shape[axis + 1 :]) == 1:
        return function(data, axis)
    return function(data.flatten(axis), axis).reshape(data.shape)


def _pool(largest: bool, call: Call) -> Tensor:
    data = call.tensor(0)
    kernel = list(call.get("kernel_shape", []))
    if len(kernel) > 2:
        raise TraceError(
            f"{call.node.op} {call.node.name!r} pools over {len(kernel)} axes; the cost model knows 1 and 2"
        )
    axes = len(kernel)
    strides, dilations = list(call.get("strides", [1] * axes)), list(call.get("dilations", [1] * axes))
    pads = _pads(call, kernel, strides, dilations)
    if axes == 1:
        data, kernel, strides, dilations, pads = (
            data.unsqueeze(2),
            [1, *kernel],
            [1, *strides],
            [1, *dilations],
            [(0, 0), *pads],
        )
    data, padding = _padded(data, pads, float("-inf") if largest else 0.0, min(kernel) // 2)
    ceil = bool(call.get("ceil_mode", 0))
    if largest:
        out = F.max_pool2d(data, kernel, strides, padding, dilations, ceil)
    else:
        out = F.avg_pool2d(data, kernel, strides, padding, ceil)
    return out.squeeze(2) if axes == 1 else out


def _einsum(call: Call) -> Tensor:
    return torch.einsum(call.get("equation", ""), *(call.tensor(index) for index in range(len(call.values))))


OPS: Mapping[str, Handler] = {
    "Conv": _convolution,
    "FusedConv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "FusedMatMul": _matmul,
    "Einsum": _einsum,
    "Attention": _attention,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "NormalizedLayer": _normalized_layer,
    "RMSNormalization": _rms_norm,
    "SimplifiedLayerNormalization": _rms_norm,
    "SkipLayerNormalization": _skip_layer_norm,
    "LpNormalization": _unit_norm,
    "LRN": _local_response_norm,
    "Softmax": partial(_softmax, torch.softmax),
    "LogSoftmax": partial(_softmax, torch.log_softmax),
    "MaxPool": partial(_pool, True),
    "AveragePool": partial(_pool, False),
}
"""ONNX op -> what it is in torch."""
