"""Repeated times and what they say: median, spread, confidence interval, and whether the machine was at peace.

Several runners are timed in turns, in a new random order each round, so that a drift of the clock touches all of them
alike. Before and after each slice of some milliseconds a sentinel runs, a small kernel whose time at peace is known:
where it is slow, something else had the core, its other hardware thread or its clock, and the slice is taken again.
Measured on a virtual machine of two processors: a program on the other one slows a convolution by half, and the
median of a second does not show it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

ROUNDS = 15
"""Slices per runner: the 4th and the 12th of 15 sorted slices hold the median with 96 percent confidence."""

SLICE_S = 0.006
WARM_UP_S = 0.03
PATIENCE_S = 15.0
"""How long, in all, the slices of one group of runners wait for a moment of peace."""

ATTEMPTS = 6
"""How often a disturbed slice is taken again at once; with more patience as much more often. One that is always
disturbed, since its own runner disturbs, then costs the others nothing.
"""

CALM = 1.1
"""A sentinel that takes this much longer than at peace has been disturbed. Measured on a virtual machine: at peace it
varies by 0.02, while a neighbour has the clock or the cache by 0.15 to 0.25."""

FEWEST_CALM = 8
"""Calm slices without which a figure is not believed."""

NOISY = 0.15
"""Interquartile range over the median above which a figure is not believed."""


class Runner(Protocol):
    """Something that can be timed."""

    def times_s(self, count: int) -> NDArray[np.float64]:
        """Seconds of each of `count` runs one behind the other, [count]."""
        ...


@dataclass(frozen=True, slots=True)
class Slices:
    """Seconds per run of several runners, [runners, rounds], and whether the machine was at peace meanwhile."""

    seconds: NDArray[np.float64]
    calm: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Timing:
    """Of one run, in seconds: median over slices, interquartile range, 95 percent interval of the median."""

    median_s: float
    spread_s: float
    low_s: float
    high_s: float
    repeats: int

    @property
    def noisy(self) -> bool:
        """Whether the spread is too wide to believe the median."""
        return self.spread_s > NOISY * self.median_s


class Sentinel:
    """A runner whose time at peace is known: the 10th percentile of half a second, or less where an earlier process
    saw less. The very shortest is a stroke of luck that would never come again.
    """

    def __init__(self, runner: Runner, best_s: float = float("inf"), watch_s: float = 0.5) -> None:
        """best_s: its time at peace as an earlier process knows it."""
        self._runner = runner
        begin, seen = time.perf_counter(), [self._time_s()]
        while time.perf_counter() - begin < watch_s:
            seen.append(self._time_s())
        self.best_s = min(best_s, float(np.percentile(seen, 10)))

    def wait(self, patience_s: float) -> float:
        """Wait for a moment of peace. Returns the patience that is left, 0.0 when there was none."""
        begin = time.perf_counter()
        while not self.calm():
            if time.perf_counter() - begin > patience_s:
                return 0.0
            time.sleep(0.002)
        return patience_s - (time.perf_counter() - begin)

    def calm(self) -> bool:
        """Whether the machine is at peace now."""
        return self._time_s() <= CALM * self.best_s

    def _time_s(self) -> float:
        return float(np.median(self._runner.times_s(5)))


def time_in_turns(
    runners: Sequence[Runner],
    rng: np.random.Generator,
    sentinel: Sentinel | None = None,
    rounds: int = ROUNDS,
    slice_s: float = SLICE_S,
    patience_s: float | None = None,
) -> Slices:
    """Each runner is warmed up first, and once more before each slice. Without a sentinel all slices count as calm.

    patience_s: instead of PATIENCE_S.
    """
    counts = [_warm_up(runner, slice_s) for runner in runners]
    seconds = np.empty((len(runners), rounds))
    calm = np.ones((len(runners), rounds), dtype=bool)
    patience_s = PATIENCE_S if patience_s is None else patience_s
    attempts = max(1, round(ATTEMPTS * patience_s / PATIENCE_S))
    collected = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            for index in rng.permutation(len(runners)):
                for _ in range(attempts):
                    if sentinel is not None:
                        patience_s = sentinel.wait(patience_s)
                    runners[index].times_s(1)  # others have had the caches
                    seconds[index, turn] = float(np.median(runners[index].times_s(counts[index])))
                    calm[index, turn] = sentinel is None or (patience_s > 0 and sentinel.calm())
                    if calm[index, turn] or patience_s <= 0:
                        break
    finally:
        if collected:
            gc.enable()
    return Slices(seconds, calm)


def _warm_up(runner: Runner, slice_s: float) -> int:
    """Run for a while; returns how many runs fill a slice."""
    begin, best = time.perf_counter(), float("inf")
    while time.perf_counter() - begin < WARM_UP_S or best == float("inf"):
        best = min(best, float(runner.times_s(1)[0]))
    return max(1, round(slice_s / max(best, 1e-7)))


def summarize(seconds: NDArray[np.float64]) -> Timing:
    """The figures of one runner from its slices [rounds]. Raises ValueError for a median that is not positive."""
    ordered = np.sort(seconds)
    median = float(np.median(ordered))
    if median <= 0:
        raise ValueError(f"a time must be positive, but the median is {median:g} s")
    low, high = median_ranks(len(ordered))
    quarter = np.percentile(ordered, [25, 75])
    return Timing(median, float(quarter[1] - quarter[0]), float(ordered[low]), float(ordered[high]), len(ordered))


def median_ranks(count: int, confidence: float = 0.95) -> tuple[int, int]:
    """Positions of the sorted values of a sample that hold its median with that confidence; first and last where the
    sample is too small.

    Order statistics: P(x_(k+1) <= median <= x_(n-k)) = 1 - 2 P(B <= k), B binomial(n, 1/2) (David and Nagaraja,
    Order Statistics, section 7.1).
    """
    tail, low = 0.0, 0
    for k in range(count // 2):
        tail += comb(count, k) / 2**count
        if 2 * tail > 1 - confidence:
            break
        low = k
    return low, count - 1 - low
