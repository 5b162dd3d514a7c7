"""Calibrations in the database: numbered per target, never changed, the newest counts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from hw_models.calibration import Calibration
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


@dataclass(frozen=True)
class Stored:
    """A calibration with its place in the database. name: how a study and a person refer to it, `npu_40tops#2`."""

    version: int
    made_at: str
    calibration: Calibration

    @property
    def name(self) -> str:
        return f"{self.calibration.target}#{self.version}"


class CalibrationStore:
    """The calibrations of one database."""

    def __init__(self, store: Store) -> None:
        self.url, self._engine = store.url, store.engine
        with database_errors(self.url):
            _TABLES.create_all(self._engine)

    def put(self, calibration: Calibration, report: dict[str, object]) -> Stored:
        """Committed when this returns. The same calibration again is the version that it was."""
        newest = self.newest(calibration.target)
        if newest is not None and newest.calibration.identity == calibration.identity:
            return newest
        stored = Stored(
            1 + (newest.version if newest else 0), datetime.now().isoformat(timespec="seconds"), calibration
        )
        row = {
            "target": calibration.target,
            "version": stored.version,
            "made_at": stored.made_at,
            "record": json.dumps(calibration.to_dict()),
            "report": json.dumps(report),
        }
        with database_errors(self.url), self._engine.begin() as connection:
            connection.execute(sa.insert(_CALIBRATIONS).values(**row))
        return stored

    def newest(self, target: str) -> Stored | None:
        """Of a target, None when it was never calibrated."""
        table = _CALIBRATIONS.c
        return self._first(sa.select(_CALIBRATIONS).where(table.target == target).order_by(table.version.desc()))

    def named(self, name: str) -> Stored:
        """By its name. Raises UsageError when there is none."""
        target, _, version = name.rpartition("#")
        table = _CALIBRATIONS.c
        number = int(version) if version.isdigit() else 0
        found = self._first(sa.select(_CALIBRATIONS).where(sa.and_(table.target == target, table.version == number)))
        if found is None:
            raise UsageError(f"no calibration {name!r} in {self.url}; make one with `nas calibrate --target {target}`")
        return found

    def _first(self, query: sa.Select[tuple[object, ...]]) -> Stored | None:
        with database_errors(self.url), self._engine.connect() as connection:
            row = connection.execute(query.limit(1)).mappings().first()
        if row is None:
            return None
        return Stored(row["version"], row["made_at"], Calibration.from_dict(json.loads(row["record"])))
