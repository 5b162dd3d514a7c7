"""Measures a list of jobs: prepared first, timed in turns, checked, recorded one by one as they are finished."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from math import inf
from typing import Any

import numpy as np

from nas.errors import Interrupted, NasError, UsageError
from nas.measure.jobs import Graph, Job, graphs_of, name_of
from nas.measure.peace import peace_s, taken_at_peace, warn_of_a_slow_machine
from nas.measure.pool import Opened
from nas.measure.session import Device, Keeper, Outcome, Session
from nas.measure.turns import TRIES, time_group
from nas.measure.worker import NoRoomError
from nas.progress import Narrator

TURN = 16
"""Graphs that are timed in turns together: a drift within their seconds touches all alike."""

WORKER_TURN = 8
"""Where workers open graphs: of each, so many, lest all wait for the slowest too often."""

TIMED_S = 0.2
"""What the timing of one graph takes about, in all its turns (0.15 on an H200): kept free at the end of the minutes."""

TIMING_SHARE = 0.25
"""Of what is left of the minutes, the most that is kept free for the timing of one group: graphs beyond that wait."""

MOST_REFUSED = 4
"""After so many refusals the machine is given up when most tries were refused."""

LOSSES = 3
"""A job is given up when its worker was lost so often while another graph was timed, or none was."""


def measure_jobs(
    jobs: Sequence[Job],
    on: Device,
    target: str,
    store: Keeper,
    narrator: Narrator,
    *,
    minutes: float | None = None,
    prepare_only: bool = False,
    seed: int = 0,
    patience_s: float | None = None,
) -> Outcome:
    """Measure what the store does not have yet, or has from a slower machine (`nas.measure.peace`), in the order of
    `jobs`.

    minutes: stop before the group of jobs that begins after so many minutes of timing; where workers open the graphs,
    that counts too, and what is open when the time is up is timed. prepare_only: write or compile the graphs and time
    nothing. patience_s: how long a group of jobs waits for a machine at peace, where the device has a sentinel; by
    default `timing.PATIENCE_S`. Raises UsageError for a precision the device lacks; NasError when the machine is under
    load and nothing can be believed; Interrupted at Ctrl-C, with what is saved.
    """
    for job in jobs:
        if job.precision not in on.precisions:
            raise UsageError(
                f"{on.runtime} on this device times {', '.join(on.precisions)}, but not {job.precision}: a figure for "
                "it must come from a device that has such kernels"
            )
    records, outcome = store.of(target), Outcome()
    try:
        with on.held() as state:
            sentinel = None if prepare_only else on.sentinel(peace_s(records))
            believed = taken_at_peace(records, inf if sentinel is None else sentinel.best_s)
            have = {record.identity for record in believed if record.is_sharp}
            pending = [job for job in jobs if _identity(job, on, target) not in have]
            outcome.known = len(jobs) - len(pending)
            again = {record.identity for record in records} - have
            if count := sum(_identity(job, on, target) in again for job in pending):
                narrator.say(f"{count} earlier times were taken while the machine was slower than it can be: once more")
            ready = _prepare(pending, on, outcome, narrator)
            if prepare_only:
                _warm(ready, on, outcome, narrator, minutes)
            elif ready:
                if sentinel is not None:
                    warn_of_a_slow_machine(target, sentinel.best_s, narrator)
                session = Session(on, target, state, sentinel, np.random.default_rng(seed), outcome, patience_s)
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


def _prepare(jobs: Sequence[Job], on: Device, outcome: Outcome, narrator: Narrator) -> list[Job]:
    """Jobs whose graphs are there. What cannot be built, or a block that is not fused, is refused."""
    ready: list[Job] = []
    if not jobs:
        return ready
    with narrator.bar("graphs") as update:
        for number, job in enumerate(jobs):
            update(number, len(jobs), job.subject.name)
            try:
                notes = on.prepare(job)
            except NasError as error:
                outcome.refused[name_of(job)] = str(error)
                continue
            if notes["unfused"]:
                outcome.unfused[name_of(job)] = notes["unfused"]
            if notes["unfused"] and job.subject.must_fuse:
                outcome.refused[name_of(job)] = f"not fused as intended: {', '.join(notes['unfused'])}"
            else:
                ready.append(job)
        update(len(jobs), len(jobs), "")
    return ready


def _warm(jobs: Sequence[Job], on: Device, outcome: Outcome, narrator: Narrator, minutes: float | None) -> None:
    """Have every graph compiled once, so that opening it later takes less."""
    graphs, began, reached = graphs_of(jobs), time.monotonic(), 0
    until = None if minutes is None else began + 60 * minutes
    with narrator.bar("compiled") as update:

        def told(done: int, total: int) -> None:
            nonlocal reached
            reached = done
            update(done, total, "")

        failed = on.warm(graphs, until, told)
    if on.workers:
        narrator.say(
            f"{reached - len(failed)} of {len(graphs)} graphs compiled in {time.monotonic() - began:.0f} s, "
            f"{len(failed)} cannot be"
        )
    for job in jobs:
        if reason := next((str(failed[graph]) for graph, _ in job.terms if graph in failed), None):
            outcome.refused[name_of(job)] = reason
    outcome.left = sum(name_of(job) not in outcome.refused for job in jobs)


def _time_all(jobs: list[Job], session: Session, store: Keeper, narrator: Narrator, minutes: float | None) -> None:
    end = None if minutes is None else time.monotonic() + 60 * minutes
    outcome, on = session.outcome, session.on
    most = max(TURN, WORKER_TURN * on.workers)
    waiting, losses = deque(groups(jobs, most)), Counter[Job]()
    with narrator.bar("measured") as update:

        def told(ready: int, total: int) -> None:
            if on.workers:
                update(_done(outcome), len(jobs), f"{ready}/{total} opened")

        while waiting:
            group = waiting.popleft()
            if end is not None and time.monotonic() > end:
                outcome.left += len(group)
                continue
            if end is not None and on.workers:
                group, *rest = groups(group, max(1, int(TIMING_SHARE * (end - time.monotonic()) / TIMED_S)))
                waiting.extendleft(reversed(rest))
            graphs, began = graphs_of(group), time.monotonic()
            opened = on.open(graphs, end - TIMED_S * len(graphs) if end is not None and on.workers else None, told)
            able, crowded = _able(group, opened, outcome)
            if on.workers:
                seconds = time.monotonic() - began
                narrator.say(f"{len(opened.runners)} of {len(graphs)} graphs opened in {seconds:.0f} s, now timed")
            if len(group) > 1:
                waiting.extend([job] for job in crowded)  # each by itself, when the others have gone
            else:
                outcome.refused |= {name_of(job): _reason(job, opened) for job in crowded}
            began, before = time.monotonic(), len(outcome.measured)
            lost: list[Job] = []
            for record in time_group(able, opened, session, lost):
                store.put([record])
                outcome.measured.append(record)
            if on.workers:
                count, seconds = len(outcome.measured) - before, time.monotonic() - began
                narrator.say(f"{count} of {len(group)} measurements timed in {seconds:.0f} s")
            _give_up_under_load(session)
            opened.runners.clear()
            on.forget([job for job in able if name_of(job) not in outcome.refused and job not in lost])
            waiting.extendleft(reversed(_again(lost, losses, session, narrator)))
            update(_done(outcome), len(jobs), group[-1].subject.name)


def _again(lost: Sequence[Job], losses: Counter[Job], session: Session, narrator: Narrator) -> list[list[Job]]:
    """Groups of jobs that went with the worker of another, to be opened once more: together, the second time each by
    itself; those lost LOSSES times are refused. losses: how often each was lost, which this counts.
    """
    losses.update(lost)
    for job in lost:
        if losses[job] >= LOSSES:
            session.outcome.refused[name_of(job)] = (
                f"it was lost with its worker {LOSSES} times, and never timed; fewer --workers need less memory"
            )
    together = [job for job in lost if losses[job] == 1]
    alone = [[job] for job in lost if 1 < losses[job] < LOSSES]
    if again := len(together) + len(alone):
        narrator.say(f"a worker was lost, and {again} measurements with it: they are opened again")
    return [*([together] if together else []), *alone]


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
            outcome.refused[name_of(job)] = str(worse[0])
        elif errors:
            crowded.append(job)
        elif all(graph in opened.runners for graph, _ in job.terms):
            able.append(job)
        else:
            outcome.left += 1
    return able, crowded


def _reason(job: Job, opened: Opened) -> str:
    return next(str(opened.failed[graph]) for graph, _ in job.terms if graph in opened.failed)


def _give_up_under_load(session: Session) -> None:
    refused = len(session.outcome.disturbed & session.outcome.refused.keys())
    measured = len(session.outcome.measured)
    if refused >= MOST_REFUSED and refused > measured:
        load = session.state().get("load_1min")
        raise NasError(
            f"the machine is under load{f' (load average {load:g})' if load is not None else ''}: {refused} of "
            f"{refused + measured} times spread too widely to be believed, taken {TRIES} times each; "
            "stop other programs and run the same command again: what is measured is kept"
            + (", and --patience waits longer for moments of peace" if session.sentinel is not None else "")
        )
