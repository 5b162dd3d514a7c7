"""An NVIDIA GPU as a device: torch.compile, replayed as a CUDA graph so that no launch waits for Python."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import NasError, UsageError
from nas.measure.graphs import randomize_
from nas.measure.int8 import quantize_
from nas.measure.jobs import Graph, Job
from nas.measure.pool import Here, Opened, Pool, Progress
from nas.measure.replay import Replay, gpu_state
from nas.measure.timing import Sentinel
from nas.measure.worker import NoRoomError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "w8a8": torch.float16}
"""Precision -> number format of the module; w8a8: of all but the layers that multiply in int8."""

KNOWN_GPUS = {"NVIDIA H200": "h200", "NVIDIA H100 80GB HBM3": "h100"}
"""What the driver calls a GPU -> the target that describes it with compiled networks."""


class CudaDevice:
    """Times compiled modules in channels-last order on the current CUDA device."""

    runtime = "torch.compile"
    precisions: tuple[str, ...] = tuple(DTYPES)
    usual: tuple[str, ...] = ("fp32", "fp16", "bf16")

    def __init__(self, workers: int | None = None) -> None:
        """workers: processes that compile; 0 or 1: this one; by default SPARE less than there are processors.

        Raises UsageError when torch sees no CUDA device.
        """
        require_cuda()
        self.runtime_version = f"{torch.__version__} CUDA {torch.version.cuda}"
        self.workers = usual_workers() if workers is None else workers
        self._pool: Pool | Here = Pool(CudaOpener(), self.workers) if self.workers > 1 else Here(CudaOpener())

    def default_target(self) -> str:
        """Raises UsageError when no built-in target describes this GPU."""
        return cuda_target()

    def prepare(self, job: Job) -> dict[str, Any]:
        """Nothing is written: the compiler works when a graph is opened, and then says what it cannot do."""
        return {"ops": {}, "unfused": []}

    def warm(self, graphs: Sequence[Graph], until: float | None, update: Progress) -> dict[Graph, NasError]:
        """Compile graphs in their order, so that torch's caches on disk (TORCHINDUCTOR_CACHE_DIR) have the kernels of
        the first ones when the time is up. Returns why some could not be.
        """
        return self._pool.open(graphs, keep=False, until=until, update=update).failed

    def open(self, graphs: Sequence[Graph], until: float | None, update: Progress) -> Opened:
        """Compile and capture graphs; what compiles longest is begun first."""
        return self._pool.open(slowest_first(graphs), until=until, update=update)

    def sentinel(self, best_s: float) -> Sentinel | None:
        """None: a GPU is shared by whole programs, which the spread shows."""
        return None

    def forget(self, jobs: Sequence[Job]) -> None:
        """Let go of compiled kernels."""
        self._pool.forget()

    @contextmanager
    def held(self) -> Iterator[Callable[[], dict[str, Any]]]:
        """Yields the state of the device, as far as the driver tells it. Workers end with it."""
        with exact_products():
            try:
                yield gpu_state
            finally:
                self._pool.close()


SPARE = 2
"""Processors that are left to this process and to the driver."""


def usual_workers() -> int:
    """Workers where none are asked for."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, own - SPARE)


def slowest_first(graphs: Sequence[Graph]) -> list[Graph]:
    """Whole networks before blocks, long chains before single blocks, large batches before small ones."""
    return sorted(graphs, key=lambda graph: (graph.subject.kind != "network", -graph.copies, -graph.batch))


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
def exact_products() -> Iterator[None]:
    """While it is held, fp32 is computed in 32 bits (no TF32). From then on Triton multiplies and adds in one step,
    without a warning that a later version will not.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32, matmul.allow_tf32 = False, False
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


@contextmanager
def tuned_libraries() -> Iterator[None]:
    """While it is held, cuDNN tries its algorithms and keeps the fastest, with exact products. Only where one process
    has the GPU: beside others the trials are of chance.
    """
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        with exact_products():
            yield
    finally:
        torch.backends.cudnn.benchmark = before


def on_gpu(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module in evaluation mode, on the GPU, its maps in channels-last order."""
    return module.eval().to(device="cuda", dtype=dtype).to(memory_format=torch.channels_last)


def random_image(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A random map on the GPU, [batch, channels, height, width] in channels-last order."""
    image = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))
    return image.to(device="cuda", dtype=dtype, memory_format=torch.channels_last)


class CudaOpener:
    """Opens graphs on the current GPU, in this process or in a worker."""

    def begin(self) -> None:
        """From then on compilers use one thread, and any number of modules of one class can be compiled.

        Raises UsageError without a CUDA device.
        """
        require_cuda()
        torch.set_num_threads(1)
        allow_many_graphs()
        warnings.filterwarnings("ignore", module="torch")  # what cannot be done raises
        self._exact = exact_products()
        self._exact.__enter__()

    def open(self, graph: Graph) -> Replay:
        """Copies of a subject one behind the other, compiled and captured. Raises NoRoomError, and NasError for what
        cannot be built or compiled.
        """
        try:
            return _replay(graph)
        except NasError:
            raise
        except Exception as error:  # the compiler raises what it likes
            what = f"{graph.subject.name} in {graph.precision} at batch {graph.batch}"
            if isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error):
                raise NoRoomError(f"{what} does not fit the memory of this GPU") from error
            raise NasError(f"{what} cannot be compiled: {first_lines(error)}") from error
        finally:
            torch.cuda.empty_cache()

    def forget(self) -> None:
        """Let go of compiled kernels."""
        gc.collect()
        torch.compiler.reset()
        torch.cuda.empty_cache()


def allow_many_graphs() -> None:
    """Every chain is an nn.Sequential, whose one forward is compiled again for each: after 8 of them torch would run
    the others without compiling, and not say so.
    """
    import torch._dynamo

    config: Any = torch._dynamo.config
    config.recompile_limit = config.accumulated_recompile_limit = 1_000_000
    config.fail_on_recompile_limit_hit = True


def compiled(module: nn.Module) -> Any:
    """The module by torch.compile in one piece: what would be left to Python is an error."""
    return torch.compile(module, dynamic=False, fullgraph=True)


def first_lines(error: Exception) -> str:
    """An error of a compiler in one line: it names the part that failed first, then what failed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join([type(error).__name__ + ":", *lines[:2]])


def _replay(graph: Graph) -> Replay:
    dtype = DTYPES[graph.precision]
    modules = []
    for seed in range(graph.copies):
        module, shape = graph.subject.build()
        modules.append(randomize_(module, seed))
    if graph.led:
        modules.insert(0, randomize_(nn.Conv2d(shape[1], shape[1], 1), graph.copies))
    chain = on_gpu(nn.Sequential(*modules), dtype)
    for module in chain.modules():
        if isinstance(getattr(module, "fused_attn", None), bool):
            setattr(module, "fused_attn", True)  # noqa: B010  as timm deploys it; tracing and exporting turn it off
    if graph.precision == "w8a8":
        quantize_(chain)
    return Replay(compiled(chain), random_image((graph.batch, *shape[1:]), dtype))
