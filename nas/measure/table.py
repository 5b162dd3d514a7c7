"""Measurements from and to a CSV: those of another device come in, those in the database go out."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from contextlib import closing
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
from hw_models.target_file import TargetError, check_target_name
from nas.errors import UsageError
from nas.measure.ask import target_name
from nas.measure.jobs import CHAIN, CHAINED, LED
from nas.measure.methods import check_one_method, methods_of, refuse_other_methods
from nas.measure.records import MeasurementStore, refuse_other_software
from nas.objectives import suggestion
from nas.store import Store
from nas.subjects import check_subject, part_key

_COPIES = re.compile(r"(block:[0-9a-f]+)(?: x(\d+)( led)?)?")
"""Name of a block, of which copies were timed one behind the other, behind a pointwise convolution or not."""


@dataclass(frozen=True)
class _Copies:
    """What the name of a timed block says."""

    block: str
    copies: int
    led: bool


def copies_name(block: str, copies: int) -> str:
    """The name under which a plan's table has some copies of a block behind a pointwise convolution."""
    return f"{block} x{copies} led"


@dataclass(frozen=True)
class Imported:
    """What a table brought. empty: its lines without a latency. replaced: rows of the same things before. dropped: rows
    of other software or methods.
    """

    target: str
    records: tuple[Measurement, ...]
    empty: tuple[int, ...]
    replaced: int
    dropped: int = 0


def import_measurements(
    path: Path, target: str, folder: Path, url: str | None, *, replace_other: bool = False
) -> Imported:
    """Take the measurements of a CSV into the database, all or none.

    target: the device they are of: a built-in one, or one of the user's own, by name or by its TOML file.
    replace_other: drop what the database has of the target from another runtime, version or method.
    Raises UsageError, one line with the line number and the cure, for anything wrong with the table, for models that
    are not known, and for other software or methods than the target's earlier measurements.
    """
    name = target_name(target)
    empty: list[int] = []
    try:
        check_target_name(name, f"--target {target}")
        records = read_measurements(path, name, check_measured, empty)
        records = unchained(records, str(path))
        check_one_version(records, str(path))
        check_one_method(records, str(path))
    except (TargetError, MeasurementError) as error:
        raise UsageError(str(error)) from error
    today = datetime.date.today().isoformat()
    records = [_with_origin(record, path, today) for record in records]
    first = records[0]
    with closing(Store(folder, url, create=True)) as opened:
        store = MeasurementStore(opened)
        dropped = refuse_other_software(store, name, first.runtime, first.runtime_version, replace=replace_other)
        dropped += refuse_other_methods(store, name, methods_of(records), replace=replace_other)
        known = {record.identity for record in store.of(name)}
        store.put(records)
    replaced = sum(record.identity in known for record in records)
    return Imported(name, tuple(records), tuple(empty), replaced, dropped)


def export_measurements(folder: Path, url: str | None, target: str | None = None) -> str:
    """The CSV of all measurements, or of one target. Raises UsageError when there are none."""
    name = target_name(target) if target else None
    with closing(Store(folder, url, create=True)) as opened:
        store = MeasurementStore(opened)
        records = store.of(name)
        if not records:
            known = store.targets()
            hint = suggestion(name, known) if name and known else "run `nas measure` or `nas measure import` first"
            raise UsageError(f"no measurements{f' of target {name!r}' if name else ''} in {store.url}; {hint}")
    return measurements_csv(records)


def drop_measurements(
    target: str, models: Sequence[str], folder: Path, url: str | None, *, every: bool = False
) -> list[Measurement]:
    """Remove the measurements of these models of a target from the database, or `every` one; those that were removed.

    Raises UsageError when it has none of a model, and unless either models or `every` is given.
    """
    if bool(models) == every:
        raise UsageError("say which measurements to drop: --model NAME, as in the table, or --all")
    name = target_name(target)
    with closing(Store(folder, url)) as opened:
        store = MeasurementStore(opened)
        own = store.of(name)
        known = list(dict.fromkeys(record.subject for record in own))
        if missing := [model for model in models if model not in known]:
            hint = suggestion(missing[0], known) if known else "it has none"
            raise UsageError(f"{store.url} has no measurement of {missing[0]} on {name}; {hint}")
        dropped = [record for record in own if every or record.subject in models]
        store.drop(dropped)
    return dropped


def check_measured(record: Measurement) -> None:
    """As `check_subject`; a block must also be the one that its name says. Raises UsageError."""
    check_subject(record)
    if record.kind != "block":
        return
    named = _named(record)
    if named.block != part_key(record.description):
        raise UsageError(
            f"model {record.subject} is another block than its description says; keep both columns as they were written"
        )
    if named.copies not in (1, CHAIN):
        raise UsageError(
            f"{record.subject} is {named.copies} copies of a block, but its time is told from 1 and {CHAIN}; keep the "
            "column model as `nas measure plan` wrote it"
        )


def unchained(records: Sequence[Measurement], where: str) -> list[Measurement]:
    """Blocks timed once and as a chain become one record each, half their difference; others stay as they are.

    Raises MeasurementError for one of the two without the other, and for a chain that is not the slower.
    """
    blocks = {record: _named(record) for record in records if record.kind == "block"}
    pairs: dict[tuple[Any, ...], dict[int, Measurement]] = {}
    for record, named in blocks.items():
        pairs.setdefault(_of(record, named), {})[named.copies] = record
    bare_chains = any(named.copies == CHAIN and not named.led for named in blocks.values())
    out = []
    for record in records:
        if record not in blocks:
            out.append(record)
            continue
        named = blocks[record]
        pair = pairs[_of(record, named)]
        if not (bare_chains or named.led):
            out.append(record)  # a time that was told from the rest in another way
        elif len(pair) == 1:
            missing = f"chain of {CHAIN}" if named.copies == 1 else "single block"
            raise MeasurementError(
                f"{where}: {record.subject} in {record.precision} has a time, but the {missing} has none; fill in "
                "both lines or neither"
            )
        elif named.copies == 1:
            out.append(_difference(record, pair[CHAIN], named, where))
    return out


def _named(record: Measurement) -> _Copies:
    match = _COPIES.fullmatch(record.subject)
    if match is None:
        return _Copies(record.subject, 1, led=False)
    return _Copies(match[1], int(match[2] or 1), led=match[3] is not None)


def _of(record: Measurement, named: _Copies) -> tuple[Any, ...]:
    return (*replace(record, subject=named.block).thing, named.led)


def _difference(single: Measurement, chain: Measurement, named: _Copies, where: str) -> Measurement:
    if chain.latency_s <= single.latency_s:
        raise MeasurementError(
            f"{where}: the chain of {CHAIN} of {named.block} in {chain.precision} takes {chain.latency_s:.4g} s, no "
            f"longer than the single block ({single.latency_s:.4g} s); were the two lines exchanged?"
        )
    conditions = single.condition() | {"method": LED if named.led else CHAINED}
    return replace(
        single,
        subject=named.block,
        latency_s=(chain.latency_s - single.latency_s) / (CHAIN - 1),
        spread_s=0.0,
        low_s=0.0,
        high_s=0.0,
        conditions=json.dumps(conditions, sort_keys=True),
    )


def _with_origin(record: Measurement, path: Path, today: str) -> Measurement:
    conditions = {"table": path.name} | record.condition()
    return replace(record, conditions=json.dumps(conditions, sort_keys=True), date=record.date or today)
