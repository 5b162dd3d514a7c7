"""`nas calibrate` on blocks of the space: what it learns, stores, refuses, and what a search makes of it."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from small_study import small_spec

from hw_models import list_targets, load_target
from hw_models.calibration import Calibration, transferred_calibration
from hw_models.families import COLUMNS, FEATURES
from hw_models.measurements import read_measurements
from hw_models.transfer import published_factors, transfer
from nas.calibrate import calibration_text, gather, record_units, run_calibration
from nas.calibrations import CalibrationStore
from nas.cost import cost_architecture, part_costs
from nas.errors import UsageError
from nas.latency import calibrated
from nas.measure.design import part_pool
from nas.measure.plan import write_plan
from nas.measure.records import MeasurementStore
from nas.measure.wanted import read_wanted
from nas.population import PopulationCost, genes_of
from nas.problem import pose
from nas.progress import Narrator
from nas.report import front_table, networks
from nas.search import run_search
from nas.spec import to_toml
from nas.store import Store
from nas.subjects import part_subject
from nas.suggest import least_sure, suggest_measurements, suggestion_csv, suggestion_text
from search_spaces import load_space
from search_spaces.parts import network_parts

TARGET, SLOWER = "npu_40tops", 3.0


class Heard(Narrator):
    """A narrator whose words can be asked for."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def records():
    """Sixteen blocks of a device that is three times as slow as the cost model says, measured to 3 percent."""
    rng = np.random.default_rng(0)
    target = load_target(TARGET)
    found = []
    for part in part_pool(load_space("metaformer", preset="small"), 16, 0, 10, 3)[:16]:
        record = part_subject(part).record(TARGET, "w8a8", 1.0, runtime="made up", runtime_version="1")
        seconds = SLOWER * record_units(record, target).seconds.sum() * np.exp(0.03 * rng.standard_normal())
        found.append(replace(record, latency_s=float(seconds)))
    return found


def put(folder, records):
    with closing(Store(folder, create=True)) as store:
        MeasurementStore(store).put(records)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, records):
    """A folder whose target is calibrated."""
    where = put(tmp_path_factory.mktemp("calibrated"), records)
    outcome = run_calibration(TARGET, where, None, Narrator(quiet=True))
    assert outcome.stored is not None
    return where


def newest(folder):
    with closing(Store(folder)) as store:
        return CalibrationStore(store).newest(TARGET)


def test_what_was_learned_is_reported(folder, records):
    outcome = run_calibration(TARGET, folder, None, Narrator(quiet=True))
    report = outcome.report
    assert report["samples"] == len(records)
    assert report["spearman"] > 0.95
    assert report["within_10_percent"] > 0.7 > report["uncalibrated_within_10_percent"]
    assert 1 < report["interval_factor"] < 2
    assert 0.7 <= report["interval_coverage"] <= 1
    text = calibration_text(outcome)
    for words in ("held out: Spearman", "16 blocks and 0 networks measured with made up 1", "the worst fifth"):
        assert words in text
    parts = re.findall(r"(\d+)% (?:the cost model|what other devices|one factor|a mixture)", text)
    assert sum(map(int, parts)) == 100  # what predicts, in plain words
    assert all(row["name"][0].isalpha() for row in report["worst"])
    json.dumps(report)


def test_the_same_measurements_are_the_same_version(folder):
    before = newest(folder)
    again = run_calibration(TARGET, folder, None, Narrator(quiet=True)).stored
    assert before is not None
    assert again is not None
    assert (again.version, again.calibration.identity) == (before.version, before.calibration.identity)


def test_a_stored_calibration_predicts_networks_it_never_saw(folder):
    stored = newest(folder)
    target = load_target(TARGET)
    model = Calibration.from_dict(json.loads(json.dumps(stored.calibration.to_dict()))).model(target)
    space = load_space("metaformer", preset="small")
    for seed in range(3):
        arch = space.decode(space.sample(np.random.default_rng(seed)))
        parts = part_costs(list(network_parts(arch, 10)), arch, target)
        latency = model.latency(parts)
        assert latency.low_s <= latency.seconds <= latency.high_s
        seconds = model.network_s(parts)
        uppers = [model.upper(seconds, risk) for risk in (0.5, 0.7, 0.9)]
        assert uppers == sorted(uppers)
        blocks = sum(record_s for record_s in (model.part_s(part)[0, 0] for part in parts))
        assert blocks > 2 * sum(part.latency_s[0] for part in parts)


def test_a_calibration_that_cannot_be_reproduced_is_refused(folder):
    calibration = newest(folder).calibration
    changed = dict(calibration.content) | {"held_out_s": [2 * s for s in calibration.content["held_out_s"]]}
    with pytest.raises(ValueError, match="cannot be reproduced by this version"):
        replace(calibration, content=changed).model(load_target(TARGET))


def test_too_few_measurements_are_said_and_not_used(tmp_path, records):
    heard = Heard()
    outcome = run_calibration(TARGET, put(tmp_path, records[:6]), None, heard)
    assert outcome.stored is not None
    assert outcome.stored.calibration.kind == "transferred"
    assert outcome.report["needed"] == 10
    assert any("has 6 measurements, a calibration needs at least 10: they are not used" in said for said in heard.said)
    assert "90 percent interval a factor" in calibration_text(outcome)


def test_a_transferred_calibration_says_of_which_batch_it_is(tmp_path):
    """No device has published enough at more than one image, so another batch takes those factors, and says so."""
    heard = Heard()
    at_64 = run_calibration("h200", tmp_path, None, heard, batch=64)
    assert at_64.stored is not None
    assert at_64.stored.name == "h200@batch64#1"
    text = calibration_text(at_64)
    assert "family factors at batch 1 transferred from NVIDIA Jetson" in text
    assert "nothing was measured at batch 64, where neither may hold" in text
    assert any("tell of h200 was measured at batch 1, not at 64" in said for said in heard.said)
    heard = Heard()
    at_1 = run_calibration("h200", tmp_path, None, heard)
    assert "at batch 1 transferred" in calibration_text(at_1)
    assert "nothing was measured at" not in calibration_text(at_1)
    assert not any("was measured at batch" in said for said in heard.said)


def test_the_batch_of_factors_is_that_of_their_devices():
    known = transfer(load_target("h200"), [replace(one, batch=64) for one in published_factors()])
    assert known is not None
    assert "nothing was measured at" not in transferred_calibration("h200", known, 64).about
    assert "at batch 64 transferred" in transferred_calibration("h200", known, 1).about
    assert "nothing was measured at batch 1," in transferred_calibration("h200", known, 1).about


def test_without_kin_a_target_stays_uncalibrated_loudly(tmp_path):
    heard = Heard()
    outcome = run_calibration("mcu_320kb", tmp_path, None, heard)
    assert outcome.stored is None
    assert "uncalibrated" in calibration_text(outcome)
    assert any("its latency stays the cost model's" in said for said in heard.said)


def test_a_target_of_ones_own_learns_from_devices_of_its_kind(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text(f'like = "{TARGET}"\nkind = "npu"\nstack = "Hailo"', encoding="utf-8")
    outcome = run_calibration(str(mine), tmp_path, None, Heard())
    assert outcome.stored is not None
    assert "transferred from Hailo" in outcome.stored.calibration.about
    heard = Heard()
    mine.write_text(f'like = "{TARGET}"', encoding="utf-8")
    outcome = run_calibration(str(mine), tmp_path, None, heard)
    assert outcome.stored is not None
    assert any("mine names no stack: it is taken for an npu of no known vendor's" in said for said in heard.said)
    mine.write_text(f'like = "{TARGET}"\nkind = "mcu"\nstack = "mine"', encoding="utf-8")
    assert run_calibration(str(mine), tmp_path, None, Heard()).stored is None


def test_software_does_not_mix(tmp_path, records):
    other = replace(records[0], subject="block:other", runtime_version="2")
    with pytest.raises(UsageError, match=r"16 with made up 1, 1 with made up 2\): they do not mix"):
        run_calibration(TARGET, put(tmp_path, [*records, other]), None, Narrator(quiet=True))


@pytest.mark.parametrize(("version", "used"), [("1", 16), ("2", 16)])
def test_packs_give_way_to_the_database(tmp_path, monkeypatch, records, version, used):
    pack = [replace(record, runtime_version=version, latency_s=2 * record.latency_s) for record in records[:3]]
    monkeypatch.setattr("nas.calibrate.list_packs", lambda: ["made_up"])
    monkeypatch.setattr("nas.calibrate.load_pack", lambda name: pack)
    heard = Heard()
    with closing(Store(put(tmp_path, records))) as store:
        found = gather(TARGET, MeasurementStore(store), heard)
    assert len(found) == used
    assert {record.latency_s for record in found} == {record.latency_s for record in records}
    wanted = "more than 10% off the database's" if version == "1" else "the pack is left out"
    assert any(wanted in said for said in heard.said)


def timed_by(record, method):
    return replace(record, conditions=json.dumps({"method": method}))


def test_methods_of_timing_do_not_mix(tmp_path, records):
    mixed = [timed_by(record, "one" if number % 2 else "other") for number, record in enumerate(records)]
    with pytest.raises(UsageError, match=r"were timed in different ways .* which do not mix: .* --replace"):
        run_calibration(TARGET, put(tmp_path, mixed), None, Narrator(quiet=True))


def test_a_pack_timed_otherwise_is_left_out(tmp_path, monkeypatch, records):
    monkeypatch.setattr("nas.calibrate.list_packs", lambda: ["made_up"])
    monkeypatch.setattr("nas.calibrate.load_pack", lambda name: [timed_by(record, "other") for record in records[8:]])
    heard = Heard()
    with closing(Store(put(tmp_path, [timed_by(record, "one") for record in records[:8]]))) as store:
        assert len(gather(TARGET, MeasurementStore(store), heard)) == 8
    assert any("timed by 'other', the database's of npu_40tops by 'one'" in said for said in heard.said)


def test_a_calibration_is_of_one_batch(tmp_path, records):
    at_64 = [replace(record, batch=64, latency_s=50 * record.latency_s) for record in records[:12]]
    where, heard = put(tmp_path, [*records[:11], *at_64]), Heard()
    of_64 = run_calibration(TARGET, where, None, heard, batch=64)
    assert of_64.stored is not None
    assert of_64.stored.name == f"{TARGET}@batch64#1"
    assert any("other batches are left out: 11 at batch 1" in said for said in heard.said)
    assert of_64.report["about"].startswith("12 blocks and 0 networks measured at batch 64")
    assert "a search, whose latency is of one, does not use it" in calibration_text(of_64)
    of_1 = run_calibration(TARGET, where, None, Narrator(quiet=True)).stored
    assert of_1 is not None
    assert (of_1.name, of_1.calibration.batch) == (f"{TARGET}#1", 1)
    assert of_1.calibration.identity != of_64.stored.calibration.identity
    again = run_calibration(TARGET, where, None, Narrator(quiet=True), batch=64).stored
    assert again is not None
    assert again.name == of_64.stored.name
    with closing(Store(where)) as store:
        calibrations = CalibrationStore(store)
        assert calibrations.newest(TARGET).name == of_1.name
        assert calibrations.named(of_64.stored.name).calibration.batch == 64
        with pytest.raises(UsageError, match=f"nas calibrate --target {TARGET}`"):
            calibrations.named(f"{TARGET}@batch64#9")


def test_times_of_a_slower_machine_are_left_out(tmp_path, records):
    states = [json.dumps({"sentinel_s": 2e-4 if number < 3 else 1e-4}) for number in range(len(records))]
    own = [replace(record, conditions=state) for record, state in zip(records, states, strict=True)]
    heard = Heard()
    with closing(Store(put(tmp_path, own))) as store:
        found = gather(TARGET, MeasurementStore(store), heard)
    assert {record.thing for record in found} == {record.thing for record in own[3:]}
    assert any(
        f"3 of {len(own)} measurements of {TARGET} were taken while the machine was slower" in s for s in heard.said
    )


def test_a_pack_of_two_batches_serves_both(tmp_path, monkeypatch, records):
    pack = [replace(record, batch=batch) for record in records for batch in (1, 64)]
    monkeypatch.setattr("nas.calibrate.list_packs", lambda: ["made_up"])
    monkeypatch.setattr("nas.calibrate.load_pack", lambda name: pack)
    heard = Heard()
    with closing(Store(tmp_path, create=True)) as store:
        found = gather(TARGET, MeasurementStore(store), heard, 64)
    assert [record.batch for record in found] == [64] * len(records)
    assert any(f"other batches are left out: {len(records)} at batch 1" in said for said in heard.said)


def test_a_search_uses_calibrations_of_one_image_alone(tmp_path, records):
    where, heard = put(tmp_path, [replace(record, batch=64) for record in records]), Heard()
    run_calibration(TARGET, where, None, Narrator(quiet=True), batch=64)
    targets = {TARGET: load_target(TARGET)}
    _, latencies = calibrated(small_spec(), targets, where, None, heard)
    assert latencies == {}
    assert any("its calibration at batch 64 is not used" in said for said in heard.said)
    with pytest.raises(UsageError, match="is of 64 images at once, but a search's latency is of one"):
        calibrated(small_spec(search_calibrations=[f"{TARGET}@batch64#1"]), targets, where, None, heard)


def test_calibrations_stored_before_batches_were_are_of_one_image(folder):
    old = newest(folder).calibration.to_dict()
    del old["batch"]
    assert Calibration.from_dict(old) == newest(folder).calibration
    text = json.dumps([old["target"], old["kind"], old["content"]], sort_keys=True)
    assert Calibration.from_dict(old).identity == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_suggestions_are_of_one_batch(tmp_path, records):
    where = put(tmp_path, records)
    rows = suggest_measurements(TARGET, 2, where, None, preset="small", batch=64)
    assert {row["batch"] for row in rows} == {64}
    table = tmp_path / "next.csv"
    table.write_text(suggestion_csv(rows))
    assert [batch for _, _, batch in read_wanted(table)] == [64, 64]
    for said in (suggestion_text(rows, TARGET, table), suggestion_text(rows, TARGET)):
        assert "Next: leave out --batch 64: npu_40tops is timed from the files of `nas measure plan`" in said
        assert "--device" not in said
    with pytest.raises(UsageError, match="asks for batch 64: the files of a plan are of one image"):
        write_plan(TARGET, tmp_path / "plan", Narrator(quiet=True), wanted=table)
    table.write_text(table.read_text().replace(",64,", ",0,"))
    with pytest.raises(UsageError, match="line 2: batch must be a positive whole number, but is '0'"):
        read_wanted(table)


def test_a_search_uses_the_newest_and_says_which(folder, tmp_path):
    study = run_search(small_spec(), folder, config="small", narrator=Narrator(quiet=True))
    plain = run_search(small_spec(), tmp_path, config="small", narrator=Narrator(quiet=True))
    assert study.spec.search.calibrations == (newest(folder).name,)
    assert plain.spec.search.calibrations == ("none",)
    assert study.identity != plain.identity
    assert f"calibration {newest(folder).name}" in front_table(study)
    assert "uncalibrated: as the cost model predicts it" in front_table(plain)
    by_key = {trial.architecture.key: trial.costs[TARGET]["latency_s"] for trial in plain.trials}
    both = [trial for trial in study.trials if trial.architecture.key in by_key]
    assert both
    for trial in both:
        costs = trial.costs[TARGET]
        assert costs["latency_s"] > 1.5 * by_key[trial.architecture.key]
        assert costs["latency_low_s"] <= costs["latency_s"] <= costs["latency_high_s"]
    assert "calibration" in networks(study)[0]


def test_risk_searches_on_the_upper_end_and_is_another_study(folder):
    expected, risky = (pose(small_spec(search_risk=risk) if risk else small_spec(), folder) for risk in (None, 0.9))
    arch = expected.space.decode(expected.space.sample(np.random.default_rng(0)))
    low, high = (problem.cost(arch)[TARGET] for problem in (expected, risky))
    assert high["latency_s"] > low["latency_s"] == high["latency_expected_s"]
    assert "what 90% of latencies stay below" in high["calibration"]
    shown = risky.shown_reports(arch)[TARGET]  # what an exported network's card shows
    assert shown.latency_s == high["latency_s"]
    assert newest(folder).name in shown.accuracy
    assert "90 percent interval" in shown.accuracy
    assert expected.identity != risky.identity
    assert risky.identity == pose(risky.spec, folder).identity
    assert "risk = 0.9" in to_toml(risky.spec)


def test_risk_without_a_calibration_is_refused(tmp_path):
    targets = {TARGET: load_target(TARGET)}
    with pytest.raises(UsageError, match="run `nas calibrate --target npu_40tops` first"):
        calibrated(small_spec(search_risk=0.9), targets, tmp_path, None, Narrator(quiet=True))
    with pytest.raises(UsageError, match=r"must lie between 0\.5 and 0\.95"):
        small_spec(search_risk=1.0)
    with pytest.raises(UsageError, match="no calibration 'npu_40tops#7'"):
        calibrated(small_spec(search_calibrations=["npu_40tops#7"]), targets, tmp_path, None, Narrator(quiet=True))


def test_suggestions_are_new_and_can_be_taken_in(folder, tmp_path, records):
    rows = suggest_measurements(TARGET, 5, folder, None, preset="small")
    assert len({row["model"] for row in rows}) == 5
    assert not {row["model"] for row in rows} & {record.subject for record in records}
    table = tmp_path / "next.csv"
    table.write_text(suggestion_csv([row | {"latency_ms": 1.0} for row in rows]))
    assert [record.subject for record in read_measurements(table, TARGET)] == [r["model"] for r in rows]
    assert [(subject.name, *form) for subject, *form in read_wanted(table)] == [(r["model"], "w8a8", 1) for r in rows]
    assert "--csv next.csv" in suggestion_text(rows, TARGET)
    with pytest.raises(UsageError, match="at least 1"):
        suggest_measurements(TARGET, 0, folder, None)


def test_suggestions_are_timed_on_what_the_target_is(folder, tmp_path):
    """A processor of a kind that `nas measure` runs on is timed here, a board from files, and either may be what is
    unknown.
    """
    rows = suggest_measurements(TARGET, 1, folder, None, preset="small")
    table = tmp_path / "next.csv"
    for name in list_targets():
        device = {"cpu": "cpu", "gpu": "cuda"}.get(load_target(name).kind)
        lines = suggestion_text(rows, name, table, " --dir here").splitlines()[1:]
        here = f"nas measure --device {device} --from {table} --target {name} --dir here"
        assert [here in line for line in lines if "--device" in line] == [True] * (device is not None), lines
        is_met = name in {"epyc_zen3_core", "epyc_zen5_core", "h100", "h200"}
        plan = f"nas measure plan --from {table} --target {name} --out"
        assert [plan in line for line in lines if "plan" in line] == [True] * (not is_met), lines
        (at_64,) = suggestion_text([row | {"batch": 64} for row in rows], name, table).splitlines()[1:]
        assert ("--device" in at_64, "leave out --batch" in at_64) == (device is not None, device is None)


def test_a_suggestion_in_an_unknown_precision_is_refused(tmp_path):
    with pytest.raises(UsageError, match="unknown precision 'w3a3'; known: fp32"):
        suggest_measurements(TARGET, 3, tmp_path, None, precisions=("w8a8", "w3a3"))


def test_the_least_sure_comes_first_and_nothing_twice():
    rng = np.random.default_rng(0)
    points = np.abs(rng.standard_normal((30, len(COLUMNS) + len(FEATURES))))
    chosen = least_sure(points, points[:0], 10)
    sigmas = [sigma for _, sigma in chosen]
    assert len({index for index, _ in chosen}) == 10
    assert sigmas == sorted(sigmas, reverse=True)
    first = chosen[0][0]
    again = least_sure(points, points[first : first + 1], 1)
    assert again[0][1] <= sigmas[1] + 1e-9


def test_a_population_gives_the_calibrated_latency_of_each_network(folder):
    target = load_target(TARGET)
    model = newest(folder).calibration.model(target)
    space = load_space("metaformer", preset="small")
    genomes = [space.sample(np.random.default_rng(seed)) for seed in range(4)]
    by_table = PopulationCost(space, target, 10, latency=model).cost(genes_of(space, genomes))
    for index, genome in enumerate(genomes):
        arch = space.decode(genome)
        parts = part_costs(list(network_parts(arch, 10)), arch, target)
        assert by_table["latency_s"][index] == pytest.approx(model.latency(parts).seconds, rel=1e-9)
        plain = cost_architecture(arch, target, 10).summary()
        assert by_table["energy_j"][index] == pytest.approx(plain["energy_j"], rel=1e-9)  # is not calibrated
