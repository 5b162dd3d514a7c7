"""Output blocks against a search by hand, and the laws of streams, runs and buffers."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw_models import Op, Target, Tensor, Window, Workload, estimate, estimate_part, load_target
from hw_models.blocks import blocks_of

DEVICE = load_target("ethos_u85_2048_dedicated")


def _conv(side: int, inputs: int, channels: int, kernel: int = 1, groups: int = 1, dtype: str = "int8") -> Workload:
    """One convolution on a map of side x side."""
    tensors = (
        Tensor("x", (1, inputs, side, side), dtype),
        Tensor("w", (channels, inputs // groups, kernel, kernel), "int8", constant=True),
        Tensor("y", (1, channels, side, side), dtype),
    )
    gemm = (groups, side * side, channels // groups, kernel * kernel * inputs // groups)
    window = Window((kernel, kernel), groups=groups)
    reads = (tensors[0].elements,)
    op = Op("conv", "conv", "conv", (0,), (2,), (1,), reads, gemm=gemm, window=window)
    return Workload("one", tensors, (op,), (0,), (2,))


def _with_engine(target: Target, **values: int) -> Target:
    return replace(target, matrix=replace(target.matrix, **values))


def _with_memory(target: Target, **values: object) -> Target:
    return replace(target, memory=replace(target.memory, **values))  # type: ignore[arg-type]


@given(st.integers(1, 12), st.integers(1, 80), st.sampled_from([3, 64, 200]), st.sampled_from([600, 3000, 20_000]))
def test_no_block_that_fits_moves_less(side: int, inputs: int, channels: int, buffer: int) -> None:
    """Second way: every block there is, one by one."""
    engine = _with_engine(DEVICE, accumulator_bytes=8 * buffer, input_buffer_bytes=2 * buffer).matrix
    workload = _conv(side, inputs, channels)
    found = blocks_of(workload, workload.ops[0], engine, 64)
    sliced = min(64, inputs)
    unit = max(1, int((256 / 64) ** 0.5))
    costs = []
    for high, wide, deep in product(range(1, side + 1), range(1, side + 1), range(1, ceil(channels / 64) + 1)):
        held = unit * unit * ceil(high / unit) * ceil(wide / unit)
        if high * wide * deep * 64 <= buffer and held * sliced <= buffer:
            count, times = ceil(side / high) * ceil(side / wide), ceil(channels / (64 * deep))
            costs.append(count * inputs * (held * times + channels))
    if costs:
        weights = found.positions * inputs * channels
        assert weights + found.reread * side * side * inputs <= min(costs) * (1 + 1e-9)


def test_large_buffers_read_everything_once() -> None:
    engine = _with_engine(DEVICE, accumulator_bytes=10**9, input_buffer_bytes=10**9).matrix
    for workload in (_conv(56, 64, 256), _conv(56, 64, 64, kernel=3), _conv(28, 96, 96, kernel=7, groups=96)):
        found = blocks_of(workload, workload.ops[0], engine, 16)
        assert (found.positions, found.channels, found.reread) == (1, 1, 1.0)


def test_halos_are_read_with_every_block() -> None:
    """Vela's choice for this layer: 14 blocks of 8 x 28, each read as 12 x 32."""
    workload = _conv(56, 64, 64, kernel=3)
    found = blocks_of(workload, workload.ops[0], DEVICE.matrix, 16)
    assert found.channels == 1
    assert 1.2 < found.reread < 1.8


convs = st.builds(
    _conv,
    st.sampled_from([4, 14, 56]),
    st.sampled_from([16, 64, 256]),
    st.sampled_from([16, 64, 320]),
    st.sampled_from([1, 3]),
    dtype=st.sampled_from(["int8", "int16"]),
)


@given(convs, st.sampled_from([8.0, 16.0, 32.0]))
def test_shorter_runs_never_move_fewer_bytes(workload: Workload, run: float) -> None:
    long, short = (
        _with_memory(DEVICE, run_elements=dict.fromkeys(DEVICE.memory.run_elements, value)) for value in (64.0, run)
    )
    least, most = estimate(workload, long), estimate(workload, short)
    assert least.dram_bytes <= most.dram_bytes
    assert least.latency_s <= most.latency_s


def test_runs_concern_the_ends_of_a_network_alone() -> None:
    workload = _conv(56, 64, 64)
    inner, outer = estimate_part(workload, DEVICE, (False, False)), estimate_part(workload, DEVICE, (True, True))
    assert inner.dram_bytes[0] < outer.dram_bytes[0]
    few = _conv(56, 16, 16)
    whole_rows = estimate_part(few, DEVICE, (False, False)).dram_bytes[0]
    assert estimate_part(few, DEVICE, (True, True)).dram_bytes[0] == whole_rows  # rows of 16 follow each other


@given(convs, st.sampled_from(["dram.input", "dram.output", "dram.weights", "dram.constants"]), st.floats(1.0, 50.0))
def test_a_stream_is_no_faster_than_its_limit(workload: Workload, stream: str, slower: float) -> None:
    limits = dict(DEVICE.memory.stream_bytes_per_s)
    limits[stream] /= slower
    slow, free = _with_memory(DEVICE, stream_bytes_per_s=limits), _with_memory(DEVICE, stream_bytes_per_s={})
    seconds = [estimate(workload, target).latency_s for target in (free, DEVICE, slow)]
    assert seconds == sorted(seconds)
    assert seconds[2] <= slower * seconds[1] * (1 + 1e-12)
    assert estimate(workload, slow).dram_bytes == estimate(workload, DEVICE).dram_bytes


def test_constants_are_read_with_every_block_of_positions() -> None:
    target = _with_memory(DEVICE, stream_bytes_per_s={"dram.constants": 1e6}, ends_onchip=True, boundary_fraction=1.0)
    workload = _conv(56, 64, 64, kernel=3)
    blocks = blocks_of(workload, workload.ops[0], target.matrix, 16)
    (row,) = estimate(workload, target).rows
    assert row["dram_s"] == pytest.approx(blocks.positions * 64 * target.matrix.constant_bytes / 1e6)


def test_an_operand_is_brought_into_order_before_the_product() -> None:
    tensors = (Tensor("q", (6, 196, 64), "int8"), Tensor("k", (6, 64, 196), "int8"), Tensor("s", (6, 196, 196), "int8"))
    reads = (tensors[0].elements, tensors[1].elements)
    op = Op("scores", "scores", "matmul", (0, 1), (2,), (), reads, gemm=(6, 196, 196, 64))
    workload = Workload("attention", tensors, (op,), (0, 1), (2,))
    cycles = dict(DEVICE.vector.cycles_per_element)
    free = replace(DEVICE, vector=replace(DEVICE.vector, cycles_per_element=cycles | {"operand": 0.0}))
    with_op, without = estimate(workload, DEVICE), estimate(workload, free)
    alone = tensors[1].elements * cycles["operand"] / DEVICE.vector.lanes / DEVICE.vector.clock_hz
    assert with_op.latency_s >= without.latency_s - 1e-6 + alone
