"""What calibrated latencies are used for: any network's cost, surveys, searches, risk, whole populations."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from made_up_device import TARGET, Heard, calibrated_folder, made_records, newest, put
from small_study import small_spec

from hw_models import load_target
from nas.calibrate import calibration_text, run_calibration
from nas.cost import cost_architecture, part_costs
from nas.cost_text import comparison_text, costing, report_text
from nas.errors import UsageError
from nas.latency import calibrated
from nas.population import PopulationCost, genes_of
from nas.problem import pose
from nas.progress import Narrator
from nas.report import front_table, networks
from nas.search import run_search
from nas.spec import to_toml
from nas.survey import run_survey
from search_spaces import load_space
from search_spaces.parts import network_parts


@pytest.fixture(scope="module")
def records():
    return made_records()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, records):
    """A folder whose target is calibrated."""
    return calibrated_folder(tmp_path_factory.mktemp("calibrated"), records)


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


def test_a_search_uses_calibrations_of_one_image_alone(tmp_path, records):
    where, heard = put(tmp_path, [replace(record, batch=64) for record in records]), Heard()
    run_calibration(TARGET, where, None, Narrator(quiet=True), batch=64)
    targets = {TARGET: load_target(TARGET)}
    _, latencies = calibrated(small_spec(), targets, where, None, heard)
    assert latencies == {}
    assert any("its calibration at batch 64 is not used" in said for said in heard.said)
    with pytest.raises(UsageError, match="is of 64 images at once, but a search's latency is of one"):
        calibrated(small_spec(search_calibrations=[f"{TARGET}@batch64#1"]), targets, where, None, heard)


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
