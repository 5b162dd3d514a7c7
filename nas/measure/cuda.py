"""An NVIDIA GPU as a device: torch.compile, replayed as a CUDA graph so that no launch waits for Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.errors import NasError, UsageError
from nas.measure.graphs import randomize_
from nas.measure.int8 import quantize_
from nas.measure.jobs import Graph, Job
from nas.measure.replay import Replay, gpu_state
from nas.measure.timing import Sentinel

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "w8a8": torch.float16}
"""Precision -> number format of the module; w8a8: of all but the layers that multiply in int8."""

KNOWN_GPUS = {"NVIDIA H200": "h200"}
"""What the driver calls a GPU -> the target that describes it with compiled networks."""


class CudaDevice:
    """Times compiled modules in channels-last order on the current CUDA device."""

    runtime = "torch.compile"
    precisions: tuple[str, ...] = tuple(DTYPES)
    usual: tuple[str, ...] = ("fp32", "fp16", "bf16")

    def __init__(self) -> None:
        """Raises UsageError when torch sees no CUDA device."""
        require_cuda()
        self.runtime_version = f"{torch.__version__} CUDA {torch.version.cuda}"

    def default_target(self) -> str:
        """Raises UsageError when no built-in target describes this GPU."""
        return cuda_target()

    def prepare(self, job: Job) -> dict[str, Any]:
        """Nothing is written: the compiler works when a graph is opened. Raises UsageError for an unknown subject,
        NasError for what torch cannot run in int8 when that is asked for.
        """
        module, _ = job.subject.build()
        if job.precision == "w8a8":
            quantize_(module)
        return {"ops": {}, "unfused": []}

    def open(self, graph: Graph) -> _Compiled:
        return _Compiled(graph)

    def sentinel(self, best_s: float) -> Sentinel | None:
        """None: a GPU is shared by whole programs, which the spread shows."""
        return None

    def forget(self, jobs: Sequence[Job]) -> None:
        """Let go of compiled kernels."""
        torch.compiler.reset()

    @contextmanager
    def held(self) -> Iterator[Callable[[], dict[str, Any]]]:
        """Yields the state of the device, as far as the driver tells it."""
        with tuned_libraries():
            yield gpu_state


ELSEWHERE = "measure with --device cpu, or import times taken elsewhere with `nas measure import`"


def require_cuda(cure: str = ELSEWHERE) -> None:
    """Raises UsageError when torch sees no CUDA device. cure: what to do then."""
    if not torch.cuda.is_available():
        raise UsageError(f"no CUDA device: torch sees none on this machine; {cure}")


def cuda_target() -> str:
    """The built-in target of the current GPU. Raises UsageError when there is none."""
    name = torch.cuda.get_device_name()
    if name not in KNOWN_GPUS:
        raise UsageError(
            f"no target describes {name}: say with --target which does, a built-in one (`nas targets`) or a TOML file "
            "of your own"
        )
    return KNOWN_GPUS[name]


@contextmanager
def tuned_libraries() -> Iterator[None]:
    """While it is held, cuDNN tries its algorithms and keeps the fastest, and fp32 is computed in 32 bits (no TF32).
    From then on Triton multiplies and adds in one step, without a warning that a later version will not.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = True, False, False
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


def on_gpu(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module in evaluation mode, on the GPU, its maps in channels-last order."""
    return module.eval().to(device="cuda", dtype=dtype).to(memory_format=torch.channels_last)


def random_image(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A random map on the GPU, [batch, channels, height, width] in channels-last order."""
    image = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))
    return image.to(device="cuda", dtype=dtype, memory_format=torch.channels_last)


class _Compiled:
    """Copies of a subject one behind the other, compiled and captured."""

    def __init__(self, graph: Graph) -> None:
        """Raises NasError for what cannot be compiled."""
        dtype = DTYPES[graph.precision]
        modules = []
        for seed in range(graph.copies):
            module, shape = graph.subject.build()
            modules.append(randomize_(module, seed))
        if graph.led:
            modules.insert(0, randomize_(nn.Conv2d(shape[1], shape[1], 1), graph.copies))
        chain = on_gpu(nn.Sequential(*modules), dtype)
        if graph.precision == "w8a8":
            quantize_(chain)
        try:
            self._replay = Replay(torch.compile(chain, dynamic=False), random_image((graph.batch, *shape[1:]), dtype))
        except Exception as error:  # the compiler raises what it likes
            line = (str(error) or type(error).__name__).splitlines()[0]
            raise NasError(f"{graph.subject.name} cannot be compiled in {graph.precision}: {line}") from error

    def times_s(self, count: int) -> NDArray[np.float64]:
        return self._replay.times_s(count)
