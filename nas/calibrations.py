"""Calibrations in the database: numbered per target and batch, never changed, the newest counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from hw_models.calibration import Calibration
from hw_models.target_file import target_argument
from nas.errors import UsageError
from nas.store import Store, database_errors

_TABLES = sa.MetaData()
_CALIBRATIONS = sa.Table(
    "nas_calibrations",
    _TABLES,
    sa.Column("target", sa.String(200), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("made_at", sa.String(40), nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("report", sa.Text, nullable=False),
)


_BATCH = "@batch"
"""Between a target and the batch of its calibrations, where that is not 1."""


def _key(target: str, batch: int) -> str:
    """Under which a target's calibrations of one batch are numbered: those of one image by the target alone."""
    return target if batch == 1 else f"{target}{_BATCH}{batch}"


@dataclass(frozen=True)
class Stored:
    """A calibration with its place in the database, and what was known of it when it was made. name: how a study and a
    person refer to it, `npu_40tops#2`, or `h200@batch64#1` where it is of more than one image at once.
    """

    version: int
    made_at: str
    calibration: Calibration
    report: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{_key(self.calibration.target, self.calibration.batch)}#{self.version}"

    @property
    def misorders(self) -> bool:
        """Whether it orders held-out measurements worse than the cost model does: something is wrong with them."""
        own, plain = (self.report.get(key) for key in ("spearman", "uncalibrated_spearman"))
        return own is not None and plain is not None and own < plain


class CalibrationStore:
    """The calibrations of one database."""

    def __init__(self, store: Store) -> None:
        self.url, self._engine = store.url, store.engine
        with database_errors(self.url):
            _TABLES.create_all(self._engine)

    def put(self, calibration: Calibration, report: Mapping[str, Any]) -> Stored:
        """Committed when this returns. The same calibration again is the version that it was."""
        newest = self.newest(calibration.target, calibration.batch)
        if newest is not None and newest.calibration.identity == calibration.identity:
            return newest
        version, now = 1 + (newest.version if newest else 0), datetime.now().isoformat(timespec="seconds")
        stored = Stored(version, now, calibration, report)
        row = {
            "target": _key(calibration.target, calibration.batch),
            "version": stored.version,
            "made_at": stored.made_at,
            "record": json.dumps(calibration.to_dict()),
            "report": json.dumps(dict(report)),
        }
        with database_errors(self.url), self._engine.begin() as connection:
            connection.execute(sa.insert(_CALIBRATIONS).values(**row))
        return stored

    def newest(self, target: str, batch: int = 1) -> Stored | None:
        """Of a target at a batch, None when it was never calibrated so."""
        table, key = _CALIBRATIONS.c, _key(target, batch)
        return self._first(sa.select(_CALIBRATIONS).where(table.target == key).order_by(table.version.desc()))

    def batches(self, target: str) -> list[int]:
        """Those that a target is calibrated at, other than 1."""
        query = sa.select(_CALIBRATIONS.c.target).distinct()
        with database_errors(self.url), self._engine.connect() as connection:
            keys = list(connection.execute(query).scalars())
        parts = (key.rpartition(_BATCH) for key in keys)
        return sorted(int(batch) for name, mark, batch in parts if mark and name == target and batch.isdigit())

    def named(self, name: str) -> Stored:
        """By its name. Raises UsageError when there is none."""
        target, _, version = name.rpartition("#")
        table = _CALIBRATIONS.c
        number = int(version) if version.isdigit() else 0
        found = self._first(sa.select(_CALIBRATIONS).where(sa.and_(table.target == target, table.version == number)))
        if found is None:
            of_one_image = target.rpartition(_BATCH)[0] or target  # a search would refuse another batch
            raise UsageError(
                f"no calibration {name!r} in {self.url}; make one with `nas calibrate --target "
                f"{target_argument(of_one_image)}`"
            )
        return found

    def _first(self, query: sa.Select[tuple[object, ...]]) -> Stored | None:
        with database_errors(self.url), self._engine.connect() as connection:
            row = connection.execute(query.limit(1)).mappings().first()
        if row is None:
            return None
        calibration = Calibration.from_dict(json.loads(row["record"]))
        return Stored(row["version"], row["made_at"], calibration, json.loads(row["report"]))
