"""Where a network's time goes on a device: roofline, waterline and efficiency gap of a cost report.

Waterline (after Lavin, arXiv:2404.03617): the groups in order of execution, each a bar as wide as its ideal compute
time and as high as its arithmetic intensity; the water stands at the device's balance, and bars below it are limited by
memory however well they compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hw_models.estimate import CostReport
from hw_models.target import Target

LOSSES = ("ideal", "tiling and precision", "vector unit", "on-chip memory", "dram", "overhead")
"""What a group's time is made of, from the part nobody can save to the part nothing is gained from."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One fused group with matrix work.

    start_s, width_s: ideal compute time before it and of it; intensity_macs_per_byte: macs per byte to and from dram;
    reached_macs_per_s: macs over predicted time; taken_s: that time.
    """

    name: str
    kind: str
    bound: str
    start_s: float
    width_s: float
    intensity_macs_per_byte: float
    reached_macs_per_s: float
    taken_s: float


@dataclass(frozen=True, slots=True)
class Gap:
    """Time of all groups of one kind, by what it is lost to (keys: LOSSES); it sums to their predicted time."""

    kind: str
    seconds: dict[str, float]

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())


def peak_macs_per_s(report: CostReport, target: Target) -> float:
    """What the engine would reach with all multipliers busy at the fastest number formats of the network's products."""
    reached = [
        row["macs"] / (row["utilization"] * row["latency_s"])
        for row in report.rows
        if row["macs"] and row["utilization"]
    ]
    return max(reached, default=target.matrix.peak_macs_per_s)


def balance_macs_per_byte(report: CostReport, target: Target) -> float:
    """Macs at that peak per byte the memory delivers: the level of the water."""
    return peak_macs_per_s(report, target) / (target.memory.dram_bytes_per_s * target.memory.dram_efficiency)


def waterline(report: CostReport) -> list[Bar]:
    """Bars of all groups with macs, in order of execution. A group without dram traffic has infinite intensity."""
    bars, start_s = [], 0.0
    for row in report.rows:
        if not row["macs"]:
            continue
        width_s = row["utilization"] * row["latency_s"]
        traffic = row["dram_bytes"]
        intensity = row["macs"] / traffic if traffic else float("inf")
        reached = row["macs"] / row["latency_s"]
        bars.append(Bar(row["name"], row["kind"], row["bound"], start_s, width_s, intensity, reached, row["latency_s"]))
        start_s += width_s
    return bars


def efficiency_gap(report: CostReport) -> list[Gap]:
    """Per kind of group the ideal time and the losses, the kind with the most time first; the network's own overhead
    is a kind of its own."""
    kinds: dict[str, dict[str, float]] = {}
    for row in report.rows:
        seconds = kinds.setdefault(row["kind"], dict.fromkeys(LOSSES, 0.0))
        for loss, value in _losses(row).items():
            seconds[loss] += value
    if report.overhead_s:
        kinds["network"] = dict.fromkeys(LOSSES, 0.0) | {"overhead": report.overhead_s}
    return sorted((Gap(kind, seconds) for kind, seconds in kinds.items()), key=lambda gap: -gap.total_s)


def _losses(row: dict[str, float]) -> dict[str, float]:
    """Split of one group's time. Parts overlap; each is charged only for what it adds to those before it."""
    ideal_s = row["utilization"] * row["latency_s"]
    levels: Sequence[tuple[str, float]] = (
        ("ideal", ideal_s),
        ("tiling and precision", row["matrix_s"]),
        ("vector unit", row["vector_s"]),
        ("on-chip memory", row["onchip_s"]),
        ("dram", row["dram_s"]),
    )
    reached, out = 0.0, {}
    for loss, level_s in levels:
        out[loss] = max(0.0, level_s - reached)
        reached = max(reached, level_s)
    beyond_s = max(0.0, row["latency_s"] - reached)
    out["overhead"] = min(beyond_s, row["launch_s"])
    out["dram"] += beyond_s - out["overhead"]  # transfers that nothing hides
    return out
