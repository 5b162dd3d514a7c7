"""From a front to a board and back: what was exported is timed at its own bits, taken in, and compared."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from hw_models import load_target
from hw_models.measurements import OWN, Measurement
from nas.calibrate import record_units
from nas.cost import cost_architecture
from nas.errors import UsageError
from nas.export_study import export_trials
from nas.measure.plan import TABLE, write_plan
from nas.measure.table import import_measurements
from nas.measure.verify import verification_text, verify_board
from nas.progress import Narrator
from nas.search import run_search
from nas.study import Study
from nas.subjects import measured_parts
from tests.small_study import small_spec

TARGET, SLOWER = "ethos_u85_2048", 1.3
_QUIET = Narrator(quiet=True)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, list[Path]]:
    """(study, folders of two networks of its front)."""
    folder = tmp_path_factory.mktemp("board")
    study = run_search(small_spec(search_targets=[TARGET], search_trials=6), folder)
    scored = {trial.architecture.key: trial for trial in study.trials if trial.accuracy is not None}
    vars(study)["front"] = list(scored.values())[:2]
    return study, export_trials(study, study.front, folder / "exported")


def _plan(folders: list[Path], out: Path) -> Path:
    return write_plan(TARGET, out, _QUIET, models=list(map(str, folders)), precision=OWN)


def test_what_was_exported_is_timed_at_its_own_bits(exported: tuple[Study, list[Path]], tmp_path: Path) -> None:
    study, folders = exported
    with pytest.raises(UsageError, match="nas measure plan --target ethos_u85_2048 --precision own --model"):
        verify_board(study, _QUIET, TARGET)
    plan = _plan(folders, tmp_path / "plan")
    files = sorted(path.relative_to(plan) for path in plan.rglob("*.onnx"))
    assert [file.stem for file in files] == sorted(folder.name for folder in folders)
    for file, folder in zip(files, sorted(folders), strict=True):
        assert (plan / file).read_bytes() == (folder / "model_qdq.onnx").read_bytes()
    assert "QuantizeLinear" in (plan / "README.md").read_text()

    with (plan / TABLE).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    truth = {
        str(folder): SLOWER * cost_architecture(trial.architecture, load_target(TARGET), 10).latency_s
        for trial, folder in zip(study.front, folders, strict=True)
    }
    assert {row["precision"] for row in rows} == {OWN}
    for row in rows:
        row["latency_ms"] = 1e3 * truth[row["model"]]
    with (plan / TABLE).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows[:1])
    import_measurements(plan / TABLE, TARGET, study.root, None)
    done = verify_board(study, _QUIET, TARGET)
    assert (len(done.rows), len(done.refused)) == (1, 1)
    assert done.rows[0].measured_s / done.rows[0].predicted_s == pytest.approx(SLOWER)
    assert f"{SLOWER:.2f}" in verification_text(done)
    json.dumps(done.to_dict(), allow_nan=False)
    with pytest.raises(UsageError, match="in precision w8a8"):
        verify_board(study, _QUIET, TARGET, "w8a8")


def test_a_network_at_its_own_bits_is_costed_as_the_search_did(exported: tuple[Study, list[Path]]) -> None:
    study, folders = exported
    target = load_target(TARGET)
    for trial, folder in zip(study.front, folders, strict=True):
        size = trial.architecture.resolution
        record = Measurement(TARGET, str(folder), "network", size, OWN, latency_s=1.0)
        costed = cost_architecture(trial.architecture, target, 10)
        assert record_units(record, target).seconds.sum() == pytest.approx(costed.latency_s)
        assert costed.latency_s == pytest.approx(trial.costs[TARGET]["latency_s"])
        qdq = Measurement(TARGET, str(folder / "model_qdq.onnx"), "network", size, OWN, latency_s=1.0)
        (part,) = measured_parts(qdq, target)
        assert part.macs == pytest.approx(costed.macs, rel=1e-3)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"models": ["resnet18"]}, "resnet18 has no model_qdq.onnx: --precision own is for folders"),
        ({"models": [], "blocks": 3}, "--budget and --networks go without --precision own"),
        ({"models": []}, "needs something to time"),
    ],
)
def test_only_what_was_exported_has_bits_of_its_own(tmp_path: Path, asked: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        write_plan(TARGET, tmp_path / "plan", _QUIET, precision=OWN, **asked)  # type: ignore[arg-type]
    (tmp_path / "m.csv").write_text(f"model,input_size,precision,latency_ms\nresnet18,224,{OWN},1\n")
    with pytest.raises(UsageError, match=r"line 2: resnet18 has no bits of its own"):
        import_measurements(tmp_path / "m.csv", TARGET, tmp_path, None)
