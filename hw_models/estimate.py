"""Workload and target -> cost: time, energy, traffic and memory, group by group, with what bounds each.

A part (a whole network, or a sub-block of one) is costed by itself, both with its weights resident on chip
and with its weights streamed. A network is the sum over its parts (peak memory: the maximum) plus global
terms: the share of weights that does not fit, the transfer to the host, the overhead per network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil
from typing import Any

from hw_models.block_fusion import Loop, Price, find_loops, fused_peak_bytes
from hw_models.fusion import Group, fuse
from hw_models.kernel import Kernel, kernel_of
from hw_models.legality import Infeasible, illegal_ops, memory_violations, worst_of
from hw_models.memory import Placement, group_traffic, place
from hw_models.npu import matrix_precision, matrix_seconds, operand_seconds, vector_elements, vector_seconds
from hw_models.target import Target
from hw_models.workload import MATRIX_KINDS, Op, Workload


@dataclass(frozen=True, slots=True)
class GroupCost:
    """Cost of one fused group. Compute and both kinds of transfer overlap: its time is the largest of them.

    matrix_s and vector_s also overlap: the vector unit works on what the array has finished.
    energy_j leaves out dram and static power, which depend on whether weights are streamed.
    family, gemm, taps, elements, integer, weight_bits, activation_bits: what kind of kernel it is, as
    `hw_models.kernel.Kernel` says.
    chain: name of the block-fused chain it runs in, "" when it runs by itself; stripes, stripe_rows: how often, and
    rows of the chain's output at a time; halo_macs: macs done again because stripes overlap (in the times and
    energies, not in macs).
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
    elements: int
    integer: bool
    weight_bits: int
    activation_bits: int
    chain: str = ""
    stripes: int = 1
    stripe_rows: int = 0
    halo_macs: int = 0

    def dram_bytes(self, streamed: float) -> float:
        """streamed: share of the weights that come from dram, 0 to 1."""
        return self.dram_activation_bytes + streamed * self.dram_weight_bytes


@dataclass(frozen=True)
class PartCost:
    """Cost of a workload on a target, before the global terms of a network.

    input_bytes, output_bytes: what crosses a bus to the host if this part is the first or the last.
    """

    target: Target
    groups: tuple[GroupCost, ...]
    macs: int
    params: int
    weight_bytes: int
    peak_onchip_bytes: int
    largest_step_bytes: int
    input_bytes: int
    output_bytes: int
    violations: tuple[Infeasible, ...]

    @cached_property
    def latency_s(self) -> tuple[float, float]:
        """With resident weights, with streamed weights."""
        resident, streamed = (sum(self._group_s(group, share) for group in self.groups) for share in (0.0, 1.0))
        return resident, streamed

    @cached_property
    def dram_bytes(self) -> tuple[float, float]:
        """With resident weights, with streamed weights."""
        resident, streamed = (sum(group.dram_bytes(share) for group in self.groups) for share in (0.0, 1.0))
        return resident, streamed

    @cached_property
    def energy_j(self) -> tuple[float, float]:
        """With resident weights, with streamed weights; static power included."""
        compute = sum(group.energy_j for group in self.groups)
        energy = self.target.energy
        resident, streamed = (
            compute + dram * energy.dram_byte_j + seconds * energy.static_w
            for dram, seconds in zip(self.dram_bytes, self.latency_s, strict=True)
        )
        return resident, streamed

    def _group_s(self, group: GroupCost, share: float) -> float:
        return group_seconds(group, share, self.target)

    def rows(self, share: float, prefix: str = "") -> list[dict[str, Any]]:
        """One row per group, `share` of the weights streamed; their latencies and energies add up.

        prefix: module path of the part, put before the names.
        """
        return [self._row(group, share, prefix) for group in self.groups]

    def _row(self, group: GroupCost, share: float, prefix: str) -> dict[str, Any]:
        seconds = (1 - share) * self._group_s(group, 0.0) + share * self._group_s(group, 1.0)
        dram_bytes = group.dram_bytes(share)
        times = {
            "matrix": group.matrix_s,
            "vector": group.vector_s,
            "on-chip memory": group.onchip_s,
            "dram": dram_seconds(dram_bytes, self.target),
            "overhead": group.launch_s,
        }
        energy = self.target.energy
        return {
            "name": f"{prefix}.{group.name}".strip("."),
            "kind": group.kind,
            "fused": [f"{prefix}.{name}".strip(".") for name in group.ops],
            "bound": max(times, key=lambda bound: times[bound]),
            "latency_s": seconds,
            "energy_j": group.energy_j + dram_bytes * energy.dram_byte_j + seconds * energy.static_w,
            "macs": group.macs,
            "utilization": group.ideal_s / seconds if seconds else 0.0,
            "matrix_s": group.matrix_s,
            "vector_s": group.vector_s,
            "onchip_s": group.onchip_s,
            "dram_s": times["dram"],
            "dram_bytes": dram_bytes,
            "onchip_bytes": group.onchip_bytes,
            "chain": f"{prefix}.{group.chain}".strip(".") if group.chain else "",
            "stripes": group.stripes,
            "stripe_rows": group.stripe_rows,
            "halo_macs": group.halo_macs,
        }


@dataclass(frozen=True)
class CostReport:
    """Predicted cost of one inference of a network on a device. SI units.

    rows: per fused group; their latencies and the network overhead (`overhead_s`) add up to latency_s.
    accuracy: what is known about how well such predictions agree with silicon.
    """

    target: str
    latency_s: float
    energy_j: float
    macs: int
    params: int
    dram_bytes: float
    peak_onchip_bytes: float
    weight_bytes: float
    overhead_s: float
    accuracy: str
    model: str = ""
    precision: str = ""
    input_shape: tuple[int, ...] = ()
    rows: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    violations: list[Infeasible] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The scalar figures and the violations: what a study keeps of a candidate."""
        return {
            "latency_s": self.latency_s,
            "energy_j": self.energy_j,
            "macs": self.macs,
            "params": self.params,
            "dram_bytes": self.dram_bytes,
            "peak_onchip_bytes": self.peak_onchip_bytes,
            "weight_bytes": self.weight_bytes,
            "violations": [violation.to_dict() for violation in self.violations],
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "target": self.target,
            "precision": self.precision,
            "input_shape": list(self.input_shape),
            **self.summary(),
            "overhead_s": self.overhead_s,
            "ops": self.rows,
            "warnings": list(self.warnings),
            "accuracy": self.accuracy,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)


def estimate(workload: Workload, target: Target) -> CostReport:
    """Cost of a whole network given as one workload with number formats."""
    shape = workload.input_shapes[0] if workload.input_shapes else ()
    return combine([estimate_part(workload, target)], target, model=workload.name, input_shape=shape)


def estimate_part(workload: Workload, target: Target, ends_in_dram: tuple[bool, bool] = (True, True)) -> PartCost:
    """Cost of a workload. ends_in_dram: as in `memory.place`."""
    groups = fuse(workload, target.overhead.fusion)
    placement = place(workload, groups, target.memory, ends_in_dram)
    costs, peak_bytes = _group_costs(workload, groups, placement, target)
    size = [tensor.size_bytes for tensor in workload.tensors]
    violations = illegal_ops(workload, target)
    return PartCost(
        target=target,
        groups=costs,
        macs=workload.macs,
        params=workload.params,
        weight_bytes=workload.weight_bytes,
        peak_onchip_bytes=peak_bytes,
        largest_step_bytes=max(
            (sum(size[index] for index in (*group.inputs, *group.outputs)) for group in groups), default=0
        ),
        input_bytes=sum(size[index] for index in workload.inputs),
        output_bytes=sum(size[index] for index in workload.outputs),
        violations=tuple(violations),
    )


def combine(
    parts: Sequence[PartCost],
    target: Target,
    *,
    names: Sequence[str] = (),
    model: str = "",
    precision: str = "",
    input_shape: tuple[int, ...] = (),
    warnings: Sequence[str] = (),
) -> CostReport:
    """A network from its parts in order of execution. names: module path of each part, for the rows."""
    names = names or [""] * len(parts)
    weight_bytes = sum(part.weight_bytes for part in parts)
    share = streamed_share(weight_bytes, target)
    host_bytes = (parts[0].input_bytes + parts[-1].output_bytes) if parts else 0
    overhead_s = network_overhead_s(host_bytes, target)
    peak = max((part.peak_onchip_bytes for part in parts), default=0)
    largest_step = max((part.largest_step_bytes for part in parts), default=0)
    violations = [violation for part in parts for violation in part.violations]
    return CostReport(
        target=target.name,
        latency_s=blend([part.latency_s for part in parts], share) + overhead_s,
        energy_j=blend([part.energy_j for part in parts], share) + overhead_s * target.energy.static_w,
        macs=sum(part.macs for part in parts),
        params=sum(part.params for part in parts),
        dram_bytes=blend([part.dram_bytes for part in parts], share),
        peak_onchip_bytes=peak,
        weight_bytes=weight_bytes,
        overhead_s=overhead_s,
        accuracy=target.accuracy,
        model=model,
        precision=precision,
        input_shape=input_shape,
        rows=[row for part, name in zip(parts, names, strict=True) for row in part.rows(share, name)],
        warnings=list(warnings),
        violations=worst_of(violations) + memory_violations(target, peak, weight_bytes, largest_step),
    )


def streamed_share(weight_bytes: float, target: Target) -> float:
    """Share of a network's weights that comes from dram in every inference."""
    capacity = target.memory.resident_weight_bytes
    if weight_bytes <= capacity:
        return 0.0
    return 1.0 if target.memory.residency == "whole" else 1.0 - capacity / weight_bytes


def network_overhead_s(host_bytes: float, target: Target) -> float:
    """Time of a network besides its ops: its start, and the bus to the host where there is one."""
    link = target.overhead.link_bytes_per_s
    return target.overhead.network_s + (host_bytes / link if link else 0.0)


def blend(pairs: Sequence[tuple[float, float]], share: float) -> float:
    """Sum over parts of (resident, streamed) figures at a share of streamed weights."""
    resident = sum(pair[0] for pair in pairs)
    streamed = sum(pair[1] for pair in pairs)
    return (1 - share) * resident + share * streamed


def dram_seconds(count_bytes: float, target: Target) -> float:
    return count_bytes / (target.memory.dram_bytes_per_s * target.memory.dram_efficiency)


def group_seconds(group: GroupCost, share: float, target: Target) -> float:
    """Time of a group with `share` of the weights streamed: the larger of computing and transfer, which overlap."""
    compute_s = max(group.matrix_s, group.vector_s, group.onchip_s)
    return max(compute_s, dram_seconds(group.dram_bytes(share), target)) + group.launch_s


def _group_costs(
    workload: Workload, groups: Sequence[Group], placement: Placement, target: Target
) -> tuple[tuple[GroupCost, ...], int]:
    """Every group at its best, alone or in a block-fused chain; and the most on-chip bytes ever asked for."""

    def cost(position: int, loop: Loop | None) -> GroupCost:
        return _group_cost(workload, groups[position], placement, target, loop)

    def price(position: int, loop: Loop | None) -> Price:
        group = cost(position, loop)
        seconds = group_seconds(group, 0.0, target), group_seconds(group, 1.0, target)
        return Price(seconds, (group.dram_bytes(0.0), group.dram_bytes(1.0)), _streamed_j(group, seconds[1], target))

    mode = target.overhead.block_fusion if target.overhead.fusion != "none" else "none"
    loops = find_loops(workload, groups, placement, target.memory, mode, price)
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
    matrix_s = vector_s = ideal_s = energy_j = 0.0
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
            matrix_s += stripes * matrix_seconds(_of_stripe(op, factor / stripes), target.matrix, precision)
            matrix_s += factor * operand_seconds(op, target.vector)
            rate = target.matrix.rates.get(precision, min(target.matrix.rates.values()))
            ideal_s += op.macs / (target.matrix.peak_macs_per_s * rate)
            energy_j += op.macs * factor * target.energy.mac_j.get(precision, max(target.energy.mac_j.values()))
            macs += op.macs
            done += op.macs * factor
            assert op.gemm is not None
            passes = max(passes, ceil(op.gemm[2] / (target.matrix.columns * target.matrix.cores)))
        elif not (has_matrix and {op.kind, op.function} & set(target.vector.fused)):
            factor = loop.factor[op.outputs[0]] if loop is not None else 1.0
            vector_s += vector_seconds(workload, op, target.vector) * factor
            energy_j += vector_elements(workload, op) * factor * target.energy.vector_element_j
    traffic = group_traffic(workload, group, placement, target.memory, passes, loop)
    first = _anchor(workload, group)
    kernel = kernel_of(workload, first)
    return GroupCost(
        name=first.name,
        kind=first.kind,
        ops=tuple(workload.ops[position].name for position in group.ops),
        macs=macs,
        ideal_s=ideal_s,
        matrix_s=matrix_s,
        vector_s=vector_s,
        onchip_s=traffic.onchip_bytes / target.memory.onchip_bytes_per_s,
        launch_s=target.overhead.launch_s * stripes,
        dram_activation_bytes=traffic.dram_activation_bytes,
        dram_weight_bytes=traffic.dram_weight_bytes,
        onchip_bytes=traffic.onchip_bytes,
        energy_j=energy_j + traffic.onchip_bytes * target.energy.onchip_byte_j,
        **{key: getattr(kernel, key) for key in Kernel.__slots__},
        stripes=stripes,
        stripe_rows=loop.stripe_rows if loop is not None else 0,
        halo_macs=round(done) - macs,
    )


def _of_stripe(op: Op, share: float) -> Op:
    """A matrix op on a share of its output positions."""
    if share == 1.0 or op.gemm is None:
        return op
    groups, m, n, k = op.gemm
    return replace(op, gemm=(groups, ceil(m * share), n, k))


def _anchor(workload: Workload, group: Group) -> Any:
    """The op a group is named after: its matrix op, else its first."""
    ops = [workload.ops[position] for position in group.ops]
    return next((op for op in ops if op.kind in MATRIX_KINDS), ops[0])
