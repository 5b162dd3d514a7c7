"""Which measurements a calibration would gain most from after those that it has, by the design of `nas.measure`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from hw_models.measurements import PRECISIONS
from nas.calibrate import record_units
from nas.errors import UsageError
from nas.gather import gather
from nas.measure.ask import DEVICES
from nas.measure.cuda import KNOWN_GPUS
from nas.measure.design import IN_CHANS, NUM_CLASSES, Points, clock_s, goal_vectors, most_telling, part_pool
from nas.measure.device import KNOWN_CPUS
from nas.measure.plan import COLUMNS as PLAN_COLUMNS
from nas.measure.plan import is_chainable
from nas.measure.records import MeasurementStore
from nas.problem import find_target
from nas.progress import Narrator
from nas.store import Store
from nas.subjects import Subject, part_subject
from search_spaces import load_space

POOL = 300
"""Distinct blocks of the space among which is chosen."""


def suggest_measurements(
    target_name: str,
    count: int,
    folder: Path,
    url: str | None,
    *,
    space: str = "metaformer",
    preset: str = "mobile",
    precisions: Sequence[str] = ("w8a8",),
    batch: int = 1,
    seed: int = 0,
    narrator: Narrator | None = None,
) -> list[dict[str, Any]]:
    """The `count` blocks worth most to a calibration at a batch, best first: columns of the table that `nas measure
    import` takes, and `uncertainty`, the standard deviation of the log latency before each is measured.

    What is known already is what a calibration would learn from (`nas.gather.gather`). Raises UsageError for an
    unknown target, space or precision.
    """
    if count < 1 or batch < 1:
        raise UsageError(f"--suggest and --batch must be at least 1, but are {count} and {batch}")
    target = find_target(target_name)
    try:
        made = load_space(space, preset=preset)
    except ValueError as error:
        raise UsageError(str(error)) from error
    with closing(Store(folder, url, create=True)) as store:
        known = gather(target.name, MeasurementStore(store), narrator or Narrator(quiet=True), batch)
    if not precisions:
        raise UsageError("name at least one precision")
    if unknown := [precision for precision in precisions if precision not in PRECISIONS]:
        raise UsageError(f"unknown precision {unknown[0]!r}; known: {', '.join(PRECISIONS)}")
    subjects = [part_subject(part) for part in part_pool(made, POOL, seed, NUM_CLASSES, IN_CHANS)]
    subjects = [subject for subject in subjects if is_chainable(subject)]  # others a board cannot time by themselves
    candidates = [(subject, precision) for subject in subjects for precision in precisions]
    have = {(record.subject, record.precision) for record in known}
    candidates = [(subject, precision) for subject, precision in candidates if (subject.name, precision) not in have]
    asked = [subject.record(target.name, precision, 1.0, batch=batch) for subject, precision in candidates]
    points, seen = (
        Points.of([record_units(one, target) for one in records], clock_s(target)) for records in (asked, known)
    )
    goals = [goal_vectors(made, target, own, seed, NUM_CLASSES, IN_CHANS, batch) for own in precisions]
    chosen = most_telling([points], [np.concatenate(goals)], count, [seen])
    place = f"{made.name}/{made.preset}"
    return [_row(*candidates[index], batch, sigma) | {"space": place} for index, sigma in chosen]


def _row(subject: Subject, precision: str, batch: int, sigma: float) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(PLAN_COLUMNS, "")
    row |= {"model": subject.name, "kind": subject.kind, "input_size": subject.input_size, "batch": batch}
    return row | {"precision": precision, "description": subject.description, "uncertainty": round(sigma, 4)}


def suggestion_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The table to fill in: `nas measure import` takes it back."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*PLAN_COLUMNS], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def suggestion_text(rows: Sequence[dict[str, Any]], target: str, table: Path | None = None, where: str = "") -> str:
    """One line per block, then how to time them. target: as the user named it; table: where `suggestion_csv` is
    written; where: options that lead to the same database.
    """
    lines = []
    for row in rows:
        subject = Subject(row["model"], row["kind"], row["input_size"], row["description"])
        described = subject.record("any", row["precision"], 1.0).described()
        arguments = described.get("arguments", {})
        what = f"{arguments.get('mixer', described['part'])}{arguments.get('kernel') or ''}"
        lines.append(
            f"{row['model']}  {what:<14} {described['channels']} channels at {row['input_size']} in {row['precision']}"
            f"  (unsure by {row['uncertainty']:.0%} at least)"
        )
    if rows:
        lines.insert(0, f"blocks of {rows[0]['space']}, the most telling first (others: --space, --preset)")
    return "\n".join([*lines, *_how_to_time(target, rows[0]["batch"] if rows else 1, table, where)])


def _how_to_time(target: str, batch: int, table: Path | None, where: str) -> list[str]:
    """The commands that time a table's blocks: here, where the target is of a kind that this program can run on, from
    files on a board, or either. Raises UsageError for an unknown target.
    """
    described = find_target(target)
    device = DEVICES.get(described.kind)
    is_known = described.name in (*KNOWN_CPUS.values(), *KNOWN_GPUS.values())
    asked = f"--from {table} --target {target}"
    ways = []
    if batch == 1 and not is_known:
        ways.append(f"nas measure plan {asked} --out to_time    ONNX files to time elsewhere, and the table to fill in")
    if device is not None:
        ways.append(f"nas measure --device {device} {asked}{where}    on the machine with that {described.kind}")
    if not ways:
        return [
            f"Next: leave out --batch {batch}: {target} is timed from the files of `nas measure plan`, of one image"
        ]
    if table is None:
        return ["Next: the same with --csv next.csv, which the commands that time them read"]
    return [f"{'Next:' if number == 0 else '  or:'} {way}" for number, way in enumerate(ways)]
