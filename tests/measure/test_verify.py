"""`nas verify` on a study of the real parts, measured in ONNX Runtime."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from hw_models import load_pack
from nas.calibrate import run_calibration
from nas.correlation import spearman
from nas.errors import UsageError
from nas.measure.records import MeasurementStore
from nas.measure.verify import verification_text, verify_study
from nas.progress import Narrator
from nas.search import run_search
from nas.store import Store
from nas.subjects import architecture_subject
from tests.small_study import small_spec

_QUIET = Narrator(quiet=True)


def test_networks_of_a_front_are_measured_beside_their_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.measure.timing.CALM", 1e9)  # tests run on busy machines: every time is believed
    monkeypatch.setattr("nas.measure.timing.NOISY", 1e9)
    monkeypatch.setattr("hw_models.measurements.WIDEST", 1e9)
    study = run_search(small_spec(), tmp_path, narrator=_QUIET)
    scored = [trial for trial in study.trials if trial.accuracy is not None]
    distinct = list({trial.architecture.key: trial for trial in scored}.values())[:4]
    assert len(distinct) >= 3
    vars(study)["front"] = distinct  # a front of six trials may have fewer
    done = verify_study(study, _QUIET, target="epyc_zen3_core", precision="fp32")
    assert {row.trial for row in done.rows} == {trial.number for trial in distinct}
    assert not done.refused
    measured, predicted = ([getattr(row, name) for row in done.rows] for name in ("measured_s", "predicted_s"))
    assert measured == sorted(measured)
    assert done.rank_agreement == pytest.approx(spearman(np.array(predicted), np.array(measured)))
    assert done.coverage is None  # nothing is calibrated, and it says so
    text = verification_text(done)
    assert "uncalibrated" in text
    assert "rank agreement" in text
    for row in done.rows:
        assert row.measured_low_s <= row.measured_s <= row.measured_high_s
        assert row.predicted_low_s == row.predicted_s == row.predicted_high_s
    pairs = pairwise(done.rows)
    overlapping = {(a.trial, b.trial) for a, b in pairs if b.measured_low_s <= a.measured_high_s}
    assert set(done.ties) == overlapping

    # What a calibration has learned from is no test of it.
    blocks = [record for record in load_pack("epyc_zen3_core") if record.precision == "fp32"][:16]
    known = [replace(record, runtime_version=onnxruntime.__version__) for record in blocks]
    with closing(Store(tmp_path)) as opened:
        MeasurementStore(opened).put(known)
    stored = run_calibration("epyc_zen3_core", tmp_path, None, _QUIET).stored
    assert stored is not None
    again = verify_study(study, _QUIET, target="epyc_zen3_core", precision="fp32")
    assert again.coverage is not None
    assert "* the calibration has learned from this measurement" in verification_text(again)
    for row in again.rows:
        subject = architecture_subject(study.trial(row.trial).architecture, 10)
        assert row.learned
        found = stored.calibration.held_out_s(f"{subject.name} {subject.input_size} fp32")
        assert row.predicted_s == pytest.approx(found)
        assert row.predicted_low_s <= row.predicted_s <= row.predicted_high_s

    # A calibration that is no longer right is refused before the time it takes to measure.
    monkeypatch.setattr("hw_models.calibration.COST_MODEL_VERSION", -1)
    with closing(Store(tmp_path)) as opened:
        store = MeasurementStore(opened)
        store.drop(store.of("epyc_zen3_core"))
        with pytest.raises(UsageError, match="another version of the cost model"):
            verify_study(study, _QUIET, target="epyc_zen3_core", precision="fp32")
        assert store.of("epyc_zen3_core") == []
