"""Cost of many networks at once: what can stand at a place in a table, networks as rows of indices into it.

Equal to `estimate.combine` of the same parts to rounding (tested to 1e-9), because it sums the same figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw_models.part_cost import PartCost
from hw_models.target import Overhead, Target

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

Array = NDArray[np.float64]
Figures = Mapping[str, NDArray[Any]]

CHUNK = 8192
"""Networks costed at a time: their intermediate figures then stay in the processor's cache."""

LINE = 8
"""Figures in a line of the processor's cache, which rows of look-up tables fill: a row is then a single access."""


def part_row(
    part: PartCost, ends: tuple[bool, bool] = (False, False), latency_s: tuple[float, float] | None = None
) -> Array:
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


def sum_rows(parts: Iterable[tuple[Array, Array]]) -> Array:
    """Rows [rows, len(COLUMNS)] of what consists of parts: (rows of a part, how often it occurs [rows]).

    A part that occurs 0 times counts nothing.
    """
    sums: list[Array] = []
    maxima: list[Array] = []
    for rows, times in parts:
        sums.append(rows[:, :-MAXIMA] * times[:, None])
        maxima.append(np.where(times[:, None] > 0, rows[:, -MAXIMA:], 0.0))
    return np.concatenate([np.sum(sums, axis=0), np.max(maxima, axis=0)], axis=1)


def summed_columns(target: Target) -> tuple[str, ...]:
    """Sums that decide figures on this target: those of resident weights only where weights can stay on chip, bytes
    from the host only where that takes time.
    """
    lacking = {"violations"}  # of the maxima: `packed`
    if not target.memory.resident_weight_bytes:
        lacking |= {"latency_resident_s", "energy_resident_j", "dram_resident_bytes"}
    if not target.overhead.link_bytes_per_s:
        lacking.add("host_bytes")
    return tuple(name for name in _SUMMED if name not in lacking)


def packed_width(target: Target) -> int:
    """Columns of `packed`, whole lines of them."""
    return -(-(len(summed_columns(target)) + MAXIMA) // LINE) * LINE


def packed(rows: Array, target: Target) -> Array:
    """What a look-up needs of rows [rows, len(COLUMNS)]: `summed_columns`, nothing, maxima; [rows, packed_width].

    What the target cannot run needs infinite memory.
    """
    names = summed_columns(target)
    out = np.zeros((len(rows), packed_width(target)))
    out[:, : len(names)] = rows[:, [COLUMNS.index(name) for name in names]]
    out[:, -MAXIMA:] = rows[:, -MAXIMA:]
    out[rows[:, COLUMNS.index("violations")] > 0, _LARGEST.index("largest_step_bytes") - MAXIMA] = np.inf
    return out


def aligned(rows: Array) -> Array:
    """A copy that begins at a line of the cache."""
    room = np.empty(rows.size + LINE)
    start = -room.ctypes.data // room.itemsize % LINE
    out = room[start : start + rows.size].reshape(rows.shape)
    out[:] = rows
    return out


def empty_figures(count: int) -> dict[str, NDArray[Any]]:
    """Arrays [count] for `cost_population` to fill."""
    return {name: np.empty(count) for name in FIGURES} | {"legal": np.empty(count, dtype=np.bool_)}


def cost_population(
    positions: Iterable[tuple[Array, NDArray[np.int32]]], target: Target, out: Figures, start: Overhead | None = None
) -> None:
    """Figures of networks and whether each is legal, into the arrays [networks] of `out`.

    positions: for every place in the network the table of what can stand there, `packed` and `aligned`, and the row of
    every network in it. start: what a network pays besides its parts, in its latency, if not the cost model's.
    """
    shape = len(out["legal"]), packed_width(target)
    sums, maxima, taken = np.zeros(shape), np.zeros(shape), np.empty(shape)
    for table, rows in positions:
        np.take(table, rows, axis=0, out=taken, mode="clip")  # this mode takes straight into `out`
        np.add(sums, taken, out=sums)
        np.maximum(maxima, taken, out=maxima)  # of all columns: faster than of the two that count
    names = summed_columns(target)
    column = {name: sums[:, index] for index, name in enumerate(names)}
    _figures(column, maxima[:, -MAXIMA:], target, start or target.overhead, out)


def _figures(column: Mapping[str, Array], maxima: Array, target: Target, start: Overhead, out: Figures) -> None:
    """The global terms of `estimate.combine`, for arrays."""
    share = _streamed_share(column["weight_bytes"], target)
    start_s, overhead_s = (_overhead_s(column, overhead) for overhead in (start, target.overhead))
    static_j = overhead_s * target.energy.static_w
    for figure, unit, added in (("latency", "s", start_s), ("energy", "j", static_j), ("dram", "bytes", 0.0)):
        total = column[f"{figure}_streamed_{unit}"]
        if share is not None:
            total = (1 - share) * column[f"{figure}_resident_{unit}"] + share * total
        np.add(total, added, out=out[f"{figure}_{unit}"])
    for name in ("macs", "params", "weight_bytes"):
        out[name][:] = column[name]
    out["peak_onchip_bytes"][:] = maxima[:, 0]
    out["legal"][:] = _fits(maxima[:, 0], column["weight_bytes"], maxima[:, 1], target)


def _overhead_s(column: Mapping[str, Array], overhead: Overhead) -> Array | float:
    link = overhead.link_bytes_per_s
    return overhead.network_s + column["host_bytes"] / link if link else overhead.network_s


def _fits(peak: Array, weight_bytes: Array, step_bytes: Array, target: Target) -> NDArray[np.bool_]:
    """Whether `legality.memory_violations` has nothing to say; not where `step_bytes` is infinite."""
    memory = target.memory
    behind = weight_bytes + step_bytes if memory.spill else weight_bytes
    fits = (behind <= memory.dram_bytes + memory.resident_weight_bytes) & (step_bytes < np.inf)
    return fits if memory.spill else fits & (peak <= memory.onchip_bytes)


def _streamed_share(weight_bytes: Array, target: Target) -> Array | None:
    """None when no weights can stay on chip: all are streamed."""
    memory = target.memory
    capacity = memory.resident_weight_bytes
    if not capacity:
        return None
    partial = memory.residency == "partial"
    excess = 1.0 - capacity / np.maximum(weight_bytes, capacity) if partial else np.ones_like(weight_bytes)
    near = np.zeros_like(weight_bytes)
    if memory.residency == "nested":
        near = memory.cached_share * (1.0 - memory.onchip_bytes / np.maximum(weight_bytes, memory.onchip_bytes))
    return np.where(weight_bytes <= capacity, near, excess)
