"""A session of measuring: the device, what all its jobs share, and what became of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from hw_models.measurements import Measurement
from nas.errors import NasError
from nas.measure.jobs import Graph, Job
from nas.measure.pool import Opened, Progress
from nas.measure.timing import Sentinel


class Keeper(Protocol):
    """What keeps times: the database (`nas.measure.records`), or a file where there is none."""

    def of(self, target: str) -> list[Measurement]:
        """All of a target."""
        ...

    def put(self, records: Iterable[Measurement]) -> None:
        """Kept when this returns, in the place of earlier ones of the same identity."""
        ...


class Device(Protocol):
    """Something that runs graphs. usual: the precisions that are timed when none is asked for. workers: how many
    processes open graphs, which takes long then; 0: this one does, and it takes no time to speak of.
    """

    runtime: str
    runtime_version: str
    precisions: tuple[str, ...]
    usual: tuple[str, ...]
    workers: int

    def default_target(self) -> str: ...
    def prepare(self, job: Job) -> dict[str, Any]: ...
    def warm(self, graphs: Sequence[Graph], until: float | None, update: Progress) -> dict[Graph, NasError]: ...
    def open(self, graphs: Sequence[Graph], until: float | None, update: Progress) -> Opened: ...
    def sentinel(self, best_s: float) -> Sentinel | None: ...
    def forget(self, jobs: Sequence[Job]) -> None: ...
    def held(self) -> AbstractContextManager[Callable[[], dict[str, Any]]]: ...


@dataclass
class Outcome:
    """What became of the jobs. refused: job name -> why it has no record; disturbed: names of those among them whose
    last try spread as on a machine under load. unfused: job name -> operators.
    """

    measured: list[Measurement] = field(default_factory=list)
    known: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    disturbed: set[str] = field(default_factory=set)
    unfused: dict[str, list[str]] = field(default_factory=dict)
    left: int = 0


@dataclass(frozen=True)
class Session:
    """What all groups of one call share.

    patience_s: how long each waits for moments of peace, by default `nas.measure.timing.PATIENCE_S`.
    """

    on: Device
    target: str
    state: Callable[[], dict[str, Any]]
    sentinel: Sentinel | None
    rng: np.random.Generator
    outcome: Outcome
    patience_s: float | None = None
