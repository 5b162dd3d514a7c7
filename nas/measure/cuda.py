"""An NVIDIA GPU as a device: torch.compile, replayed as a CUDA graph so that no launch waits for Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nas.errors import NasError, UsageError
from nas.measure.graphs import randomize_
from nas.measure.jobs import Graph, Job
from nas.measure.timing import Sentinel

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_WARM_UP_RUNS = 3
"""Runs on a side stream before capture, in which the compiler chooses kernels and libraries take their memory."""


class CudaDevice:
    """Times compiled modules in channels-last order on the current CUDA device.

    There is no int8: torch has no quantized convolution for CUDA. Times of an int8 engine (TensorRT) are imported.
    """

    runtime = "torch.compile"
    precisions: tuple[str, ...] = tuple(_DTYPES)

    def __init__(self) -> None:
        """Raises UsageError when torch sees no CUDA device."""
        if not torch.cuda.is_available():
            raise UsageError(
                "no CUDA device: torch sees none on this machine; measure with --device cpu, or import times taken "
                "elsewhere with `nas measure import`"
            )
        self.runtime_version = f"{torch.__version__} CUDA {torch.version.cuda}"

    def default_target(self) -> str:
        """Raises UsageError: a GPU's name says too little about which target describes it."""
        raise UsageError(
            f"say with --target which target describes {torch.cuda.get_device_name()}: a built-in one (`nas targets`) "
            "or a TOML file of your own"
        )

    def prepare(self, job: Job) -> dict[str, Any]:
        """Nothing is written: the compiler works when a graph is opened. Raises UsageError for an unknown subject."""
        job.subject.build()
        return {"ops": {}, "unfused": []}

    def open(self, graph: Graph) -> _Replay:
        return _Replay(graph)

    def sentinel(self, best_s: float) -> Sentinel | None:
        """None: a GPU is shared by whole programs, which the spread shows."""
        return None

    def forget(self, jobs: Sequence[Job]) -> None:
        """Let go of compiled kernels."""
        torch.compiler.reset()

    @contextmanager
    def held(self) -> Iterator[Callable[[], dict[str, Any]]]:
        """Yields the state of the device, as far as the driver tells it."""
        yield _state


def _state() -> dict[str, Any]:
    found: dict[str, Any] = {"processor": torch.cuda.get_device_name(), "threads": 1}
    for name, read, scale in (
        ("clock_hz", torch.cuda.clock_rate, 1e6),
        ("temperature_c", torch.cuda.temperature, 1),
        ("power_w", torch.cuda.power_draw, 1e-3),
    ):
        try:
            found[name] = read() * scale
        except (ImportError, ModuleNotFoundError, RuntimeError):  # no NVML bindings, or no permission
            continue
    return found


class _Replay:
    """Copies of a subject one behind the other, compiled and captured."""

    def __init__(self, graph: Graph) -> None:
        dtype = _DTYPES[graph.precision]
        modules = []
        for seed in range(graph.copies):
            module, shape = graph.subject.build()
            modules.append(randomize_(module, seed))
        module = torch.nn.Sequential(*modules).to(device="cuda", dtype=dtype)
        module = module.to(memory_format=torch.channels_last)
        generator = torch.Generator().manual_seed(0)
        image = torch.randn((graph.batch, *shape[1:]), generator=generator)
        self._input = image.to(device="cuda", dtype=dtype, memory_format=torch.channels_last)
        try:
            self._capture(torch.compile(module.eval(), dynamic=False))
        except Exception as error:  # the compiler raises what it likes
            line = (str(error) or type(error).__name__).splitlines()[0]
            raise NasError(f"{graph.subject.name} cannot be compiled in {graph.precision}: {line}") from error

    def _capture(self, module: Callable[[torch.Tensor], torch.Tensor]) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(side):
            for _ in range(_WARM_UP_RUNS):
                module(self._input)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self._graph):
            self._output = module(self._input)

    def times_s(self, count: int) -> NDArray[np.float64]:
        """Between events on the device, so that the host's delays do not count."""
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        events[0].record()
        for event in events[1:]:
            self._graph.replay()
            event.record()
        torch.cuda.synchronize()
        milliseconds = [first.elapsed_time(last) for first, last in pairwise(events)]
        return np.array(milliseconds) * 1e-3
