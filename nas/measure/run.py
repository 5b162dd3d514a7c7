"""Measures a list of jobs: prepared first, timed in turns, checked, recorded one by one as they are finished."""

from __future__ import annotations

import datetime
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hw_models.measurements import Measurement
from nas.errors import Interrupted, NasError, UsageError
from nas.measure import device
from nas.measure.jobs import Graph, Job
from nas.measure.pool import LostError, NoRoomError, Opened, Progress
from nas.measure.records import MeasurementStore
from nas.measure.timing import FEWEST_CALM, Sentinel, Slices, summarize, time_in_turns
from nas.progress import Narrator

TURN = 16
"""Graphs that are timed in turns together: a drift within their seconds touches all alike."""

WORKER_TURN = 8
"""Where workers open graphs: of each, so many, lest all wait for the slowest too often."""

TIMED_S = 0.3
"""What the timing of one graph takes about, in all its turns; it is kept free at the end of the minutes."""

TRIES = 3
"""How often a time whose spread is too wide is taken before it is refused."""

REST_S = 1.0
"""Between tries."""

MOST_REFUSED = 4
"""After so many refusals the machine is given up when most tries were refused."""


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


def measure_jobs(
    jobs: Sequence[Job],
    on: Device,
    target: str,
    store: MeasurementStore,
    narrator: Narrator,
    *,
    minutes: float | None = None,
    prepare_only: bool = False,
    seed: int = 0,
) -> Outcome:
    """Measure what the store does not have yet, in the order of `jobs`.

    minutes: stop before the group of jobs that begins after so many minutes of timing; where workers open the graphs,
    that counts too, and what is open when the time is up is timed. prepare_only: write or compile the graphs and time
    nothing. Raises UsageError for a precision the device lacks; NasError when the machine is under load and
    nothing can be believed; Interrupted at Ctrl-C, with what is saved.
    """
    for job in jobs:
        if job.precision not in on.precisions:
            raise UsageError(
                f"{on.runtime} on this device times {', '.join(on.precisions)}, but not {job.precision}: a figure for "
                "it must come from a device that has such kernels"
            )
    records = store.of(target)
    have = {record.identity for record in records}
    pending = [job for job in jobs if _identity(job, on, target) not in have]
    outcome = Outcome(known=len(jobs) - len(pending))
    try:
        with on.held() as state:
            ready = _prepare(pending, on, outcome, narrator)
            if prepare_only:
                _warm(ready, on, outcome, narrator, minutes)
                return outcome
            if ready:
                session = _Session(
                    on, target, state, on.sentinel(_best_s(records)), np.random.default_rng(seed), outcome
                )
                _time_all(ready, session, store, narrator, minutes)
    except KeyboardInterrupt as error:
        done = len(outcome.measured) + outcome.known
        raise Interrupted(
            f"interrupted: {done} of {len(jobs)} measurements are saved; the same command goes on from there"
        ) from error
    return outcome


def _identity(job: Job, on: Device, target: str) -> tuple[Any, ...]:
    subject = job.subject
    thing = (target, subject.kind, subject.name, subject.input_size, job.batch, job.precision)
    return (*thing, on.runtime, on.runtime_version)


def _name(job: Job) -> str:
    return f"{job.subject.name} at {job.subject.input_size} in {job.precision}"


def _prepare(jobs: Sequence[Job], on: Device, outcome: Outcome, narrator: Narrator) -> list[Job]:
    """Jobs whose graphs are there. What cannot be built, or a block that is not fused, is refused."""
    ready = []
    with narrator.bar("graphs") as update:
        for number, job in enumerate(jobs):
            update(number, len(jobs), job.subject.name)
            try:
                notes = on.prepare(job)
            except NasError as error:
                outcome.refused[_name(job)] = str(error)
                continue
            if notes["unfused"]:
                outcome.unfused[_name(job)] = notes["unfused"]
            if notes["unfused"] and job.subject.must_fuse:
                outcome.refused[_name(job)] = f"not fused as intended: {', '.join(notes['unfused'])}"
            else:
                ready.append(job)
        update(len(jobs), len(jobs), "")
    return ready


def _warm(jobs: Sequence[Job], on: Device, outcome: Outcome, narrator: Narrator, minutes: float | None) -> None:
    """Have every graph compiled once, so that opening it later takes less."""
    until = None if minutes is None else time.monotonic() + 60 * minutes
    with narrator.bar("compiled") as update:
        failed = on.warm(_graphs(jobs), until, lambda done, total: update(done, total, ""))
    for job in jobs:
        if reason := next((str(failed[graph]) for graph, _ in job.terms if graph in failed), None):
            outcome.refused[_name(job)] = reason
    outcome.left = sum(_name(job) not in outcome.refused for job in jobs)


def _graphs(jobs: Sequence[Job]) -> list[Graph]:
    """The distinct graphs of jobs."""
    return list(dict.fromkeys(graph for job in jobs for graph, _ in job.terms))


@dataclass(frozen=True)
class _Session:
    """What all groups of one call share."""

    on: Device
    target: str
    state: Callable[[], dict[str, Any]]
    sentinel: Sentinel | None
    rng: np.random.Generator
    outcome: Outcome


def _best_s(records: Sequence[Measurement]) -> float:
    """The sentinel's time at peace, from measurements of the same device."""
    return min((record.condition().get("sentinel_s", float("inf")) for record in records), default=float("inf"))


def _time_all(
    jobs: list[Job], session: _Session, store: MeasurementStore, narrator: Narrator, minutes: float | None
) -> None:
    end = None if minutes is None else time.monotonic() + 60 * minutes
    outcome, on = session.outcome, session.on
    most = max(TURN, WORKER_TURN * on.workers)
    waiting = deque(groups(jobs, most))
    with narrator.bar("measured") as update:

        def told(ready: int, total: int) -> None:
            if on.workers:
                update(_done(outcome), len(jobs), f"{ready}/{total} opened")

        while waiting:
            group = waiting.popleft()
            if end is not None and time.monotonic() > end:
                outcome.left += len(group)
                continue
            graphs, began = _graphs(group), time.monotonic()
            opened = on.open(graphs, end - TIMED_S * len(graphs) if end is not None and on.workers else None, told)
            able, crowded = _able(group, opened, outcome)
            if on.workers:
                seconds = time.monotonic() - began
                narrator.say(f"{len(opened.runners)} of {len(graphs)} graphs opened in {seconds:.0f} s, now timed")
            if len(group) > 1:
                waiting.extend([job] for job in crowded)  # each by itself, when the others have gone
            else:
                outcome.refused |= {_name(job): _reason(job, opened) for job in crowded}
            for record in _time_group(able, opened, session):
                store.put([record])
                outcome.measured.append(record)
            _give_up_under_load(session)
            opened.runners.clear()
            on.forget([job for job in able if _name(job) not in outcome.refused])
            update(_done(outcome), len(jobs), group[-1].subject.name)


def _done(outcome: Outcome) -> int:
    return len(outcome.measured) + len(outcome.refused)


def groups(jobs: Sequence[Job], most: int | None = None) -> list[list[Job]]:
    """Consecutive jobs whose graphs are together at most `most` (by default TURN), each group of one job or more."""
    out: list[list[Job]] = []
    graphs: set[Graph] = set()
    for job in jobs:
        wanted = {graph for graph, _ in job.terms}
        if not out or len(graphs | wanted) > (TURN if most is None else most):
            out.append([])
            graphs = set()
        graphs |= wanted
        out[-1].append(job)
    return out


def _able(group: Sequence[Job], opened: Opened, outcome: Outcome) -> tuple[list[Job], list[Job]]:
    """(jobs whose graphs are open, those that lack nothing but room). The rest is refused, or left when the time is
    up.
    """
    able, crowded = [], []
    for job in group:
        errors = [opened.failed[graph] for graph, _ in job.terms if graph in opened.failed]
        worse = [error for error in errors if not isinstance(error, NoRoomError)]
        if worse:
            outcome.refused[_name(job)] = str(worse[0])
        elif errors:
            crowded.append(job)
        elif all(graph in opened.runners for graph, _ in job.terms):
            able.append(job)
        else:
            outcome.left += 1
    return able, crowded


def _reason(job: Job, opened: Opened) -> str:
    return next(str(opened.failed[graph]) for graph, _ in job.terms if graph in opened.failed)


def _time_group(group: list[Job], opened: Opened, session: _Session) -> Iterator[Measurement]:
    """Time jobs in turns; those with too wide a spread again, up to TRIES times, and then refuse them."""
    waiting, refused = group, session.outcome.refused
    attempt = 0
    while waiting and attempt < TRIES:
        if attempt:
            time.sleep(REST_S)
        graphs = _graphs(waiting)
        try:
            slices = time_in_turns([opened.runners[graph] for graph in graphs], session.rng, session.sentinel)
        except LostError as error:
            lost = [job for job in waiting if any(graph in error.things for graph, _ in job.terms)]
            refused |= {_name(job): str(error) for job in lost}
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
                refused[_name(job)] = str(error)
            else:
                refused.pop(_name(job), None)
                yield record
        waiting = noisy


class _NoisyError(Exception):
    """A time that cannot be believed."""


def _record(job: Job, slices: Slices, session: _Session, conditions: dict[str, Any]) -> Measurement:
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


def _give_up_under_load(session: _Session) -> None:
    refused = sum("under load" in reason for reason in session.outcome.refused.values())
    measured = len(session.outcome.measured)
    if refused >= MOST_REFUSED and refused > measured:
        load = session.state().get("load_1min")
        raise NasError(
            f"the machine is under load{f' (load average {load:g})' if load is not None else ''}: {refused} of "
            f"{refused + measured} times spread too widely to be believed, taken {TRIES} times each; "
            "stop other programs and run the same command again: what is measured is kept"
        )
