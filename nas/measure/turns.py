"""Times the open graphs of a group of jobs in turns, and makes measurements of those that can be believed."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw_models.measurements import Measurement
from nas.measure import device
from nas.measure.jobs import Job, graphs_of, name_of
from nas.measure.pool import Opened
from nas.measure.session import Session
from nas.measure.timing import FEWEST_CALM, Slices, summarize, time_in_turns
from nas.measure.worker import LostError

TRIES = 3
"""How often a time whose spread is too wide is taken before it is refused."""

REST_S = 1.0
"""Between tries."""


def time_group(group: list[Job], opened: Opened, session: Session, lost: list[Job]) -> Iterator[Measurement]:
    """Time jobs in turns; those with too wide a spread again, up to TRIES times, and then refuse them.

    A graph that loses its worker by being timed is refused. lost: takes the jobs whose graphs went with that worker.
    """
    waiting, refused, disturbed = group, session.outcome.refused, session.outcome.disturbed
    attempt = 0
    while waiting and attempt < TRIES:
        if attempt:
            time.sleep(REST_S)
        graphs = graphs_of(waiting)
        try:
            runners = [opened.runners[graph] for graph in graphs]
            slices = time_in_turns(runners, session.rng, session.sentinel, patience_s=session.patience_s)
        except LostError as error:
            for job in waiting:
                own = {graph for graph, _ in job.terms}
                if error.timed in own:
                    refused[name_of(job)] = str(error)
                elif own.intersection(error.things):
                    refused.pop(name_of(job), None)  # as too noisy, in an earlier try
                    lost.append(job)
            waiting = [job for job in waiting if not {graph for graph, _ in job.terms}.intersection(error.things)]
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
                (disturbed.discard if isinstance(error, _ShortError) else disturbed.add)(name_of(job))
            else:
                refused.pop(name_of(job), None)
                yield record
        waiting = noisy


class _NoisyError(Exception):
    """A time that cannot be believed, because of what else runs on the machine."""


class _ShortError(_NoisyError):
    """One that is short beside what its graphs take besides, on a quiet machine too."""


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
        raise _ShortError("too short to be told from the reorders of its ends") from error
    on = session.on
    record = job.subject.record(
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
    if not record.is_sharp:  # a difference of two times that scatter little may scatter much
        width = 50 * (record.high_s - record.low_s) / record.latency_s
        raise _ShortError(
            f"its time is known to {width:.0f} percent either way in each of {TRIES} tries: too short beside what else "
            "its graphs take"
        )
    return record
