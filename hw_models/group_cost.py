"""What a fused group of ops costs on a target: time on each engine, traffic, energy; alone or in a fused chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil

from hw_models.attention_fusion import attention_loops
from hw_models.block_fusion import Loop, Price, find_loops, fused_peak_bytes
from hw_models.fusion import Group
from hw_models.kernel import Kernel, kernel_of
from hw_models.library import library_seconds
from hw_models.memory import Placement, group_traffic
from hw_models.npu import (
    matrix_precision,
    matrix_rate,
    matrix_seconds,
    operand_seconds,
    vector_elements,
    vector_seconds,
)
from hw_models.streams import block_traffic
from hw_models.target import Target
from hw_models.workload import MATRIX_KINDS, Op, Workload


@dataclass(frozen=True, slots=True)
class GroupCost:
    """Cost of one fused group. Compute and both kinds of transfer overlap: its time is the largest of them.

    matrix_s and vector_s also overlap: the vector unit works on what the array has finished.
    energy_j leaves out dram and static power, which depend on whether weights are streamed.
    family, gemm, taps, sizes, elements, integer, weight_bits, activation_bits, function, stride: what kind of kernel it
    is, as `hw_models.kernel.Kernel` says.
    chain: name of the block-fused chain it runs in, "" when it runs by itself; stripes, stripe_rows: how often, and
    rows of the chain's output at a time; halo_macs: macs done again because stripes overlap (in the times and
    energies, not in macs).
    dram_wait_s: least time of the slowest stream to or from dram, with resident and with streamed weights.
    """

    name: str
    kind: str
    ops: tuple[str, ...]
    macs: int
    ideal_s: float
    matrix_s: float
    vector_s: float
    onchip_s: float
    launch_s: float
    dram_activation_bytes: float
    dram_weight_bytes: float
    onchip_bytes: float
    energy_j: float
    family: str
    gemm: tuple[int, int, int, int] | None
    taps: int
    sizes: tuple[int, int, int]
    elements: int
    integer: bool
    weight_bits: int
    activation_bits: int
    function: str
    stride: int
    chain: str = ""
    stripes: int = 1
    stripe_rows: int = 0
    halo_macs: int = 0
    dram_wait_s: tuple[float, float] = (0.0, 0.0)

    def dram_bytes(self, streamed: float) -> float:
        """streamed: share of the weights that come from dram, 0 to 1."""
        return self.dram_activation_bytes + streamed * self.dram_weight_bytes


def dram_seconds(count_bytes: float, target: Target) -> float:
    return count_bytes / (target.memory.dram_bytes_per_s * target.memory.dram_efficiency)


def group_dram_s(group: GroupCost, share: float, target: Target) -> float:
    """Time of a group's transfers to and from dram with `share` of the weights streamed."""
    streamed_s = max(dram_seconds(group.dram_bytes(1.0), target), group.dram_wait_s[1]) if share else 0.0
    resident_s = max(dram_seconds(group.dram_bytes(0.0), target), group.dram_wait_s[0]) if share < 1 else 0.0
    return (1 - share) * resident_s + share * streamed_s


def group_seconds(group: GroupCost, share: float, target: Target) -> float:
    """Time of a group with `share` of the weights streamed: the larger of computing and transfer, which overlap, but
    for what a core waits for and for weights that must be there first.
    """
    compute_s = max(group.matrix_s, group.vector_s, group.onchip_s)
    if target.memory.weights_first:
        weights_s = dram_seconds(share * group.dram_weight_bytes, target)
        return max(compute_s, group_dram_s(group, 0.0, target)) + weights_s + group.launch_s
    if target.runtime.one_core:
        passing_s = dram_seconds(group.dram_activation_bytes, target)
        # A product waits for maps that do not lie near; the cycles of a pass over memory hold its waiting.
        compute_s = compute_s + passing_s if group.matrix_s else max(compute_s, passing_s)
        return compute_s + dram_seconds(share * group.dram_weight_bytes, target) + group.launch_s
    return max(compute_s, group_dram_s(group, share, target)) + group.launch_s


CostAlone = Callable[[int, Callable[[], GroupCost]], GroupCost]
"""(position of a group, what works out its cost by itself) -> that cost, which may be known."""


def group_costs(
    workload: Workload,
    groups: Sequence[Group],
    placement: Placement,
    target: Target,
    alone: CostAlone = lambda _, make: make(),
) -> tuple[tuple[GroupCost, ...], int]:
    """Every group at its best, alone or in a block-fused chain; and the most on-chip bytes ever asked for."""

    def cost(position: int, loop: Loop | None) -> GroupCost:
        def make() -> GroupCost:
            return _group_cost(workload, groups[position], placement, target, loop)

        return make() if loop is not None else alone(position, make)

    def price(position: int, loop: Loop | None) -> Price:
        group = cost(position, loop)
        seconds = group_seconds(group, 0.0, target), group_seconds(group, 1.0, target)
        return Price(seconds, (group.dram_bytes(0.0), group.dram_bytes(1.0)), _streamed_j(group, seconds[1], target))

    mode = target.overhead.block_fusion if target.overhead.fusion != "none" else "none"
    loops = find_loops(workload, groups, placement, target.memory, mode, price)
    if target.overhead.attention_fusion:
        attention = attention_loops(workload, groups, placement, target.memory, price)
        loops = [one or other for one, other in zip(loops, attention, strict=True)]
    if not any(loops):
        return tuple(cost(position, None) for position in range(len(groups))), placement.peak_bytes
    names = [cost(loop.first, None).name if loop else "" for loop in loops]
    costs = [replace(cost(position, loop), chain=names[position]) for position, loop in enumerate(loops)]
    return tuple(costs), fused_peak_bytes(workload, groups, loops, target.memory)


def _streamed_j(group: GroupCost, seconds: float, target: Target) -> float:
    """Energy of a group with streamed weights."""
    energy = target.energy
    return group.energy_j + group.dram_bytes(1.0) * energy.dram_byte_j + seconds * energy.static_w


def _group_cost(
    workload: Workload, group: Group, placement: Placement, target: Target, loop: Loop | None = None
) -> GroupCost:
    """Cost of a group. loop: the chain it runs in stripe by stripe, rows that stripes share done again."""
    matrix_s = vector_s = operand_s = ideal_s = energy_j = 0.0
    macs, done, passes = 0, 0.0, 1
    stripes = loop.stripes if loop is not None else 1
    has_matrix = any(workload.ops[position].kind in MATRIX_KINDS for position in group.ops)
    for position in group.ops:
        op = workload.ops[position]
        if position in group.folded:
            continue
        if op.kind in MATRIX_KINDS:
            precision = matrix_precision(workload, op, target.matrix.rates)
            factor = loop.factor[op.outputs[0]] if loop is not None else 1.0
            product_s = stripes * matrix_seconds(_of_stripe(op, factor / stripes), target.matrix, precision)
            operand_s += factor * operand_seconds(op, target.vector)
            matrix_s += product_s + library_seconds(workload, op, target.matrix, target.runtime, product_s)
            rate = matrix_rate(op, target.matrix, precision)
            ideal_s += op.macs / (target.matrix.peak_macs_per_s * rate)
            energy_j += op.macs * factor * target.energy.mac_j.get(precision, max(target.energy.mac_j.values()))
            macs += op.macs
            done += op.macs * factor
            assert op.gemm is not None
            if target.runtime.rereads:
                passes = max(passes, ceil(op.gemm[2] / (target.matrix.columns * target.matrix.cores)))
        elif not (has_matrix and {op.kind, op.function} & set(target.vector.fused)):
            factor = loop.factor[op.outputs[0]] if loop is not None else 1.0
            vector_s += vector_seconds(workload, op, target.vector) * factor
            energy_j += vector_elements(workload, op) * factor * target.energy.vector_element_j
    first = _anchor(workload, group)
    kernel = kernel_of(workload, first)
    serial_s = stripes * kernel.sizes[2] * target.overhead.serial_s.get(kernel.family, 0.0)
    if has_matrix:
        matrix_s = max(matrix_s, serial_s)
    else:
        vector_s = max(vector_s, serial_s)
    if target.runtime.one_core and has_matrix:
        matrix_s, vector_s = matrix_s + vector_s, 0.0
    if target.matrix.accumulator_bytes:
        traffic = block_traffic(workload, group, placement, target, loop)
    else:
        traffic = group_traffic(workload, group, placement, target.memory, passes, loop)
    operand_s = max(operand_s, traffic.operand_wait_s)  # everything else waits for it
    weight_passes = target.runtime.weight_passes if first.kind == "conv" else 1.0
    return GroupCost(
        name=first.name,
        kind=first.kind,
        ops=tuple(workload.ops[position].name for position in group.ops),
        macs=macs,
        ideal_s=ideal_s,
        matrix_s=matrix_s + operand_s,
        vector_s=vector_s,
        onchip_s=max(traffic.onchip_bytes / target.memory.onchip_bytes_per_s, traffic.onchip_wait_s + operand_s),
        launch_s=(target.overhead.launch_s + target.overhead.start_s.get(kernel.family, 0.0)) * stripes,
        dram_activation_bytes=traffic.dram_activation_bytes,
        dram_weight_bytes=traffic.dram_weight_bytes * weight_passes,
        onchip_bytes=traffic.onchip_bytes,
        energy_j=energy_j + traffic.onchip_bytes * target.energy.onchip_byte_j,
        **{key: getattr(kernel, key) for key in Kernel.__slots__},
        stripes=stripes,
        stripe_rows=loop.stripe_rows if loop is not None else 0,
        halo_macs=round(done) - macs,
        dram_wait_s=(traffic.dram_wait_s[0] + operand_s, traffic.dram_wait_s[1] + operand_s),
    )


def _of_stripe(op: Op, share: float) -> Op:
    """A matrix op on a share of its output positions; of attention on a share of its heads, then of their queries."""
    if share == 1.0 or op.gemm is None:
        return op
    groups, m, n, k = op.gemm
    if op.kind == "matmul":
        return replace(op, gemm=(ceil(groups * share), ceil(m * min(1.0, groups * share)), n, k))
    return replace(op, gemm=(groups, ceil(m * share), n, k))


def _anchor(workload: Workload, group: Group) -> Op:
    """The op a group is named after: its matrix op, else the first that combines elements, else its first."""
    ops = [workload.ops[position] for position in group.ops]
    combining = next((op for op in ops if op.kind in ("norm", "softmax", "reduce")), ops[0])
    return next((op for op in ops if op.kind in MATRIX_KINDS), combining)
