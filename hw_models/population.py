"""Cost of many networks at once: parts in a table, networks as rows of indices into it.

Equal to `estimate.combine` of the same parts to rounding (tested to 1e-9), because it sums the same figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw_models.estimate import PartCost
from hw_models.target import Target

FIGURES = ("latency_s", "energy_j", "macs", "params", "dram_bytes", "peak_onchip_bytes", "weight_bytes")
"""What is known of every network of a population, besides whether the target can run it ("legal")."""

_SUMMED = (
    "latency_resident_s",
    "latency_streamed_s",
    "energy_resident_j",
    "energy_streamed_j",
    "dram_resident_bytes",
    "dram_streamed_bytes",
    "macs",
    "params",
    "weight_bytes",
    "host_bytes",
    "violations",
)
_LARGEST = ("peak_onchip_bytes", "largest_step_bytes")
COLUMNS = (*_SUMMED, *_LARGEST)
"""Columns of a part table: the first are summed over the parts of a network, of the last two the largest counts."""

MAXIMA = len(_LARGEST)
"""Columns at the end that are not sums."""

Position = tuple[NDArray[np.float64], NDArray[np.integer], NDArray[np.float64] | None]
"""A place in the network: the table [rows, len(COLUMNS)] of what can stand there, the row of every network
[count], and how often it occurs in each [count] (None: once; 0 where a network lacks it)."""

CHUNK = 8192
"""Networks costed at a time: their intermediate figures then stay in the processor's cache."""


def part_row(
    part: PartCost, ends: tuple[bool, bool] = (False, False), latency_s: tuple[float, float] | None = None
) -> NDArray[np.float64]:
    """The figures of one part in the order of COLUMNS. ends: whether it is the first, the last part of its
    network. latency_s: with resident and with streamed weights, if not the
    cost model's own.
    """
    host_bytes = part.input_bytes * ends[0] + part.output_bytes * ends[1]
    return np.array(
        [
            *(part.latency_s if latency_s is None else latency_s),
            *part.energy_j,
            *part.dram_bytes,
            part.macs,
            part.params,
            part.weight_bytes,
            host_bytes,
            len(part.violations),
            part.peak_onchip_bytes,
            part.largest_step_bytes,
        ],
        dtype=np.float64,
    )


def cost_population(
    positions: Iterable[Position],
    count: int,
    target: Target,
) -> Mapping[str, NDArray[Any]]:
    """Figures of `count` networks and whether each is legal, arrays [count]."""
    totals = np.zeros((count, len(COLUMNS)))
    taken = np.empty_like(totals)
    largest = np.zeros((count, MAXIMA))
    for table, rows, times in positions:
        np.take(table, rows, axis=0, out=taken, mode="clip")
        if times is None:
            np.maximum(largest, taken[:, -MAXIMA:], out=largest)
        else:
            np.maximum(largest, np.where(times[:, None] > 0, taken[:, -MAXIMA:], 0.0), out=largest)
            taken *= times[:, None]
        totals += taken
    return _figures(totals, largest, target)


def _figures(totals: NDArray[np.float64], largest: NDArray[np.float64], target: Target) -> Mapping[str, NDArray[Any]]:
    """The global terms of `estimate.combine`, for arrays."""
    peak = largest[:, 0]
    column = {name: totals[:, index] for index, name in enumerate(_SUMMED)}
    share = _streamed_share(column["weight_bytes"], target)
    link = target.overhead.link_bytes_per_s
    overhead_s = target.overhead.network_s + (column["host_bytes"] / link if link else 0.0)

    def blend(name: str, unit: str) -> NDArray[np.float64]:
        if isinstance(share, float):  # the same for all: one of the two columns
            return column[f"{name}_{'streamed' if share else 'resident'}_{unit}"].copy()
        return (1 - share) * column[f"{name}_resident_{unit}"] + share * column[f"{name}_streamed_{unit}"]

    return {
        "latency_s": blend("latency", "s") + overhead_s,
        "energy_j": blend("energy", "j") + overhead_s * target.energy.static_w,
        "macs": column["macs"],
        "params": column["params"],
        "dram_bytes": blend("dram", "bytes"),
        "peak_onchip_bytes": peak,
        "weight_bytes": column["weight_bytes"],
        "legal": (column["violations"] == 0) & _fits(peak, column["weight_bytes"], largest[:, 1], target),
    }


def _fits(
    peak: NDArray[np.float64], weight_bytes: NDArray[np.float64], step_bytes: NDArray[np.float64], target: Target
) -> NDArray[np.bool_]:
    """Whether `legality.memory_violations` has nothing to say."""
    memory = target.memory
    behind = weight_bytes + step_bytes if memory.spill else weight_bytes
    fits = behind <= memory.dram_bytes + memory.resident_weight_bytes
    return fits if memory.spill else fits & (peak <= memory.onchip_bytes)


def _streamed_share(weight_bytes: NDArray[np.float64], target: Target) -> NDArray[np.float64] | float:
    """0.0 or 1.0 when it is the same for all networks."""
    capacity = target.memory.resident_weight_bytes
    if not capacity:
        return 1.0
    whole = target.memory.residency == "whole"
    excess = np.ones_like(weight_bytes) if whole else 1.0 - capacity / np.maximum(weight_bytes, capacity)
    return np.where(weight_bytes <= capacity, 0.0, excess)


def join(chunks: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """One population from consecutive pieces of it."""
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in (*FIGURES, "legal")}
