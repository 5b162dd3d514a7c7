"""The record of studies: our own tables beside Optuna's, in one database. A committed row survives kill
-9.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError

from nas.errors import NasError, UsageError
from nas.files import found_path, kept_path
from nas.objectives import suggestion
from nas.spec import StudySpec, to_toml
from nas.trial import Trial

_TABLES = sa.MetaData()
_STUDIES = sa.Table(
    "nas_studies",
    _TABLES,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("identity", sa.String(16), nullable=False),
    sa.Column("config", sa.String(200), nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("supernet", sa.Text, nullable=True),
    sa.Column("touched_at", sa.String(40), nullable=False),
)
_TRIALS = sa.Table(
    "nas_trials",
    _TABLES,
    sa.Column("study", sa.String(200), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("record", sa.Text, nullable=False),
)
_VALIDATIONS = sa.Table(
    "nas_validations",
    _TABLES,
    sa.Column("study", sa.String(200), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("accuracy", sa.Text, nullable=False),
)
_FINALISTS = sa.Table(
    "nas_finalists",
    _TABLES,
    sa.Column("study", sa.String(200), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("record", sa.Text, nullable=False),
)
_TARGETS = sa.Table(
    "nas_targets",
    _TABLES,
    sa.Column("study", sa.String(200), primary_key=True),
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
)
_OPTUNA_TABLES = {"studies", "trials", "version_info"}


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A study as the database has it.

    config: the study file it came from. spec_toml: its settings, read when they are asked for, so that a study
    of another version bars none but itself. supernet: where the trained weights lie, None before training has ended.
    """

    name: str
    identity: str
    config: str
    spec_toml: str
    supernet: Path | None
    touched_at: str

    @property
    def spec(self) -> StudySpec:
        """Raises UsageError when this version of the program cannot read the settings."""
        try:
            return StudySpec.from_dict(tomllib.loads(self.spec_toml), where="its settings")
        except ValueError as error:
            raise UsageError(
                f"study {self.name} was made by another version of this program ({error}); name another with "
                "--study, or start a new one with `nas search`"
            ) from error


class Store:
    """All studies of one database, and the folder beside it that holds their files."""

    def __init__(self, folder: Path, url: str | None = None, *, create: bool = False) -> None:
        """url: any SQLAlchemy URL; by default the SQLite file nas.db in `folder`.

        create: make folder and tables when they are missing. Raises UsageError when there is nothing to open,
        or what is there belongs to another program; NasError when it cannot be written.
        """
        self.folder = folder.resolve()
        self.url = url or f"sqlite:///{self.folder / 'nas.db'}"
        if url is None and not create and not (self.folder / "nas.db").is_file():
            raise UsageError(f"no studies in {self.folder}: run `nas search` first, or name their folder with --dir")
        if create:
            _make_folder(self.folder)
        with database_errors(self.url):
            if not create and _is_missing_file(self.url):  # SQLite would make it
                raise UsageError(f"no database at {self.url}: run `nas search` first, or name another with --storage")
            self._engine = _engine(self.url)
            try:
                self._check_tables(create)
            except BaseException:
                self.close()
                raise

    def _check_tables(self, create: bool) -> None:
        tables = set(sa.inspect(self._engine).get_table_names())
        if tables and _STUDIES.name not in tables and not tables >= _OPTUNA_TABLES:
            raise UsageError(
                f"{self.url} is the database of another program (it has a table {min(tables)!r}, none of "
                "ours); name another with --storage, or another folder with --dir"
            )
        if create:
            _TABLES.create_all(self._engine)
        elif _STUDIES.name not in tables:
            raise UsageError(f"no studies in {self.url}: run `nas search` first, or name another with --storage")

    @property
    def engine(self) -> sa.Engine:
        """For the tables that other modules keep beside those of studies."""
        return self._engine

    def study_folder(self, name: str) -> Path:
        return self.folder / "studies" / name

    def studies(self) -> list[StudyRecord]:
        """Newest first: the one that was searched last."""
        with database_errors(self.url), self._engine.connect() as connection:
            rows = connection.execute(sa.select(_STUDIES).order_by(_STUDIES.c.touched_at.desc())).all()
        return [
            StudyRecord(
                row.name,
                row.identity,
                row.config,
                row.spec,
                found_path(row.supernet, self.folder) if row.supernet else None,
                row.touched_at,
            )
            for row in rows
        ]

    def study(self, name: str | None = None) -> StudyRecord:
        """The named study, or the newest. Raises UsageError when there is none."""
        studies = self.studies()
        if not studies:
            raise UsageError(f"{self.url} holds no study yet: run `nas search` first")
        if name is None:
            return studies[0]
        names = [study.name for study in studies]
        if name not in names:
            raise UsageError(f"no study {name!r} in {self.url}; {suggestion(name, names)}")
        return studies[names.index(name)]

    def put_study(
        self, name: str, identity: str, config: str, spec: StudySpec, targets: Mapping[str, str] | None = None
    ) -> None:
        """Enter or refresh a study (a new total of trials), and mark it as the newest. targets: name -> text of its
        file, for the day when that is edited or gone.
        """
        row = {"identity": identity, "config": config, "spec": to_toml(spec)}
        row["touched_at"] = datetime.now().isoformat()
        with database_errors(self.url), self._engine.begin() as connection:
            known = connection.execute(sa.update(_STUDIES).where(_STUDIES.c.name == name).values(**row)).rowcount
            if not known:
                connection.execute(sa.insert(_STUDIES).values(name=name, **row))
            connection.execute(sa.delete(_TARGETS).where(_TARGETS.c.study == name))
            for target, text in (targets or {}).items():
                connection.execute(sa.insert(_TARGETS).values(study=name, name=target, text=text))

    def targets(self, study: str) -> dict[str, str]:
        """Target name -> text of its file as the study had it; none of studies that older versions made."""
        query = sa.select(_TARGETS.c.name, _TARGETS.c.text).where(_TARGETS.c.study == study)
        with database_errors(self.url), self._engine.connect() as connection:
            if not sa.inspect(connection).has_table(_TARGETS.name):
                return {}
            return {name: text for name, text in connection.execute(query)}

    def set_supernet(self, name: str, path: Path) -> None:
        kept = kept_path(path, self.folder)
        with database_errors(self.url), self._engine.begin() as connection:
            connection.execute(sa.update(_STUDIES).where(_STUDIES.c.name == name).values(supernet=kept))

    def add_trial(self, study: str, trial: Trial) -> None:
        """Committed when this returns. Raises NasError when another process has written the same trial."""
        row = {"study": study, "number": trial.number, "record": json.dumps(trial.to_dict())}
        try:
            with database_errors(self.url), self._engine.begin() as connection:
                connection.execute(sa.insert(_TRIALS).values(**row))
        except IntegrityError as error:
            raise NasError(
                f"trial {trial.number} of study {study!r} was written by another process meanwhile: two "
                "searches run on it; let one end, then run the same command again"
            ) from error

    def trials(self, study: str) -> list[Trial]:
        """In the order of their numbers."""
        query = sa.select(_TRIALS.c.record).where(_TRIALS.c.study == study).order_by(_TRIALS.c.number)
        with database_errors(self.url), self._engine.connect() as connection:
            return [Trial.from_dict(json.loads(record)) for record in connection.execute(query).scalars()]

    def count_trials(self, study: str) -> int:
        query = sa.select(sa.func.count()).select_from(_TRIALS).where(_TRIALS.c.study == study)
        with database_errors(self.url), self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def add_validation(self, study: str, number: int, accuracy: Mapping[str, Any]) -> None:
        """Accuracy of a selected trial on images that the selection never saw."""
        row = {"study": study, "number": number, "accuracy": json.dumps(dict(accuracy))}
        with database_errors(self.url), self._engine.begin() as connection:
            connection.execute(sa.insert(_VALIDATIONS).values(**row))

    def validations(self, study: str) -> dict[int, dict[str, Any]]:
        query = sa.select(_VALIDATIONS.c.number, _VALIDATIONS.c.accuracy).where(_VALIDATIONS.c.study == study)
        with database_errors(self.url), self._engine.connect() as connection:
            return {number: json.loads(text) for number, text in connection.execute(query)}

    def prepare_finalists(self) -> None:
        """Make their table where an older version of this program made the database."""
        with database_errors(self.url):
            _FINALISTS.create(self._engine, checkfirst=True)

    def put_finalist(self, study: str, number: int, record: Mapping[str, Any]) -> None:
        """Enter or replace how trial `number` does when it is trained by itself; its `path` may be of a file."""
        kept = {**record, "path": kept_path(Path(record["path"]), self.folder)}
        row = {"study": study, "number": number, "record": json.dumps(kept)}
        with database_errors(self.url), self._engine.begin() as connection:
            key = (_FINALISTS.c.study == study) & (_FINALISTS.c.number == number)
            connection.execute(sa.delete(_FINALISTS).where(key))
            connection.execute(sa.insert(_FINALISTS).values(**row))

    def finalists(self, study: str) -> dict[int, dict[str, Any]]:
        """Trial number -> record, in the order of the numbers."""
        query = sa.select(_FINALISTS.c.number, _FINALISTS.c.record).where(_FINALISTS.c.study == study)
        with database_errors(self.url), self._engine.connect() as connection:
            if not sa.inspect(connection).has_table(_FINALISTS.name):
                return {}
            records = {
                number: json.loads(text) for number, text in connection.execute(query.order_by(_FINALISTS.c.number))
            }
        return {
            number: {**record, "path": str(found_path(record["path"], self.folder))}
            for number, record in records.items()
        }

    def close(self) -> None:
        self._engine.dispose()


@contextmanager
def database_errors(url: str) -> Iterator[None]:
    """What a database can answer, as a UsageError or NasError of one line with the cure; without the password."""
    with suppress(ArgumentError):
        url = sa.make_url(url).render_as_string(hide_password=True)
    try:
        yield
    except (ArgumentError, NoSuchModuleError) as error:
        raise UsageError(f"{url!r} is not a database URL such as sqlite:///nas.db") from error
    except ModuleNotFoundError as error:
        raise UsageError(f"{url} needs the Python package {error.name!r}: pip install it") from error
    except IntegrityError:
        raise
    except DBAPIError as error:
        raise _database_error(url, str(error.orig)) from error
    except StorageInternalError as error:  # Optuna's wrapping of the same
        raise _database_error(url, str(getattr(error.__cause__, "orig", error))) from error


def _database_error(url: str, said: str) -> Exception:
    if "malformed" in said:
        return NasError(
            f"{url} is damaged ({said}): put back a copy of it, or save what `sqlite3 nas.db .recover` can read, or "
            "begin anew with another --dir"
        )
    if "not a database" in said:
        return UsageError(f"{url} is not an SQLite database ({said}); name another with --storage or --dir")
    if "disk is full" in said or "disk I/O" in said:
        return NasError(
            f"{url} cannot grow ({said}): free some space and run the same command again; finished trials are kept"
        )
    if "unable to open" in said or "readonly" in said:
        return NasError(f"{url} cannot be written ({said}); name another place with --dir or --storage")
    if "locked" in said:
        return NasError(f"{url} is busy with another program ({said}); try again when that one is done")
    return NasError(f"{url}: {' '.join(said.split())}")


def _engine(url: str) -> sa.Engine:
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine, "connect")
        def _durable_and_shared(connection: Any, _: Any) -> None:
            # WAL lets the dashboard read while a search writes; FULL puts a commit on disk before it returns.
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            # Every commit moves on into the database file, so that a copy of that file alone has it.
            connection.execute("PRAGMA wal_autocheckpoint=1")
            connection.execute("PRAGMA busy_timeout=30000")

    return engine


def _is_missing_file(url: str) -> bool:
    """Whether the URL names an SQLite file that is not there; a URI (file:...) is left to SQLite."""
    made = sa.make_url(url)
    named = made.get_backend_name() == "sqlite" and made.database not in (None, "", ":memory:")
    return named and not str(made.database).startswith("file:") and not Path(str(made.database)).exists()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NasError(f"cannot make the folder {folder} ({error.strerror}); name a writable one with --dir") from error


def check_name(name: str) -> str:
    """A study's name, if it can also name a folder. Raises UsageError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UsageError(f"a study's name is made of letters, digits, '.', '_' and '-', but got {name!r}")
    return name
