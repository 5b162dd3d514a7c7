"""Measured latencies of blocks and whole networks: the record, and the CSV in which it travels.

A table of a user's own needs no more than the columns `model`, `input_size`, `precision` and one latency column
that says its unit (`latency_s`, `latency_ms` or `latency_us`). What `measurements_csv` writes has all columns, and
`read_measurements` gives the same records back.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

PRECISIONS = ("fp32", "fp16", "bf16", "w8a8", "w8a16", "w4a8", "w4a16", "w16a16")
"""Number formats a measurement may name; "int8" is read as w8a8."""

OWN = "own"
"""Instead of a number format: the network runs at the bits that it was exported with, which may differ by layer."""

KINDS = ("network", "block")

LATENCY_UNITS = {"latency_s": 1.0, "latency_ms": 1e-3, "latency_us": 1e-6}
"""Latency column of a CSV -> seconds per unit."""

SHORTEST_S, LONGEST_S = 1e-9, 1e4
"""What a table may say: below a nanosecond, or beyond hours, its unit is wrong."""

AGREEMENT = 0.1
"""Two rows about the same thing agree when their latencies differ by at most this share of the larger."""

WIDEST = 0.2
"""A time whose 95 percent interval is wider than this share of it, either way, teaches more noise than it tells."""

PACKS_FOLDER = Path(__file__).parent / "packs"


class MeasurementError(ValueError):
    """A table of measurements that is not right; one line with file, line number, value and cure."""


def software_text(runtime: str, version: str) -> str:
    """Of what measured, in words."""
    return f"{runtime} {version}".strip() or "an unnamed runtime"


@dataclass(frozen=True, slots=True)
class Measurement:
    """How long one inference of a network, or of a block of one, takes on a device. SI units.

    target: the device, by the name of its target where it has one.
    subject: timm name, exported folder, or key of a drawn network (`arch:...`) or block (`block:...`).
    kind: "network" or "block".
    description: JSON that rebuilds what a subject's key alone does not; "" for timm models and folders. A block has
        {"part", "channels", "size", "arguments"}, a drawn network {"architecture", "num_classes", "in_chans"}.
    input_size: side of the square input image in pixels; of a block, of the map it reads.
    latency_s: median over repeats, of the whole batch. spread_s: interquartile range of the repeats; low_s, high_s:
        95 percent confidence interval of the median. 0 where a table does not say.
    conditions: JSON object: threads, clock, load, how it was measured.
    date: ISO day or time. commit: of the program that measured.
    Raises MeasurementError for impossible values.
    """

    target: str
    subject: str
    kind: str
    input_size: int
    precision: str
    latency_s: float
    batch: int = 1
    description: str = ""
    spread_s: float = 0.0
    low_s: float = 0.0
    high_s: float = 0.0
    repeats: int = 0
    runtime: str = ""
    runtime_version: str = ""
    conditions: str = ""
    date: str = ""
    commit: str = ""

    def __post_init__(self) -> None:
        if not self.subject or not self.target:
            raise MeasurementError("a measurement needs the name of a model and of a target")
        if self.kind not in KINDS:
            raise MeasurementError(f"kind must be 'network' or 'block', but is {self.kind!r}")
        if self.precision not in (*PRECISIONS, *([OWN] if self.kind == "network" else ())):
            raise MeasurementError(f"unknown precision {self.precision!r}; known: {', '.join(PRECISIONS)}")
        if not (math.isfinite(self.latency_s) and self.latency_s > 0):
            raise MeasurementError(f"a latency must be positive, but is {self.latency_s:g} s")
        if self.input_size < 1 or self.batch < 1 or self.repeats < 0:
            raise MeasurementError(
                f"input_size and batch must be positive, but are {self.input_size} and {self.batch} "
                f"(repeats {self.repeats})"
            )
        bounds = (self.spread_s, self.low_s, self.high_s)
        if not all(math.isfinite(value) and value >= 0 for value in bounds):
            raise MeasurementError(f"spread_s, low_s and high_s must not be negative, but are {bounds}")
        if not self.low_s <= self.latency_s <= (self.high_s or self.latency_s):
            raise MeasurementError(
                f"low_s <= latency_s <= high_s must hold, but got {self.low_s:g}, {self.latency_s:g}, {self.high_s:g}"
            )
        for name in ("description", "conditions"):
            _json_object(name, getattr(self, name))

    @property
    def is_sharp(self) -> bool:
        """Whether the 95 percent interval of its time is narrow enough to learn from; true where none is known."""
        return self.high_s - self.low_s <= 2 * WIDEST * self.latency_s

    @property
    def software(self) -> str:
        """Runtime and version in words."""
        return software_text(self.runtime, self.runtime_version)

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for measurements of the same thing on the same device with the same software."""
        return (*self.thing, self.runtime, self.runtime_version)

    @property
    def thing(self) -> tuple[Any, ...]:
        """What was measured and where, whatever the software."""
        return self.target, self.kind, self.subject, self.input_size, self.batch, self.precision

    def described(self) -> dict[str, Any]:
        """`description` as a dict, empty when there is none."""
        return _json_object("description", self.description)

    def condition(self) -> dict[str, Any]:
        """`conditions` as a dict, empty when there are none."""
        return _json_object("conditions", self.conditions)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """Inverse of `to_dict`. Raises MeasurementError for a missing or unknown field."""
        try:
            return cls(**data)
        except TypeError as error:
            raise MeasurementError(f"not a measurement: {error}") from error


COLUMNS = tuple("model" if field.name == "subject" else field.name for field in fields(Measurement))
"""Columns of a full CSV, in order."""

FILE = "file"
"""A further column a table may have: the file that was timed. It is not read."""

_NEEDED = ("model", "input_size", "precision")


def measurements_csv(measurements: Iterable[Measurement]) -> str:
    """The full table. Latencies are in seconds, every digit kept."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(row, field.name) for field in fields(Measurement)] for row in measurements)
    return stream.getvalue()


def read_measurements(
    path: str | Path,
    target: str | None = None,
    check: Callable[[Measurement], None] | None = None,
    empty: list[int] | None = None,
) -> list[Measurement]:
    """The measurements of a CSV file, in its order; repetitions that agree are kept once, the last one.

    target: the device they are of; a column `target` must then name the same, and may be absent.
    check: called with each record; a ValueError it raises (unknown model) is reported with the line.
    empty: where given, lines without a latency are left out, and their numbers added to it.
    Raises MeasurementError, one line with file, line number and cure, for anything that is not right.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise MeasurementError(f"cannot read {path}: it is not UTF-8 text; name a CSV file saved in UTF-8") from error
    except OSError as error:
        raise MeasurementError(f"cannot read {path}: {error.strerror}; name a CSV file") from error
    return parse_measurements(text, str(path), target, check, empty)


def parse_measurements(
    text: str,
    where: str,
    target: str | None = None,
    check: Callable[[Measurement], None] | None = None,
    empty: list[int] | None = None,
) -> list[Measurement]:
    """As `read_measurements`, of the text of a file. where: its name, for errors."""
    reader = csv.reader(io.StringIO(text), strict=True)
    rows: list[tuple[int, Measurement]] = []
    try:
        columns = [column.strip() for column in next(reader, [])]
        unit = _check_columns(columns, where, target)
        for cells in reader:
            place = f"{where} line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(columns):
                raise MeasurementError(f"{place}: {len(cells)} cells, but the first line has {len(columns)} columns")
            row = dict(zip(columns, (cell.strip() for cell in cells), strict=True))
            if empty is not None and not row[unit]:
                empty.append(reader.line_num)
                continue
            record = _record(row, unit, place, target)
            if check is not None:
                try:
                    check(record)
                except ValueError as error:
                    raise MeasurementError(f"{place}: {error}") from error
            rows.append((reader.line_num, record))
    except csv.Error as error:
        raise MeasurementError(f"{where} line {reader.line_num}: not CSV ({error}); quote cells with commas") from error
    if not rows:
        raise MeasurementError(f"{where} holds no measurements: fill in one line per model and precision")
    check_one_version([record for _, record in rows], where)
    return _without_repetitions(rows, where)


def check_one_version(measurements: Sequence[Measurement], where: str) -> None:
    """Raises MeasurementError when one target was measured with several versions of one runtime, or several
    runtimes: their times are not comparable.
    """
    seen: dict[str, tuple[str, str]] = {}
    for record in measurements:
        software = (record.runtime, record.runtime_version)
        known = seen.setdefault(record.target, software)
        if known != software:
            first, second = software_text(*known), software_text(*software)
            raise MeasurementError(
                f"{where}: measurements of {record.target} come from {first} and from {second}; "
                "keep one, or give the other a target name of its own"
            )


def _check_columns(columns: list[str], where: str, target: str | None) -> str:
    """The latency column. Raises MeasurementError for columns that are missing, unknown, doubled or contradictory."""
    units = [column for column in columns if column in LATENCY_UNITS]
    known = dict.fromkeys((*COLUMNS, *LATENCY_UNITS, FILE))
    if len(columns) == 1 and any(sign in columns[0] for sign in ";\t"):
        raise MeasurementError(f"{where} line 1: cells are separated by commas, not by semicolons or tabs")
    if not any(columns):
        raise MeasurementError(
            f"{where} line 1 is empty; a table needs {', '.join(_NEEDED)} and one of {', '.join(LATENCY_UNITS)}"
        )
    if missing := [column for column in _NEEDED if column not in columns]:
        raise MeasurementError(
            f"{where} line 1: missing column {', '.join(missing)}; a table needs {', '.join(_NEEDED)} and one of "
            f"{', '.join(LATENCY_UNITS)}"
        )
    if doubled := sorted({column for column in columns if columns.count(column) > 1}):
        raise MeasurementError(f"{where} line 1: column {doubled[0]} is there twice; keep one")
    if len(units) > 1:
        raise MeasurementError(f"{where} line 1: {' and '.join(units)} contradict each other; keep one unit")
    if not units:
        bare = next((column for column in columns if "latency" in column.lower() or "time" in column.lower()), None)
        hint = f"rename {bare!r} to the one that is its unit" if bare else "add one"
        raise MeasurementError(
            f"{where} line 1: no latency with a unit: a table needs one of {', '.join(LATENCY_UNITS)}; {hint}"
        )
    for column in columns:
        if column not in known:
            near = difflib.get_close_matches(column, sorted(known), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise MeasurementError(f"{where} line 1: unknown column {column!r}; {hint}")
    if target is None and "target" not in columns:
        raise MeasurementError(f"{where} line 1: no column target: say which device this is of, with --target")
    return units[0]


def _record(row: dict[str, str], unit: str, place: str, target: str | None) -> Measurement:
    named = row.get("target") or target or ""
    if target is not None and named != target:
        raise MeasurementError(f"{place}: the target is {named!r}, but --target says {target!r}; make them agree")
    precision = row["precision"].lower()
    values: dict[str, Any] = {
        "target": named,
        "subject": row["model"],
        "kind": row.get("kind") or "network",
        "precision": "w8a8" if precision == "int8" else precision,
        "latency_s": _number(row[unit], unit, place) * LATENCY_UNITS[unit],
        "input_size": _whole(row["input_size"], "input_size", place),
        "batch": _whole(row.get("batch") or "1", "batch", place),
        "repeats": _whole(row.get("repeats") or "0", "repeats", place),
    }
    if values["latency_s"] <= 0:
        raise MeasurementError(
            f"{place}: {unit} must be positive, but is {row[unit]}; leave the line out where nothing was measured"
        )
    if not SHORTEST_S <= values["latency_s"] <= LONGEST_S:
        raise MeasurementError(
            f"{place}: {unit} of {row[unit]} is {values['latency_s']:g} s, which no inference takes; is the unit right?"
        )
    values |= {name: _number(row.get(name) or "0", name, place) for name in ("spread_s", "low_s", "high_s")}
    texts = ("description", "runtime", "runtime_version", "conditions", "date", "commit")
    values |= {name: row.get(name, "") for name in texts}
    try:
        return Measurement(**values)
    except MeasurementError as error:
        raise MeasurementError(f"{place}: {error}") from error


def _number(text: str, column: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise MeasurementError(f"{place}: {column} must be a number, but is {text!r}; write it like 1.25")
    return value


def _whole(text: str, column: str, place: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise MeasurementError(f"{place}: {column} must be a whole number, but is {text!r}") from None


def _without_repetitions(rows: Sequence[tuple[int, Measurement]], where: str) -> list[Measurement]:
    """The last of each thing. Raises MeasurementError when any two disagree."""
    kept: dict[tuple[Any, ...], Measurement] = {}
    ends: dict[tuple[Any, ...], list[tuple[int, Measurement]]] = {}
    for line, record in rows:
        seen = sorted([*ends.get(record.identity, ()), (line, record)], key=lambda one: one[1].latency_s)
        ends[record.identity] = [seen[0], seen[-1]]
        before_line, before = seen[0] if seen[-1][0] == line else seen[-1]
        low, high = sorted((before.latency_s, record.latency_s))
        if high - low > AGREEMENT * high:
            raise MeasurementError(
                f"{where} lines {before_line} and {line} disagree about {record.subject} at {record.input_size} in "
                f"{record.precision}: {before.latency_s:.4g} s and {record.latency_s:.4g} s; keep the right one"
            )
        if before.description != record.description:
            raise MeasurementError(f"{where} lines {before_line} and {line} describe {record.subject} differently")
        kept[record.identity] = record
    return list(kept.values())


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except json.JSONDecodeError as error:
        raise MeasurementError(f"{name} must be JSON, but is {text[:40]!r} ({error.msg})") from error
    if not isinstance(value, dict):
        raise MeasurementError(f"{name} must be a JSON object, but is {text[:40]!r}")
    return value


def list_packs(*, held_out: bool = False) -> list[str]:
    """Names of the measurement packs that come with the package: those to calibrate with, or those `held_out` for
    tests of predictions, which no calibration sees.
    """
    return sorted(path.stem for path in _packs_folder(held_out).glob("*.csv"))


def load_pack(name: str) -> list[Measurement]:
    """The measurements of a pack, held out or not. Raises MeasurementError when there is none of that name."""
    for held_out in (False, True):
        if name in list_packs(held_out=held_out):
            return read_measurements(_packs_folder(held_out) / f"{name}.csv")
    known = [*list_packs(), *list_packs(held_out=True)]
    raise MeasurementError(f"no measurement pack {name!r}; known: {', '.join(known)}")


def _packs_folder(held_out: bool) -> Path:
    return PACKS_FOLDER / "held_out" if held_out else PACKS_FOLDER
