"""This machine's processor as a device: ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import NasError, UsageError
from nas.measure import device
from nas.measure.graphs import INPUT_NAME, session_options
from nas.measure.jobs import Graph, Job, Probe, prepare, remove_graphs, write_missing
from nas.measure.pool import Opened, Progress
from nas.measure.timing import Sentinel

PRECISIONS = ("fp32", "w8a8")


class CpuDevice:
    """Times ONNX files in ONNX Runtime with a fixed number of threads, each on a processor of its own."""

    runtime = "ONNX Runtime"
    precisions: tuple[str, ...] = PRECISIONS
    usual: tuple[str, ...] = PRECISIONS
    workers = 0

    def __init__(self, folder: Path, threads: int = 1) -> None:
        """folder: for the graphs. Raises UsageError when ONNX Runtime is missing."""
        try:
            import onnxruntime
        except ImportError as error:
            raise UsageError("measuring on the CPU needs ONNX Runtime: pip install onnxruntime") from error
        self.folder, self.threads = folder, threads
        self.runtime_version = str(onnxruntime.__version__)

    def default_target(self) -> str:
        """Raises UsageError when no built-in target describes this processor."""
        return device.cpu_target(self.threads)

    def prepare(self, job: Job) -> dict[str, Any]:
        """Write the job's graphs; returns their operators and those that should have been fused."""
        return prepare(job, self.folder)

    def warm(self, graphs: Sequence[Graph], until: float | None, update: Progress) -> dict[Graph, NasError]:
        """Their files are written, which is all that takes time."""
        return {}

    def open(self, graphs: Sequence[Graph], until: float | None, update: Progress) -> Opened:
        return Opened({graph: self._loaded(graph) for graph in graphs})

    def _loaded(self, graph: Graph) -> _LoadedGraph:
        return _LoadedGraph(self.folder / graph.file_name, self.threads)

    def sentinel(self, best_s: float) -> Sentinel:
        """A pointwise convolution of some 50 microseconds. best_s: its time at peace as known so far."""
        graph = Graph(Probe("sentinel", "probe", 14, "160"), "fp32", 1, 1)
        write_missing(graph, self.folder)
        return Sentinel(self._loaded(graph), best_s)

    def forget(self, jobs: Sequence[Job]) -> None:
        """Delete the graphs of finished jobs."""
        remove_graphs(jobs, self.folder)

    @contextmanager
    def held(self) -> Iterator[Callable[[], dict[str, Any]]]:
        """While it is held, this process keeps to its processors; yields how they are doing."""
        with device.pinned(self.threads) as processors:
            about = {
                "processor": device.processor().get("model name", "unknown"),
                "threads": self.threads,
                "processors": processors,
            }
            yield lambda: about | device.state(processors)


class _LoadedGraph:
    """A graph in ONNX Runtime, with random input."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = session_options(threads)
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        shape = self._session.get_inputs()[0].shape
        self._feed = {INPUT_NAME: np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}

    def times_s(self, count: int) -> NDArray[np.float64]:
        run, feed, clock = self._session.run, self._feed, time.perf_counter
        stamps = [clock()]
        for _ in range(count):
            run(None, feed)
            stamps.append(clock())
        return np.diff(stamps)
