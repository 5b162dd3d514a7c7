"""Times and what is said of them: order statistics, turns, and a sentinel that tells peace from load."""

from __future__ import annotations

import time
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nas.measure.timing import CALM, Sentinel, median_ranks, summarize, time_in_turns


class _Scripted:
    """A runner whose times are told beforehand: `base_s`, times the load of the moment."""

    def __init__(self, base_s: float, load: list[float] | None = None) -> None:
        self.base_s, self.load, self.runs = base_s, load or [1.0], 0

    def times_s(self, count: int) -> NDArray[np.float64]:
        self.runs += count
        return np.full(count, self.base_s * self.load[-1])


@pytest.mark.parametrize("count", range(1, 60))
def test_ranks_hold_the_median_as_often_as_they_say(count: int) -> None:
    low, high = median_ranks(count)
    assert (low, high) == (low, count - 1 - low)
    covered = 1 - 2 * sum(comb(count, k) for k in range(low + 1)) / 2**count
    narrower = 1 - 2 * sum(comb(count, k) for k in range(low + 2)) / 2**count
    if low > 0:
        assert covered >= 0.95
    if count > 8:
        assert narrower < 0.95


def test_the_interval_covers_the_median_of_a_skewed_law() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        timing = summarize(rng.lognormal(0.0, 0.3, 15))
        inside += timing.low_s <= 1.0 <= timing.high_s
    assert inside >= 0.92 * 400


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=30))
def test_figures_do_not_depend_on_the_order(values: list[float]) -> None:
    timing = summarize(np.array(values))
    assert summarize(np.array(values[::-1])) == timing
    assert timing.low_s <= timing.median_s <= timing.high_s
    assert timing.repeats == len(values)


def test_a_median_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        summarize(np.array([-1.0, 0.0, 1.0]))


def test_each_runner_is_timed_in_every_round() -> None:
    runners = [_Scripted(1e-3), _Scripted(4e-3)]
    slices = time_in_turns(runners, np.random.default_rng(0), rounds=5)
    assert slices.seconds == pytest.approx(np.array([[1e-3] * 5, [4e-3] * 5]))
    assert slices.calm.all()


def test_a_loaded_machine_is_never_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.measure.timing.PATIENCE_S", 0.01)
    load = [1.0]
    sentinel = Sentinel(_Scripted(1e-5, load), watch_s=0.01)
    load.append(CALM + 0.05)
    slices = time_in_turns([_Scripted(1e-3, load)], np.random.default_rng(0), sentinel, rounds=4)
    assert not slices.calm.any()


class _Storm:
    """A machine that is disturbed for most of the time: nine of ten seconds, in turns of its own runs."""

    def __init__(self) -> None:
        self.runs = 0

    def load(self) -> float:
        self.runs += 1
        return 1.0 if self.runs // 40 % 10 == 0 else 2.0


class _Exposed:
    def __init__(self, seconds: float, storm: _Storm) -> None:
        self.seconds, self.storm = seconds, storm

    def times_s(self, count: int) -> np.ndarray:
        time.sleep(1e-4)
        return np.full(count, self.seconds * self.storm.load())


def test_patience_finds_the_moments_of_peace() -> None:
    storm = _Storm()
    runner = _Exposed(1e-3, storm)

    def calm(patience_s: float) -> np.ndarray:
        storm.runs = 0
        sentinel = Sentinel(_Exposed(1e-5, storm), best_s=1e-5, watch_s=0.0)
        slices = time_in_turns([runner], np.random.default_rng(0), sentinel, patience_s=patience_s)
        assert slices.seconds[slices.calm] == pytest.approx(1e-3)
        return slices.calm

    assert calm(30.0).all()
    assert not calm(1e-3).all()


class _Disturbing(_Scripted):
    """What leaves the machine slow behind itself, for the first look at the sentinel."""

    def __init__(self, seconds: float, load: list[float]) -> None:
        super().__init__(seconds)
        self.machine = load

    def times_s(self, count: int) -> np.ndarray:
        self.machine.append(2.0)
        return super().times_s(count)


class _Recovering(_Scripted):
    """A sentinel that finds the machine slow once after each disturbance."""

    def __init__(self, seconds: float, load: list[float]) -> None:
        super().__init__(seconds)
        self.machine = load

    def times_s(self, count: int) -> np.ndarray:
        factor = self.machine[-1]
        self.machine[:] = [1.0]
        return np.full(count, self.base_s * factor)


def test_a_runner_that_disturbs_by_itself_costs_the_others_nothing() -> None:
    machine = [1.0]
    sentinel = Sentinel(_Recovering(1e-5, machine), best_s=1e-5, watch_s=0.0)
    runners = [_Disturbing(1e-3, machine), *(_Scripted(1e-3) for _ in range(5))]
    slices = time_in_turns(runners, np.random.default_rng(0), sentinel, rounds=6)
    assert not slices.calm[0].any()
    assert slices.calm[1:].all()


def test_the_sentinel_waits_for_peace() -> None:
    load = [1.0]
    sentinel = Sentinel(_Scripted(1e-5, load), watch_s=0.01)
    assert sentinel.best_s == pytest.approx(1e-5)
    assert sentinel.wait(1.0) > 0
    load.append(2.0)
    assert not sentinel.calm()
    assert sentinel.wait(0.01) == 0.0


def test_a_known_time_at_peace_is_kept() -> None:
    load = [2.0]
    sentinel = Sentinel(_Scripted(1e-5, load), best_s=1e-5, watch_s=0.01)
    assert sentinel.best_s == 1e-5
    assert not sentinel.calm()
