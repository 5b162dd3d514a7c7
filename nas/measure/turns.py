"""Times the open graphs of a group of jobs in turns, and makes measurements of those that can be believed."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hw_models.measurements import Measurement
from nas.errors import NasError
from nas.measure import device
from nas.measure.jobs import Graph, Job
from nas.measure.pool import Opened, Progress
from nas.measure.timing import FEWEST_CALM, Sentinel, Slices, summarize, time_in_turns
from nas.measure.worker import LostError

TRIES = 3
"""How often a time whose spread is too wide is taken before it is refused."""

REST_S = 1.0
"""Between tries."""


class Device(Protocol):
    """Something that runs graphs. usual: the precisions that are timed when none is asked for. workers: how many
    processes open graphs, which takes long then; 0: this one does, and it takes no time to speak of.
    """

    runtime: str
    runtime_version: str
    precisions: tuple[str, ...]
    usual: tuple[str, ...]
    workers: int

    def default_target(self) -> str: ...
    def prepare(self, job: Job) -> dict[str, Any]: ...
    def warm(self, graphs: Sequence[Graph], until: float | None, update: Progress) -> dict[Graph, NasError]: ...
    def open(self, graphs: Sequence[Graph], until: float | None, update: Progress) -> Opened: ...
    def sentinel(self, best_s: float) -> Sentinel | None: ...
    def forget(self, jobs: Sequence[Job]) -> None: ...
    def held(self) -> AbstractContextManager[Callable[[], dict[str, Any]]]: ...


@dataclass
class Outcome:
    """What became of the jobs. refused: job name -> why it has no record. unfused: job name -> operators."""

    measured: list[Measurement] = field(default_factory=list)
    known: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    unfused: dict[str, list[str]] = field(default_factory=dict)
    left: int = 0


@dataclass(frozen=True)
class Session:
    """What all groups of one call share."""

    on: Device
    target: str
    state: Callable[[], dict[str, Any]]
    sentinel: Sentinel | None
    rng: np.random.Generator
    outcome: Outcome


def name_of(job: Job) -> str:
    """In words; no two jobs of one call have the same."""
    batch = f", batch {job.batch}" if job.batch != 1 else ""
    return f"{job.subject.name} at {job.subject.input_size} in {job.precision}{batch}"


def graphs_of(jobs: Sequence[Job]) -> list[Graph]:
    """The distinct graphs of jobs."""
    return list(dict.fromkeys(graph for job in jobs for graph, _ in job.terms))


def time_group(group: list[Job], opened: Opened, session: Session) -> Iterator[Measurement]:
    """Time jobs in turns; those with too wide a spread again, up to TRIES times, and then refuse them."""
    waiting, refused = group, session.outcome.refused
    attempt = 0
    while waiting and attempt < TRIES:
        if attempt:
            time.sleep(REST_S)
        graphs = graphs_of(waiting)
        try:
            slices = time_in_turns([opened.runners[graph] for graph in graphs], session.rng, session.sentinel)
        except LostError as error:
            lost = [job for job in waiting if any(graph in error.things for graph, _ in job.terms)]
            refused |= {name_of(job): str(error) for job in lost}
            waiting = [job for job in waiting if job not in lost]
            continue
        attempt += 1
        conditions = session.state() | {"tries": attempt}
        if session.sentinel is not None:
            conditions["sentinel_s"] = session.sentinel.best_s
        noisy = []
        for job in waiting:
            rows = [graphs.index(graph) for graph, _ in job.terms]
            try:
                record = _record(job, Slices(slices.seconds[rows], slices.calm[rows]), session, conditions)
            except _NoisyError as error:
                noisy.append(job)
                refused[name_of(job)] = str(error)
            else:
                refused.pop(name_of(job), None)
                yield record
        waiting = noisy


class _NoisyError(Exception):
    """A time that cannot be believed."""


def _record(job: Job, slices: Slices, session: Session, conditions: dict[str, Any]) -> Measurement:
    """The measurement of a job from the slices of its terms."""
    calm: NDArray[np.bool_] = np.all(slices.calm, axis=0, keepdims=False)
    rounds = slices.calm.shape[1]
    if calm.sum() < FEWEST_CALM:
        raise _NoisyError(
            f"only {calm.sum()} of {rounds} slices were undisturbed in each of {TRIES} tries: the machine is under load"
        )
    seconds = slices.seconds[:, calm]
    for row in seconds:
        timing = summarize(row)
        if timing.noisy:
            raise _NoisyError(
                f"its times spread over {100 * timing.spread_s / timing.median_s:.0f} percent of their median in each "
                f"of {TRIES} tries: the machine is under load"
            )
    try:
        timing = summarize(np.array([weight for _, weight in job.terms]) @ seconds)
    except ValueError as error:
        raise _NoisyError("too short to be told from the reorders of its ends") from error
    on = session.on
    return job.subject.record(
        session.target,
        job.precision,
        timing.median_s,
        batch=job.batch,
        spread_s=timing.spread_s,
        low_s=max(timing.low_s, 0.0),
        high_s=timing.high_s,
        repeats=timing.repeats,
        runtime=on.runtime,
        runtime_version=on.runtime_version,
        conditions=json.dumps(conditions | {"method": job.method}, sort_keys=True),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        commit=device.commit(),
    )
