"""What a worker of the tests opens: real modules, compiled on the CPU, and things that go wrong."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nas.errors import NasError
from nas.measure.cuda import allow_many_graphs, compiled
from nas.measure.pool import NoRoomError


class CpuOpener:
    """Opens the words of THINGS, and "linear N": a compiled chain of N layers, timed by the clock."""

    def begin(self) -> None:
        torch.set_num_threads(1)
        allow_many_graphs()

    def open(self, thing: str) -> Timed:
        what, _, size = thing.partition(" ")
        if what == "linear":
            chain = compiled(nn.Sequential(*(nn.Linear(8, 8) for _ in range(int(size)))).eval())
            return Timed(chain)
        return THINGS[what](int(size or 0))

    def forget(self) -> None:
        torch.compiler.reset()


class BrokenOpener(CpuOpener):
    """A machine without what is needed."""

    def begin(self) -> None:
        raise NasError("no such device here")


class DyingOpener(CpuOpener):
    """A machine that kills."""

    def begin(self) -> None:
        os._exit(3)


class Timed:
    """Times of a compiled chain, the number of its process first."""

    def __init__(self, chain: nn.Module) -> None:
        self._chain, self._image = chain, torch.randn(4, 8)
        self.times_s(1)

    def times_s(self, count: int) -> NDArray[np.float64]:
        stamps = [time.perf_counter()]
        with torch.no_grad():
            for _ in range(count):
                self._chain(self._image)
                stamps.append(time.perf_counter())
        return np.diff(stamps)


class Quick(Timed):
    """Who times: the number of its process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def times_s(self, count: int) -> NDArray[np.float64]:
        if self.number == 13:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self.number == 14:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.full(count, float(os.getpid()))


def _fails(number: int) -> Timed:
    raise NasError(f"cannot be compiled: {number}")


def _raises(number: int) -> Timed:
    raise RuntimeError(f"not foreseen: {number}")


def _no_room(number: int) -> Timed:
    raise NoRoomError("does not fit")


def _kills(number: int) -> Timed:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _sleeps(number: int) -> Timed:
    time.sleep(number)
    return Quick(number)


THINGS = {
    "quick": Quick, "fails": _fails, "raises": _raises, "big": _no_room, "kills": _kills, "sleeps": _sleeps
}  # fmt: skip
