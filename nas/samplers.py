"""Who proposes candidates: Optuna's samplers on a study in memory. Add one by adding a row to SAMPLERS."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from nas.objectives import Goal
from nas.trial import Trial, distributions, to_optuna
from search_spaces.space import SearchSpace

# Small generations: a study has some hundred trials, and Optuna's default of 50 would leave it two
# generations.
POPULATION = 24

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "nsga2": lambda seed: NSGAIISampler(population_size=POPULATION, seed=seed),
    "tpe": lambda seed: TPESampler(n_startup_trials=POPULATION, seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}
"""Name -> maker of a sampler from a seed."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a sampler proposes, and what it must find on the finished trial (NSGA-II: the generation)."""

    genome: dict[str, Any]
    sampler_state: dict[str, Any]


class Proposer:
    """Proposals for batch b as a function of (seed, b) and of the trials before it, and of nothing else.

    A new sampler is made for every batch, and what it must remember travels on the trials. So a resumed study
    proposes what an uninterrupted one would have, and the number of workers changes nothing.
    """

    def __init__(self, space: SearchSpace, goal: Goal, sampler: str, seed: int) -> None:
        self._space, self._goal, self._make, self._seed = space, goal, SAMPLERS[sampler], seed
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._genes: dict[str, BaseDistribution] = {**distributions(space)}
        self._study = optuna.create_study(directions=list(goal.directions), storage=optuna.storages.InMemoryStorage())

    def ask(self, batch: int, count: int) -> list[Proposal]:
        """The first `count` proposals of a batch. Asking twice gives the same."""
        seed = int(np.random.SeedSequence((self._seed, 0, batch)).generate_state(1)[0])
        # NSGA-II lists the parents of a generation in one order when it selects them and in another ever
        # after (Optuna 5.0, `BaseGASampler.get_parent_population`). A proposal that is thrown away makes it
        # select, so that a resumed study, which selects again, meets the same order.
        self._withdrawn(seed, 1)
        return self._withdrawn(seed, count)

    def _withdrawn(self, seed: int, count: int) -> list[Proposal]:
        """Proposals that are taken back at once: what is evaluated may differ (duplicates are replaced), so
        `tell` adds what was found. No sampler learns from a failed trial.
        """
        self._study.sampler = self._make(seed)
        asked = [self._study.ask(self._genes) for _ in range(count)]
        frozen = self._study.get_trials(deepcopy=False)[-count:]
        for one in asked:
            self._study.tell(one, state=optuna.trial.TrialState.FAIL)
        return [Proposal(self._space.complete(one.params), dict(one.system_attrs)) for one in frozen]

    def tell(self, trials: Iterable[Trial]) -> None:
        """Finished trials, in the order of their numbers."""
        self._study.add_trials(to_optuna(trial, self._goal, self._space) for trial in trials)
