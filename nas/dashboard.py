"""What Optuna Dashboard shows of a study: the mirrored Optuna study, a note with the front, and the server
itself.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.storages import RDBStorage

from nas.errors import NasError, UsageError
from nas.objectives import Goal
from nas.store import database_errors
from nas.study import Study
from nas.trial import Trial, to_optuna
from search_spaces.space import SearchSpace

ON_FRONT = "On the front."
"""How the note of a trial on the front begins."""


class Mirror:
    """The Optuna study that repeats our own record for dashboards and notebooks.

    It can always be rebuilt, so its writes need not be durable one by one; a search repairs it when it
    starts.
    """

    def __init__(self, url: str, study: str, goal: Goal, space: SearchSpace) -> None:
        self._url, self._goal, self._space = url, goal, space
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with database_errors(url):
            self._storage = _storage(url)
            self._study = optuna.create_study(
                study_name=study, storage=self._storage, directions=list(goal.directions), load_if_exists=True
            )
        with warnings.catch_warnings(), database_errors(url):
            # Experimental since Optuna 3.2, and the only way to name the axes of the dashboard's plots.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.set_metric_names([axis.metric_name for axis in goal.axes])
        self._present = {trial.user_attrs.get("trial") for trial in self._study.get_trials(deepcopy=False)}
        if None in self._present:
            raise UsageError(f"{study} is another program's Optuna study in {url}; name yours with --study")

    def add(self, trials: Iterable[Trial]) -> None:
        """Append those of `trials` that are not there yet."""
        for trial in trials:
            if trial.number not in self._present:
                with database_errors(self._url):
                    self._study.add_trial(to_optuna(trial, self._goal, self._space))
                self._present.add(trial.number)

    def attach(self, attributes: Mapping[int, Mapping[str, Any]]) -> None:
        """Put user attributes on trials that have ended: trial number -> name -> JSON-able value.

        Optuna lets nobody change those, so its table is written; nothing but our own record is repeated there.
        """
        table = sa.table("trial_user_attributes", *map(sa.column, ("trial_id", "key", "value_json")))
        with database_errors(self._url), self._storage.engine.begin() as connection:
            for trial in self._study.get_trials(deepcopy=False):
                for key, value in attributes.get(trial.user_attrs.get("trial", -1), {}).items():
                    here = (table.c.trial_id == trial._trial_id) & (table.c.key == key)
                    connection.execute(sa.delete(table).where(here))
                    row = {"trial_id": trial._trial_id, "key": key, "value_json": json.dumps(value)}
                    connection.execute(sa.insert(table).values(**row))

    def close(self) -> None:
        self._storage.engine.dispose()

    def publish(self, note: str, picture: Path, artifacts: Path, trial_notes: dict[int, str]) -> None:
        """Show the front, which Optuna's own 'best' badge would get wrong: it ignores constraints.

        note: Markdown of the study. picture: PNG that is attached to it. trial_notes: trial number -> Markdown that
        begins with `ON_FRONT`.
        """
        from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
        from optuna_dashboard import get_note, save_note

        artifacts.mkdir(parents=True, exist_ok=True)
        store = FileSystemArtifactStore(artifacts)
        content = picture.read_bytes()
        for meta in get_all_artifact_meta(self._study):
            if (artifacts / meta.artifact_id).is_file() and (artifacts / meta.artifact_id).read_bytes() == content:
                break
        else:
            upload_artifact(artifact_store=store, file_path=str(picture), study_or_trial=self._study)
        save_note(self._study, note)
        for frozen in self._study.get_trials(deepcopy=False):
            trial = optuna.trial.Trial(self._study, frozen._trial_id)
            text, known = trial_notes.get(frozen.user_attrs["trial"], ""), get_note(trial)
            # A person's own note stays; ours goes when the trial has left the front.
            if text != known and (not known or known.startswith(ON_FRONT)):
                save_note(trial, text)

    def plot(self, name: str, traces: Sequence[dict[str, Any]], layout: dict[str, Any]) -> None:
        """A card with a plot, given as Plotly's JSON: `traces` and `layout`."""
        from optuna_dashboard import save_plotly_graph_object

        figure = _Figure(json.dumps({"data": list(traces), "layout": layout}))
        save_plotly_graph_object(self._study, figure, graph_object_id=name)


@dataclass(frozen=True, slots=True)
class _Figure:
    """All that the dashboard asks of a Plotly figure, without Plotly."""

    text: str

    def to_json(self) -> str:
        return self.text


def show_dashboard(study: Study, host: str, port: int) -> None:
    """Serve Optuna Dashboard on the storage of `study`, which its address opens, until interrupted.

    Raises UsageError when the study was deleted in a dashboard.
    """
    try:
        found = optuna.load_study(study_name=study.name, storage=_storage(study.url))
    except KeyError as error:
        raise UsageError(
            f"study {study.name} was deleted from Optuna's tables; its trials are kept: run its search again "
            "and it is back"
        ) from error
    _serve(study.url, study.artifacts, host, port, f"dashboard/studies/{found._study_id}")


def _serve(url: str, artifacts: Path, host: str, port: int, page: str) -> None:
    """Raises NasError when the port is taken."""
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    import optuna_dashboard
    from optuna.artifacts import FileSystemArtifactStore

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True

    class Quiet(WSGIRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """The dashboard polls: a line per request would bury everything else."""

    artifacts.mkdir(parents=True, exist_ok=True)
    app = optuna_dashboard.wsgi(_storage(url), artifact_store=FileSystemArtifactStore(artifacts))
    try:
        server = make_server(host, port, app, server_class=Server, handler_class=Quiet)
    except OSError as error:
        raise NasError(f"cannot listen on {host}:{port} ({error.strerror}); name another with --port") from error
    address = f"http://{host}:{server.server_port}/{page}"
    with server:
        print(
            f"Optuna Dashboard: {address}  (Ctrl-C ends it)",
            file=sys.stderr,
            flush=True,
        )
        server.serve_forever()


def _storage(url: str) -> RDBStorage:
    storage = RDBStorage(url)
    if storage.engine.dialect.name == "sqlite":
        # A trial is about a hundred statements; without this each commit waits for the disk.
        @sa.event.listens_for(storage.engine, "connect")
        def _quick(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA busy_timeout=30000")

        storage.engine.dispose()
    return storage
