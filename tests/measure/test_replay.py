"""How many runs a CUDA graph holds; what a replay takes is worked out here, without a GPU."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from nas.measure.replay import GRAPH_S, MOST_RUNS, Replay


class _Counted(Replay):
    """A run of `run_s`, and `begin_s` at the beginning of each replay."""

    def __init__(self, run_s: float, begin_s: float) -> None:
        self.run_s, self.begin_s, self.captured = run_s, begin_s, list[int]()
        self._fill()

    def _capture(self, runs: int) -> None:
        self._runs = runs
        self.captured.append(runs)

    def times_s(self, count: int) -> NDArray[np.float64]:
        return np.full(max(1, count // self._runs), self.run_s + self.begin_s / self._runs)


@pytest.mark.parametrize("run_s", [2e-6, 3e-6, 10e-6, 45e-6])
@pytest.mark.parametrize("begin_s", [0.0, 5e-6, 20e-6])
def test_a_graph_is_filled_whatever_its_beginning_takes(run_s: float, begin_s: float) -> None:
    made = _Counted(run_s, begin_s)
    assert 0.8 * GRAPH_S <= run_s * made.captured[-1] <= GRAPH_S + run_s
    assert len(made.captured) <= 5


def test_long_work_stands_alone_and_very_short_work_as_often_as_is_allowed() -> None:
    assert _Counted(300e-6, 5e-6).captured == [1]
    assert _Counted(0.2e-6, 5e-6).captured[-1] == MOST_RUNS
