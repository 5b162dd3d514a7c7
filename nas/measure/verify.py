"""Is a front as fast as predicted? Its networks, measured on a device at hand, beside that device's own predictions.

Predictions of another target say nothing about this device (4-bit weights are slower than 8-bit ones on a CPU), so they
are not compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from hw_models import Target, combine
from hw_models.measurements import OWN, Measurement
from nas.calibrate import sample_name
from nas.calibrations import CalibrationStore
from nas.correlation import spearman
from nas.errors import NasError, UsageError
from nas.export_study import same_problem
from nas.files import sole_user
from nas.latency import uncalibrated
from nas.measure.ask import open_device, refuse_other_threads, target_name
from nas.measure.jobs import Job
from nas.measure.peace import taken_at_peace
from nas.measure.records import MeasurementStore, refuse_other_software
from nas.measure.run import measure_jobs
from nas.problem import find_target
from nas.progress import Narrator
from nas.store import Store
from nas.study import Study
from nas.subjects import architecture_subject, measured_parts, own_architecture
from nas.units import SECONDS, format_quantity


@dataclass(frozen=True)
class Row:
    """A network of the front on the device. Seconds; the prediction's ends are equal to it where no interval is
    known. learned: whether the calibration has learned from this measurement; the prediction is that of a fit without
    it then.
    """

    trial: int
    top1: float
    predicted_s: float
    predicted_low_s: float
    predicted_high_s: float
    measured_s: float
    measured_low_s: float
    measured_high_s: float
    learned: bool

    @property
    def inside(self) -> bool:
        """Whether the measured median lies in the prediction interval."""
        return self.predicted_low_s <= self.measured_s <= self.predicted_high_s


@dataclass(frozen=True)
class Verification:
    """What came out. predictor: what predicted. rows: by measured latency. ties: neighbouring trials whose measured
    intervals overlap. refused: networks without a time, and why.
    """

    study: str
    target: str
    precision: str
    predictor: str
    calibrated: bool
    rows: tuple[Row, ...]
    ties: tuple[tuple[int, int], ...]
    refused: dict[str, str]

    @property
    def rank_agreement(self) -> float:
        """Spearman's correlation of predicted and measured latency; NaN with fewer than three networks."""
        if len(self.rows) < 3:
            return float("nan")
        return spearman(
            np.array([row.predicted_s for row in self.rows]), np.array([row.measured_s for row in self.rows])
        )

    @property
    def coverage(self) -> float | None:
        """Share of measurements inside their prediction interval; None without a calibration."""
        if not self.calibrated or not self.rows:
            return None
        return sum(row.inside for row in self.rows) / len(self.rows)

    def to_dict(self) -> dict[str, object]:
        """JSON-able: NaN is null."""
        agreement = self.rank_agreement
        return asdict(self) | {
            "rank_agreement": agreement if np.isfinite(agreement) else None,
            "coverage": self.coverage,
        }


def verify_study(
    study: Study,
    narrator: Narrator,
    *,
    device: str = "cpu",
    target: str | None = None,
    precision: str = "w8a8",
    threads: int = 1,
    replace: bool = False,
) -> Verification:
    """Measure every network of the front on a device of this machine, at one precision for all.

    target: which describes the device; found by itself for known processors. Measurements are kept in the study's
    database. replace: drop those of another version of the runtime first. Raises UsageError for a front of nothing, a
    precision the device lacks, changed images; NasError when the machine is under load.
    """
    if not study.front:
        raise study.nothing_feasible()
    data = same_problem(study, narrator).data
    subjects = {
        trial.number: architecture_subject(trial.architecture, data.num_classes, data.in_chans) for trial in study.front
    }
    with closing(Store(study.root, study.url, create=True)) as store:
        on = open_device(device, study.root / "measure" / "graphs", threads)
        described = find_target(target or on.default_target())
        name = target_name(target or described.name)
        measured = MeasurementStore(store)
        software = (on.runtime, on.runtime_version)
        refuse_other_threads(measured, name, threads, software if replace else None)
        if dropped := refuse_other_software(measured, name, *software, replace=replace):
            narrator.warn(f"{dropped} measurements of {name} by another version are dropped")
        predict = _Predictor(described, name, CalibrationStore(store))  # before the time it takes to measure
        jobs = [Job(subject, precision) for subject in subjects.values()]
        with sole_user(store.folder / "measure", "the measuring of this folder"):
            outcome = measure_jobs(jobs, on, name, measured, narrator)
        known = {
            (record.subject, record.precision): record
            for record in taken_at_peace(measured.of(name))
            if record.runtime_version == on.runtime_version and record.batch == 1
        }
    found = {number: known.get((subject.name, precision)) for number, subject in subjects.items()}
    if not any(found.values()):
        raise NasError(
            f"no network of the front has a time: {next(iter(outcome.refused.values()), 'none was measured')}"
        )
    return _verification(study, name, precision, predict, found, outcome.refused)


def verify_board(study: Study, narrator: Narrator, target: str, precision: str = OWN) -> Verification:
    """The front beside what was measured of it on a board, and imported (`nas measure import`).

    precision: that of the measurements; OWN: at the bits that the search scored. Raises UsageError for a front of
    nothing, or one of which the database has no time.
    """
    if not study.front:
        raise study.nothing_feasible()
    described, name = find_target(target), target_name(target)
    with closing(Store(study.root, study.url)) as store:
        records = [one for one in MeasurementStore(store).of(name) if one.kind == "network" and one.batch == 1]
        predict = _Predictor(described, name, CalibrationStore(store))
    times = {key: one for one in records if one.precision == precision and (key := _architecture_key(one)) is not None}
    found = {trial.number: times.get(trial.architecture.key) for trial in study.front}
    if not any(found.values()):
        raise UsageError(
            f"no network of {study.name}'s front was measured on {name} in precision {precision}: `nas export --front "
            f"--out exported` writes them, `nas measure plan --target {target} --precision {OWN} --model exported/NAME "
            "--out to_time` the files to time, and `nas measure import` takes the times in"
        )
    missing = {f"trial {number}": "not measured" for number, record in found.items() if record is None}
    return _verification(study, name, precision, predict, found, missing)


def _architecture_key(record: Measurement) -> str | None:
    """Of a measured network of a space; None for any other, and for one whose folder is gone."""
    try:
        return own_architecture(record)[0].key
    except UsageError:
        return None


def _verification(
    study: Study,
    target: str,
    precision: str,
    predict: _Predictor,
    found: Mapping[int, Measurement | None],
    refused: dict[str, str],
) -> Verification:
    """found: number of a trial of the front -> its measurement."""
    rows = []
    for trial in study.front:
        if (record := found[trial.number]) is not None:
            seconds, learned = predict(record)
            # What a table says is often a median alone.
            measured_s = record.latency_s, record.low_s or record.latency_s, record.high_s or record.latency_s
            rows.append(Row(trial.number, trial.top1 or 0.0, *seconds, *measured_s, learned))
    rows.sort(key=lambda row: row.measured_s)
    ties = tuple((a.trial, b.trial) for a, b in pairwise(rows) if b.measured_low_s <= a.measured_high_s)
    return Verification(study.name, target, precision, predict.about, predict.calibrated, tuple(rows), ties, refused)


def verification_text(done: Verification) -> str:
    """The table and what it means, in lines for a person."""
    lines = [
        f"study {done.study} on {done.target}, {done.precision}, {len(done.rows)} networks of the front",
        f"predictions: {done.predictor}",
        f"{'trial':>6} {'top-1':>7} {'predicted':>24} {'measured (95 percent)':>32} {'ratio':>6}",
    ]
    for row in done.rows:
        predicted, measured = _text(row.predicted_s), _text(row.measured_s)
        if done.calibrated:
            predicted += f" ({_text(row.predicted_low_s)} to {_text(row.predicted_high_s)})"
        if row.measured_low_s < row.measured_high_s:  # a table may say a median alone
            measured += f" ({_text(row.measured_low_s)} to {_text(row.measured_high_s)})"
        ratio = row.measured_s / row.predicted_s
        mark = "*" if row.learned else ""
        lines.append(f"{row.trial:>6} {row.top1:>7.3f} {predicted:>24} {measured:>32} {ratio:>6.2f}{mark}")
    if any(row.learned for row in done.rows):
        lines.append("* the calibration has learned from this measurement: predicted by a fit without it")
    if np.isfinite(done.rank_agreement):
        lines.append(f"rank agreement of predicted and measured: Spearman {done.rank_agreement:.3f}")
    else:
        lines.append("rank agreement needs three networks or more of different latency")
    if done.coverage is not None:
        inside = sum(row.inside for row in done.rows)
        lines.append(f"90 percent intervals hold {inside} of {len(done.rows)} measurements")
    lines += [
        f"warning: the order of trials {first} and {second} is within the noise of measuring"
        for first, second in done.ties
    ]
    lines += [f"warning: no time for {name}: {reason}" for name, reason in done.refused.items()]
    return "\n".join(lines)


def _text(seconds: float) -> str:
    return format_quantity(seconds, SECONDS)


class _Predictor:
    """Latency of a measured network on one target: its newest calibration's, else the cost model's."""

    def __init__(self, target: Target, name: str, calibrations: CalibrationStore) -> None:
        """Raises UsageError when the stored calibration is of another version of the program."""
        self._target = target
        stored = calibrations.newest(name)
        try:
            self._model = stored.calibration.model(target) if stored is not None else None
        except ValueError as error:
            raise UsageError(str(error)) from error
        self._stored = stored
        self.calibrated = stored is not None
        self.about = uncalibrated(name)
        if stored is not None:
            self.about = f"calibration {stored.name}: {stored.calibration.about}"

    def __call__(self, record: Measurement) -> tuple[tuple[float, float, float], bool]:
        """((seconds, low end, high end) of the network that was measured, whether the calibration has learned from it).

        One that it has learned from is predicted by a fit without it, with an interval as wide as the whole one's.
        """
        parts = measured_parts(record, self._target)
        if self._model is None or self._stored is None:
            report = combine(parts, self._target)
            return (report.latency_s, report.latency_s, report.latency_s), False
        latency = self._model.latency(parts)
        without = self._stored.calibration.held_out_s(sample_name(record))
        scale = 1.0 if without is None else without / latency.seconds
        return (scale * latency.seconds, scale * latency.low_s, scale * latency.high_s), without is not None
