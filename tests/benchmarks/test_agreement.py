"""The agreement study on a small made-up table, and its statistics against known values."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from benchmarks.agreement import format_gains, main
from benchmarks.fact_table import BEYOND, FACTS
from benchmarks.facts import Fact, findings, markdown
from benchmarks.published import DEVICE_TARGETS, Row, compare_sources, read_benchmark, read_groups, target_of
from benchmarks.rank_statistics import bootstrapped, cross_validated, spearman
from hw_models import list_targets, load_target
from hw_models.families import COLUMNS as FAMILIES
from nas.cost import cost_model
from nas.errors import UsageError

MODELS = (
    "resnet10t",
    "resnet18",
    "resnet34",
    "mobilenetv2_050",
    "mobilenetv2_100",
    "mnasnet_050",
    "regnetx_002",
    "regnetx_004",
)
COLUMNS = "device,precision,batch,timm_name,input_res,latency_ms,fps,metric_kind,runtime"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Latencies twice as long as predicted for a Hailo-8, so that ranks agree and calibration is perfect."""
    target = load_target("hailo8")
    lines = [COLUMNS]
    for model in MODELS:
        seconds = 2 * cost_model(model, target, 96).latency_s
        lines.append(f"Hailo-8,int8,1,{model},96,,{1 / seconds},throughput_fps,DFC")
        lines.append(f"Unheard-of,int8,1,{model},96,{seconds * 1e3},,latency_bs1,none")
    lines.append(f"Hailo-8,int8,8,{MODELS[0]},96,1.0,,latency_bs1,DFC")
    (tmp_path / "npu_published.csv").write_text("\n".join(lines) + "\n")
    benchmark = ["model,infer_img_size,infer_batch_size,infer_samples_per_sec"]
    benchmark += [f"{model},96,4,{1000 - number}" for number, model in enumerate(MODELS)]
    (tmp_path / "timm_rtx4090_amp.csv").write_text("\n".join(benchmark) + "\n")
    return tmp_path


def test_study_is_written_with_its_provenance(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(table), "--out", str(tmp_path / "out"), "--no-facts"]) == 0
    record = json.loads((tmp_path / "out" / "agreement.json").read_text())
    assert set(record["_meta"]) == {"commit", "date", "machine", "versions", "command"}
    (group,) = record["groups"]
    assert (group["target"], group["models"], group["left_out"]) == ("hailo8", 8, [])
    assert group["rho"] == pytest.approx(1.0)
    assert group["ratio"] == pytest.approx(0.5)
    assert group["within_25"] == 0.0
    assert group["calibrated_within_25"] == 1.0
    (benchmark,) = record["benchmarks"]
    assert (benchmark["target"], benchmark["models"]) == ("rtx_4090", 8)
    assert "no target for Unheard-of" in capsys.readouterr().err
    assert "| Hailo-8 |" in (tmp_path / "out" / "agreement.md").read_text()


def test_rows_are_grouped_and_other_batches_left_out(table: Path) -> None:
    groups = read_groups(table / "npu_published.csv")
    assert {group[0] for group in groups} == {"Hailo-8", "Unheard-of"}
    assert all(len(rows) == len(MODELS) for rows in groups.values())


def test_benchmarks_are_sampled_evenly(table: Path) -> None:
    rows = read_benchmark(table / "timm_rtx4090_amp.csv", 4)
    assert [row.model for row in rows] == sorted(MODELS)[::2]
    assert {row.batch for row in rows} == {4}
    with pytest.raises(UsageError, match="not one of timm's"):
        read_benchmark(table / "npu_published.csv", 4)


def test_missing_file_and_wrong_columns_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--data"):
        read_groups(tmp_path / "npu_published.csv")
    (tmp_path / "npu_published.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="does not have the columns"):
        read_groups(tmp_path / "npu_published.csv")


def test_facts_name_their_source_and_gap() -> None:
    found = findings([fact for fact in FACTS if fact.what.startswith(("npu_40tops: LL", "Ethos-U85", "SL1680: 913"))])
    assert len(found) == 8
    assert {finding.what: finding.agrees for finding in found}["npu_40tops: LLaMA2-7B, w4a8"]
    table = markdown(found, BEYOND)
    assert "| 20 |" in table
    assert BEYOND[0][0] in table
    assert all(finding.source and finding.predicted > 0 for finding in found)
    assert all(finding.why for finding in found if not finding.agrees)


@pytest.mark.parametrize(
    ("published", "predicted", "agrees"),
    [(10.0, 12.4, True), (10.0, 12.6, False), (10.0, 7.4, False), ((1.0, 2.0), 1.5, True), ((1.0, 2.0), 2.6, False)],
)
def test_a_fact_that_is_off_says_why(published: float | tuple[float, float], predicted: float, agrees: bool) -> None:
    (finding,) = findings([Fact("speed", published, "m/s", "a book", lambda: predicted, "it is a guess")])
    assert finding.agrees == agrees
    silent = [Fact("speed", published, "m/s", "a book", lambda: predicted)]
    if agrees:
        assert findings(silent)[0].why == ""
    else:
        with pytest.raises(ValueError, match="gives no reason"):
            findings(silent)


def test_gains_of_integers_are_of_networks_published_in_both(tmp_path: Path) -> None:
    lines = [COLUMNS]
    for precision, milliseconds in (("fp16", 3.0), ("w8a8", 1.0)):
        lines.append(f"Qualcomm QCS8550 (Proxy),{precision},1,resnet10t,96,{milliseconds},,latency_bs1,QNN")
    lines.append("Qualcomm QCS8550 (Proxy),w8a8,1,resnet18,96,1.0,,latency_bs1,QNN")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    (found,) = format_gains(tmp_path / "table.csv")
    assert found.what.endswith("median of 1 pairs")
    assert found.published == pytest.approx(3.0)
    target = load_target("qcs8550")
    slow, fast = (cost_model("resnet10t", target, 96, precision).latency_s for precision in ("fp16", "w8a8"))
    assert found.predicted == pytest.approx(slow / fast)
    assert json.loads(json.dumps(asdict(found)))["agrees"] is found.agrees


def test_every_named_target_exists() -> None:
    assert set(DEVICE_TARGETS.values()) <= set(list_targets())
    assert target_of("Hailo-8L") == "hailo8l"
    assert target_of("Hailo-8") == "hailo8"
    assert target_of("toaster") is None


def test_spearman_of_known_ranks() -> None:
    assert spearman(np.array([1, 2, 3, 4]), np.array([10, 20, 30, 40])) == pytest.approx(1.0)
    assert spearman(np.array([1, 2, 3, 4]), np.array([4, 3, 2, 1])) == pytest.approx(-1.0)
    # Ties share their mean rank: ranks 0.5 0.5 2 3 against 0 1 2 3.
    assert spearman(np.array([1, 1, 2, 3]), np.array([1, 2, 3, 4])) == pytest.approx(4.5 / np.sqrt(4.5 * 5))


def test_calibration_finds_factors_of_families() -> None:
    rng = np.random.default_rng(0)
    columns = np.zeros((24, len(FAMILIES)))
    columns[:, [0, 3, -1]] = rng.uniform(1e-3, 9e-3, (24, 3))
    factors = np.ones(len(FAMILIES))
    factors[[0, 3, -1]] = 2.0, 0.6, 1.4
    _, _, untouched = cross_validated(columns, columns.sum(axis=1))
    rho, _, within_25 = cross_validated(columns, columns @ factors)
    assert untouched == 1.0
    assert rho > 0.97
    assert within_25 > 0.95


def test_resampling_brackets_the_correlation() -> None:
    rng = np.random.default_rng(0)
    published = rng.uniform(1, 9, 20)
    predicted = published * rng.uniform(0.7, 1.4, 20)
    low, high = bootstrapped(predicted, published)
    assert low < spearman(predicted, published) <= high <= 1


def test_sources_of_one_device_are_compared_on_shared_models() -> None:
    one = [Row(model, 224, number + 1.0) for number, model in enumerate(MODELS)]
    other = [Row(row.model, 224, 1.2 * row.seconds) for row in one[2:]]
    groups = {("Hailo-8", "int8", "a"): one, ("Hailo-8", "int8", "b"): other, ("Hailo-8", "fp16", "b"): other}
    (found,) = compare_sources(groups)
    assert (found["models"], found["within_10"], found["within_25"]) == (6, 0.0, 1.0)
    assert found["rho"] == pytest.approx(1.0)
