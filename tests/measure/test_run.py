"""Measuring for real: fused graphs in ONNX Runtime, recorded one by one, resumed, refused under load."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from block_jobs import SPACE, block_jobs

from hw_models.measurements import Measurement, load_pack
from nas.errors import Interrupted, NasError, UsageError
from nas.measure.ask import run_measuring
from nas.measure.cpu import CpuDevice
from nas.measure.design import part_pool
from nas.measure.graphs import session_options, unfused
from nas.measure.jobs import CHAIN, Job, name_of, prepare
from nas.measure.peace import peace_s, warn_of_a_slow_machine
from nas.measure.pool import Opened
from nas.measure.records import MeasurementStore
from nas.measure.run import groups, measure_jobs
from nas.measure.session import Outcome, Session
from nas.measure.turns import time_group
from nas.progress import Narrator
from nas.subjects import part_subject
from search_spaces import load_space

_QUIET = Narrator(quiet=True)


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
    pool = part_pool(SPACE, 12, 0, 10, 3)
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
    jobs = block_jobs(2)
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
    jobs = block_jobs(1)
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
    measure_jobs(block_jobs(1)[:1], CpuDevice(tmp_path / "graphs"), "epyc_zen3_core", store, narrator)
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
        measure_jobs(block_jobs(2), _Stops(tmp_path / "graphs"), "core", store, _QUIET)
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
        measure_jobs(block_jobs(1), CpuDevice(tmp_path / "graphs"), "core", store, _QUIET)
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
        for job in block_jobs(8)
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
    job = next(job for job in block_jobs(1) if job.is_chained)
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
    device, jobs = CpuDevice(tmp_path / "graphs"), block_jobs(1)[:1]
    (record,) = measure_jobs(jobs, device, "core", store, _QUIET).measured
    store.put([replace(record, low_s=0.5 * record.latency_s, high_s=1.5 * record.latency_s)])
    assert measure_jobs(jobs, device, "core", store, _QUIET).known == 1
    monkeypatch.setattr("hw_models.measurements.WIDEST", 0.4)
    assert measure_jobs(jobs, device, "core", store, _QUIET).known == 0


def test_graphs_that_another_version_wrote_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    (graph, _), *_ = block_jobs(1)[0].terms
    before = graph.file_name
    assert before == graph.file_name
    monkeypatch.setattr("nas.measure.jobs.writers", lambda: "ONNX Runtime 99")
    assert graph.file_name != before


def test_groups_keep_the_order_and_their_size() -> None:
    jobs = block_jobs(3)
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
