"""The Pareto front of a study's trials, and how much of the trade-off it covers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas.objectives import Goal
from nas.pareto import as_minimisation, front_mask, hypervolume
from nas.trial import Trial


def front(trials: Sequence[Trial], goal: Goal) -> list[Trial]:
    """Feasible trials that no other feasible trial dominates, best in the first minimised objective first."""
    feasible = [trial for trial in trials if trial.is_feasible(goal)]
    if not feasible:
        return []
    points = as_minimisation([trial.values(goal) for trial in feasible], goal.directions)
    minimised = [index for index, direction in enumerate(goal.directions) if direction == "minimize"]
    first = minimised[0] if minimised else 0
    chosen = [(point[first], trial.number, trial) for point, trial in zip(points, feasible, strict=True)]
    kept = [entry for entry, keep in zip(chosen, front_mask(points), strict=True) if keep]
    return [trial for _, _, trial in sorted(kept, key=lambda entry: entry[:2])]


def reference(trials: Sequence[Trial], goal: Goal) -> tuple[float, ...]:
    """The corner that hypervolume is measured from, fixed by a study's first trials so that it never moves.

    0 for what is maximised; for what is minimised a tenth above the greatest value among `trials`.
    """
    worst = np.max([trial.values(goal) for trial in trials], axis=0)
    return tuple(
        0.0 if direction == "maximize" else 1.1 * float(value)
        for value, direction in zip(worst, goal.directions, strict=True)
    )


def covered(trials: Sequence[Trial], goal: Goal, corner: Sequence[float]) -> float:
    """Hypervolume of a front as the fraction of the box between `corner` and the ideal (cost 0, fraction 1).

    A maximised objective that is no fraction has no ideal; the result is then in its unit.
    """
    if not trials:
        return 0.0
    points = as_minimisation([trial.values(goal) for trial in trials], goal.directions)
    bound = as_minimisation(corner, goal.directions)[0]
    box = np.prod([side for side in corner if side > 0])
    return hypervolume(points, bound.tolist()) / float(box or 1.0)
