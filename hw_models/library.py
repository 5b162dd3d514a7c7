"""What a library's matrix kernels take besides their multiply-accumulates: starting vectors, gathering taps, working
on zeros.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, prod

import numpy as np

from hw_models.lowering import has_blocked_kernel, is_read_plain
from hw_models.target import LONG, NARROW, MatrixEngine, Runtime
from hw_models.workload import Op, Workload

BLOCKS_AT_ONCE = 4
"""Blocks of output channels that a kernel of the blocked layout computes for each load of its input."""


def library_seconds(workload: Workload, op: Op, engine: MatrixEngine, runtime: Runtime, product_s: float) -> float:
    """Seconds beyond `product_s`, that of `npu.matrix_seconds`, as `Runtime` has them; 0.0 where none of it is."""
    if op.gemm is None:
        return 0.0
    integer = workload.tensors[op.outputs[0]].dtype.startswith("int")
    lanes = max(engine.depthwise_channels, 1)
    groups, positions, outputs, _ = op.gemm
    on_map = len(workload.tensors[op.outputs[0]].shape) == 4
    blocked = runtime.own_layout and on_map and not integer and has_blocked_kernel(op, runtime.block_channels)
    cycles = ceil(groups * positions * outputs / lanes) * runtime.requantize_cycles if integer else 0.0
    if op.is_depthwise and outputs == 1 and (integer or blocked or (on_map and not runtime.own_layout)):
        cycles = _depthwise_cycles(workload, op, runtime, lanes, integer=integer)
    elif op.window is not None and prod(op.window.kernel) > 1:
        cycles += _gather_cycles(op, runtime, lanes, integer=integer, blocked=blocked)
    padding_s = product_s * _padding(op, runtime, lanes) if blocked and groups == 1 else 0.0
    return cycles / engine.clock_hz + padding_s + (_unfit_s(workload, op, runtime) if runtime.unfit_s else 0.0)


def _unfit_s(workload: Workload, op: Op, runtime: Runtime) -> float:
    """What a depthwise window takes besides for which the library has no fast kernel (`Runtime.unfit_s`)."""
    shape = workload.tensors[op.outputs[0]].shape
    if not op.is_depthwise or op.window is None or len(shape) != 4:
        return 0.0
    (height, width), channels, per = op.window.kernel, shape[1], runtime.unfit_s
    if (height - 1) // 2 >= _read_size(workload, op, -2) or (width - 1) // 2 >= _read_size(workload, op, -1):
        return channels * per.get("outsized.channel", 0.0)
    if 1 in (height, width) and height != width:
        narrow_s = channels * shape[2] * per.get("narrow.row", 0.0) if channels <= NARROW else 0.0
        return narrow_s + op.macs * per.get("flat.mac", 0.0)
    return op.macs * per.get("long.mac", 0.0) if max(height, width) > LONG else 0.0


def _padding(op: Op, runtime: Runtime, lanes: int) -> float:
    """Share of its time that a float convolution in the blocked layout works on zeros, and with few blocks at once.

    Input channels are padded to blocks as output channels are, but for those that are read as they are.
    """
    assert op.gemm is not None
    assert op.window is not None
    _, _, outputs, reduction = op.gemm
    channels = reduction // prod(op.window.kernel)
    zeros = 1.0 if is_read_plain(op, runtime.block_channels) else ceil(channels / lanes) * lanes / channels
    blocks = ceil(outputs / lanes)
    return zeros * (1 + (runtime.partial_blocks / blocks if blocks % BLOCKS_AT_ONCE else 0.0)) - 1


def _depthwise_cycles(workload: Workload, op: Op, runtime: Runtime, lanes: int, *, integer: bool) -> float:
    assert op.gemm is not None
    assert op.window is not None
    groups, positions, _, _ = op.gemm
    taps, vectors = prod(op.window.kernel), ceil(groups / lanes)
    if integer:
        rest = taps * (runtime.integer_tap_cycles + groups % lanes * runtime.integer_ragged_cycles)
        return positions * (vectors * runtime.integer_start_cycles + rest)
    _, on_map = _on_map(workload, op, -2)  # rows beyond the map are left out
    at_edge, _ = _on_map(workload, op, -1)
    cycles = runtime.float_start_cycles + at_edge * taps * on_map * runtime.depthwise_edge_cycles
    return positions * vectors * cycles


def _on_map(workload: Workload, op: Op, axis: int) -> tuple[float, float]:
    """`window_on_map` along an axis of its maps, -2 or -1."""
    assert op.window is not None
    made = workload.tensors[op.outputs[0]].shape[axis]
    kernel, stride, dilation = op.window.kernel[axis], op.window.stride[axis], op.window.dilation[axis]
    return window_on_map(_read_size(workload, op, axis), made, kernel, stride, dilation)


def _read_size(workload: Workload, op: Op, axis: int) -> int:
    """Size along an axis, -2 or -1, of the map that a depthwise convolution reads. Where the trace has folded the
    making of the map into it, so that it reads tokens or channels last, its input is taken for padded to the size of
    the output.
    """
    assert op.window is not None
    assert op.gemm is not None
    read, written = (workload.tensors[index].shape for index in (op.inputs[0], op.outputs[0]))
    return read[axis] if len(read) == 4 and read[1] == op.gemm[0] else written[axis] * op.window.stride[axis]


@lru_cache(maxsize=4096)
def window_on_map(size: int, made: int, kernel: int, stride: int = 1, dilation: int = 1) -> tuple[float, float]:
    """(share of positions whose window reaches beyond the map, share of taps on it) along an axis with `size` elements
    before and `made` after, padded alike at both ends.
    """
    before = ceil(max((made - 1) * stride + dilation * (kernel - 1) + 1 - size, 0) / 2)
    taps = stride * np.arange(made)[:, None] - before + dilation * np.arange(kernel)
    inside = (taps >= 0) & (taps < size)
    return float((~inside.all(axis=1)).mean()), float(inside.mean())


def _gather_cycles(op: Op, runtime: Runtime, lanes: int, *, integer: bool, blocked: bool) -> float:
    assert op.gemm is not None
    assert op.window is not None
    groups, positions, _, summed = op.gemm
    if not integer:
        return groups * positions * summed * runtime.gather_channel_cycles * (not blocked)
    taps = prod(op.window.kernel)
    pieces = groups * taps if groups > 1 else op.window.kernel[0] * (summed // taps % lanes > 0)
    return positions * (taps * runtime.integer_tap_cycles + pieces * runtime.integer_gather_cycles)
