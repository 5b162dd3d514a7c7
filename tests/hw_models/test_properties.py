"""Laws every estimate must obey, on random networks: fusing, bandwidth, capacity, additivity."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw_models import (
    Op,
    Target,
    Tensor,
    Window,
    Workload,
    WorkloadError,
    combine,
    estimate,
    estimate_part,
    load_target,
)
from hw_models.fusion import fuse
from hw_models.memory import group_traffic, place


def _network(widths: list[int], steps: list[tuple[str, bool]], side: int) -> Workload:
    """A random network on a side x side map: a step is an op on the newest tensor, or adds an older one."""
    tensors = [Tensor("input", (1, widths[0], side, side), "int8")]
    ops: list[Op] = []
    channels = [widths[0]]
    newest = 0
    for number, (kind, deep) in enumerate(steps):
        width = channels[newest]
        older = [i for i, tensor in enumerate(tensors) if not tensor.constant and tensor.shape == tensors[newest].shape]
        weights: tuple[int, ...] = ()
        inputs: tuple[int, ...] = (newest,)
        gemm, window, extent, function = None, None, 1, ""
        out = width
        if kind in ("conv", "depthwise"):
            out = widths[number % len(widths)] if kind == "conv" else width
            kernel = 3 if deep else 1
            groups = width if kind == "depthwise" else 1
            tensors.append(Tensor(f"w{number}", (out, width // groups, kernel, kernel), "int8", constant=True))
            channels.append(0)
            weights = (len(tensors) - 1,)
            gemm = (groups, side * side, out // groups, kernel * kernel * width // groups)
            window = Window((kernel, kernel), groups=groups)
        elif kind == "elementwise":
            function = "add"
            inputs = tuple(dict.fromkeys((newest, older[0] if deep else older[-1])))
        elif kind == "activation":
            function = "gelu" if deep else "relu"
        elif kind in ("softmax", "norm"):
            extent = width
        tensors.append(Tensor(f"t{number}", (1, out, side, side), "int8"))
        channels.append(out)
        kind = "conv" if kind == "depthwise" else kind
        reads = tuple(tensors[index].elements for index in inputs)
        name = f"op{number}"
        made = len(tensors) - 1
        ops.append(Op(name, name, kind, inputs, (made,), weights, reads, function, gemm, window, extent))
        newest = made
    return Workload("random", tuple(tensors), tuple(ops), (0,), (newest,), input_shapes=((1, widths[0], side, side),))


kinds = st.sampled_from(
    ["conv", "conv", "depthwise", "elementwise", "elementwise", "activation", "norm", "softmax", "transpose"]
)
networks = st.builds(
    _network,
    st.lists(st.sampled_from([8, 24, 64, 256]), min_size=1, max_size=4),
    st.lists(st.tuples(kinds, st.booleans()), min_size=1, max_size=14),
    st.sampled_from([4, 14, 56]),
)


def _with_memory(target: Target, **values: float) -> Target:
    return replace(target, memory=replace(target.memory, **values))


REFERENCE = load_target("npu_40tops")
TARGET = replace(REFERENCE, overhead=replace(REFERENCE.overhead, block_fusion="none"))
"""Laws of the memory model alone; those of block fusion are in test_block_fusion.py."""

capacities = st.sampled_from([1_000, 20_000, 100_000, 1_000_000, 10_000_000])


def _dram(workload: Workload, target: Target, fusion: str) -> float:
    return estimate(workload, replace(target, overhead=replace(target.overhead, fusion=fusion))).dram_bytes


@given(networks, capacities)
def test_fusing_never_adds_traffic_or_time(workload: Workload, capacity: int) -> None:
    target = _with_memory(TARGET, onchip_bytes=capacity)
    alone = replace(target, overhead=replace(target.overhead, fusion="none"))
    fused, single = estimate(workload, target), estimate(workload, alone)
    assert fused.dram_bytes <= single.dram_bytes
    assert fused.latency_s <= single.latency_s * (1 + 1e-12)
    assert fused.macs == single.macs == workload.macs
    assert fused.peak_onchip_bytes <= single.peak_onchip_bytes


@given(networks, capacities, st.floats(1.0, 100.0))
def test_more_bandwidth_is_never_slower(workload: Workload, capacity: int, factor: float) -> None:
    target = _with_memory(TARGET, onchip_bytes=capacity)
    faster = _with_memory(target, dram_bytes_per_s=target.memory.dram_bytes_per_s * factor)
    assert estimate(workload, faster).latency_s <= estimate(workload, target).latency_s


@given(networks, capacities, st.integers(2, 50))
def test_more_memory_never_moves_more(workload: Workload, capacity: int, factor: int) -> None:
    small, large = (_with_memory(TARGET, onchip_bytes=capacity * by) for by in (1, factor))
    assert estimate(workload, large).dram_bytes <= estimate(workload, small).dram_bytes


@given(networks, capacities)
def test_rows_add_up_to_the_totals(workload: Workload, capacity: int) -> None:
    report = estimate(workload, _with_memory(TARGET, onchip_bytes=capacity))
    assert sum(row["latency_s"] for row in report.rows) + report.overhead_s == pytest.approx(
        report.latency_s, rel=1e-12
    )
    idle = report.overhead_s * TARGET.energy.static_w
    assert sum(row["energy_j"] for row in report.rows) + idle == pytest.approx(report.energy_j, rel=1e-12)
    assert sum(row["dram_bytes"] for row in report.rows) == pytest.approx(report.dram_bytes, rel=1e-12)
    assert sum(row["macs"] for row in report.rows) == report.macs
    assert all(0 <= row["utilization"] <= 1 for row in report.rows)


@given(networks, networks)
def test_a_network_is_the_sum_of_its_parts(first: Workload, second: Workload) -> None:
    parts = [estimate_part(first, TARGET, (True, False)), estimate_part(second, TARGET, (False, True))]
    together = combine(parts, TARGET)
    alone = [combine([part], TARGET) for part in parts]
    overhead = TARGET.overhead.network_s
    assert together.latency_s == pytest.approx(sum(report.latency_s for report in alone) - overhead, rel=1e-12)
    assert together.dram_bytes == pytest.approx(sum(report.dram_bytes for report in alone), rel=1e-12)
    assert together.peak_onchip_bytes == max(report.peak_onchip_bytes for report in alone)
    assert together.weight_bytes == sum(report.weight_bytes for report in alone)


@pytest.mark.parametrize("mode", ["pointwise", "loops", "none"])
@given(networks)
def test_every_op_is_in_exactly_one_group_and_inputs_come_first(mode: str, workload: Workload) -> None:
    groups = fuse(workload, mode)
    assert sorted(position for group in groups for position in group.ops) == list(range(len(workload.ops)))
    made = set(workload.inputs)
    for group in groups:
        assert set(group.inputs) <= made
        made |= set(group.outputs)
    assert set(workload.outputs) <= made


@given(networks)
def test_plenty_of_memory_moves_only_image_weights_and_result(workload: Workload) -> None:
    target = _with_memory(TARGET, onchip_bytes=10**11, dram_burst_bytes=1)
    groups = fuse(workload)
    placement = place(workload, groups, target.memory)
    traffic = [group_traffic(workload, group, placement, target.memory, 1) for group in groups]
    ends = {*workload.inputs, *workload.outputs}
    expected = sum(
        workload.tensors[index].size_bytes
        for group in groups
        for index in (*group.inputs, *group.outputs)
        if index in ends
    )
    assert sum(item.dram_activation_bytes for item in traffic) == expected
    assert sum(item.dram_weight_bytes for item in traffic) == workload.weight_bytes


def test_capacity_is_a_step() -> None:
    workload = _network([64], [("conv", True), ("conv", True), ("conv", True)], 56)
    tensor = workload.tensors[-1].size_bytes
    share = TARGET.memory.activation_fraction * TARGET.memory.boundary_fraction
    fits = _with_memory(TARGET, onchip_bytes=int(tensor / share) + 1)
    spills = _with_memory(TARGET, onchip_bytes=int(tensor / share) - 1)
    assert estimate(workload, spills).dram_bytes == estimate(workload, fits).dram_bytes + 4 * tensor


def test_weights_that_do_not_fit_are_streamed_whole_or_in_part() -> None:
    workload = _network([256], [("conv", True)] * 3, 14)
    half = workload.weight_bytes // 2
    resident = estimate(workload, _with_memory(TARGET, resident_weight_bytes=2 * half)).dram_bytes
    whole = estimate(workload, _with_memory(TARGET, resident_weight_bytes=half)).dram_bytes
    part = estimate(workload, _with_memory(TARGET, resident_weight_bytes=half, residency="partial")).dram_bytes
    assert whole == pytest.approx(resident + workload.weight_bytes, rel=1e-3)
    assert part == pytest.approx(resident + workload.weight_bytes / 2, rel=1e-3)


def test_nothing_runs_without_number_formats() -> None:
    workload = _network([8], [("conv", False)], 4)
    bare = replace(workload, tensors=tuple(replace(tensor, dtype="") for tensor in workload.tensors))
    with pytest.raises(WorkloadError, match="bit policy"):
        estimate(bare, TARGET)


def test_reading_before_making_is_refused() -> None:
    tensors = (Tensor("a", (1,), "int8"), Tensor("b", (1,), "int8"))
    op = Op("op", "op", "activation", (1,), (0,), reads=(1,), function="relu")
    with pytest.raises(WorkloadError, match="before it is made"):
        Workload("wrong", tensors, (op,), (), (0,))


@given(networks, st.sampled_from([0.3, 0.75, 1.0]))
def test_compressed_weights_move_less_and_are_as_large(workload: Workload, ratio: float) -> None:
    plain, packed = (
        estimate(workload, _with_memory(TARGET, dram_burst_bytes=1, weight_compression=table))
        for table in ({"int8": 1.0}, {"int8": ratio})
    )
    assert packed.weight_bytes == plain.weight_bytes
    assert packed.latency_s <= plain.latency_s
    saved = (1 - ratio) * workload.weight_bytes
    assert packed.dram_bytes == pytest.approx(plain.dram_bytes - saved, abs=len(workload.ops))
    wide = workload.with_dtypes(dict.fromkeys(workload.weight_indices, "int16"))
    assert estimate(wide, _with_memory(TARGET, weight_compression={"int8": ratio})) == estimate(wide, TARGET)


@given(networks, capacities)
def test_transfer_hides_behind_computing(workload: Workload, capacity: int) -> None:
    """Double buffering: a group takes the larger of its two times, not their sum."""
    for row in estimate(workload, _with_memory(TARGET, onchip_bytes=capacity)).rows:
        compute_s = max(row["matrix_s"], row["vector_s"], row["onchip_s"])
        assert row["latency_s"] == pytest.approx(max(compute_s, row["dram_s"]) + TARGET.overhead.launch_s, rel=1e-12)
