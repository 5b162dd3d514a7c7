"""`nas calibrate` on blocks of the space: what it learns, stores and refuses."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from made_up_device import SLOWER, TARGET, Heard, calibrated_folder, made_records, newest, put

from hw_models import estimate_part, load_pack, load_target
from hw_models.calibration import Calibration, transferred_calibration
from hw_models.transfer import published_factors, transfer
from nas.bits import put_precision
from nas.calibrate import calibration_text, record_units, run_calibration
from nas.calibrations import CalibrationStore
from nas.cost import part_costs
from nas.errors import UsageError
from nas.measure.design import draw_networks
from nas.measure.jobs import LED
from nas.measure.table import drop_measurements
from nas.progress import Narrator
from nas.store import Store
from nas.subjects import architecture_subject, measured_workload
from search_spaces import load_space
from search_spaces.parts import network_parts


@pytest.fixture(scope="module")
def records():
    return made_records()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, records):
    """A folder whose target is calibrated."""
    return calibrated_folder(tmp_path_factory.mktemp("calibrated"), records)


def test_what_was_learned_is_reported(folder, records):
    outcome = run_calibration(TARGET, folder, None, Narrator(quiet=True))
    report = outcome.report
    assert report["samples"] == len(records)
    assert report["spearman"] > 0.95
    assert report["within_10_percent"] > 0.7 > report["uncalibrated_within_10_percent"]
    assert 1 < report["interval_factor"] < 2
    assert report["interval_coverage"] == 15 / 16  # each against the largest of fifteen others: one is beyond
    text = calibration_text(outcome)
    held, blocks = "held out: Spearman", "16 blocks and 0 networks measured with made up 1"
    for words in (
        held,
        blocks,
        "the worst fifth",
        "from 19 measured networks on, the intervals of networks are narrower",
    ):
        assert words in text
    parts = re.findall(r"(\d+)% (?:the cost model|what other devices|one factor|a mixture)", text)
    assert sum(map(int, parts)) == 100  # what predicts, in plain words
    assert all(row["name"][0].isalpha() for row in report["worst"])
    json.dumps(report)


def test_networks_get_intervals_of_their_own(tmp_path):
    """Beside blocks that scatter by a third: networks, which a search predicts, are not told of by those."""
    rng, space, target = np.random.default_rng(1), load_space("metaformer", preset="small"), load_target(TARGET)
    networks = []
    for arch in draw_networks(space, 20, 0):
        record = architecture_subject(arch, 10, 3).record(TARGET, "w8a8", 1.0, runtime="made up", runtime_version="1")
        seconds = SLOWER * record_units(record, target).seconds.sum() * np.exp(0.03 * rng.standard_normal())
        networks.append(replace(record, latency_s=float(seconds)))
    blocks = [replace(one, latency_s=one.latency_s * np.exp(0.3 * rng.standard_normal())) for one in made_records()]
    outcome = run_calibration(TARGET, put(tmp_path, [*blocks, *networks]), None, Narrator(quiet=True))
    report = outcome.report
    assert report["networks"] == 20
    text = calibration_text(outcome)
    assert "of the 20 networks alone: within 10 percent" in text
    assert "measured networks on" not in text
    assert report["interval_factor_networks"] < 1.2
    assert 0.8 <= report["interval_coverage_networks"] <= 1

    stored = newest(tmp_path).calibration
    arch = space.decode(space.sample(rng))
    parts = part_costs(list(network_parts(arch, 10)), arch, target)
    latency = stored.model(target).latency(parts)
    assert latency.high_s / latency.low_s < 1.2**2
    older = {name: value for name, value in stored.content.items() if name != "errors_by_kind"}
    before = replace(stored, content=older).model(target).latency(parts)
    assert before.seconds == latency.seconds
    assert before.high_s / before.low_s > 1.2**2  # as it was when a study began with it


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
    at_64 = run_calibration("h100", tmp_path, None, heard, batch=64)
    assert at_64.stored is not None
    assert at_64.stored.name == "h100@batch64#1"
    text = calibration_text(at_64)
    assert "family factors at batch 1 transferred from NVIDIA Jetson" in text
    assert "nothing was measured at batch 64, where neither may hold" in text
    assert any("tell of h100 was measured at batch 1, not at 64" in said for said in heard.said)
    heard = Heard()
    at_1 = run_calibration("h100", tmp_path, None, heard)
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


def test_calibrations_stored_before_batches_were_are_of_one_image(folder):
    old = newest(folder).calibration.to_dict()
    del old["batch"]
    assert Calibration.from_dict(old) == newest(folder).calibration
    text = json.dumps([old["target"], old["kind"], old["content"]], sort_keys=True)
    assert Calibration.from_dict(old).identity == hashlib.sha256(text.encode()).hexdigest()[:12]
