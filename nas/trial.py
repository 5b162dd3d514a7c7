"""A finished trial: what the search knows of one candidate, and how Optuna sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import CategoricalDistribution

from nas.objectives import COSTS, Costs, Goal, Shortfall
from search_spaces.architecture import Architecture
from search_spaces.space import SearchSpace

if TYPE_CHECKING:
    from nas.accuracy import Accuracy


@dataclass(frozen=True, slots=True)
class Trial:
    """One row of a study.

    accuracy: top1 (fraction), stderr, samples, kind, images; None when a cheap check ruled the candidate out
    before
        it was shown an image.
    costs: target name -> cost summary in SI units.
    moves: mutations between what the sampler proposed and this candidate (it was a duplicate, or broke a
    constraint).
    sampler_state: what the sampler must find again when the study is resumed.
    """

    number: int
    genome: Mapping[str, Any]
    architecture: Architecture
    accuracy: Mapping[str, Any] | None
    costs: Costs
    moves: int = 0
    sampler_state: Mapping[str, Any] = field(default_factory=dict)
    started_at: datetime = field(default_factory=datetime.now)
    finished_at: datetime = field(default_factory=datetime.now)

    @property
    def top1(self) -> float | None:
        return None if self.accuracy is None else float(self.accuracy["top1"])

    @property
    def selected_by(self) -> Accuracy | None:
        """The accuracy that it was chosen for."""
        from nas.accuracy import Accuracy

        return None if self.accuracy is None else Accuracy.from_dict(dict(self.accuracy))

    def values(self, goal: Goal) -> tuple[float, ...]:
        return goal.values(self.costs, self.top1)

    def gaps(self, goal: Goal) -> dict[str, float]:
        return goal.gaps(self.costs, self.top1)

    def shortfalls(self, goal: Goal) -> tuple[Shortfall, ...]:
        """What it misses; empty means feasible. Only a candidate that was scored can be feasible."""
        return goal.shortfalls(self.costs, self.top1, images=self.accuracy is not None)

    def is_feasible(self, goal: Goal) -> bool:
        return self.accuracy is not None and not self.shortfalls(goal)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        times = {"started_at": self.started_at.isoformat(), "finished_at": self.finished_at.isoformat()}
        return {**asdict(self), "architecture": self.architecture.to_dict(), **times}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trial:
        times = {key: datetime.fromisoformat(data[key]) for key in ("started_at", "finished_at")}
        return cls(**{**data, "architecture": Architecture.from_dict(data["architecture"]), **times})


def distributions(space: SearchSpace) -> dict[str, CategoricalDistribution]:
    """The fixed-length genome in Optuna's terms; a gene with one value is no parameter. NSGA-II evolves only parameters
    that every trial has.
    """
    return {choice.name: CategoricalDistribution(choice.values) for choice in space.free}


def to_optuna(trial: Trial, goal: Goal, space: SearchSpace) -> optuna.trial.FrozenTrial:
    """The trial as Optuna and its dashboard show it.

    Constraints go under the legacy key: samplers honour it, and it is the only one from which
    optuna-dashboard 0.21 greys infeasible points.
    """
    frozen = optuna.trial.create_trial(
        values=list(trial.values(goal)),
        params={choice.name: trial.genome[choice.name] for choice in space.free},
        distributions=dict(distributions(space)),
        user_attrs=attributes(trial, goal),
        system_attrs={**trial.sampler_state, "constraints": list(trial.gaps(goal).values())},
    )
    frozen.datetime_start = trial.started_at
    frozen.datetime_complete = trial.finished_at
    return frozen


def attributes(trial: Trial, goal: Goal) -> dict[str, Any]:
    """User attributes: readable without this project. With several targets a cost is named
    `energy_j@target`.
    """
    shown: dict[str, Any] = {"trial": trial.number, "architecture": str(trial.architecture)}
    shown["evaluated"] = trial.accuracy is not None
    if trial.accuracy is not None:
        shown |= {f"top1_{key}": trial.accuracy[key] for key in ("stderr", "samples", "kind", "images")}
    for target, summary in trial.costs.items():
        suffix = "" if len(trial.costs) == 1 else f"@{target}"
        shown |= {key + suffix: summary[key] for key in COSTS if key in summary}
    if missed := trial.shortfalls(goal):
        shown["infeasible"] = "; ".join(shortfall.reason for shortfall in missed)
    if trial.moves:
        shown["moves_from_proposal"] = trial.moves
    shown["architecture_json"] = trial.architecture.to_json()
    return shown
