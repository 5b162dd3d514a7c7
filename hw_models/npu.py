"""Cycles of single ops on a device's two engines: the matrix array, and the vector unit."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import ceil, prod

from hw_models.target import MatrixEngine, VectorUnit
from hw_models.workload import MATRIX_KINDS, Op, Workload

LOOKUP_BITS = 8
"""Widest elements for which a table of all values is practical."""

REQUANTIZED_KINDS = frozenset({"scale", "elementwise", "copy"})
"""Ops whose integer operands have scales of their own and must be brought to that of the result."""


def systolic_cycles(m: int, n: int, k: int, rows: int, columns: int, dataflow: str) -> int:
    """Cycles of an m x k by k x n product on one systolic array, every tile filled and drained by itself.

    m output positions, n output channels, k reduction length. The idealised mode of the matrix engine; the
    formulas of SCALE-Sim's analytical mode (Samajdar et al., ISPASS 2020, Eq. 3 with the tile counts of Table
    2).
    """
    if dataflow == "weight_stationary":
        return ceil(k / rows) * ceil(n / columns) * (2 * rows + columns + m - 2) - 1
    if dataflow == "output_stationary":
        return ceil(m / rows) * ceil(n / columns) * (rows + columns + k - 2) - 1
    if dataflow == "input_stationary":
        return ceil(k / rows) * ceil(m / columns) * (2 * rows + columns + n - 2) - 1
    raise ValueError(f"unknown dataflow {dataflow!r}; known: weight_stationary, output_stationary, input_stationary")


def matrix_precision(workload: Workload, op: Op, rates: Mapping[str, float]) -> str:
    """What the multipliers see: "w4a8", "fp16", ... The narrower of two activations is the weight.

    Two activations of different widths on a device that takes only equal ones: both at the greater width.
    """
    operands = [workload.tensors[index] for index in (*op.inputs, *op.weights)]
    matrices = [tensor for tensor in operands if tensor.dtype != "int32"]
    dtypes = {tensor.dtype for tensor in matrices}
    if dtypes & {"fp32", "fp16"}:
        return "fp32" if "fp32" in dtypes else "fp16"
    stored = [workload.tensors[index].bits for index in op.weights if workload.tensors[index].dtype != "int32"]
    moving = [workload.tensors[index].bits for index in op.inputs]
    if stored:
        return f"w{max(stored)}a{max(moving)}"
    mixed, equal = f"w{min(moving)}a{max(moving)}", f"w{max(moving)}a{max(moving)}"
    return equal if mixed not in rates and equal in rates else mixed


def matrix_rate(op: Op, engine: MatrixEngine, precision: str) -> float:
    """Multiply-accumulates per multiplier and cycle; of a precision the engine lacks (illegal), those of its slowest.

    Zeros are skipped in stored weights, and not where channels have a path of their own.
    """
    rate = engine.rates.get(precision, min(engine.rates.values()))
    skips = op.weights and not (op.is_depthwise and engine.depthwise_channels)
    return rate * engine.sparse_speedup if skips else rate


def matrix_seconds(op: Op, engine: MatrixEngine, precision: str) -> float:
    """Time of a matrix op on all cores; a precision the engine lacks (illegal) at its slowest."""
    rate = matrix_rate(op, engine, precision)
    if op.is_depthwise and engine.depthwise_channels and not engine.depthwise_rated:
        rate = 1.0
    return matrix_cycles(op, engine) / rate / engine.clock_hz


def matrix_cycles(op: Op, engine: MatrixEngine) -> float:
    """Cycles at rate 1: the best split over the cores, with the waste of partly filled tiles."""
    assert op.gemm is not None
    groups, m, n, k = op.gemm
    kernel = op.window.kernel if op.window is not None and not op.window.transposed else (1, 1)
    taps = prod(kernel)
    if op.is_depthwise and engine.depthwise_channels:
        return _depthwise_cycles(groups * n, m, taps, engine)
    if op.kind != "matmul" and groups > 1:
        groups, n, k, taps = _block_diagonal(groups, n, k, taps, engine)
    else:
        k, taps = _packed(k, kernel, engine)
    return _dense_cycles(groups, m, n, k, taps, engine)


def _packed(k: int, kernel: tuple[int, int], engine: MatrixEngine) -> tuple[int, int]:
    """(k, taps) when neighbouring taps of a kernel row stand side by side in the rows that few channels leave free.

    An image of three channels would else use three rows of the array (NVDLA, hardware architecture
    specification: channel extension of image input).
    """
    height, width = kernel
    channels = k // (height * width)
    packed = max(1, min(width, engine.packed_taps, engine.rows // channels))
    steps = height * ceil(width / packed)
    return steps * packed * channels, steps


def _block_diagonal(groups: int, n: int, k: int, taps: int, engine: MatrixEngine) -> tuple[int, int, int, int]:
    """(groups, n, k, taps) of the dense product with groups on the diagonal of a tile and zeros elsewhere."""
    rows_per_group = k if engine.reduction == "im2col" else k // taps
    side_by_side = max(1, min(groups, engine.rows // rows_per_group, engine.columns // n))
    return ceil(groups / side_by_side), n * side_by_side, k * side_by_side, taps


@lru_cache(maxsize=65536)
def _depthwise_cycles(channels: int, m: int, taps: int, engine: MatrixEngine) -> float:
    per_position = ceil(taps / engine.depthwise_taps)
    return min(
        ceil(ceil(channels / split) / engine.depthwise_channels) * per_position * ceil(m / (engine.cores // split))
        for split in _divisors(engine.cores)
    )


@lru_cache(maxsize=65536)
def _dense_cycles(groups: int, m: int, n: int, k: int, taps: int, engine: MatrixEngine) -> float:
    """The cheapest division of groups, positions and output channels among the cores."""
    best = float("inf")
    for over_groups in _divisors(engine.cores):
        rest = engine.cores // over_groups
        for over_positions in _divisors(rest):
            share_m = ceil(m / over_positions)
            share_n = ceil(n / (rest // over_positions))
            cycles = ceil(groups / over_groups) * _core_cycles(share_m, share_n, k, taps, engine)
            best = min(best, cycles)
    return best


def _core_cycles(m: int, n: int, k: int, taps: int, engine: MatrixEngine) -> float:
    """One product on one core: stationary tiles one after the other, each loaded, then streamed through."""
    if engine.systolic:
        return systolic_cycles(m, n, k, engine.rows, engine.columns, engine.dataflow)
    if m > engine.block_positions:
        whole, rest = divmod(m, engine.block_positions)
        cycles = whole * _core_cycles(engine.block_positions, n, k, taps, engine)
        return cycles + (_core_cycles(rest, n, k, taps, engine) if rest else 0.0)
    tiles_k = ceil(k / engine.rows) if engine.reduction == "im2col" else taps * ceil(k / taps / engine.rows)
    tiles_n = ceil(n / engine.columns)
    tiles_m = ceil(m / engine.positions)
    load = engine.tile_load_cycles
    if engine.dataflow == "weight_stationary":
        tiles, stream = tiles_k * tiles_n, tiles_m
    elif engine.dataflow == "output_stationary":
        # An output tile has `rows` positions of `columns` channels; the reduction streams through it.
        tiles, stream = ceil(m / (engine.rows * engine.positions)) * tiles_n, k
    else:
        tiles, stream = tiles_k * ceil(m / (engine.columns * engine.positions)), n
    return tiles * max(stream, load) + load if engine.double_buffered_tiles else tiles * (stream + load)


def operand_seconds(op: Op, unit: VectorUnit) -> float:
    """Time to bring the second operand of a product of two activations into the order of weights."""
    if op.kind != "matmul" or op.gemm is None:
        return 0.0
    groups, _, n, k = op.gemm
    return ceil(groups * n * k / unit.lanes) * unit.cycles_per_element["operand"] / unit.clock_hz


@lru_cache(maxsize=1024)
def _divisors(number: int) -> tuple[int, ...]:
    return tuple(divisor for divisor in range(1, number + 1) if number % divisor == 0)


def vector_elements(workload: Workload, op: Op) -> int:
    """Elements the vector unit handles: read for reductions, in windows for pooling, else written."""
    written = sum(workload.tensors[index].elements for index in op.outputs)
    if op.kind in MATRIX_KINDS:
        return 0
    if op.kind in ("softmax", "norm", "reduce"):
        return max(sum(op.reads), written)
    if op.kind == "pool" and op.window is not None:
        return written * prod(op.window.kernel)
    return written


def vector_seconds(workload: Workload, op: Op, unit: VectorUnit) -> float:
    """Time of a non-matrix op on the vector unit; elements wider than a lane take several passes."""
    elements = vector_elements(workload, op)
    if not elements:
        return 0.0
    table = unit.cycles_per_element
    bits = max(workload.tensors[index].bits for index in (*op.inputs, *op.outputs))
    name = op.function if op.function in table else op.kind
    integer = all(workload.tensors[index].dtype.startswith("int") for index in (*op.inputs, *op.outputs))
    per_element = table.get(f"{name}.int" if integer else name, table[name])
    if name == "activation" and bits > LOOKUP_BITS:
        per_element = table.get("activation.wide", per_element)
    cycles = per_element * ceil(bits / unit.lane_bits)
    if op.kind in REQUANTIZED_KINDS and workload.tensors[op.outputs[0]].dtype.startswith("int"):
        cycles += table["requantize"]
    rows = elements / op.extent * table.get("row", 0.0) if op.kind in ("norm", "softmax") else 0.0
    return (ceil(elements / unit.lanes) * cycles + rows) / unit.clock_hz
