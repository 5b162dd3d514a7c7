"""What a library's matrix kernels take besides their multiply-accumulates: starting vectors, gathering taps, working
on zeros.
"""

from __future__ import annotations

from math import ceil, prod

from hw_models.lowering import IMAGE_CHANNELS
from hw_models.target import MatrixEngine, Runtime
from hw_models.workload import Op

BLOCKS_AT_ONCE = 4
"""Blocks of output channels that a kernel of the blocked layout computes for each load of its input."""


def library_seconds(op: Op, engine: MatrixEngine, runtime: Runtime, product_s: float, *, integer: bool) -> float:
    """Seconds beyond `product_s`, that of `npu.matrix_seconds`, as `Runtime` has them; 0.0 where none of it is."""
    if op.gemm is None:
        return 0.0
    lanes = max(engine.depthwise_channels, 1)
    groups, positions, outputs, _ = op.gemm
    cycles = 0.0
    if integer and not op.is_depthwise:
        cycles += ceil(groups * positions * outputs / lanes) * runtime.requantize_cycles
    if op.is_depthwise:
        cycles += _depthwise_cycles(op, engine, runtime, lanes, integer=integer)
    elif op.window is not None and prod(op.window.kernel) > 1:
        cycles += _gather_cycles(op, runtime, lanes, integer=integer)
    blocked = runtime.own_layout and not integer and op.kind == "conv" and groups == 1
    padding_s = product_s * _padding(op, runtime, lanes) if blocked else 0.0
    return cycles / engine.clock_hz + padding_s


def _padding(op: Op, runtime: Runtime, lanes: int) -> float:
    """Share of its time that a float convolution in the blocked layout works on zeros, and with few blocks at once.

    Input channels are padded to blocks as output channels are, but for those of an image.
    """
    assert op.gemm is not None
    assert op.window is not None
    _, _, outputs, reduction = op.gemm
    channels = reduction // prod(op.window.kernel)
    zeros = ceil(channels / lanes) * lanes / channels if channels > IMAGE_CHANNELS else 1.0
    blocks = ceil(outputs / lanes)
    return zeros * (1 + (runtime.partial_blocks / blocks if blocks % BLOCKS_AT_ONCE else 0.0)) - 1


def _depthwise_cycles(op: Op, engine: MatrixEngine, runtime: Runtime, lanes: int, *, integer: bool) -> float:
    assert op.gemm is not None
    assert op.window is not None
    groups, positions, outputs, _ = op.gemm
    taps, vectors = prod(op.window.kernel), ceil(groups * outputs / lanes)
    cycles = positions * vectors * runtime.depthwise_start_cycles
    if integer:
        cycles += positions * taps * runtime.integer_tap_cycles
        if groups * outputs % lanes:
            whole = positions * vectors * ceil(taps / max(engine.depthwise_taps, 1)) + cycles
            cycles += whole * (runtime.integer_ragged - 1)
    return cycles


def _gather_cycles(op: Op, runtime: Runtime, lanes: int, *, integer: bool) -> float:
    assert op.gemm is not None
    assert op.window is not None
    groups, positions, outputs, reduction = op.gemm
    taps = prod(op.window.kernel)
    ragged_inputs, ragged_outputs = reduction // taps % lanes > 0, outputs % lanes > 0
    if not integer:
        gathered = groups > 1 and (ragged_inputs or ragged_outputs)
        return gathered * groups * positions * taps * runtime.gather_cycles
    pieces = groups * taps if groups > 1 else op.window.kernel[0] * ragged_inputs
    return positions * (taps * runtime.integer_tap_cycles + pieces * runtime.integer_gather_cycles)
