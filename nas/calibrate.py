"""`nas calibrate`: from measurements of a target to predictions that agree with them, and what is known of how well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw_models import Target, estimate_part
from hw_models.calibration import Calibration, measured_calibration, transferred_calibration
from hw_models.choice import Choice
from hw_models.estimate import streamed_share
from hw_models.factors import FactorPrior
from hw_models.families import COLUMNS, Units, network_units, part_units
from hw_models.measurements import AGREEMENT, Measurement
from hw_models.predictor import LEAST_OF_A_KIND, LEAST_SAMPLES, LEVEL, Predictor
from hw_models.samples import Samples
from hw_models.target import UNKNOWN_STACK
from hw_models.transfer import Transfer, published_factors, transfer
from nas.bits import costed_precision, put_precision
from nas.calibrations import CalibrationStore, Stored
from nas.correlation import spearman
from nas.errors import UsageError
from nas.gather import gather
from nas.measure.jobs import CHAIN, is_chained
from nas.measure.records import MeasurementStore
from nas.problem import find_target
from nas.progress import Narrator
from nas.store import Store
from nas.subjects import measured_parts, measured_workload

Array = NDArray[np.float64]


STRANGE = 20.0
"""Times this much longer or shorter than the cost model has them are hardly the device's: a wrong unit, most often."""

WORSE = 1.5
"""So many times the error of the version before, and it is said."""


@dataclass(frozen=True)
class Outcome:
    """What a calibration came to. stored: None when there was nothing to learn from, and why is in `report`."""

    stored: Stored | None
    report: dict[str, Any]


def run_calibration(target_name: str, folder: Path, url: str | None, narrator: Narrator, *, batch: int = 1) -> Outcome:
    """Calibrate a target with all its measurements of one batch, in the database and in packs, as the newest version.

    With fewer measurements than are needed, family factors of other devices of its kind take their place, and where
    there are none the target stays uncalibrated; either is said. Raises UsageError for an unknown target and for
    measurements that contradict each other.
    """
    if batch < 1:
        raise UsageError(f"--batch must be at least 1, but is {batch}")
    target = find_target(target_name)
    known = transfer(target, published_factors())
    if known is not None and target.stack == UNKNOWN_STACK:
        narrator.say(f"{target.name} names no stack: it is taken for an {target.kind} of no known vendor's")
    if known is not None and batch not in known.batches:
        narrator.warn(
            f"what other devices tell of {target.name} was measured at batch {', '.join(map(str, known.batches))}, not "
            f"at {batch}"
        )
    with closing(Store(folder, url, create=True)) as store:
        records = gather(target.name, MeasurementStore(store), narrator, batch)
        calibrations = CalibrationStore(store)
        if len(records) < LEAST_SAMPLES:
            return _too_few(target, records, known, calibrations, narrator, batch)
        with narrator.bar("reading measurements") as update:
            things = []
            for number, record in enumerate(records):
                update(number, len(records), record.subject)
                things.append(record_units(record, target))
        samples = Samples.of(things, [record.latency_s for record in records])
        _warn_of_a_unit(samples, target.name, narrator)
        prior = known.prior if known is not None else FactorPrior.of_cost_model()
        narrator.say(f"fitting {len(records)} measurements of {target.name}")
        names = [sample_name(record) for record in records]
        calibration, predictor = measured_calibration(target, _about(records), samples, prior, batch, names)
        report = scores(records, samples, predictor, prior) | _before(
            calibrations.newest(target.name, batch), calibration
        )
        return Outcome(calibrations.put(calibration, report), report)


def _warn_of_a_unit(samples: Samples, target: str, narrator: Narrator) -> None:
    ratio = float(np.median(samples.measured_s / samples.prior_s))
    if not 1 / STRANGE < ratio < STRANGE:
        off = f"{ratio:,.0f} times as long as" if ratio > 1 else f"{1 / ratio:,.0f} times shorter than"
        narrator.warn(
            f"half of the times of {target} are more than {off} predicted: is their unit right, and the target's file?"
        )


def _before(newest: Stored | None, calibration: Calibration) -> dict[str, Any]:
    """What of the report is about the version before, where that was another one of measurements."""
    if newest is None or newest.calibration.identity == calibration.identity or "spearman" not in newest.report:
        return {}
    return {"before": newest.name, "mean_absolute_log_error_before": newest.report["mean_absolute_log_error"]}


def sample_name(record: Measurement) -> str:
    """How a calibration knows what it has learned from."""
    return f"{record.subject} {record.input_size} {record.precision}"


def _too_few(
    target: Target,
    records: Sequence[Measurement],
    known: Transfer | None,
    calibrations: CalibrationStore,
    narrator: Narrator,
    batch: int,
) -> Outcome:
    count = len(records)
    at = f" at batch {batch}" if batch != 1 else ""
    have = (
        f"{target.name} has {count} measurement{'s' * (count != 1)}{at}, a calibration needs at least {LEAST_SAMPLES}"
    )
    report: dict[str, Any] = {"target": target.name, "samples": count, "needed": LEAST_SAMPLES}
    if known is None:
        narrator.warn(f"{have}, and no other {target.name}-like device is known: its latency stays the cost model's")
        return Outcome(None, report | {"about": f"{have}: uncalibrated, as the cost model predicts"})
    unused = "they are not used; " if count else ""
    narrator.warn(f"{have}: {unused}family factors of other devices scale the cost model instead")
    calibration: Calibration = transferred_calibration(target.name, known, batch)
    stored = calibrations.put(calibration, report)
    return Outcome(stored, report | {"about": calibration.about, "interval_factor": float(np.exp(known.log_spread))})


def record_units(record: Measurement, target: Target) -> Units:
    """What was measured, as pieces of predicted time. A block was timed without a network's start, and, if it can be
    chained, with the weights of the chain beside its own.
    """
    if record.kind == "network":
        return network_units(measured_parts(record, target), target)
    workload = put_precision(measured_workload(record), costed_precision(record.precision))
    part = estimate_part(workload, target, (False, False))
    copies = CHAIN if is_chained(record.described()) else 1
    return part_units(part, streamed_share(copies * part.weight_bytes, target))


def _about(records: Sequence[Measurement]) -> str:
    networks = sum(record.kind == "network" for record in records)
    at = f" at batch {records[0].batch}" if records[0].batch != 1 else ""
    return f"{len(records) - networks} blocks and {networks} networks measured{at} with {records[0].software}"


def scores(
    records: Sequence[Measurement], samples: Samples, predictor: Predictor, prior: FactorPrior
) -> dict[str, Any]:
    """How well predictions agree with measurements that they were made without."""
    errors = predictor.log_errors
    within = np.abs(predictor.held_out_s / samples.measured_s - 1) <= AGREEMENT
    (low, high), inside = predictor.interval(samples), held(predictor)
    report: dict[str, Any] = {
        "target": records[0].target,
        "samples": len(records),
        "about": _about(records),
        "model": str(predictor.choice),
        "model_in_words": in_words(predictor.choice, prior),
        "spearman": spearman(predictor.held_out_s, samples.measured_s),
        "within_10_percent": float(within.mean()),
        "mean_absolute_log_error": float(np.abs(errors).mean()),
        "interval_coverage": float(inside.mean()),
        "interval_factor": float(np.median(np.sqrt(high / low))),
        "uncalibrated_spearman": spearman(samples.prior_s, samples.measured_s),
        "uncalibrated_within_10_percent": float((np.abs(samples.prior_s / samples.measured_s - 1) <= AGREEMENT).mean()),
    }
    for precision in dict.fromkeys(record.precision for record in records):
        own = np.array([record.precision == precision for record in records])
        report[f"within_10_percent_{precision}"] = float(within[own].mean())
    networks = predictor.is_network
    report["networks"] = int(networks.sum())
    if networks.any() and not networks.all():
        report |= {
            "within_10_percent_networks": float(within[networks].mean()),
            "interval_coverage_networks": float(inside[networks].mean()),
            "interval_factor_networks": float(np.median(np.sqrt(high / low)[networks])),
        }
    report = {key: None if value != value else value for key, value in report.items()}  # JSON has no NaN
    order = np.argsort(-np.abs(errors))[:5]
    report["worst"] = [
        _named(records[index]) | {"measured_over_predicted": float(np.exp(errors[index]))} for index in order
    ]
    report["worst_have_in_common"] = in_common(samples, errors)
    return report


BASES = {
    "plain": "the cost model at this device's speed",
    "scale": "what other devices of its kind suggest, at this device's speed",
    "factors": "one factor per family of kernels",
    "mixture": "a mixture of the families' times",
    "powers": "other devices' latencies",
}
RESIDUALS = {
    "ridge": "with a correction that is linear in a kernel's sizes",
    "gp": "with a correction learned from similar kernels",
    "boosting": "with a correction by decision trees over a kernel's sizes",
}
"""Parts of a predictor -> in words."""


def in_words(choice: Choice, prior: FactorPrior) -> str:
    """The parts of a predictor with their weights, for a person."""
    bases = BASES if prior.mean.any() else BASES | {"scale": BASES["plain"]}
    parts = [
        f"{weight:.0%} {bases[recipe.base]}" + (f" {RESIDUALS[recipe.residual.name]}" if recipe.residual else "")
        for weight, recipe in zip(choice.weights, choice.recipes, strict=True)
    ]
    return " + ".join(parts)


def _named(record: Measurement) -> dict[str, Any]:
    name = record.subject
    if record.kind == "block":
        described = record.described()
        arguments = described["arguments"]
        mixer = arguments.get("mixer")
        name = f"{mixer}{arguments.get('kernel') or ''}" if mixer else described["part"]
    return {"subject": record.subject, "name": name, "input_size": record.input_size, "precision": record.precision}


def held(predictor: Predictor) -> NDArray[np.bool_]:
    """[samples] whether each lies within an interval made of the errors of other folds' samples."""
    errors, fold_of = np.abs(predictor.log_errors), predictor.fold_of
    inside = np.zeros(len(errors), dtype=bool)
    for networks in (False, True):
        like = predictor.like(networks)
        for fold in range(len(predictor.fold_blends)):
            own = (fold_of == fold) & (predictor.is_network == networks)
            others = np.sort(errors[like[fold_of[like] != fold]])
            rank = min(len(others), int(np.ceil(LEVEL * (len(others) + 1)))) - 1
            inside[own] = errors[own] <= others[rank]
    return inside


def in_common(samples: Samples, log_errors: Array) -> str:
    """Where the worst fifth spends more of its time than the rest, and which way it is off."""
    worst = np.abs(log_errors) >= np.quantile(np.abs(log_errors), 0.8)
    if worst.all():
        return "all are predicted equally well"
    share = samples.columns_s / samples.prior_s[:, None]
    excess = share[worst].mean(axis=0) - share[~worst].mean(axis=0)
    column = int(np.argmax(excess))
    side = "slower" if np.median(log_errors[worst]) > 0 else "faster"
    return (
        f"the worst fifth spends {share[worst, column].mean():.0%} of its predicted time in {COLUMNS[column]} "
        f"(the rest {share[~worst, column].mean():.0%}) and is mostly {side} than predicted"
    )


def _shown(correlation: float | None) -> str:
    return "-" if correlation is None else f"{correlation:.3f}"


def _of_networks(report: Mapping[str, Any]) -> list[str]:
    """What is said of networks where blocks were measured too: networks are what a search predicts."""
    count, lines = report["networks"], []
    if 0 < count < report["samples"]:
        lines.append(
            f"of the {count} networks alone: within 10 percent {report['within_10_percent_networks']:.0%}, intervals a "
            f"factor {report['interval_factor_networks']:.2f}, held {report['interval_coverage_networks']:.0%}"
        )
    if count < min(LEAST_OF_A_KIND, report["samples"]):
        lines.append(f"from {LEAST_OF_A_KIND} measured networks on, the intervals of networks are narrower")
    return lines


def calibration_text(outcome: Outcome, where: str = "", target: str = "") -> str:
    """The report in lines for a person. where: options that lead to the same database; target: as the user named it."""
    report, stored = outcome.report, outcome.stored
    if stored is None:
        return str(report["about"])
    lines = [f"calibration {stored.name}: {report['about']}"]
    if stored.calibration.kind == "measured":
        lines += [
            f"predicts by {report['model_in_words']}",
            f"held out: Spearman {_shown(report['spearman'])}, within 10 percent {report['within_10_percent']:.0%}, "
            f"mean error {report['mean_absolute_log_error']:.1%}",
            f"uncalibrated: Spearman {_shown(report['uncalibrated_spearman'])}, within 10 percent "
            f"{report['uncalibrated_within_10_percent']:.0%}",
            f"90 percent intervals: a factor {report['interval_factor']:.2f} either way, held "
            f"{report['interval_coverage']:.0%} of the held-out",
            *_of_networks(report),
            report["worst_have_in_common"],
        ]
        if stored.misorders:
            lines.append(
                "CAUTION: it orders the held-out measurements worse than the cost model does: look at the worst below "
                "for mistakes in the measurements, or add more"
            )
        if report["mean_absolute_log_error"] > WORSE * report.get("mean_absolute_log_error_before", np.inf):
            before = report["before"]
            lines.append(
                f"CAUTION: {before} had a mean error of {report['mean_absolute_log_error_before']:.1%}: look at the "
                f"worst below, take out what is wrong with `nas measure drop`, or go on with --calibration {before}"
            )
        for row in report["worst"]:
            ratio = row["measured_over_predicted"]
            model = row["name"] if row["name"] == row["subject"] else f"{row['name']} ({row['subject']})"
            lines.append(f"  {model} at {row['input_size']} in {row['precision']}: {ratio:.2f} x predicted")
    if stored.calibration.batch == 1:
        lines.append(f"`nas search --target {target or report['target']}{where}` uses it from now on")
    else:
        lines.append(f"of {stored.calibration.batch} images: a search, whose latency is of one, does not use it")
    return "\n".join(lines)
