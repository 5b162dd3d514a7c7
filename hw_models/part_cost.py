"""What a workload costs on a target before the global terms of a network: a whole network, or a sub-block of one.

A part is costed by itself, both with its weights resident on chip and with its weights streamed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hw_models.fusion import Group, fuse
from hw_models.group_cost import GroupCost, group_costs, group_dram_s, group_seconds
from hw_models.known_groups import GroupKind, KnownGroups
from hw_models.legality import Infeasible, illegal_ops
from hw_models.lowering import lower
from hw_models.memory import place
from hw_models.target import Target
from hw_models.workload import Op, Workload


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
            "dram": group_dram_s(group, share, self.target),
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
            "launch_s": group.launch_s,
            "dram_bytes": dram_bytes,
            "onchip_bytes": group.onchip_bytes,
            "chain": f"{prefix}.{group.chain}".strip(".") if group.chain else "",
            "stripes": group.stripes,
            "stripe_rows": group.stripe_rows,
            "halo_macs": group.halo_macs,
        }


def estimate_part(workload: Workload, target: Target, ends: tuple[bool, bool] = (True, True)) -> PartCost:
    """Cost of a workload. ends: as in `memory.place`."""
    run = lower(workload, target.runtime, loops=target.overhead.fusion == "loops")
    groups = fuse(run, target.overhead.fusion, target.runtime.joins, target.runtime.float_joins)
    costs, peak_bytes = group_costs(run, groups, place(run, groups, target.memory, ends), target)
    return _part_cost(workload, run, groups, costs, peak_bytes, target)


class PartEstimator:
    """Costs of the same workload at one set of number formats after the other: groups are found once, and one is costed
    again only when one of its own tensors has another format or another place.
    """

    def __init__(
        self, target: Target, ends: tuple[bool, bool] = (True, True), known: KnownGroups | None = None
    ) -> None:
        """ends: as in `memory.place`. known: groups that other estimators of the target have met. Raises ValueError for
        those of another target.
        """
        if known is not None and known.target != target:
            raise ValueError(f"these groups are known of {known.target.name}, not of {target.name}")
        self._target, self._ends = target, ends
        self._known = KnownGroups(target) if known is None else known
        self._ops: tuple[Op, ...] | None = None
        self._groups: tuple[Group, ...] = ()
        self._kinds: list[GroupKind] = []

    def cost(self, workload: Workload) -> PartCost:
        """A workload of other ops is begun anew; one of the same differs in number formats alone (`with_dtypes`)."""
        target, runtime = self._target, self._target.runtime
        run = lower(workload, runtime, loops=target.overhead.fusion == "loops")
        if run.ops != self._ops or runtime.float_joins:  # else formats do not decide what is fused
            self._ops = run.ops
            self._groups = fuse(run, target.overhead.fusion, runtime.joins, runtime.float_joins)
            self._kinds = self._known.kinds(run, self._groups)
        placement = place(run, self._groups, target.memory, self._ends)

        def alone(position: int, make: Callable[[], GroupCost]) -> GroupCost:
            return self._known.cost(self._kinds[position], run, placement, make)

        costs, peak_bytes = group_costs(run, self._groups, placement, target, alone)
        return _part_cost(workload, run, self._groups, costs, peak_bytes, target)


def _part_cost(
    workload: Workload,
    run: Workload,
    groups: Sequence[Group],
    costs: tuple[GroupCost, ...],
    peak_bytes: int,
    target: Target,
) -> PartCost:
    """run: the workload as the target's runtime lowers it."""
    size = run.sizes_bytes
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
        output_bytes=sum(size[index] for index in run.outputs),
        violations=tuple(violations),
    )
