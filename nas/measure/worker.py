"""What a worker process of `nas.measure.pool` does: it opens graphs, and times those that it has open when asked."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Hashable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from nas.errors import NasError
from nas.measure.timing import Runner


class NoRoomError(NasError):
    """What does not fit the memory of the device, beside what is open already."""


class LostError(NasError):
    """Open graphs that went with their worker: `things`. timed: the one that was being timed then; None when the worker
    was gone before.
    """

    def __init__(self, reason: str, things: Sequence[Hashable], timed: Hashable | None = None) -> None:
        super().__init__(reason)
        self.things, self.timed = tuple(things), timed


class Opener(Protocol):
    """What opens graphs. Pickled; each worker has its own."""

    def begin(self) -> None:
        """Once, before anything is opened. Raises NasError when nothing can be."""
        ...

    def open(self, thing: Any) -> Runner:
        """Raises NoRoomError, and NasError for whatever else."""
        ...

    def forget(self) -> None:
        """Free what compilers and libraries keep of runners that are gone."""
        ...


def work(pipe: Any, pickled: bytes) -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        opener: Opener = pickle.loads(pickled)
        opener.begin()
    except Exception as error:  # of an import, a driver, a library
        pipe.send(("broken", f"a worker could not start: {type(error).__name__}: {error}"))
        return
    pipe.send(("ready",))
    runners: dict[int, Runner] = {}
    with suppress(EOFError, OSError):  # the other end is gone
        while True:
            message = pipe.recv()
            if message[0] == "end":
                return
            if message[0] == "forget":
                runners.clear()
                opener.forget()
                pipe.send(("forgotten",))  # the next graph may need the memory of all workers
            else:
                pipe.send(_answer(opener, runners, *message))


def _answer(opener: Opener, runners: dict[int, Runner], what: str, *about: Any) -> tuple[Any, ...]:
    try:
        if what == "time":
            number, count = about
            return ("times", runners[number].times_s(count))
        thing, keep, number = about
        runner = opener.open(thing)
        if keep:
            runners[number] = runner
        else:
            del runner
            opener.forget()
    except NoRoomError as error:
        return ("no room", str(error))
    except Exception as error:  # compilers and drivers raise what they like
        return ("failed", str(error) if isinstance(error, NasError) else f"{type(error).__name__}: {error}")
    return ("opened",)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
