"""A study as it can be read back: its trials, its front, and where its files lie. Reading needs neither torch
nor data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nas.errors import NasError, NothingFeasible, UsageError
from nas.front import covered, front, reference
from nas.objectives import Goal, parse_constraints, resolve_goal
from nas.spec import StudySpec
from nas.store import Store
from nas.trial import Trial


@dataclass(frozen=True)
class Study:
    """A finished or interrupted study.

    folder: its own folder in the folder of all studies. supernet: path of the weights, None before they were
    trained.
    validations: trial number -> accuracy on images that the selection never saw.
    finalists: trial number -> how it does when it is trained by itself (`nas.trainings.Outcome`, and the recipe).
    targets: target name -> text of its file as the search had it.
    """

    name: str
    identity: str
    url: str
    folder: Path
    spec: StudySpec
    goal: Goal
    trials: Sequence[Trial]
    validations: Mapping[int, Mapping[str, Any]]
    supernet: Path | None
    finalists: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def front(self) -> list[Trial]:
        return front(self.trials, self.goal)

    @cached_property
    def hypervolume(self) -> float:
        """Fraction of the box that the front covers; see `nas.front`."""
        first = [trial for trial in self.trials if trial.number < self.spec.search.batch]
        if not first:
            return 0.0
        return covered(self.front, self.goal, reference(first, self.goal))

    @property
    def root(self) -> Path:
        """The folder of all studies."""
        return self.folder.parent.parent

    @property
    def artifacts(self) -> Path:
        """Where the dashboard finds attached files."""
        return self.root / "artifacts"

    @property
    def trained_supernet(self) -> Path:
        """File of the trained weights. Raises UsageError when nothing was trained yet, NasError when it is gone."""
        if self.supernet is None:
            raise UsageError(f"study {self.name} has no trained supernet yet; run its search first")
        if not self.supernet.is_file():
            cure = f"nas train --config {self.folder / 'study.toml'} --dir {self.root}"
            raise NasError(f"{self.supernet} is gone; `{cure}` makes it again")
        return self.supernet

    def trial(self, number: int) -> Trial:
        """Raises UsageError when there is no such trial, or it was never scored."""
        found = next((trial for trial in self.trials if trial.number == number), None)
        if found is None:
            known = f"it has 0 to {len(self.trials) - 1}" if self.trials else "it has none yet: run its search"
            raise UsageError(f"study {self.name} has no trial {number}; {known}")
        if found.accuracy is None:
            reason = "; ".join(shortfall.reason for shortfall in found.shortfalls(self.goal))
            raise UsageError(f"trial {number} of study {self.name} was never scored: {reason}")
        return found

    def best_under(self, constraint: str) -> Trial:
        """The most accurate feasible trial that also meets `constraint`, such as 'latency<=1ms'.

        Raises UsageError when the constraint cannot be read, NothingFeasible when no trial meets it.
        """
        demands = parse_constraints(constraint, self.goal.targets)
        feasible = [trial for trial in self.trials if trial.is_feasible(self.goal)]
        if not feasible:
            raise self.nothing_feasible()
        gap = {t.number: max(d.gap(t.costs, t.top1) for d in demands) for t in feasible}
        meeting = [trial for trial in feasible if gap[trial.number] <= 0]
        if not meeting:
            nearest = min(feasible, key=lambda trial: gap[trial.number])
            missed = next(s for d in demands if (s := d.shortfall(nearest.costs, nearest.top1)) is not None)
            raise NothingFeasible(
                f"none of the {len(feasible)} feasible trials of study {self.name} meets {constraint}; "
                f"the nearest, trial {nearest.number}: {missed.reason}"
            )
        return max(meeting, key=lambda trial: (trial.top1 or 0.0, -trial.number))

    def nothing_feasible(self) -> NothingFeasible:
        """How many candidates missed which demand, and by how little the nearest did."""
        if not self.trials:
            return NothingFeasible(f"study {self.name} has no trials yet; run its search, or name another by --study")
        nearest: dict[str, tuple[float, str]] = {}
        counts: dict[str, int] = {}
        for trial in self.trials:
            missed = {shortfall.demand: shortfall for shortfall in trial.shortfalls(self.goal)}
            for demand, shortfall in missed.items():
                counts[demand] = counts.get(demand, 0) + 1
                nearest[demand] = min(nearest.get(demand, (float("inf"), "")), (shortfall.gap, shortfall.reason))
        detail = "; ".join(
            f"{counts[demand]} miss {demand!r} (the nearest: {nearest[demand][1]})" for demand in sorted(counts)
        )
        return NothingFeasible(
            f"none of the {len(self.trials)} candidates of study {self.name} is feasible: {detail}; "
            "loosen a constraint, widen the space or add trials"
        )


def open_study(folder: Path, url: str | None = None, name: str | None = None) -> Study:
    """The named study of a folder or database, or the newest. Raises UsageError when there is none."""
    store = Store(folder, url)
    try:
        return read_study(store, name)
    finally:
        store.close()


def read_study(store: Store, name: str | None = None) -> Study:
    """The named study, or the newest. Raises UsageError when there is none."""
    record = store.study(name)
    trials = store.trials(record.name)
    targets = list(trials[0].costs) if trials else [Path(target).stem for target in record.spec.search.targets]
    search = record.spec.search
    return Study(
        name=record.name,
        identity=record.identity,
        url=store.url,
        folder=store.study_folder(record.name),
        spec=record.spec,
        goal=resolve_goal(search.objectives, search.constraints, targets),
        trials=trials,
        validations=store.validations(record.name),
        supernet=record.supernet,
        finalists=store.finalists(record.name),
        targets=store.targets(record.name),
    )
