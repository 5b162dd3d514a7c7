"""The matrix array against published cycle counts, and against its own idealised limits."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw_models import Op, Tensor, Window, Workload, estimate_part, load_target
from hw_models.npu import matrix_cycles, matrix_seconds, systolic_cycles, vector_seconds
from hw_models.target_file import list_targets

# (m output positions, n output channels, k reduction) of the layers.
LAYERS = {
    "mm196x196x64": (196, 196, 64),
    "mm196x64x196": (196, 64, 196),
    "mm196x384x384": (196, 384, 384),
    "pw1x1": (3136, 256, 64),
    "dw7x7_1ch": (3136, 1, 49),
    "dw7x7_idiom": (3136, 1, 4704),
    "conv3x3": (3136, 64, 576),
}
# Total compute cycles of SCALE-Sim 3.0.0 in its analytical (CALC) mode: (array side, dataflow) -> layers.
SCALE_SIM = {
    (64, "weight_stationary"): {
        "mm196x196x64": 1543,
        "mm196x64x196": 1543,
        "mm196x384x384": 13895,
        "pw1x1": 13303,
        "dw7x7_1ch": 3325,
        "dw7x7_idiom": 246123,
        "conv3x3": 29933,
    },
    (64, "output_stationary"): {
        "mm196x196x64": 3039,
        "mm196x64x196": 1287,
        "mm196x384x384": 12239,
        "pw1x1": 37239,
        "dw7x7_1ch": 8574,
        "dw7x7_idiom": 236669,
        "conv3x3": 34397,
    },
    (64, "input_stationary"): {
        "mm196x196x64": 1543,
        "mm196x64x196": 4063,
        "mm196x384x384": 13775,
        "pw1x1": 21853,
        "dw7x7_1ch": 9358,
    },
    (128, "weight_stationary"): {
        "mm196x196x64": 1155,
        "mm196x64x196": 1155,
        "mm196x384x384": 5201,
        "pw1x1": 7035,
        "dw7x7_1ch": 3517,
        "conv3x3": 17589,
        "dw7x7_idiom": 130165,
    },
    (128, "output_stationary"): {
        "mm196x196x64": 1271,
        "mm196x64x196": 899,
        "mm196x384x384": 3827,
        "pw1x1": 15899,
        "dw7x7_1ch": 7574,
        "conv3x3": 20749,
        "dw7x7_idiom": 123949,
    },
}
ROWS = [(*key, layer, cycles) for key, layers in SCALE_SIM.items() for layer, cycles in layers.items()]


def _product(m: int, n: int, k: int) -> Workload:
    tensors = (
        Tensor("x", (m, k), "int8"),
        Tensor("w", (n, k), "int8", constant=True),
        Tensor("y", (m, n), "int8"),
    )
    return Workload("product", tensors, (replace(_linear(m, n, k), weights=(1,)),), (0,), (2,))


@pytest.mark.parametrize(("side", "dataflow", "layer", "cycles"), ROWS)
def test_idealised_array_equals_scale_sim(side: int, dataflow: str, layer: str, cycles: int) -> None:
    """Through the engine: a device whose one core is that array, and the time of its matrix op in a report."""
    assert systolic_cycles(*LAYERS[layer], side, side, dataflow) == cycles
    base = load_target("npu_40tops")
    array = replace(base.matrix, cores=1, rows=side, columns=side, clock_hz=1e9, dataflow=dataflow, systolic=True)
    device = replace(base, matrix=replace(array, reduction="im2col"))
    (row,) = estimate_part(_product(*LAYERS[layer]), device).rows(0.0)
    assert round(row["matrix_s"] * 1e9) == cycles
    assert row["matrix_s"] * 1e9 == pytest.approx(cycles, rel=1e-12)


def test_all_rows_are_here() -> None:
    assert len(ROWS) == 33


def test_unknown_dataflow_is_named() -> None:
    with pytest.raises(ValueError, match="row_stationary"):
        systolic_cycles(1, 1, 1, 1, 1, "row_stationary")


def _linear(m: int, n: int, k: int) -> Op:
    return Op("fc", "fc", "linear", (0,), (2,), (1,), reads=(m * k,), gemm=(1, m, n, k))


def _conv(m: int, channels: int, kernel: int, groups: int) -> Op:
    gemm = (groups, m, channels // groups, kernel * kernel * channels // groups)
    window = Window((kernel, kernel), groups=groups)
    return Op("conv", "conv", "conv", (0,), (2,), (1,), reads=(m * channels,), gemm=gemm, window=window)


sizes = st.integers(1, 700)


@given(sizes, sizes, sizes)
def test_never_faster_than_all_multipliers_busy(m: int, n: int, k: int) -> None:
    engine = load_target("npu_40tops").matrix
    op = _linear(m, n, k)
    assert matrix_cycles(op, engine) >= op.macs / (engine.cores * engine.rows * engine.columns)


@given(sizes, sizes, sizes, st.integers(1, 12))
def test_more_cores_are_never_slower(m: int, n: int, k: int, cores: int) -> None:
    engine = load_target("npu_40tops").matrix
    one, several = replace(engine, cores=cores), replace(engine, cores=2 * cores)
    assert matrix_cycles(_linear(m, n, k), several) <= matrix_cycles(_linear(m, n, k), one)


@given(sizes, sizes, sizes, st.sampled_from(["weight_stationary", "output_stationary", "input_stationary"]))
def test_larger_sizes_are_never_faster(m: int, n: int, k: int, dataflow: str) -> None:
    engine = replace(load_target("npu_40tops").matrix, dataflow=dataflow)
    cycles = matrix_cycles(_linear(m, n, k), engine)
    for larger in ((m + 7, n, k), (m, n + 7, k), (m, n, k + 7)):
        assert matrix_cycles(_linear(*larger), engine) >= cycles


def test_edge_tiles_are_paid_in_full() -> None:
    engine = replace(load_target("npu_40tops").matrix, cores=1, tile_load_cycles=0)
    full = matrix_cycles(_linear(100, engine.columns, engine.rows), engine)
    assert matrix_cycles(_linear(100, engine.columns + 1, engine.rows), engine) == 2 * full
    assert matrix_cycles(_linear(100, engine.columns, engine.rows + 1), engine) == 2 * full


def test_depthwise_uses_its_own_path_or_the_diagonal() -> None:
    engine = replace(load_target("npu_40tops").matrix, cores=1, tile_load_cycles=0)
    op = _conv(3136, 96, 3, groups=96)
    path = ceil(96 / engine.depthwise_channels) * ceil(9 / engine.depthwise_taps) * 3136
    assert matrix_cycles(op, engine) == path
    plain = replace(engine, depthwise_channels=0, depthwise_taps=0, reduction="im2col")
    side_by_side = min(plain.rows // 9, plain.columns)
    assert matrix_cycles(op, plain) == ceil(96 / side_by_side) * 3136


@given(st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_grouping_never_beats_its_own_macs(groups: int) -> None:
    engine = load_target("npu_40tops").matrix
    op = _conv(784, 128, 3, groups)
    assert matrix_cycles(op, engine) >= op.macs / (engine.cores * engine.rows * engine.columns)
    assert matrix_cycles(op, engine) <= matrix_cycles(_conv(784, 128, 3, 1), engine)


def _pipeline_cycles(tiles: int, load: float, stream: float) -> float:
    """Second way: two buffers; a tile loads into the one whose product is done, and streams once it is loaded."""
    loaded, done, before = 0.0, 0.0, 0.0
    for _ in range(tiles):
        loaded = max(loaded, before) + load
        before, done = done, max(loaded, done) + stream
    return done


@given(st.integers(1, 300), st.integers(1, 6), st.integers(1, 6), st.sampled_from([0, 16, 64, 500]))
def test_double_buffered_tiles_take_the_larger_of_load_and_stream(m: int, over_n: int, over_k: int, load: int) -> None:
    engine = replace(load_target("npu_40tops").matrix, cores=1, positions=1, tile_load_cycles=load)
    op = _linear(m, over_n * engine.columns, over_k * engine.rows)
    tiles = over_n * over_k
    hidden = matrix_cycles(op, replace(engine, double_buffered_tiles=True))
    exact = _pipeline_cycles(tiles, load, m)
    assert exact <= hidden <= exact + max(0, load - m)
    assert matrix_cycles(op, replace(engine, double_buffered_tiles=False)) == tiles * (load + m)


def test_taps_fill_the_rows_that_few_channels_leave_free() -> None:
    engine = replace(load_target("npu_40tops").matrix, cores=1, tile_load_cycles=0, rows=64, packed_taps=16)
    image = Op(
        "stem", "stem", "conv", (0,), (2,), (1,), (3,), gemm=(1, 12544, 32, 147), window=Window((7, 7), stride=(2, 2))
    )
    assert matrix_cycles(image, engine) == 7 * 12544  # a kernel row of 7 x 3 values at once
    assert matrix_cycles(image, replace(engine, packed_taps=1)) == 49 * 12544
    assert matrix_cycles(image, replace(engine, packed_taps=4)) == 7 * 2 * 12544
    full = _conv(784, 64, 3, groups=1)
    assert matrix_cycles(full, engine) == matrix_cycles(full, replace(engine, packed_taps=1))


@given(st.integers(1, 256), st.sampled_from([1, 3, 5, 7]), st.integers(1, 16))
def test_packing_taps_never_costs_time(channels: int, kernel: int, taps: int) -> None:
    engine = replace(load_target("npu_40tops").matrix, packed_taps=taps)
    op = _conv(784, channels, kernel, groups=1)
    assert matrix_cycles(op, engine) <= matrix_cycles(op, replace(engine, packed_taps=1))
    assert matrix_cycles(op, engine) >= op.macs / (engine.cores * engine.rows * engine.columns)


@given(sizes, sizes, sizes, st.integers(1, 400))
def test_smaller_blocks_of_positions_are_never_faster(m: int, n: int, k: int, block: int) -> None:
    engine = replace(load_target("npu_40tops").matrix, cores=1, block_positions=block)
    assert matrix_cycles(_linear(m, n, k), engine) >= matrix_cycles(
        _linear(m, n, k), replace(engine, block_positions=m)
    )


def test_weights_are_loaded_once_per_block() -> None:
    engine = replace(load_target("npu_40tops").matrix, cores=1, tile_load_cycles=32, block_positions=16)
    one = matrix_cycles(_linear(16, engine.columns, engine.rows), engine)
    assert one == 2 * 32  # the stream of 16 positions hides behind the load of its tile
    assert matrix_cycles(_linear(48, engine.columns, engine.rows), engine) == 3 * one


@pytest.mark.parametrize(("dtype", "function", "cycles"), [("int8", "gelu", 2.0), ("int16", "gelu", 2 * 15.0)])
def test_wide_activations_have_no_look_up_table(dtype: str, function: str, cycles: float) -> None:
    unit = load_target("snapdragon_x_elite").vector
    unit = replace(unit, cycles_per_element={**unit.cycles_per_element, "activation": 2.0, "activation.wide": 15.0})
    tensors = (Tensor("x", (4096,), dtype), Tensor("y", (4096,), dtype))
    op = Op("act", "act", "activation", (0,), (1,), reads=(4096,), function=function)
    seconds = vector_seconds(Workload("one", tensors, (op,), (0,), (1,)), op, unit)
    assert seconds == pytest.approx(4096 / unit.lanes * cycles / unit.clock_hz)


def test_zeros_are_skipped_only_in_stored_weights() -> None:
    """Off in every target; where on, products of weights go faster, those of two activations do not."""
    assert all(load_target(name).matrix.sparse_speedup == 1.0 for name in list_targets())
    engine = load_target("npu_40tops").matrix
    sparse = replace(engine, sparse_speedup=2.0)
    stored = _linear(196, 384, 384)
    moving = replace(stored, kind="matmul", inputs=(0, 1), weights=(), reads=(1, 1))
    depthwise = _conv(3136, 96, 7, groups=96)
    assert matrix_seconds(stored, sparse, "w8a8") == matrix_seconds(stored, engine, "w8a8") / 2
    assert matrix_seconds(moving, sparse, "w8a8") == matrix_seconds(moving, engine, "w8a8")
    assert matrix_seconds(depthwise, sparse, "w8a8") == matrix_seconds(depthwise, engine, "w8a8")


def test_weights_of_convolutions_may_cross_memory_more_than_once() -> None:
    base = load_target("npu_40tops")
    target = replace(base, runtime=replace(base.runtime, weight_passes=4.0))
    for product, times in ((_product(196, 384, 384), 1), (_convolution(), 4)):
        once, more = (estimate_part(product, device).dram_bytes for device in (base, target))
        assert more[0] == once[0]
        assert more[1] - more[0] == times * (once[1] - once[0])


def _convolution() -> Workload:
    tensors = (
        Tensor("x", (1, 64, 56, 56), "int8"),
        Tensor("w", (64, 64, 3, 3), "int8", constant=True),
        Tensor("y", (1, 64, 56, 56), "int8"),
    )
    return Workload("convolution", tensors, (_conv(3136, 64, 3, groups=1),), (0,), (2,))
