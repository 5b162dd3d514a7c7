"""Measurements from and to a CSV: those of another device come in, those in the database go out."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hw_models.measurements import (
    Measurement,
    MeasurementError,
    check_one_version,
    measurements_csv,
    read_measurements,
)
from nas.errors import UsageError
from nas.measure.ask import target_name
from nas.measure.jobs import CHAIN
from nas.measure.records import MeasurementStore, refuse_other_software
from nas.objectives import suggestion
from nas.store import Store
from nas.subjects import check_subject, part_key

_CHAINED = re.compile(r"(block:[0-9a-f]+) x(\d+)")
"""Name of a block of which several copies were timed one behind the other."""


@dataclass(frozen=True)
class Imported:
    """What a table brought. empty: its lines without a latency. replaced: rows of the same things before."""

    target: str
    records: tuple[Measurement, ...]
    empty: tuple[int, ...]
    replaced: int


def import_measurements(
    path: Path, target: str, folder: Path, url: str | None, *, replace_other: bool = False
) -> Imported:
    """Take the measurements of a CSV into the database, all or none.

    target: the device they are of: a built-in one, or one of the user's own, by name or by its TOML file.
    replace_other: drop what the database has of the target from another runtime or version.
    Raises UsageError, one line with the line number and the cure, for anything wrong with the table, for models that
    are not known, and for other software than the target's earlier measurements.
    """
    name = target_name(target)
    empty: list[int] = []
    try:
        records = read_measurements(path, name, check_measured, empty)
        records = unchained(records, str(path))
        check_one_version(records, str(path))
    except MeasurementError as error:
        raise UsageError(str(error)) from error
    today = datetime.date.today().isoformat()
    records = [_with_origin(record, path, today) for record in records]
    store = MeasurementStore(Store(folder, url, create=True))
    first = records[0]
    refuse_other_software(store, name, first.runtime, first.runtime_version, replace=replace_other)
    known = {record.identity for record in store.of(name)}
    store.put(records)
    replaced = sum(record.identity in known for record in records)
    return Imported(name, tuple(records), tuple(empty), replaced)


def export_measurements(folder: Path, url: str | None, target: str | None = None) -> str:
    """The CSV of all measurements, or of one target. Raises UsageError when there are none."""
    store = MeasurementStore(Store(folder, url, create=True))
    name = target_name(target) if target else None
    records = store.of(name)
    if not records:
        known = store.targets()
        hint = suggestion(name, known) if name and known else "run `nas measure` or `nas measure import` first"
        raise UsageError(f"no measurements{f' of target {name!r}' if name else ''} in {store.url}; {hint}")
    return measurements_csv(records)


def check_measured(record: Measurement) -> None:
    """As `check_subject`; a block must also be the one that its name says. Raises UsageError."""
    check_subject(record)
    if record.kind == "block":
        chained = _CHAINED.fullmatch(record.subject)
        name = chained[1] if chained else record.subject
        if name != part_key(record.description):
            raise UsageError(f"the description of {record.subject} was changed; keep it as it was written")


def unchained(records: Sequence[Measurement], where: str) -> list[Measurement]:
    """Blocks timed alone and as a chain become one record each, half their difference; others stay as they are.

    Raises MeasurementError for a chain without its block alone, the reverse, and a chain that is not the slower.
    """
    chains = {_alone(record): record for record in records if _CHAINED.fullmatch(record.subject)}
    out = []
    for record in records:
        if _CHAINED.fullmatch(record.subject):
            continue
        chain = chains.pop(record.thing, None)
        if chain is None:
            if chains and record.kind == "block":
                raise MeasurementError(
                    f"{where}: {record.subject} in {record.precision} was timed alone, but not as a chain of {CHAIN}; "
                    "fill in both lines or neither"
                )
            out.append(record)
        elif chain.latency_s <= record.latency_s:
            raise MeasurementError(
                f"{where}: the chain of {CHAIN} of {record.subject} in {record.precision} takes {chain.latency_s:.4g} "
                f"s, no longer than the block alone ({record.latency_s:.4g} s); were the two lines exchanged?"
            )
        else:
            out.append(_difference(record, chain))
    for chain in chains.values():
        raise MeasurementError(
            f"{where}: {chain.subject} in {chain.precision} has a time, but the block alone has none; fill in both "
            "lines or neither"
        )
    return out


def _alone(chain: Measurement) -> tuple[Any, ...]:
    match = _CHAINED.fullmatch(chain.subject)
    assert match is not None
    return replace(chain, subject=match[1]).thing


def _difference(alone: Measurement, chain: Measurement) -> Measurement:
    conditions = alone.condition() | {"method": f"chain of {CHAIN} less one"}
    return replace(
        alone,
        latency_s=(chain.latency_s - alone.latency_s) / (CHAIN - 1),
        spread_s=0.0,
        low_s=0.0,
        high_s=0.0,
        conditions=json.dumps(conditions, sort_keys=True),
    )


def _with_origin(record: Measurement, path: Path, today: str) -> Measurement:
    conditions = {"table": path.name} | record.condition()
    return replace(record, conditions=json.dumps(conditions, sort_keys=True), date=record.date or today)
