"""Measurements in the database: one row each, committed when it is written, with everything that is known of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import sqlalchemy as sa

from hw_models.measurements import Measurement, software_text
from nas.errors import UsageError
from nas.store import Store, database_errors

_KEY = ("target", "kind", "subject", "input_size", "batch", "precision", "runtime", "runtime_version")
_TYPES = {"int": sa.Integer, "float": sa.Float, "str": sa.Text}
_TABLES = sa.MetaData()
_MEASUREMENTS = sa.Table(
    "nas_measurements",
    _TABLES,
    *(
        sa.Column(field.name, _TYPES[str(field.type)], primary_key=field.name in _KEY, autoincrement=False)
        for field in fields(Measurement)
    ),
)


class MeasurementStore:
    """The measurements of one database."""

    def __init__(self, store: Store) -> None:
        self.url, self._engine = store.url, store.engine
        with database_errors(self.url):
            _TABLES.create_all(self._engine)

    def put(self, records: Iterable[Measurement]) -> None:
        """Committed when this returns, all or none; replaces earlier rows of the same identity."""
        with database_errors(self.url), self._engine.begin() as connection:
            for record in records:
                row = record.to_dict()
                same = sa.and_(*(_MEASUREMENTS.c[name] == row[name] for name in _KEY))
                connection.execute(sa.delete(_MEASUREMENTS).where(same))
                connection.execute(sa.insert(_MEASUREMENTS).values(**row))

    def of(self, target: str | None = None) -> list[Measurement]:
        """Of one target or of all, by target, runtime, kind, name, size, batch and precision."""
        query = sa.select(_MEASUREMENTS).order_by(*(_MEASUREMENTS.c[name] for name in _ORDER))
        if target is not None:
            query = query.where(_MEASUREMENTS.c.target == target)
        with database_errors(self.url), self._engine.connect() as connection:
            return [Measurement.from_dict(dict(row)) for row in connection.execute(query).mappings()]

    def targets(self) -> list[str]:
        """Names of all devices with measurements."""
        query = sa.select(_MEASUREMENTS.c.target).distinct().order_by(_MEASUREMENTS.c.target)
        with database_errors(self.url), self._engine.connect() as connection:
            return list(connection.execute(query).scalars())

    def drop(self, records: Iterable[Measurement]) -> None:
        """Remove the rows of these identities."""
        with database_errors(self.url), self._engine.begin() as connection:
            for record in records:
                same = sa.and_(*(_MEASUREMENTS.c[name] == getattr(record, name) for name in _KEY))
                connection.execute(sa.delete(_MEASUREMENTS).where(same))

    def drop_other_software(self, target: str, runtime: str, runtime_version: str) -> int:
        """Remove the rows of a target that another runtime or version made. Returns how many."""
        table = _MEASUREMENTS.c
        other = sa.or_(table.runtime != runtime, table.runtime_version != runtime_version)
        with database_errors(self.url), self._engine.begin() as connection:
            done: Any = connection.execute(sa.delete(_MEASUREMENTS).where(sa.and_(table.target == target, other)))
            return int(done.rowcount)


_ORDER = ("target", "runtime", "runtime_version", "kind", "subject", "input_size", "batch", "precision")


def refuse_other_software(
    store: MeasurementStore, target: str, runtime: str, runtime_version: str, *, replace: bool
) -> int:
    """One target has the times of one version of one runtime. Raises UsageError for another, unless it is to be
    replaced; returns how many rows were dropped for that.
    """
    if replace:
        return store.drop_other_software(target, runtime, runtime_version)
    for record in store.of(target):
        if (record.runtime, record.runtime_version) != (runtime, runtime_version):
            known, new = record.software, software_text(runtime, runtime_version)
            raise UsageError(
                f"{target} has measurements from {known}, these are from {new}: times of different software do not "
                "mix; name another --target, or drop the old ones with --replace"
            )
    return 0
