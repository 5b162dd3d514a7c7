"""ONNX ops that move data, or only say how it is to be seen, in torch. Views are free, as everywhere in tracing."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nas.onnx_trace.call import Call, Handler
from nas.trace import TraceError


def _reshape(call: Call) -> Tensor:
    data = call.tensor(0)
    sizes = list(call.ints(1, "shape") or ())
    if not call.get("allowzero", 0):
        sizes = [data.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return data.reshape(sizes)


def _flatten(call: Call) -> Tensor:
    data = call.tensor(0)
    axis = call.get("axis", 1)
    axis = axis + data.dim() if axis < 0 else axis
    return data.reshape(prod(data.shape[:axis]), -1)


def _squeeze(call: Call) -> Tensor:
    data = call.tensor(0)
    axes = call.ints(1, "axes")
    return data.squeeze() if axes is None else data.squeeze(tuple(axes))


def _unsqueeze(call: Call) -> Tensor:
    data = call.tensor(0)
    axes = call.ints(1, "axes") or ()
    rank = data.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        data = data.unsqueeze(axis)
    return data


def _transpose(call: Call) -> Tensor:
    data = call.tensor(0)
    return data.permute(call.get("perm", list(range(data.dim()))[::-1]))


def _expand(call: Call) -> Tensor:
    data = call.tensor(0)
    return data.expand(torch.broadcast_shapes(data.shape, call.ints(1) or ()))


def _tile(call: Call) -> Tensor:
    repeats = call.ints(1) or ()
    return call.tensor(0) if all(count == 1 for count in repeats) else call.tensor(0).repeat(repeats)


def _concat(call: Call) -> Tensor:
    parts = [call.tensor(index) for index in range(len(call.values))]
    return torch.cat(parts, call.get("axis", 0)) if len(parts) > 1 else parts[0]


def _split(call: Call) -> tuple[Tensor, ...]:
    data, axis = call.tensor(0), call.get("axis", 0)
    sizes = call.ints(1, "split")
    if sizes is None:
        each = -(-data.shape[axis] // len(call.node.outputs))
        return tuple(torch.split(data, each, axis))
    return tuple(torch.split(data, list(sizes), axis))


def _slice(call: Call) -> Tensor:
    data = call.tensor(0)
    starts, ends = call.ints(1, "starts") or (), call.ints(2, "ends") or ()
    axes = call.ints(3, "axes") or tuple(range(len(starts)))
    steps = call.ints(4) or (1,) * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = data.shape[axis]
        if step > 0:
            chosen = range(size)[slice(start, end, step)]
            data = data[(slice(None),) * (axis % data.dim()) + (slice(chosen.start, chosen.stop, step),)]
        else:
            chosen = range(*slice(start, end if end >= -size else None, step).indices(size))
            low, high = (min(chosen), max(chosen) + 1) if len(chosen) else (0, 0)
            data = data.narrow(axis, low, high - low).flip(axis)
            data = data[(slice(None),) * (axis % data.dim()) + (slice(None, None, -step),)]
    return data


def _pad(call: Call) -> Tensor:
    data = call.tensor(0)
    pads = call.ints(1, "pads") or ()
    axes = call.ints(3) or tuple(range(data.dim()))
    amounts = dict(
        zip((axis % data.dim() for axis in axes), zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True)
    )
    flat = [amount for axis in reversed(range(data.dim())) for amount in amounts.get(axis, (0, 0))]
    while flat and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    if not flat:
        return data
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[
        call.get("mode", "constant")
    ]
    return F.pad(data, flat, mode)


def _gather(call: Call) -> Tensor:
    data, axis, index = call.tensor(0), call.get("axis", 0), call.values[1]
    if isinstance(index, np.ndarray):
        places = index.reshape(-1) % data.shape[axis]
        if index.ndim == 0:
            return data.select(axis, int(places[0]))
        if index.ndim == 1 and np.array_equal(places, np.arange(places[0], places[0] + places.size)):
            return data.narrow(axis, int(places[0]), places.size)
    places = call.tensor(1)
    axis = axis % data.dim()
    picked = torch.index_select(data, axis, places.flatten().long())
    return picked.reshape(*data.shape[:axis], *places.shape, *data.shape[axis + 1 :])


def _gather_elements(call: Call) -> Tensor:
    return torch.gather(call.tensor(0), call.get("axis", 0), call.tensor(1).long())


def _depth_to_space(call: Call) -> Tensor:
    return F.pixel_shuffle(call.tensor(0), call.get("blocksize", 1))


def _space_to_depth(call: Call) -> Tensor:
    return F.pixel_unshuffle(call.tensor(0), call.get("blocksize", 1))


def _resize(call: Call) -> Tensor:
    """Sizes come last; scales before them, as the second input of an Upsample, or as its attribute."""
    data = call.tensor(0)
    upsample = call.node.op == "Upsample"
    if "scales" in call.node.attributes:
        scales = list(call.node.attributes["scales"])
    else:
        scales = call.numbers(index) if call.has(index := 1 if upsample or call.opset < 11 else 2) else []
    if call.has(3):
        sizes = list(call.ints(3) or ())
    else:
        axes = call.get("axes", list(range(len(scales))))
        sizes = list(data.shape)
        for axis, scale in zip(axes, scales, strict=True):
            sizes[axis] = int(data.shape[axis] * scale)
    if list(data.shape) == sizes[-data.dim() :]:
        return data
    mode = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}.get(call.get("mode", "nearest"))
    if mode is None or data.dim() != 4:
        raise TraceError(
            f"{call.node.op} {call.node.name!r} of mode {call.get('mode', 'nearest')} over {data.dim() - 2} axes is "
            "not known: resize images by nearest, linear or cubic"
        )
    return F.interpolate(data, size=sizes[-2:], mode=mode)


def _grid_sample(call: Call) -> Tensor:
    return F.grid_sample(call.tensor(0), call.tensor(1), align_corners=False)


def _cumulative_sum(call: Call) -> Tensor:
    return torch.cumsum(call.tensor(0), (call.ints(1) or (0,))[0])


MOVES: Mapping[str, Handler] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Resize": _resize,
    "Upsample": _resize,
    "GridSample": _grid_sample,
    "CumSum": _cumulative_sum,
}
