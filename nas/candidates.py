"""From proposal to candidate: new, and within every bound that can be checked without images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas.objectives import Costs, Goal
from search_spaces.architecture import Architecture
from search_spaces.space import SearchSpace

MOVES = 48
"""Mutations tried for one proposal. Each costs a table lookup; an evaluation costs a thousand times that."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network that is worth a trial. `gap` is how far it misses the cheap demands, 0 when it meets them
    all.
    """

    genome: Mapping[str, Any]
    architecture: Architecture
    costs: Costs
    gap: float
    moves: int


def admit(
    genome: Mapping[str, Any],
    seen: Set[str],
    space: SearchSpace,
    goal: Goal,
    cost: Callable[[Architecture], Costs],
    rng: np.random.Generator,
) -> Candidate | None:
    """The candidate nearest to the proposed `genome` that is not among the `seen` keys and meets the cheap
    demands.

    A duplicate walks away by mutation; a candidate that breaks a bound climbs towards it. When no move
    reaches feasibility the nearest miss is returned, and None when every network met on the way was seen.
    """
    best: Candidate | None = None
    for move in range(MOVES + 1):
        architecture = space.decode(genome)
        if architecture.key not in seen:
            costs = cost(architecture)
            gap = sum(shortfall.gap for shortfall in goal.shortfalls(costs, None, images=False))
            if best is None or gap < best.gap:
                best = Candidate(dict(genome), architecture, costs, gap, move)
            if gap == 0:
                break
        genome = space.mutate(best.genome if best else genome, rng)
    return best
