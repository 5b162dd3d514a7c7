"""`nas targets fit`: a target file from a user's measured networks, and how well they determine it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from hw_models import Target, load_target
from hw_models.fit import TargetFit, fit_target
from hw_models.measurements import Measurement, MeasurementError, read_measurements
from hw_models.target_file import TargetError, check_target_name
from hw_models.target_text import target_text
from nas.bits import PRECISIONS, put_precision
from nas.errors import UsageError
from nas.files import write_whole
from nas.subjects import check_subject, measured_workload


@dataclass(frozen=True)
class FittedFile:
    """A fitted target that was written. measurements: what it was fitted to."""

    path: Path
    like: Target
    measurements: tuple[Measurement, ...]
    fit: TargetFit
    warnings: tuple[str, ...]


def fit_target_file(measurements: str | Path, like: str, out: str | Path, force: bool = False) -> FittedFile:
    """Fit the uncertain values of the target `like` to a CSV of measured networks and write the result to `out`.

    Raises UsageError for a table, a model, a target or an output file that is not right, each in one line.
    """
    path, source = Path(out), Path(measurements)
    if path.suffix != ".toml":
        raise UsageError(f"{path} must end in .toml, so that --target takes it for a file")
    if path.exists() and not force:
        raise UsageError(f"{path} exists; name another file, or replace it with --force")
    try:
        check_target_name(path.stem, f"--out {path}")
        target = load_target(like)
        rows = read_measurements(source, None if _names_targets(source) else path.stem, check_subject)
    except (TargetError, MeasurementError) as error:
        raise UsageError(str(error)) from error
    _check(rows, target, source)
    workloads = [put_precision(measured_workload(row), row.precision) for row in rows]
    fit = fit_target(workloads, [row.latency_s for row in rows], target)
    warnings = _warnings(fit, len(rows))
    write_whole(path, target_text(_described(fit, target, source, rows, path.stem)))
    load_target(path)  # what was written can be read
    return FittedFile(path, target, tuple(rows), fit, tuple(warnings))


def _names_targets(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return "target" in [cell.strip() for cell in next(csv.reader(file), [])]
    except (OSError, UnicodeDecodeError, csv.Error):
        return False  # reading the table says what is wrong


def _check(rows: Sequence[Measurement], target: Target, source: Path) -> None:
    if len(named := dict.fromkeys(row.target for row in rows)) > 1:
        raise UsageError(f"{source} has measurements of several targets ({', '.join(named)}); keep those of one device")
    if blocks := [row.subject for row in rows if row.kind != "network"]:
        raise UsageError(
            f"{source} has {len(blocks)} times of single blocks, {blocks[0]} first, but a target is fitted to whole "
            "networks: take them out, or calibrate with them (`nas calibrate`)"
        )
    for row in rows:
        if row.precision not in PRECISIONS:
            raise UsageError(f"{source}: {row.subject} in {row.precision}: known are {', '.join(PRECISIONS)}")
        if row.precision not in target.matrix.rates:
            raise UsageError(
                f"{source}: {row.subject} is measured in {row.precision}, which {target.name} does not have "
                f"({', '.join(target.matrix.rates)}); name a target that has it with --like"
            )


def _warnings(fit: TargetFit, count: int) -> list[str]:
    warnings = []
    if count < 2 * len(fit.fitted):
        warnings.append(
            f"{count} measurements are few for {len(fit.fitted)} values: what they do not determine stays near the "
            f"prior, and the held-out error says little; {2 * len(fit.fitted)} different networks or more are better"
        )
    if len(fit.after) > 2 and (worst := float(np.abs(fit.after).max())) > 3 * max(fit.noise, 0.1):
        warnings.append(
            f"one network is {np.expm1(worst):.0%} off after fitting: check that it ran on the device at all"
        )
    return warnings


def _described(fit: TargetFit, like: Target, source: Path, rows: Sequence[Measurement], name: str) -> Target:
    """The fitted target with its own name, claim and sources."""
    count = f"fitted from {source.name}, {len(rows)} networks"
    sources = dict(like.sources)
    for fitted in fit.fitted:
        sources[fitted.parameter.key] = (
            f"{count}: {fitted.value / fitted.parameter.prior:.3g} times the value of {like.name}, log standard error "
            f"{fitted.log_error:.2f} ({fitted.verdict})"
        )
    claim = f"{count}: median error {_median(fit.before):.0%} before, {_median(fit.after):.0%} after"
    if np.isfinite(fit.held_out).all():
        claim += f", {_median(fit.held_out):.0%} for networks left out of the fit"
    return replace(
        fit.target, name=name, title=f"{name}, like {like.title}", accuracy=claim, sources=sources,
        description=f"{like.description}; {count}",
    )  # fmt: skip


def _median(log_ratios: Any) -> float:
    """Median relative error."""
    return float(np.median(np.abs(np.expm1(log_ratios))))


def _within(log_ratios: Any, share: float) -> float:
    return float((np.abs(np.expm1(log_ratios)) <= share).mean())


def fit_summary(file: FittedFile) -> dict[str, Any]:
    """The result as plain data: values with their errors and verdicts, errors of the networks, warnings."""
    fit = file.fit
    errors = {"before": fit.before, "after": fit.after, "held_out": fit.held_out}
    return {
        "file": str(file.path),
        "like": file.like.name,
        "measurements": len(file.measurements),
        "values": [
            {
                "key": fitted.parameter.key,
                "prior": fitted.parameter.prior,
                "value": fitted.value,
                "log_standard_error": fitted.log_error,
                "verdict": fitted.verdict,
            }
            for fitted in fit.fitted
        ],
        "errors": {
            name: {"median": _median(values), "within_10": _within(values, 0.1), "within_25": _within(values, 0.25)}
            if np.isfinite(values).all()
            else None
            for name, values in errors.items()
        },
        "networks": [
            {
                "model": row.subject,
                "precision": row.precision,
                "measured_s": row.latency_s,
                "before_s": row.latency_s * float(np.exp(before)),
                "after_s": row.latency_s * float(np.exp(after)),
                "held_out_s": row.latency_s * float(np.exp(held_out)) if np.isfinite(held_out) else None,
            }
            for row, before, after, held_out in zip(file.measurements, fit.before, fit.after, fit.held_out, strict=True)
        ],
        "noise": fit.noise,
        "warnings": list(file.warnings),
    }


def fit_text(file: FittedFile) -> str:
    """The result for people, as plain text."""
    from nas.cost_text import printed

    return printed(fit_table(file))


def fit_table(file: FittedFile) -> Group:
    """Values with their uncertainty and verdict, errors before and after, warnings."""
    values = Table(title=f"{file.path}: {len(file.measurements)} networks, like {file.like.name}", title_justify="left")
    for column in ("value", file.like.name, "fitted", "ratio", "uncertainty", "verdict"):
        values.add_column(column, justify="left" if column in ("value", "verdict") else "right")
    for item in file.fit.fitted:
        key, prior = item.parameter.key, item.parameter.prior
        ratio, error = f"x{item.value / prior:.3g}", f"x/ {np.exp(item.log_error):.2f}"
        values.add_row(key, f"{prior:.4g}", f"{item.value:.4g}", ratio, error, item.verdict)
    errors = Table(title="Error of the predicted latency", title_justify="left")
    for column in ("networks", "median", "within 10%", "within 25%"):
        errors.add_column(column, justify="left" if column == "networks" else "right")
    fit = file.fit
    for name, ratios in ((f"as {file.like.name}", fit.before), ("fitted", fit.after), ("left out", fit.held_out)):
        cells = [f"{_median(ratios):.1%}", f"{_within(ratios, 0.1):.0%}", f"{_within(ratios, 0.25):.0%}"]
        errors.add_row(name, *(cells if np.isfinite(ratios).all() else ["-"] * 3))
    return Group(values, errors, *(Text(f"note: {warning}", "yellow") for warning in file.warnings))
