"""Work on a GPU as a CUDA graph that is replayed between events, and the state of that GPU.

Neither Python nor the driver's launches are in such a time. Short work stands in its graph many times over, since what
begins a graph takes some microseconds. Input and weights are the same in every run, so what fits the second-level cache
is read from there, as a block in a network finds the map that the block before it has just written.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GRAPH_S = 200e-6
"""How long a graph takes, or more, unless MOST_RUNS are shorter: forty times what separates two replays."""

MOST_RUNS = 200
"""Runs in a graph, which bounds the time of capture."""

_WARM_UP_RUNS = 3
"""Runs before capture and on its stream, in which compilers choose kernels and libraries take their memory."""

_TRIALS = 20
"""Replays that tell how many runs fill a graph."""

_FILLINGS = 4
"""How often a graph is captured anew with more runs: what begins one is in each estimate, in the first one most."""

CACHE = "warm"
"""State of the second-level cache, for the record."""


class Replay:
    """Runs of a function of one tensor, captured with its input."""

    output: Tensor | None
    _graph: torch.cuda.CUDAGraph | None

    def __init__(self, run: Callable[[Tensor], Tensor], image: Tensor) -> None:
        """Raises what the function raises, and RuntimeError when it cannot be captured."""
        self._run, self._image, self._stream = run, image, torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP_RUNS):
                run(image)
        torch.cuda.current_stream().wait_stream(self._stream)
        torch.cuda.synchronize()
        self._fill()

    def _fill(self) -> None:
        """Capture as many runs as take GRAPH_S or so."""
        self._capture(1)
        for _ in range(_FILLINGS):
            # The shortest of them: other processes may be using the GPU now.
            once_s = float(self.times_s(_TRIALS * self._runs).min())
            runs = min(MOST_RUNS, ceil(GRAPH_S / max(once_s, 1e-7)))
            if runs <= 1.1 * self._runs:
                break
            self._capture(runs)

    def _capture(self, runs: int) -> None:
        self.output = self._graph = None
        self._runs, graph = runs, torch.cuda.CUDAGraph()
        # A graph that has to be compiled again would be captured in part; compiled ones must be ready by now.
        with (
            torch.no_grad(),
            torch.compiler.set_stance("fail_on_recompile"),
            torch.cuda.graph(graph, stream=self._stream),
        ):
            for _ in range(runs):
                self.output = self._run(self._image)
        self._graph = graph
        graph.replay()
        torch.cuda.synchronize()

    def times_s(self, count: int) -> NDArray[np.float64]:
        """Seconds of one run, as means over the runs of a graph; of `count` runs or a few more in all.

        A replay goes before them: the GPU works while the first that counts is launched, as it does for all others.
        """
        events = [torch.cuda.Event(enable_timing=True) for _ in range(ceil(count / self._runs) + 1)]
        assert self._graph is not None
        for event in events:
            self._graph.replay()
            event.record()
        torch.cuda.synchronize()
        milliseconds = [first.elapsed_time(last) for first, last in pairwise(events)]
        return np.array(milliseconds) * 1e-3 / self._runs


_ASKED = (
    ("clocks.sm", "clock_hz", 1e6),
    ("clocks.max.sm", "clock_most_hz", 1e6),
    ("clocks.mem", "memory_clock_hz", 1e6),
    ("temperature.gpu", "temperature_c", 1.0),
    ("power.draw", "power_w", 1.0),
)
"""What nvidia-smi is asked, under which name it is kept, and its unit in SI units."""


def gpu_state() -> dict[str, Any]:
    """Name of the current GPU, the libraries that choose its kernels, and its clocks, temperature and power as far as
    nvidia-smi tells them.
    """
    found: dict[str, Any] = {"processor": torch.cuda.get_device_name(), "threads": 1, "cache": CACHE}
    found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None)
    command = ["nvidia-smi", f"--query-gpu={','.join(name for name, _, _ in _ASKED)}", "--format=csv,noheader,nounits"]
    if uuid is not None:
        # torch may see the GPUs in another order, or fewer of them.
        command += ["-i", f"GPU-{str(uuid).removeprefix('GPU-')}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return found
    return found | read_state(done.stdout) if done.returncode == 0 else found


def read_state(line: str) -> dict[str, float]:
    """The numbers in an answer of nvidia-smi to what `gpu_state` asks; what it does not know ("[N/A]") is left out."""
    found = {}
    cells = line.strip().splitlines()[0].split(",") if line.strip() else []
    for (_, name, unit), cell in zip(_ASKED, cells, strict=False):
        try:
            found[name] = float(cell) * unit
        except ValueError:
            continue
    return found
