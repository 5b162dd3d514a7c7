"""`nas calibrate` on blocks of the space: what it learns, stores, refuses, and what a search makes of it."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from made_up_device import TARGET, made_records, put
from small_study import small_spec

from hw_models import estimate_part, load_pack, load_target
from hw_models.calibration import Calibration, transferred_calibration
from hw_models.transfer import published_factors, transfer
from nas.bits import put_precision
from nas.calibrate import calibration_text, record_units, run_calibration
from nas.calibrations import CalibrationStore
from nas.cost import cost_architecture, part_costs
from nas.cost_text import comparison_text, costing, report_text
from nas.errors import UsageError
from nas.gather import gather
from nas.latency import calibrated
from nas.measure.jobs import LED
from nas.measure.records import MeasurementStore
from nas.measure.table import drop_measurements
from nas.population import PopulationCost, genes_of
from nas.problem import pose
from nas.progress import Narrator
from nas.report import front_table, networks
from nas.search import run_search
from nas.spec import to_toml
from nas.store import Store
from nas.subjects import measured_workload
from nas.survey import run_survey
from search_spaces import load_space
from search_spaces.parts import network_parts


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
    return made_records()


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
    assert report["interval_coverage"] == 15 / 16  # each against the largest of fifteen others: one is beyond
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


def test_costs_of_any_network_are_calibrated(folder, tmp_path):
    calibrated, plain = costing(TARGET, folder, None), costing(TARGET, folder, None, "none")
    report, alone = calibrated.one("mobilenetv3_small_100", 64, None), plain.one("mobilenetv3_small_100", 64, None)
    target = load_target(TARGET)
    assert report.latency_s == newest(folder).calibration.model(target).latency(report.parts).seconds
    assert report.latency_low_s < report.latency_s < report.latency_high_s
    assert report.latency_s > 2 * alone.latency_s
    assert (
        report.model_latency_s
        == pytest.approx(alone.latency_s)
        == sum(row["latency_s"] for row in report.rows) + (report.overhead_s)
    )
    told = report.to_dict()
    assert (told["latency_s"], told["calibration"]) == (report.latency_s, calibrated.about)
    for text in (report_text(report), comparison_text([report, report])):
        assert "latency (calibrated)" in text
        assert "90 percent interval" in text
    assert "100.0%" not in report_text(report).split("fused groups")[1]  # shares are of the cost model's own time
    assert "calibration" not in alone.to_dict()
    assert "uncalibrated" in report_text(alone)
    assert "`nas calibrate --target" in plain.about

    (tmp_path / "models.csv").write_text("model,input_size,precision\nmobilenetv3_small_100,64,\nno_such_net,,\n")
    row, failed = calibrated.many(tmp_path / "models.csv", tmp_path / "costs.csv")
    assert [row[key] for key in ("latency_s", "latency_low_s", "latency_high_s")] == [
        report.latency_s, report.latency_low_s, report.latency_high_s,
    ]  # fmt: skip
    assert failed["latency_low_s"] == ""
    assert "latency_low_s" in (tmp_path / "costs.csv").read_text()
    assert "latency_low_s" not in plain.many(tmp_path / "models.csv", None)[0]


def test_costs_know_the_calibrations_of_their_own_target_alone(folder, tmp_path):
    assert costing("hailo8", folder, None).latency is None
    assert costing(TARGET, tmp_path, None).latency is None
    assert not list(tmp_path.iterdir())  # looking makes no database
    with pytest.raises(UsageError, match=r"no calibration 'npu_40tops#7' in .*`nas calibrate --target npu_40tops`"):
        costing(TARGET, folder, None, f"{TARGET}#7")
    with pytest.raises(UsageError, match="there is no database in"):
        costing(TARGET, tmp_path, None, f"{TARGET}#1")
    with pytest.raises(UsageError, match=f"{TARGET}#1 is of {TARGET}, not of hailo8"):
        costing("hailo8", folder, None, f"{TARGET}#1")


def test_a_survey_takes_the_latency_that_a_search_would(folder):
    heard = Heard()
    settings = small_spec(search_targets=[TARGET])
    found = run_survey(settings, folder, 40, 10, narrator=heard)
    assert any(f"calibration {TARGET}#1" in said for said in heard.said)
    plain = run_survey(replace(settings, search=replace(settings.search, calibrations=("none",))), folder, 40, 10)
    for calibrated_s, plain_s in zip(found.spread[TARGET]["latency_s"], plain.spread[TARGET]["latency_s"], strict=True):
        assert calibrated_s > 2 * plain_s
    assert found.spread[TARGET]["macs"] == plain.spread[TARGET]["macs"]
    with pytest.raises(UsageError, match=r"leave search\.risk out"):
        run_survey(replace(settings, search=replace(settings.search, risk=0.9)), folder, 40, 10)


def test_a_search_warns_of_a_calibration_that_misorders(tmp_path, records):
    """Times that have nothing to do with the blocks: what was said when it was fitted goes on being said."""
    drawn = np.random.default_rng(3).permutation([record.latency_s for record in records])
    mixed = [replace(record, latency_s=float(time_s)) for record, time_s in zip(records, drawn, strict=True)]
    outcome = run_calibration(TARGET, put(tmp_path, mixed), None, Narrator(quiet=True))
    assert "CAUTION" in calibration_text(outcome)
    heard = Heard()
    calibrated(small_spec(), {TARGET: load_target(TARGET)}, tmp_path, None, heard)
    assert any("worse than the cost model does" in said and "--calibration none" in said for said in heard.said)


def test_what_a_block_is_costed_as(tmp_path):
    """Without a network's start, in the middle of one; a chain of three streams what does not fit beside itself."""
    target = load_target("epyc_zen3_core")
    assert target.memory.residency == "nested"
    found = {}
    for record in load_pack("epyc_zen3_core"):
        if record.kind == "block" and record.precision == "fp32":
            found.setdefault(record.condition()["method"] == LED, []).append(record)
    for chained, records in found.items():
        heavy = max(records, key=lambda record: measured_workload(record).params)
        part = estimate_part(put_precision(measured_workload(heavy), "fp32"), target, (False, False))
        bytes_streamed = (3 if chained else 1) * part.weight_bytes
        memory = target.memory
        share = 0.0
        if bytes_streamed > memory.resident_weight_bytes:
            share = 1.0
        elif bytes_streamed > memory.onchip_bytes:
            share = memory.cached_share * (1 - memory.onchip_bytes / bytes_streamed)
        resident_s, streamed_s = part.latency_s
        assert record_units(heavy, target).seconds.sum() == pytest.approx((1 - share) * resident_s + share * streamed_s)
        assert not chained or share > 0
    assert set(found) == {True, False}


def test_a_pack_of_a_faster_machine_is_left_out(tmp_path, monkeypatch, records):
    def at(sentinel_s, record):
        return replace(record, conditions=json.dumps({"sentinel_s": sentinel_s}))

    pack = [at(1e-4, record) for record in records]
    monkeypatch.setattr("nas.gather.list_packs", lambda: ["made_up"])
    monkeypatch.setattr("nas.gather.load_pack", lambda name: pack)
    for sentinel_s, count in ((1.05e-4, 16), (1.6e-4, 6)):
        own = [at(sentinel_s, replace(record, latency_s=1.05 * record.latency_s)) for record in records[:6]]
        heard = Heard()
        with closing(Store(put(tmp_path / f"{count}", own))) as store:
            assert len(gather(TARGET, MeasurementStore(store), heard)) == count
        said = [line for line in heard.said if "1.6 times as fast as the database's measurements" in line]
        assert len(said) == (count == 6)


def test_times_that_are_hardly_known_are_not_learned_from(tmp_path, records):
    dull = [replace(record, low_s=0.7 * record.latency_s, high_s=1.3 * record.latency_s) for record in records[:4]]
    heard = Heard()
    with closing(Store(put(tmp_path, [*dull, *records[4:]]))) as store:
        found = gather(TARGET, MeasurementStore(store), heard)
    assert {record.thing for record in found} == {record.thing for record in records[4:]}
    assert any(
        "4 of 16 times of npu_40tops are left out: known to no better than 20% either way" in s for s in heard.said
    )


def test_a_risk_that_so_few_measurements_cannot_tell_of_is_refused_at_once(folder):
    targets = {TARGET: load_target(TARGET)}
    spec = small_spec(search_risk=0.95)
    with pytest.raises(UsageError, match=r"16 blocks .* tell of a risk up to 0\.941, not of 0\.95"):
        calibrated(spec, targets, folder, None, Heard())
    _, latencies = calibrated(small_spec(search_risk=0.94), targets, folder, None, Heard())
    space = load_space("metaformer")
    arch = space.decode(space.sample(np.random.default_rng(0)))
    summary = latencies[TARGET].summary(cost_architecture(arch, targets[TARGET], 10).parts)
    assert summary["latency_s"] > summary["latency_expected_s"]


def test_a_version_that_is_much_worse_than_the_one_before_says_so(tmp_path, records):
    where = put(tmp_path, records[:12])
    good = run_calibration(TARGET, where, None, Narrator(quiet=True))
    assert "before" not in good.report
    wrong = [
        replace(record, latency_s=factor * record.latency_s)
        for record, factor in zip(records[12:], (9, 0.1), strict=False)
    ]
    text = calibration_text(run_calibration(TARGET, put(where, wrong), None, Narrator(quiet=True)))
    assert f"CAUTION: {TARGET}#1 had a mean error of" in text
    assert f"--calibration {TARGET}#1" in text
    assert all(record.subject in text for record in wrong)  # by the name that drops it
    with pytest.raises(UsageError, match="say which measurements to drop"):
        drop_measurements(TARGET, (), where, None)
    with pytest.raises(UsageError, match="no measurement of block:0 on npu_40tops"):
        drop_measurements(TARGET, ("block:0",), where, None)
    assert len(drop_measurements(TARGET, [record.subject for record in wrong], where, None)) == 2
    again = run_calibration(TARGET, where, None, Narrator(quiet=True))
    assert again.stored.calibration.identity == good.stored.calibration.identity
    assert len(drop_measurements(TARGET, (), where, None, every=True)) == 12


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_times_in_a_wrong_unit_are_noticed(tmp_path, records, factor):
    strange = [replace(record, latency_s=factor * record.latency_s) for record in records]
    heard = Heard()
    run_calibration(TARGET, put(tmp_path, strange), None, heard)
    assert any("is their unit right" in line for line in heard.said)
    heard = Heard()
    run_calibration(TARGET, put(tmp_path / "right", records), None, heard)
    assert not any("is their unit right" in line for line in heard.said)


def test_equal_times_leave_no_rank_to_report(tmp_path, records):
    """A correlation of ties is none: JSON has null for it."""
    same = [replace(record, latency_s=1e-3) for record in records]
    outcome = run_calibration(TARGET, put(tmp_path, same), None, Narrator(quiet=True))
    json.dumps(outcome.report, allow_nan=False)
    assert calibration_text(outcome)


def test_a_calibration_that_cannot_be_reproduced_is_refused(folder):
    calibration = newest(folder).calibration
    changed = dict(calibration.content) | {"held_out_s": [2 * s for s in calibration.content["held_out_s"]]}
    with pytest.raises(ValueError, match="cannot be reproduced by this version"):
        replace(calibration, content=changed).model(load_target(TARGET))


def test_a_calibration_of_another_cost_model_is_refused(folder):
    """Its factors are of pieces of time that are predicted otherwise by now."""
    target, calibration = load_target(TARGET), newest(folder).calibration
    edited = replace(target, memory=replace(target.memory, dram_bytes_per_s=2 * target.memory.dram_bytes_per_s))
    older = {key: value for key, value in calibration.content.items() if key != "cost_model"}
    for found, with_target in ((calibration, edited), (replace(calibration, content=older), target)):
        with pytest.raises(ValueError, match="make a new one of the same measurements with `nas calibrate --target"):
            found.model(with_target)
    alike = replace(target, title="Another", energy=replace(target.energy, static_w=9.0))
    assert calibration.model(alike).latency  # these decide no latency
    with pytest.raises(ValueError, match=r"`nas calibrate --target mine\.toml`"):  # a file of one's own
        replace(calibration, target="mine").model(edited)


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
    monkeypatch.setattr("nas.gather.list_packs", lambda: ["made_up"])
    monkeypatch.setattr("nas.gather.load_pack", lambda name: pack)
    heard = Heard()
    with closing(Store(put(tmp_path, records))) as store:
        found = gather(TARGET, MeasurementStore(store), heard)
    assert len(found) == used
    assert {record.latency_s for record in found} == {record.latency_s for record in records}
    wanted = "more than 10% off the database's" if version == "1" else "the pack made_up is left out"
    assert any(wanted in said for said in heard.said)


def timed_by(record, method):
    return replace(record, conditions=json.dumps({"method": method}))


def test_methods_of_timing_do_not_mix(tmp_path, records):
    mixed = [timed_by(record, "one" if number % 2 else "other") for number, record in enumerate(records)]
    with pytest.raises(UsageError, match=r"were timed in different ways .* which do not mix: .* --replace"):
        run_calibration(TARGET, put(tmp_path, mixed), None, Narrator(quiet=True))


def test_a_pack_timed_otherwise_is_left_out(tmp_path, monkeypatch, records):
    monkeypatch.setattr("nas.gather.list_packs", lambda: ["made_up"])
    monkeypatch.setattr("nas.gather.load_pack", lambda name: [timed_by(record, "other") for record in records[8:]])
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
    monkeypatch.setattr("nas.gather.list_packs", lambda: ["made_up"])
    monkeypatch.setattr("nas.gather.load_pack", lambda name: pack)
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


def test_rows_of_a_calibrated_latency_are_made_by_other_processes_too(folder, monkeypatch):
    """They get copies of it while this process goes on using it."""
    target = load_target(TARGET)
    model = newest(folder).calibration.model(target)
    space = load_space("metaformer", preset="small", mixers=["pool", "dwconv"])
    genes = genes_of(space, [space.sample(np.random.default_rng(seed)) for seed in range(6)])
    alone = PopulationCost(space, target, 10, latency=model).cost(genes)
    parts = dict(model._expected)
    assert parts
    copy = pickle.loads(pickle.dumps(model))
    assert not copy._expected
    assert model._expected == parts
    monkeypatch.setattr("nas.part_rows.ALONE", 1)
    monkeypatch.setattr("nas.part_rows.BATCH", 4)
    shared = PopulationCost(space, target, 10, latency=model, workers=2).cost(genes)
    for name, column in alone.items():
        np.testing.assert_array_equal(shared[name], column)


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
