"""The table that `nas calibrate --suggest N --csv FILE` writes, read as what to time next."""

from __future__ import annotations

import csv
from pathlib import Path

from hw_models.measurements import PRECISIONS
from nas.errors import UsageError
from nas.subjects import Subject, described_part, part_key

_NEEDED = ("model", "kind", "input_size", "precision", "description")


def read_wanted(path: Path) -> list[tuple[Subject, str, int]]:
    """(block, precision, batch) of every line. Raises UsageError, with the line, for anything that names no block."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = [column for column in _NEEDED if column not in (reader.fieldnames or ())]
            if missing:
                raise UsageError(
                    f"{path} line 1: missing column {', '.join(missing)}; give a table that `nas calibrate --suggest N "
                    "--csv FILE` wrote"
                )
            found = [_wanted(row, f"{path} line {reader.line_num}") for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}; name a CSV file") from error
    if not found:
        raise UsageError(f"{path} names nothing to time: one line per block")
    return list(dict.fromkeys(found))


def _wanted(row: dict[str, str], place: str) -> tuple[Subject, str, int]:
    name, kind, size, precision, description = ((row[column] or "").strip() for column in _NEEDED)
    if kind != "block":
        raise UsageError(f"{place}: {name} is a {kind or 'thing of no kind'}, not a block; name networks with --model")
    if precision not in PRECISIONS:
        raise UsageError(f"{place}: unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    batch = (row.get("batch") or "1").strip()
    if not batch.isdecimal() or int(batch) < 1:
        raise UsageError(f"{place}: batch must be a positive whole number, but is {batch!r}")
    try:
        part = described_part(description)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error
    if part_key(description) != name or str(part.input_shape[-1]) != size:
        raise UsageError(f"{place}: {name} at {size} is not what its description says; keep the line as it was written")
    return Subject(name, kind, part.input_shape[-1], description), precision, int(batch)
