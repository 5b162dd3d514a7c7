"""What a worker of the tests opens: real modules, compiled on the CPU, and things that go wrong.

torch is imported for what needs it alone: a worker without it starts in no time.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import NasError
from nas.measure.worker import NoRoomError


class CpuOpener:
    """Opens "quick 1" and the other words of THINGS."""

    def begin(self) -> None:
        pass

    def open(self, thing: str) -> Quick:
        what, _, size = thing.partition(" ")
        return THINGS[what](int(size or 0))

    def forget(self) -> None:
        pass


class BrokenOpener(CpuOpener):
    """A machine without what is needed."""

    def begin(self) -> None:
        raise NasError("no such device here")


class DyingOpener(CpuOpener):
    """A machine that kills."""

    def begin(self) -> None:
        os._exit(3)


class SlowToForget(CpuOpener):
    """A driver that takes its time to free memory; a file of the folder says that a process has done it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def forget(self) -> None:
        time.sleep(0.5)
        (self.folder / str(os.getpid())).touch()


class Quick:
    """Who times: the number of its process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def times_s(self, count: int) -> NDArray[np.float64]:
        if self.number == 13:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self.number == 14:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.full(count, float(os.getpid()))


class Steady(Quick):
    """Takes as many milliseconds as its number says."""

    def times_s(self, count: int) -> NDArray[np.float64]:
        return np.full(count, 1e-3 * self.number)


class Clocked(Quick):
    """A module of torch, timed by the clock."""

    def __init__(self, module: Any, image: Any) -> None:
        super().__init__(0)
        self._module, self._image = module, image
        self.times_s(1)

    def times_s(self, count: int) -> NDArray[np.float64]:
        import torch

        stamps = [time.perf_counter()]
        with torch.no_grad():
            for _ in range(count):
                self._module(self._image)
                stamps.append(time.perf_counter())
        return np.diff(stamps)


def _linear(number: int) -> Quick:
    """A compiled chain of linear layers."""
    import torch
    from torch import nn

    from nas.measure.cuda import allow_many_graphs, compiled

    torch.set_num_threads(1)
    allow_many_graphs()
    return Clocked(compiled(nn.Sequential(*(nn.Linear(8, 8) for _ in range(number))).eval()), torch.randn(4, 8))


def _fails(number: int) -> Quick:
    raise NasError(f"cannot be compiled: {number}")


def _raises(number: int) -> Quick:
    raise RuntimeError(f"not foreseen: {number}")


def _no_room(number: int) -> Quick:
    raise NoRoomError("does not fit")


def _kills(number: int) -> Quick:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _sleeps(number: int) -> Quick:
    time.sleep(number)
    return Quick(number)


class Compilers(Quick):
    """How many processes torch compiles with."""

    def times_s(self, count: int) -> NDArray[np.float64]:
        import torch._inductor.config as inductor

        return np.full(count, float(inductor.compile_threads or 0))


THINGS: dict[str, Callable[[int], Quick]] = {
    "compilers": Compilers,
    "quick": Quick,
    "linear": _linear,
    "fails": _fails,
    "raises": _raises,
    "big": _no_room,
    "kills": _kills,
    "sleeps": _sleeps,
}


class GraphOpener(CpuOpener):
    """Opens graphs of real blocks on the CPU, without a compiler. In fp16 its worker is killed, bf16 does not compile,
    and w8a8 fits the memory only when nothing else of this process is open. In w4a16 no block is built and every copy
    takes a millisecond; in w8a16 its worker is killed when the graph is timed.
    """

    def __init__(self) -> None:
        self.open_now = 0

    def open(self, graph: Any) -> Quick:
        if graph.precision == "fp16":
            return _kills(0)
        if graph.precision == "bf16":
            return _fails(0)
        if graph.precision == "w8a16":
            return Quick(14)
        if graph.precision == "w4a16":
            return Steady(graph.copies)
        if graph.precision == "w8a8" and self.open_now >= 2:
            return _no_room(0)
        self.open_now += 1
        return _block(graph)

    def forget(self) -> None:
        self.open_now = 0


def _block(graph: Any) -> Quick:
    import torch
    from torch import nn

    torch.set_num_threads(1)
    built = [graph.subject.build() for _ in range(graph.copies)]
    return Clocked(nn.Sequential(*(module for module, _ in built)), torch.randn(graph.batch, *built[0][1][1:]))
