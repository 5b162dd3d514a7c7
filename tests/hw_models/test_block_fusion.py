"""Chains run stripe by stripe: never dearer, never more traffic, and their rows counted a second way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw_models import Op, Target, Tensor, Window, Workload, estimate, load_target
from hw_models.block_fusion import Loop, Price, block_of, find_loops
from hw_models.fusion import fuse
from hw_models.memory import place
from hw_models.row_flow import RowFlow

TARGET = load_target("npu_40tops")
Layer = tuple[str, int, int]
"""(kind, kernel, stride)."""


def _stack(layers: list[Layer], channels: int, side: int, module: str = "blocks.0") -> Workload:
    """Ops one after the other on a square map; "add" adds the newest tensor of the same shape but the last."""
    tensors = [Tensor("input", (1, channels, side, side), "int8")]
    ops: list[Op] = []
    newest = 0
    for number, (kind, kernel, stride) in enumerate(layers):
        height = tensors[newest].shape[2]
        out = -(-height // stride)
        shape, weights, inputs, gemm, window, extent = (1, channels, out, out), (), (newest,), None, None, 1
        if kind in ("conv", "depthwise", "pool"):
            groups = channels if kind == "depthwise" else 1
            window = Window((kernel, kernel), (stride, stride), groups=groups)
        if kind in ("conv", "depthwise"):
            tensors.append(Tensor(f"w{number}", (channels, channels // groups, kernel, kernel), "int8", constant=True))
            weights = (len(tensors) - 1,)
            gemm = (groups, out * out, channels // groups, kernel * kernel * channels // groups)
        elif kind == "add":
            older = [i for i, tensor in enumerate(tensors[:newest]) if tensor.shape == shape]
            inputs = (newest, *older[-1:])
        elif kind == "norm":
            extent = channels
        elif kind == "reduce":
            extent = out * out
            shape = (1, channels, 1, 1)
        tensors.append(Tensor(f"t{number}", shape, "int8"))
        made = len(tensors) - 1
        kind = {"depthwise": "conv", "add": "elementwise"}.get(kind, kind)
        function = "add" if kind == "elementwise" else ""
        reads = tuple(tensors[index].elements for index in inputs)
        name = f"{module}.op{number}"
        ops.append(Op(name, name, kind, inputs, (made,), weights, reads, function, gemm, window, extent))
        newest = made
    return Workload("net", tuple(tensors), tuple(ops), (0,), (newest,), input_shapes=(tensors[0].shape,))


layers = st.one_of(
    st.tuples(st.just("conv"), st.sampled_from([1, 3, 5]), st.sampled_from([1, 1, 2])),
    st.tuples(st.just("depthwise"), st.sampled_from([3, 7]), st.just(1)),
    st.tuples(st.just("pool"), st.sampled_from([2, 3]), st.just(2)),
    st.tuples(st.sampled_from(["add", "norm", "transpose"]), st.just(1), st.just(1)),
)
stacks = st.builds(
    _stack, st.lists(layers, min_size=1, max_size=8), st.sampled_from([16, 64]), st.sampled_from([14, 56, 75])
)
capacities = st.sampled_from([3_000, 20_000, 100_000, 400_000])
modes = st.sampled_from(["recompute", "rolling"])


def _device(capacity: int, mode: str, launch_s: float = 0.0, **memory: float) -> Target:
    return replace(
        TARGET,
        memory=replace(TARGET.memory, onchip_bytes=capacity, **memory),
        overhead=replace(TARGET.overhead, block_fusion=mode, launch_s=launch_s),
    )


@given(
    stacks,
    capacities,
    modes,
    st.sampled_from([0, 30_000, 10**8]),
    st.sampled_from(["whole", "partial"]),
    st.sampled_from([0.0, 1e-6]),
)
def test_never_adds_traffic_or_time(
    workload: Workload, capacity: int, mode: str, resident: int, rule: str, launch_s: float
) -> None:
    fused, plain = (
        estimate(workload, _device(capacity, chosen, launch_s, resident_weight_bytes=resident, residency=rule))
        for chosen in (mode, "none")
    )
    assert fused.latency_s <= plain.latency_s * (1 + 1e-12)
    assert fused.dram_bytes <= plain.dram_bytes * (1 + 1e-12)
    assert (fused.macs, fused.weight_bytes) == (plain.macs, plain.weight_bytes)
    assert sum(row["latency_s"] for row in fused.rows) + fused.overhead_s == pytest.approx(fused.latency_s, rel=1e-12)
    assert sum(row["energy_j"] for row in fused.rows) + fused.overhead_s * TARGET.energy.static_w == pytest.approx(
        fused.energy_j, rel=1e-12
    )


@given(stacks, capacities, modes)
def test_stripes_fit_and_only_they_are_kept(workload: Workload, capacity: int, mode: str) -> None:
    memory = _device(capacity, mode).memory
    groups = fuse(workload)
    placement = place(workload, groups, memory)

    def price(position: int, loop: Loop | None) -> Price:
        value = 2.0 if loop is None else 1.0  # fusing always pays: every chain that fits is taken
        return Price((value, value), (value, value), value)

    for position, loop in enumerate(find_loops(workload, groups, placement, memory, mode, price)):
        if loop is None:
            continue
        assert loop.first <= position <= loop.last
        assert loop.live_bytes <= memory.activation_bytes
        assert loop.inside - placement.onchip
        assert not loop.inside & set(workload.outputs)
        readers = {step for index in loop.inside for step, group in enumerate(groups) if index in group.inputs}
        assert readers <= set(range(loop.first, loop.last + 1))
        assert all(value >= 1 for value in loop.factor.values())


@given(
    st.lists(
        st.tuples(st.just("conv"), st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 2])), min_size=1, max_size=4
    ),
    st.integers(1, 20),
)
def test_rows_needed_are_those_of_a_walk_over_the_windows(convs: list[Layer], stripes: int) -> None:
    """Second way: the rows of every stripe as sets, traced back through centred windows."""
    workload = _stack(convs, 8, 64)
    flow = RowFlow(workload)
    last = workload.outputs[0]
    steps = flow.steps(range(len(workload.ops)))
    rows = flow.rows(last)
    height = -(-rows // stripes)
    need = flow.needed(steps, [last], stripes)
    for start in range(0, rows, height):
        wanted = {last: set(range(start, min(rows, start + height)))}
        for read, made, window, stride in reversed(steps):
            side = flow.rows(read)
            above = (window - 1) // 2
            touched = {row * stride - above + tap for row in wanted[made] for tap in range(window)}
            wanted[read] = {row for row in touched if 0 <= row < side}
            assert len(wanted[read]) <= need[read]
    inner = [index for _, index, _, _ in steps]
    assert need.keys() == {0, *inner}


def _chains(workload: Workload, target: Target) -> list[str]:
    return [row["chain"] for row in estimate(workload, target).rows]


DEEP = [("conv", 1, 1), ("depthwise", 3, 1), ("conv", 1, 1)]


def test_a_block_that_does_not_fit_runs_in_stripes() -> None:
    workload = _stack(DEEP, 64, 56)
    report = estimate(workload, _device(100_000, "recompute"))
    plain = estimate(workload, _device(100_000, "none"))
    assert {row["chain"] for row in report.rows} == {"blocks.0.op0"}
    tensor = workload.tensors[0].size_bytes
    first = report.rows[0]
    shared = 2 * 64 * 56 * (first["stripes"] - 1)  # one row above and one below at every seam, read again
    assert report.dram_bytes == pytest.approx(plain.dram_bytes - 4 * tensor + shared, abs=8 * 64)
    assert first["stripes"] * first["stripe_rows"] >= 56
    assert first["halo_macs"] == pytest.approx(first["macs"] * (first["stripes"] - 1) * 2 / 56, rel=1e-9)
    assert [row["halo_macs"] for row in report.rows[1:]] == [0, 0]
    assert report.peak_onchip_bytes < plain.peak_onchip_bytes


def test_rolling_keeps_rows_instead_of_making_them_again() -> None:
    report = estimate(_stack(DEEP, 64, 56), _device(100_000, "rolling"))
    assert all(row["chain"] for row in report.rows)
    assert sum(row["halo_macs"] for row in report.rows) == 0


@pytest.mark.parametrize("breaker", [("transpose", 1, 1), ("reduce", 1, 1)])
def test_what_needs_the_whole_map_breaks_the_chain(breaker: Layer) -> None:
    chains = _chains(_stack([*DEEP, breaker, ("conv", 1, 1)], 64, 56), _device(100_000, "recompute"))
    assert chains[3:] == ["", ""]


def test_no_chain_crosses_a_block() -> None:
    first, second = _stack(DEEP, 64, 56), _stack(DEEP, 64, 56)
    whole = _stack([*DEEP, *DEEP], 64, 56)
    ops = tuple(
        replace(op, name=op.name.replace("blocks.0", f"blocks.{position // 3}"), module=f"blocks.{position // 3}.x")
        for position, op in enumerate(whole.ops)
    )
    chains = _chains(replace(whole, ops=ops), _device(100_000, "recompute"))
    assert chains == ["blocks.0.op0"] * 3 + ["blocks.1.op3"] * 3
    assert first == second


def test_weights_beyond_their_buffer_are_read_for_every_stripe() -> None:
    """Then the chain would move more bytes, so it is refused; with room for its weights it is taken."""
    workload = _stack([("conv", 3, 1), ("conv", 3, 1)], 256, 28)
    tight = _device(200_000, "rolling", dram_bytes_per_s=1e9)
    assert workload.weight_bytes > tight.memory.weight_buffer_bytes
    assert _chains(workload, tight) == ["", ""]
    roomy = replace(tight, memory=replace(tight.memory, onchip_bytes=2_600_000, activation_fraction=0.06))
    assert workload.weight_bytes <= roomy.memory.weight_buffer_bytes
    report = estimate(workload, roomy)
    assert all(row["chain"] for row in report.rows)
    ends = 2 * workload.tensors[0].size_bytes
    assert report.dram_bytes == ends + workload.weight_bytes


def test_a_map_that_stays_on_chip_is_not_touched() -> None:
    workload = _stack(DEEP, 64, 56)
    assert estimate(workload, _device(10**7, "recompute")) == estimate(workload, _device(10**7, "none"))


def test_the_block_of_a_module() -> None:
    for module, block in {
        "stages.1.blocks.0.mlp.fc1": "net.stages.1.blocks.0",
        "stages.1.blocks.0.mlp.0": "net.stages.1.blocks.0",
        "stages.1.downsample.conv": "net.stages.1",
        "layer1.0.conv1": "net.layer1.0",
        "blocks.3.attn.qkv": "net.blocks.3",
        "features.7": "net.features",
        "stem.conv1": "net.stem",
        "conv1": "net",
    }.items():
        assert block_of("net", module) == block
    assert block_of("stages.1.blocks.0", "mlp.fc1") == "stages.1.blocks.0"
