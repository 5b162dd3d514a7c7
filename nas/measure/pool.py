"""Graphs opened in several processes at once, and timed one at a time.

To open a graph is to build, compile and warm it up: seconds of one processor each. So worker processes do that side by
side, and keep what they opened. Timing comes after: each time is asked of the worker that has the graph, while all
others wait, so that the device runs nothing but what is timed.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import NasError
from nas.measure.timing import Runner
from nas.measure.worker import LostError, NoRoomError, Opener, work

GRACE_S = 10.0
"""How long a graph that is being opened may still take when the time is up."""

LONGEST_S = 120.0
"""A worker that does not give a time, or let go of what it has, within this is lost."""

LEAVE_S = 3.0
"""How long workers may take to leave."""

POLL_S = 1.0
TRIES = 2
"""How often a graph is opened that is lost with a worker which another graph killed."""


@dataclass
class Opened:
    """What is open, and why the rest is not; what is in neither was not reached."""

    runners: dict[Any, Runner] = field(default_factory=dict)
    failed: dict[Any, NasError] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.runners) + len(self.failed)


Progress = Callable[[int, int], None]
"""(done, total)"""


class Here:
    """A pool of this process alone."""

    def __init__(self, opener: Opener) -> None:
        self._opener, self._begun = opener, False

    def open(
        self, things: Sequence[Any], *, keep: bool = True, until: float | None = None, update: Progress | None = None
    ) -> Opened:
        """As `Pool.open`."""
        if not self._begun:
            self._opener.begin()
            self._begun = True
        opened = Opened()
        for done, thing in enumerate(things, start=1):
            if until is not None and time.monotonic() > until:
                break
            try:
                opened.runners[thing] = self._opener.open(thing)
            except NasError as error:
                opened.failed[thing] = error
            if not keep:
                opened.runners.clear()
                self._opener.forget()
            if update is not None:
                update(done, len(things))
        return opened

    def forget(self) -> None:
        """The caller has let go of all runners."""
        self._opener.forget()

    def close(self) -> None:
        """Nothing runs."""


class Pool:
    """Worker processes. They end with this process, however it ends; Ctrl-C reaches this process alone."""

    def __init__(self, opener: Opener, workers: int) -> None:
        """workers: how many at most; they are started when there is something to open."""
        self._opener, self._most = pickle.dumps(opener), workers
        self._workers: list[_Worker] = []

    def open(
        self, things: Sequence[Any], *, keep: bool = True, until: float | None = None, update: Progress | None = None
    ) -> Opened:
        """Open things, in their order, each in the next worker that is free.

        keep: False lets go of each at once, so that only what the opener's libraries keep on disk remains. until: by
        the monotonic clock; later none is begun, and what takes GRACE_S more is given up, with all that its worker has
        open. A worker that dies takes the thing that it was opening with it, as failed; what else it had is opened
        again. Raises NasError when workers cannot start.
        """
        for worker in list(self._workers):
            if worker.is_gone():
                self._end(worker)
        waiting, opened = deque(things), Opened()
        tries = dict.fromkeys(things, 0)
        busy: dict[_Worker, Any] = {}
        while waiting or busy:
            now = time.monotonic()
            if until is not None and now > until:
                waiting.clear()
                if now > until + GRACE_S:
                    for worker in busy:
                        self._drop(worker, opened)
                    break
            for worker in self._free(busy, len(waiting)):
                thing = waiting.popleft()
                tries[thing] += 1
                busy[worker] = thing
                worker.send("open", thing, keep)
            for worker in _answering(busy):
                reply = worker.receive()
                if reply is not None and reply[0] == "ready":
                    worker.is_ready = True
                    continue
                thing = busy.pop(worker)
                if reply is None:
                    if not worker.is_ready:
                        raise NasError(f"a worker could not start: {worker.ending()}")
                    opened.failed[thing] = NasError(f"the worker that opened it {worker.ending()}")
                    for lost in self._drop(worker, opened):
                        if tries[lost] < TRIES:
                            waiting.append(lost)
                        else:
                            opened.failed[lost] = NasError("it was lost with its worker, more than once")
                elif reply[0] == "opened":
                    opened.runners[thing] = worker.runner(thing) if keep else _GONE
                elif reply[0] == "broken":
                    raise NasError(reply[1])
                else:
                    opened.failed[thing] = (NoRoomError if reply[0] == "no room" else NasError)(reply[1])
                if update is not None:
                    update(len(opened), len(things))
        if not keep:
            opened.runners.clear()
        return opened

    def _free(self, busy: dict[_Worker, Any], wanted: int) -> list[_Worker]:
        """Up to `wanted` workers with nothing to do, new ones where there are too few. The emptiest come first."""
        free = sorted((worker for worker in self._workers if worker not in busy), key=lambda worker: len(worker.things))
        while len(free) < wanted and len(self._workers) < self._most:
            self._workers.append(_Worker(self._opener))
            free.append(self._workers[-1])
        return free[:wanted]

    def _drop(self, worker: _Worker, opened: Opened) -> list[Any]:
        """End a worker. Returns what it had open."""
        self._end(worker)
        return [thing for thing in worker.things if opened.runners.pop(thing, None) is not None]

    def _end(self, worker: _Worker) -> None:
        worker.end()
        self._workers.remove(worker)

    def forget(self) -> None:
        """All workers have let go of what they had open when this returns; those that cannot are ended."""
        for worker in self._workers:
            worker.things.clear()
            worker.send("forget")
        for worker in list(self._workers):
            if not worker.has_forgotten():
                self._end(worker)

    def close(self) -> None:
        """End the workers: those that are not busy leave by themselves, and take what they keep outside with them."""
        for worker in self._workers:
            worker.send("end")
        until = time.monotonic() + LEAVE_S
        for worker in self._workers:
            worker.end(max(0.0, until - time.monotonic()))
        self._workers.clear()


class _Gone:
    """Stands for a runner that was not kept."""

    def times_s(self, count: int) -> NDArray[np.float64]:
        raise AssertionError("it was opened to be let go")


_GONE = _Gone()


def _answering(busy: dict[_Worker, Any]) -> list[_Worker]:
    ready = connection.wait([worker.pipe for worker in busy], POLL_S)
    return [worker for worker in busy if worker.pipe in ready]


class _Worker:
    """A process, as this one sees it. things: what it has open, with its number there."""

    def __init__(self, opener: bytes) -> None:
        self.is_ready, self.is_alive = False, True
        self.things: dict[Any, int] = {}
        self._count = 0
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self._process: SpawnProcess = spawn.Process(target=work, args=(theirs, opener), daemon=True)
        with _deaf(), _one_compiler():
            self._process.start()
        theirs.close()

    def send(self, *message: Any) -> None:
        """A worker that is gone says so when it is asked for an answer."""
        if message[0] == "open":
            self._count += 1
            message = (*message, self._count)
        with suppress(OSError):
            self.pipe.send(message)

    def receive(self) -> tuple[Any, ...] | None:
        """Its answer; None when it is gone."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.is_alive = False
            return None

    def is_gone(self) -> bool:
        """Whether it ended when nothing was asked of it: then its end of the pipe is closed."""
        return not self.is_alive or (self.pipe.poll() and self.receive() is None)

    def has_forgotten(self) -> bool:
        """Whether it lives and says so."""
        return self.is_alive and self.pipe.poll(LONGEST_S) and self.receive() == ("forgotten",)

    def runner(self, thing: Any) -> Runner:
        """What it has just opened."""
        self.things[thing] = self._count
        return _Remote(self, thing)

    def ending(self) -> str:
        """How it ended, in words."""
        self._process.join(5)
        code = self._process.exitcode
        if code is None:
            return "does not answer"
        if code < 0:
            return f"was killed by signal {-code} ({signal.Signals(-code).name}); is there memory enough?"
        return f"ended with status {code}"

    def end(self, patience_s: float = 0.0) -> None:
        """Kill it, unless it leaves within its patience."""
        self.is_alive = False
        self._process.join(patience_s)
        self._process.kill()
        self._process.join(5)
        self.pipe.close()


class _Remote:
    """A runner in a worker."""

    def __init__(self, worker: _Worker, thing: Any) -> None:
        self._worker, self._thing, self._number = worker, thing, worker.things[thing]

    def times_s(self, count: int) -> NDArray[np.float64]:
        """Raises LostError."""
        worker = self._worker
        if worker.is_gone():
            raise LostError("the worker that had it is gone", list(worker.things))
        worker.send("time", self._number, count)
        reply = worker.receive() if worker.pipe.poll(LONGEST_S) else None
        if reply is not None and reply[0] == "times":
            times: NDArray[np.float64] = reply[1]
            return times
        reason = f"fails: {reply[1]}" if reply is not None else worker.ending()
        worker.end()  # a device that failed once in a process fails there ever after
        raise LostError(f"the worker that timed it {reason}", list(worker.things), self._thing)


_COMPILERS = "TORCHINDUCTOR_COMPILE_THREADS"


@contextmanager
def _one_compiler() -> Iterator[None]:
    """A process that is started in here compiles by itself: there is a worker per processor. torch reads this when it
    is imported, and what runs here may import it in the worker before anything else.
    """
    before = os.environ.get(_COMPILERS)
    os.environ[_COMPILERS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_COMPILERS]
        else:
            os.environ[_COMPILERS] = before


@contextmanager
def _deaf() -> Iterator[None]:
    """A process that is started in here never hears Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
