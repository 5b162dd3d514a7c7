"""Measuring for real: fused graphs in ONNX Runtime, recorded one by one, resumed, refused under load."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pool_opener import GraphOpener

from hw_models.measurements import Measurement, load_pack
from nas.errors import Interrupted, NasError, UsageError
from nas.measure.ask import run_measuring
from nas.measure.cpu import CpuDevice
from nas.measure.design import part_pool
from nas.measure.graphs import session_options, unfused
from nas.measure.jobs import CHAIN, Graph, Job, graphs_of, name_of, prepare
from nas.measure.peace import peace_s, warn_of_a_slow_machine
from nas.measure.pool import Opened, Pool, Progress
from nas.measure.records import MeasurementStore
from nas.measure.run import LOSSES, groups, measure_jobs
from nas.measure.session import Outcome, Session
from nas.measure.turns import time_group
from nas.progress import Narrator
from nas.store import Store
from nas.subjects import part_subject
from search_spaces import load_space

_SPACE = load_space("metaformer", "small").restrict({"resolution": [24]})
_QUIET = Narrator(quiet=True)


@pytest.fixture
def unexcited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run on busy machines: every time is believed."""
    monkeypatch.setattr("nas.measure.timing.CALM", 1e9)
    monkeypatch.setattr("nas.measure.timing.NOISY", 1e9)
    monkeypatch.setattr("nas.measure.timing.SLICE_S", 1e-4)
    monkeypatch.setattr("hw_models.measurements.WIDEST", 1e9)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MeasurementStore]:
    with closing(Store(tmp_path, create=True)) as opened:
        yield MeasurementStore(opened)


def _jobs(count: int) -> list[Job]:
    parts = [part for part in part_pool(_SPACE, 12, 0, 10, 3) if part.spec[0] == "MetaFormerBlock"]
    return [Job(part_subject(part), precision) for part in parts[:count] for precision in ("fp32", "w8a8")]


@pytest.mark.parametrize("mixer", ["dwconv", "mhsa", "pool", "inception", "relu_linear"])
@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
def test_blocks_are_fused(mixer: str, precision: str, tmp_path: Path) -> None:
    pool = part_pool(load_space("metaformer", "small", mixers=[mixer, "identity"]), 60, 0, 10, 3)
    part = next(part for part in pool if dict(part.spec[4:]).get("mixer") == mixer)
    notes = prepare(Job(part_subject(part), precision), tmp_path)
    assert notes["unfused"] == []
    matrix = "QLinearConv" if precision == "w8a8" else "Conv"
    assert notes["ops"].get(matrix, 0) >= 2


def test_what_is_timed_is_the_default_of_the_runtime() -> None:
    """Weights stay signed, as they are written: with `session.x64quantprecision` they would not without VNNI."""
    with pytest.raises(RuntimeError, match="does not have configuration with key"):
        session_options(1).get_session_config_entry("session.x64quantprecision")


def test_a_graph_in_pieces_is_noticed() -> None:
    assert unfused({"Conv": 3, "Erf": 1}, "fp32") == ["1 Erf"]
    assert unfused({"QLinearConv": 3, "Conv": 2}, "w8a8") == ["2 Conv"]


def test_a_block_is_timed_in_a_chain_and_other_parts_less_their_reorders() -> None:
    pool = part_pool(_SPACE, 12, 0, 10, 3)
    for part in pool:
        terms = Job(part_subject(part), "fp32").terms
        weights = np.array([weight for _, weight in terms])
        copies = np.array([graph.copies for graph, _ in terms])
        own = np.array([graph.subject.kind == "block" for graph, _ in terms])
        assert (weights * copies)[own].sum() == pytest.approx(1.0)  # once the part itself
        assert (weights * copies)[~own].sum() == pytest.approx(0.0)  # and none of the probes' convolutions
    assert CHAIN > 1


def test_measured_recorded_and_not_measured_again(tmp_path: Path, store: MeasurementStore, unexcited: None) -> None:
    device = CpuDevice(tmp_path / "graphs")
    jobs = _jobs(2)
    first = measure_jobs(jobs, device, "core", store, _QUIET)
    assert len(first.measured) + len(first.refused) == len(jobs)
    records = store.of("core")
    assert sorted(records, key=str) == sorted(first.measured, key=str)
    assert records
    for record in records:
        assert 0 <= record.low_s <= record.latency_s <= record.high_s  # 0: half the difference of two times, under load
        assert record.condition()["threads"] == 1
        assert all((record.runtime_version, record.commit, record.date))
    again = measure_jobs(jobs, device, "core", store, _QUIET)
    assert again.known == len(records)


def _slower(record: Measurement, factor: float) -> Measurement:
    state = dict(record.condition())
    return replace(record, latency_s=1.0, high_s=1.0, conditions=json.dumps(state | {"sentinel_s": factor}))


def test_a_folder_that_began_on_a_busy_machine_is_found_out(
    tmp_path: Path, store: MeasurementStore, unexcited: None, monkeypatch
) -> None:
    """All its times are taken again, though they agree with each other, by the same command on a machine at peace."""
    monkeypatch.setattr("nas.measure.peace.timing", SimpleNamespace(CALM=1.5))
    device = CpuDevice(tmp_path / "graphs")
    jobs = _jobs(1)
    first = measure_jobs(jobs, device, "core", store, _QUIET).measured
    store.put([_slower(record, 1.0) for record in first])  # a second for the sentinel: no machine is as slow
    lines: list[str] = []
    narrator = Narrator(quiet=True)
    monkeypatch.setattr(narrator, "say", lines.append)
    outcome = measure_jobs(jobs, device, "core", store, narrator)
    assert outcome.known == 0
    assert lines == [f"{len(jobs)} earlier times were taken while the machine was slower than it can be: once more"]
    assert len(store.of("core")) == len(jobs)
    assert all(record.latency_s < 1.0 for record in store.of("core"))


def test_a_machine_slower_than_its_pack_is_warned_of_when_it_measures(
    tmp_path: Path, store: MeasurementStore, unexcited: None, monkeypatch
) -> None:
    monkeypatch.setattr("nas.measure.peace.timing", SimpleNamespace(CALM=1e-9))
    lines: list[str] = []
    narrator = Narrator(quiet=True)
    monkeypatch.setattr(narrator, "warn", lines.append)
    measure_jobs(_jobs(1)[:1], CpuDevice(tmp_path / "graphs"), "epyc_zen3_core", store, narrator)
    assert len(lines) == 1
    assert "times as long as when the pack epyc_zen3_core was measured" in lines[0]


def test_a_machine_slower_than_that_of_the_pack_is_named() -> None:
    lines: list[str] = []
    narrator = Narrator(quiet=True)
    narrator.warn = lines.append  # type: ignore[method-assign]
    known = peace_s(load_pack("epyc_zen3_core"))
    warn_of_a_slow_machine("epyc_zen3_core", 1.05 * known, narrator)
    warn_of_a_slow_machine("npu_40tops", 1.0, narrator)
    assert not lines
    warn_of_a_slow_machine("epyc_zen3_core", 1.3 * known, narrator)
    assert "1.3 times as long as when the pack epyc_zen3_core was measured" in lines[0]


class _Stops(CpuDevice):
    """A device at which Ctrl-C comes with the second group."""

    opened = 0

    def forget(self, jobs: object) -> None:
        raise KeyboardInterrupt


def test_ctrl_c_keeps_what_is_finished(
    tmp_path: Path, store: MeasurementStore, unexcited: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.measure.run.TURN", 2)
    with pytest.raises(Interrupted, match="measurements are saved; the same command goes on"):
        measure_jobs(_jobs(2), _Stops(tmp_path / "graphs"), "core", store, _QUIET)
    assert len(store.of("core")) <= 1


def test_a_machine_under_load_is_refused(
    tmp_path: Path, store: MeasurementStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.measure.timing.CALM", 0.0)  # never at peace
    monkeypatch.setattr("nas.measure.timing.PATIENCE_S", 0.01)
    monkeypatch.setattr("nas.measure.turns.REST_S", 0.0)
    monkeypatch.setattr("nas.measure.turns.TRIES", 1)
    monkeypatch.setattr("nas.measure.run.MOST_REFUSED", 2)
    with pytest.raises(NasError, match="the machine is under load"):
        measure_jobs(_jobs(1), CpuDevice(tmp_path / "graphs"), "core", store, _QUIET)
    assert store.of("core") == []


@pytest.mark.parametrize(
    ("device", "patience_s"), [("cuda", 5.0), ("cpu", 0.0), ("cpu", -1.0), ("cpu", float("nan")), ("cpu", float("inf"))]
)
def test_patience_is_seconds_of_a_cpu(device: str, patience_s: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--patience is a positive number of seconds, for --device cpu alone"):
        run_measuring(tmp_path, None, _QUIET, device=device, patience_s=patience_s)


def test_blocks_timed_by_another_method_are_not_joined(
    tmp_path: Path, store: MeasurementStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.measure.design.POOL", 30)
    before = [
        job.subject.record(
            "npu_40tops", job.precision, 1e-3, runtime=CpuDevice.runtime,
            runtime_version=CpuDevice(tmp_path).runtime_version, conditions='{"method": "alone"}',
        )
        for job in _jobs(8)
        if job.is_chained
    ]  # fmt: skip
    store.put(before)
    asked = {"target": "npu_40tops", "preset": "small", "budget": 8}
    with pytest.raises(UsageError, match=r"blocks timed by 'alone', these are timed by .* --replace"):
        run_measuring(tmp_path, None, _QUIET, **asked)
    with pytest.raises(UsageError, match="--prepare-only takes none"):
        run_measuring(tmp_path, None, _QUIET, replace=True, prepare_only=True, **asked)
    assert len(store.of("npu_40tops")) == len(before)
    run_measuring(tmp_path, None, _QUIET, replace=True, minutes=1e-9, **asked)
    assert store.of("npu_40tops") == []


class _Told:
    """A runner of a graph whose times scatter by a share of them."""

    def __init__(self, seed: int, base_s: float, scatter: float) -> None:
        self._rng, self._base_s, self._scatter = np.random.default_rng(seed), base_s, scatter

    def times_s(self, count: int) -> np.ndarray:
        return self._base_s * (1 + self._scatter * self._rng.uniform(-1, 1, count))


@pytest.mark.parametrize(("scatter", "believed"), [(1e-4, True), (0.1, False)])
def test_a_difference_that_scatters_more_than_its_times_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scatter: float, believed: bool
) -> None:
    """Two graphs of a millisecond, of which each could be believed, and a block of 20 microseconds between them."""
    monkeypatch.setattr("nas.measure.turns.REST_S", 0.0)
    job = next(job for job in _jobs(1) if job.is_chained)
    (alone, _), (chain, _) = job.terms
    runners = {alone: _Told(0, 1e-3, scatter), chain: _Told(1, 1e-3 + (CHAIN - 1) * 2e-5, scatter)}
    session = Session(CpuDevice(tmp_path), "core", dict, None, np.random.default_rng(0), Outcome())
    records = list(time_group([job], Opened(runners), session, []))
    assert bool(records) == believed
    assert all(record.is_sharp and record.latency_s == pytest.approx(2e-5, rel=0.2) for record in records)
    said = session.outcome.refused.get(name_of(job), "")
    assert ("too short beside what else its graphs take" in said) != believed
    assert not session.outcome.disturbed  # which does not mean that the machine is under load


def test_times_that_are_hardly_known_are_taken_again(
    tmp_path: Path, store: MeasurementStore, unexcited: None, monkeypatch
) -> None:
    device, jobs = CpuDevice(tmp_path / "graphs"), _jobs(1)[:1]
    (record,) = measure_jobs(jobs, device, "core", store, _QUIET).measured
    store.put([replace(record, low_s=0.5 * record.latency_s, high_s=1.5 * record.latency_s)])
    assert measure_jobs(jobs, device, "core", store, _QUIET).known == 1
    monkeypatch.setattr("hw_models.measurements.WIDEST", 0.4)
    assert measure_jobs(jobs, device, "core", store, _QUIET).known == 0


def test_graphs_that_another_version_wrote_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    (graph, _), *_ = _jobs(1)[0].terms
    before = graph.file_name
    assert before == graph.file_name
    monkeypatch.setattr("nas.measure.jobs.writers", lambda: "ONNX Runtime 99")
    assert graph.file_name != before


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
    subjects = list(dict.fromkeys(job.subject for job in _jobs(3)))
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
    return [Job(job.subject, "w4a16") for job in _jobs(count)[::2]]


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
    subject = _jobs(1)[0].subject
    jobs = [Job(subject, "fp32"), Job(subject, "bf16")]
    outcome = measure_jobs(jobs, pooled, "core", store, _QUIET, prepare_only=True)
    assert outcome.left == 1
    assert list(outcome.refused.values()) == ["cannot be compiled: 0"]
    assert store.of("core") == []


def test_the_minutes_hold_for_opening_too(tmp_path: Path, store: MeasurementStore, pooled: _Pooled) -> None:
    outcome = measure_jobs(_jobs(2)[:1], pooled, "core", store, _QUIET, minutes=1e-4)
    assert (outcome.left, outcome.refused, outcome.measured) == (1, {}, [])


def test_minutes_that_are_short_of_a_whole_group_still_measure_a_part(
    tmp_path: Path, store: MeasurementStore, unexcited: None, pooled: _Pooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.measure.run.TIMED_S", 30.0)  # two graphs a job: all three would want 180 s
    jobs = [job for job in _jobs(3) if job.precision == "fp32"]
    outcome = measure_jobs(jobs, pooled, "core", store, _QUIET, minutes=2.5)
    assert outcome.measured
    assert len(outcome.measured) + outcome.left + len(outcome.refused) == len(jobs)


def test_groups_keep_the_order_and_their_size() -> None:
    jobs = _jobs(3)
    made = groups(jobs)
    assert [job for group in made for job in group] == jobs


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"precisions": ["w4a8"]}, "times fp32, w8a8, not w4a8"),
        ({"models": ["resnet19"]}, "did you mean"),
        ({"preset": "huge", "networks": 1}, "presets"),
        ({"threads": 4096}, "--threads must be 1 to"),
        ({"budget": 0}, "must be positive"),
        ({"target": "nonesuch"}, "unknown target"),
        ({"models": [], "wanted": Path("next.csv"), "batch": 64}, "--batch goes without --from"),
    ],
)
def test_what_cannot_be_measured_is_said(tmp_path: Path, asked: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run_measuring(tmp_path, None, _QUIET, **({"target": "npu_40tops", "models": ["resnet18"]} | asked))  # type: ignore[arg-type]


def test_no_gpu_is_one_line(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UsageError, match="no CUDA device"):
        run_measuring(tmp_path, None, _QUIET, device="cuda")


def test_times_of_other_threads_do_not_mix(tmp_path: Path, store: MeasurementStore) -> None:
    record = Measurement("npu_40tops", "resnet18", "network", 224, "fp32", 1.0, conditions='{"threads":2}')
    store.put([record])
    with pytest.raises(UsageError, match=r"--replace|threads"):
        run_measuring(tmp_path, None, _QUIET, target="npu_40tops", models=["resnet18"])
