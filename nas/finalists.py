"""The networks of a front, trained by themselves: what an engineer takes away. Results go into the study."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

from nas.accuracy import spread_rows
from nas.dashboard import Mirror
from nas.errors import Interrupted, UsageError
from nas.export_study import same_problem
from nas.halving import Halving
from nas.problem import Problem
from nas.progress import Narrator
from nas.store import Store
from nas.study import Study, read_study
from nas.teacher_files import full_teacher
from nas.trainings import SharedWeights, Training, Workshop, check_place, train_all_shown
from nas.trial import Trial

TOP = 8
"""Networks trained when nobody says how many, if the front has as many."""

GENTLE = 0.25
"""Learning rate of inherited weights over that of fresh ones: they are near a minimum. A guess, not measured."""

STOPPING_FROM = 3
"""Finalists from which on hopeless ones are stopped."""


def run_finalists(
    study: Study,
    *,
    top: int | None = None,
    weights: str = "inherited",
    teacher: str = "supernet",
    steps: int | None = None,
    learning_rate: float | None = None,
    early_stopping: bool = True,
    workers: int = 0,
    address: str | None = None,
    narrator: Narrator | None = None,
) -> Study:
    """Train `top` networks of the front by themselves, quantize, validate, record; the study with its finalists.

    The same call again goes on where it was interrupted. top: None: TOP, or the whole front if it is smaller. weights:
    "inherited" from the supernet or "fresh". teacher: "supernet" (its largest network of the finalist's kinds),
    "none", or as `nas.teacher.load_teacher` reads it. steps: default those of the supernet. learning_rate: default the
    supernet's, times GENTLE for inherited weights. workers, address: as in `nas.trainings.train_all`.
    Raises UsageError, NasError, NothingFeasible (there is no front), Interrupted (what is done is kept).
    """
    narrator = narrator or Narrator(quiet=True)
    check_place(address)
    teacher = teacher if teacher in ("none", "supernet") else full_teacher(teacher)
    chosen = choose(study, top)
    if top is not None and len(chosen) < top:
        narrator.warn(
            f"the front of study {study.name} has {len(chosen)} networks, fewer than --top {top}: all of them"
        )
    problem = same_problem(study, narrator)
    workshop = _workshop(study, problem, weights, steps, learning_rate)
    trainings = [Training(t.number, t.architecture, weights, teacher, _costs(study, t)) for t in chosen]
    trainings.sort(key=lambda training: training.costs)  # cheapest first: others are compared with those that cost less
    if teacher not in ("none", "supernet"):
        from nas.teacher import load_teacher

        load_teacher(teacher, problem.data)  # so that what is wrong with it is said before any training
    if early_stopping and len(trainings) >= STOPPING_FROM:
        workshop = replace(workshop, halving=Halving(_company(workshop, trainings)))
    recipe = {"weights": weights, "teacher": teacher, "train": asdict(workshop.spec)}
    try:
        with closing(Store(study.root, study.url)) as store:
            store.prepare_finalists()
            ended = train_all_shown(
                workshop, trainings, "training finalists", narrator, workers=workers, address=address
            )
            for outcome in ended:
                store.put_finalist(study.name, outcome.number, outcome.to_dict() | recipe)
            finished = read_study(store, study.name)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"interrupted: finished trainings and the state of those under way are in {study.root / 'trainings'}; run "
            "the same command again to go on"
        ) from error
    with closing(Mirror(study.url, study.name, study.goal, problem.space)) as mirror:
        mirror.attach({number: attributes(record) for number, record in finished.finalists.items()})
    return finished


def choose(study: Study, top: int | None) -> list[Trial]:
    """`top` networks of the front, evenly along it, both ends included.

    All of a smaller front. Raises NothingFeasible without a front, UsageError for less than one.
    """
    if not study.trials:
        raise UsageError(f"study {study.name} has no trial yet: run its search first")
    if not study.front:
        raise study.nothing_feasible()
    if top is not None and top < 1:
        raise UsageError(f"--top must be at least 1, but is {top}")
    return [study.front[row] for row in spread_rows(len(study.front), top or TOP)]


def attributes(record: Mapping[str, Any]) -> dict[str, Any]:
    """User attributes of the trial in the study: accuracy by its own training, with what it is."""
    accuracy = record["val"] or record["search"]
    shown = {f"stand_alone_{key}": accuracy[key] for key in ("top1", "stderr", "samples", "kind", "images")}
    shown |= {f"stand_alone_{key}": record[key] for key in ("steps", "weights", "teacher")}
    if record["stopped"]:
        shown["stand_alone_stopped"] = f"after {record['steps']} of {record['train']['steps']} steps: hopeless"
    return shown


def _workshop(study: Study, problem: Problem, weights: str, steps: int | None, learning_rate: float | None) -> Workshop:
    from nas.train import supernet_identity

    train = problem.spec.train
    rate = learning_rate or train.learning_rate * (GENTLE if weights == "inherited" else 1.0)
    budget = replace(train, steps=steps or train.steps, learning_rate=rate)
    identity = supernet_identity(problem.space, problem.data, train, problem.origin)
    shared = SharedWeights(study.trained_supernet, identity, problem.space)
    return Workshop(study.root, problem.data, budget, problem.spec.evaluate, shared, plugin=problem.space.plugin)


def _costs(study: Study, trial: Trial) -> tuple[float, ...]:
    """Its minimised objectives."""
    values = zip(study.goal.directions, trial.values(study.goal), strict=True)
    return tuple(value for direction, value in values if direction == "minimize")


def _company(workshop: Workshop, trainings: Sequence[Training]) -> str:
    """Names the networks that are compared with each other, so that another choice of them starts another board."""
    content = [workshop.identity(training) + training.architecture.key for training in trainings]
    return hashlib.sha256(json.dumps(sorted(content)).encode()).hexdigest()[:8]
