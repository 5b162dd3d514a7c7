"""Measuring whose graphs are opened in worker processes: what a lost one costs, and what the minutes hold for."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from block_jobs import block_jobs
from pool_opener import GraphOpener

from nas.errors import NasError
from nas.measure.cpu import CpuDevice
from nas.measure.jobs import Graph, Job, graphs_of, name_of
from nas.measure.pool import Opened, Pool, Progress
from nas.measure.records import MeasurementStore
from nas.measure.run import LOSSES, measure_jobs
from nas.progress import Narrator

_QUIET = Narrator(quiet=True)


class _Pooled(CpuDevice):
    """A device whose graphs are opened in two workers."""

    runtime, workers = "torch", 2
    precisions = ("fp32", "fp16", "bf16", "w8a8", "w8a16", "w4a16")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.pool = Pool(GraphOpener(), self.workers)

    def prepare(self, job: Job) -> dict[str, Any]:
        return {"ops": {}, "unfused": []}

    def warm(self, graphs: Sequence[Graph], until: float | None, update: Progress) -> dict[Graph, NasError]:
        return self.pool.open(graphs, keep=False, until=until, update=update).failed

    def open(self, graphs: Sequence[Graph], until: float | None, update: Progress) -> Opened:
        return self.pool.open(graphs, until=until, update=update)

    def sentinel(self, best_s: float) -> None:
        return None

    def forget(self, jobs: Sequence[Job]) -> None:
        self.pool.forget()


@pytest.fixture
def pooled(tmp_path: Path) -> Iterator[_Pooled]:
    device = _Pooled(tmp_path / "graphs")
    yield device
    device.pool.close()


@pytest.mark.slow
def test_workers_open_and_every_job_gets_its_time_or_a_reason(
    tmp_path: Path, store: MeasurementStore, unexcited: None, pooled: _Pooled
) -> None:
    subjects = list(dict.fromkeys(job.subject for job in block_jobs(3)))
    jobs = [Job(subject, precision) for subject in subjects for precision in ("fp32", "w8a8", "bf16")]
    jobs.insert(2, Job(subjects[0], "fp16"))
    outcome = measure_jobs(jobs, pooled, "core", store, _QUIET)
    # Four graphs in w8a8 do not fit beside the others; alone they do.
    assert {(record.subject, record.precision) for record in outcome.measured} == {
        (subject.name, precision) for subject in subjects for precision in ("fp32", "w8a8")
    }
    assert len(store.of("core")) == 6
    assert len(outcome.refused) == 4
    assert [reason for name, reason in outcome.refused.items() if "fp16" in name and "SIGKILL" in reason]
    assert outcome.left == 0


def _steady(count: int) -> list[Job]:
    return [Job(job.subject, "w4a16") for job in block_jobs(count)[::2]]


@pytest.mark.slow
def test_a_worker_lost_while_timing_costs_its_graph_and_no_other(
    tmp_path: Path, store: MeasurementStore, pooled: _Pooled
) -> None:
    jobs = _steady(3)
    kills = [Job(jobs[number].subject, "w8a16") for number in (0, 1)]
    outcome = measure_jobs([jobs[0], kills[0], *jobs[1:], kills[1]], pooled, "core", store, _QUIET)
    assert sorted(record.subject for record in outcome.measured) == sorted(job.subject.name for job in jobs)
    assert outcome.refused.keys() == {name_of(job) for job in kills}
    assert all("the worker that timed it was killed by signal 9 (SIGKILL)" in said for said in outcome.refused.values())
    assert outcome.left == 0


class _Vanishing(_Pooled):
    """Its one worker is killed as soon as it has opened something, the first LOSSES times."""

    workers, left = 1, LOSSES

    def open(self, graphs: Sequence[Graph], until: float | None, update: Progress) -> Opened:
        self.asked = [*getattr(self, "asked", []), set(graphs)]
        opened = super().open(graphs, until, update)
        if self.left:
            self.left -= 1
            for child in multiprocessing.active_children():
                child.kill()
                child.join()
        return opened


@pytest.mark.slow
def test_workers_that_vanish_between_opening_and_timing_are_not_replaced_for_ever(
    tmp_path: Path, store: MeasurementStore
) -> None:
    """No graph is to blame, so all are opened again, the second time each alone; the same command goes on later."""
    device, jobs = _Vanishing(tmp_path / "graphs"), _steady(2)
    outcome = measure_jobs(jobs, device, "core", store, _QUIET)
    each = [set(graphs_of([job])) for job in jobs]
    assert device.asked == [set.union(*each), set.union(*each), *each]
    assert [record.subject for record in outcome.measured] == [jobs[1].subject.name]
    reason = "it was lost with its worker 3 times, and never timed; fewer --workers need less memory"
    assert outcome.refused == {name_of(jobs[0]): reason}
    outcome = measure_jobs(jobs, device, "core", store, _QUIET)
    device.pool.close()
    assert (len(outcome.measured), outcome.known, outcome.refused) == (1, 1, {})


@pytest.mark.slow
def test_workers_prepare_without_timing(tmp_path: Path, store: MeasurementStore, pooled: _Pooled) -> None:
    subject = block_jobs(1)[0].subject
    jobs = [Job(subject, "fp32"), Job(subject, "bf16")]
    outcome = measure_jobs(jobs, pooled, "core", store, _QUIET, prepare_only=True)
    assert outcome.left == 1
    assert list(outcome.refused.values()) == ["cannot be compiled: 0"]
    assert store.of("core") == []


def test_the_minutes_hold_for_opening_too(tmp_path: Path, store: MeasurementStore, pooled: _Pooled) -> None:
    outcome = measure_jobs(block_jobs(2)[:1], pooled, "core", store, _QUIET, minutes=1e-4)
    assert (outcome.left, outcome.refused, outcome.measured) == (1, {}, [])


def test_minutes_that_are_short_of_a_whole_group_still_measure_a_part(
    tmp_path: Path, store: MeasurementStore, unexcited: None, pooled: _Pooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.measure.run.TIMED_S", 30.0)  # two graphs a job: all three would want 180 s
    jobs = [job for job in block_jobs(3) if job.precision == "fp32"]
    outcome = measure_jobs(jobs, pooled, "core", store, _QUIET, minutes=2.5)
    assert outcome.measured
    assert len(outcome.measured) + outcome.left + len(outcome.refused) == len(jobs)
