"""Workload and target -> cost: time, energy, traffic and memory, group by group, with what bounds each.

A network is the sum over its parts (peak memory: the maximum) plus global terms: the share of weights that does not
fit, the transfer to the host, the overhead per network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hw_models.legality import Infeasible, memory_violations, worst_of
from hw_models.part_cost import PartCost, estimate_part
from hw_models.target import Target
from hw_models.workload import Workload

COST_MODEL_VERSION = 3
"""Counted up when predictions of the same network on the same target change: calibrations before are then refused."""


@dataclass(frozen=True)
class CostReport:
    """Predicted cost of one inference of a network on a device. SI units.

    rows: per fused group; their latencies and the network overhead (`overhead_s`) add up to the cost model's latency,
        `model_latency_s`.
    accuracy: what is known about how well such predictions agree with silicon.
    parts: what the figures are sums of.
    calibration: what predicts latency_s, with the ends of its 90 percent interval, instead of the cost model; or "".
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
    parts: tuple[PartCost, ...] = field(default=(), repr=False, compare=False)
    calibration: str = ""
    latency_low_s: float | None = None
    latency_high_s: float | None = None

    @property
    def model_latency_s(self) -> float:
        """By the cost model alone."""
        return sum((float(row["latency_s"]) for row in self.rows), self.overhead_s)

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
            **self._calibrated(),
            "overhead_s": self.overhead_s,
            "ops": self.rows,
            "warnings": list(self.warnings),
            "accuracy": self.accuracy,
        }

    def _calibrated(self) -> dict[str, Any]:
        if not self.calibration:
            return {}
        return {
            "latency_low_s": self.latency_low_s,
            "latency_high_s": self.latency_high_s,
            "model_latency_s": self.model_latency_s,
            "calibration": self.calibration,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)


def estimate(workload: Workload, target: Target) -> CostReport:
    """Cost of a whole network given as one workload with number formats."""
    shape = workload.input_shapes[0] if workload.input_shapes else ()
    return combine([estimate_part(workload, target)], target, model=workload.name, input_shape=shape)


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
        parts=tuple(parts),
    )


def streamed_share(weight_bytes: float, target: Target) -> float:
    """Share of a network's weights that comes from dram in every inference; `Memory.residency` says by which rule."""
    memory = target.memory
    capacity = memory.resident_weight_bytes
    if memory.residency == "nested" and memory.onchip_bytes < weight_bytes <= capacity:
        return memory.cached_share * (1.0 - memory.onchip_bytes / weight_bytes)
    if weight_bytes <= capacity:
        return 0.0
    return 1.0 - capacity / weight_bytes if memory.residency == "partial" else 1.0


def network_overhead_s(host_bytes: float, target: Target) -> float:
    """Time of a network besides its ops: its start, and the bus to the host where there is one."""
    link = target.overhead.link_bytes_per_s
    return target.overhead.network_s + (host_bytes / link if link else 0.0)


def blend(pairs: Sequence[tuple[float, float]], share: float) -> float:
    """Sum over parts of (resident, streamed) figures at a share of streamed weights."""
    resident = sum(pair[0] for pair in pairs)
    streamed = sum(pair[1] for pair in pairs)
    return (1 - share) * resident + share * streamed
