"""The efficiency gap of unfused blocks on a GPU, measured: the same block as a chain of kernels and as one.

Three ways to run one block, timed in turns: torch's own kernels one after the other ("eager"), the compiler's
("compiled", torch.compile), both as CUDA graphs, so that neither pays for launches from Python, and one Triton kernel
("fused", `nas.measure.triton_blocks`) in a CUDA graph too. Beside them what the cost model says of the target without
and with block fusion, and the time that its matrix engine would need at its peak.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hw_models import Target, estimate_part
from nas.bits import costed_precision, put_precision
from nas.cost import part_workload
from nas.errors import UsageError
from nas.measure.design import IN_CHANS, NUM_CLASSES, Points, clock_s, costed_units, most_telling, part_pool
from nas.measure.graphs import randomize_
from nas.measure.timing import Timing, summarize, time_in_turns
from nas.measure.triton_blocks import FusedBlock, fused_block, require_triton, tune
from nas.problem import find_target
from nas.progress import Narrator
from nas.subjects import Subject, described_part, part_subject
from nas.units import SECONDS, format_quantity
from search_spaces import load_space
from search_spaces.parts import NetworkPart

MIXERS = ("dwconv", "convfirst", "mbconv", "fused_mbconv", "identity")
"""Token mixers whose blocks have a fused kernel."""

POOL = 300
"""Distinct parts of the space among which is chosen."""

WAYS = ("eager", "compiled", "fused")

TOLERANCES = {"fp32": 1e-4, "fp16": 3e-3, "bf16": 2.5e-2}
"""Precision -> largest difference of the fused kernel from a 32-bit block, relative to the largest value: some six
roundings of fp16 (2^-11) and bf16 (2^-8), several times what was seen (4.0e-4 in fp16 on an H200); many of fp32."""


@dataclass(frozen=True)
class GapRow:
    """One block. Seconds of a whole batch.

    ratio: compiled over fused, median over turns, with its 95 percent interval. model_chain_s, model_fused_s: by the
    cost model without and with block fusion; peak_s: of its matrix engine at full rate. error: largest difference of
    the fused kernel from a 32-bit block, relative to the largest value. tile: how the fused kernel is cut.
    """

    block: str
    what: str
    macs: int
    eager_s: float
    compiled_s: float
    fused_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    model_chain_s: float
    model_fused_s: float
    peak_s: float
    error: float
    tile: str

    @property
    def model_ratio(self) -> float:
        return self.model_chain_s / self.model_fused_s

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"model_ratio": self.model_ratio}


@dataclass(frozen=True)
class Gap:
    """All blocks, and the state of the GPU after them. left_out: block -> why it has no figure."""

    target: str
    precision: str
    batch: int
    rows: tuple[GapRow, ...]
    left_out: dict[str, str]
    state: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"rows": [row.to_dict() for row in self.rows]}


def measure_gap(
    narrator: Narrator,
    *,
    target: str | None = None,
    space: str = "metaformer",
    preset: str = "mobile",
    budget: int = 12,
    precisions: Sequence[str] = ("fp16",),
    batch: int = 64,
    seed: int = 0,
    after: Callable[[Sequence[Gap]], None] | None = None,
) -> list[Gap]:
    """Time `budget` blocks of a space in three ways on the current GPU, in each precision.

    after: called with what there is when a precision is done. Compilers keep what they made on disk: a second run takes
    a second or two a block. Raises UsageError without a CUDA device or Triton and for what does not exist.
    """
    from nas.measure import cuda
    from nas.measure.replay import gpu_state

    if not precisions:
        raise UsageError("name at least one precision")
    if unknown := [precision for precision in precisions if precision not in TOLERANCES]:
        raise UsageError(f"fused kernels compute in {', '.join(TOLERANCES)}, not {unknown[0]!r}")
    if budget < 1 or batch < 1:
        raise UsageError("--budget and --batch must be positive")
    cuda.require_cuda("run `nas measure gap` on a machine with an NVIDIA GPU and torch's CUDA wheel")
    require_triton()
    name = target or cuda.cuda_target()
    described = find_target(name)
    designs = {
        costed: blocks_with_kernel(space, preset, described, budget, costed, seed)
        for costed in dict.fromkeys(map(costed_precision, precisions))
    }
    if not all(designs.values()):
        raise UsageError(f"no block of {space}/{preset} has a fused kernel; see docs/measuring.md for which have")
    gaps = []
    for precision in dict.fromkeys(precisions):
        rows, left_out, rng = [], {}, np.random.default_rng(seed)
        subjects = designs[costed_precision(precision)]
        with cuda.tuned_libraries(), narrator.bar(f"blocks in {precision}") as update:
            for number, subject in enumerate(subjects):
                update(number, len(subjects), subject.name)
                try:
                    rows.append(_one(subject, described, precision, batch, rng))
                except (torch.cuda.OutOfMemoryError, _Left) as error:
                    left_out[subject.name] = str(error).splitlines()[0]
                torch.compiler.reset()
            update(len(subjects), len(subjects), "")
            gaps.append(Gap(described.name, precision, batch, tuple(rows), left_out, gpu_state()))
        if after is not None:
            after(gaps)
    return gaps


class _Left(Exception):
    """A block without a figure: a kernel that cannot be compiled or computes something else, a time that spreads."""


def blocks_with_kernel(space: str, preset: str, target: Target, count: int, precision: str, seed: int) -> list[Subject]:
    """`count` blocks of a space that have a fused kernel, mixers in turns, of each the most different ones first
    (`nas.measure.design`). precision: in which the cost model tells them apart. Raises UsageError.
    """
    try:
        made = load_space(space, preset=preset, mixers=MIXERS)
    except ValueError as error:
        raise UsageError(str(error)) from error
    found: dict[str, list[NetworkPart]] = {mixer: [] for mixer in MIXERS}
    for part in part_pool(made, POOL, seed, NUM_CLASSES, IN_CHANS):
        mixer = str(dict(part.spec[4:]).get("mixer"))
        if mixer not in found:
            continue  # a stem, a head, a downsampling
        try:
            fused_block(part_subject(part).build()[0])
        except UsageError:
            continue  # a norm that does not fold, a gate: there is no kernel for it
        found[mixer].append(part)
    ordered = []
    for parts in found.values():
        points = Points.of([costed_units(part, target, precision) for part in parts], clock_s(target))
        order = most_telling([points], [points.vectors], count)  # each predicted as well as any other
        ordered.append([parts[index] for index, _ in order])
    turns = (part for turn in zip_longest(*ordered) for part in turn if part is not None)
    return [part_subject(part) for part in islice(turns, count)]


def _one(subject: Subject, target: Target, precision: str, batch: int, rng: np.random.Generator) -> GapRow:
    from nas.measure import cuda
    from nas.measure.replay import Replay

    dtype = cuda.DTYPES[precision]
    module, shape = subject.build()
    block = cuda.on_gpu(randomize_(module, 0), dtype)
    image = cuda.random_image((batch, *shape[1:]), dtype)
    fused = fused_block(block)

    def seconds_of(candidate: FusedBlock) -> float:
        return float(np.median(Replay(candidate, image).times_s(20)))

    try:
        tune(fused, seconds_of)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as failure:  # Triton's compiler raises what it likes
        raise _Left(f"its fused kernel: {str(failure) or type(failure).__name__}") from failure
    error = largest_error(fused, block, image)
    if not error <= TOLERANCES[precision]:
        raise _Left(
            f"the fused kernel of {subject.name} is {error:.2g} off its block in {precision}, more than "
            f"{TOLERANCES[precision]:g} of the largest value, and its time means nothing"
        )
    runs: dict[str, Callable[[Tensor], Tensor]] = {
        "eager": block, "compiled": cuda.compiled(block), "fused": fused
    }  # fmt: skip
    try:
        replays = [Replay(runs[way], image) for way in WAYS]
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as failure:  # so does torch's
        raise _Left(str(failure) or type(failure).__name__) from failure
    slices = time_in_turns(replays, rng).seconds
    return gap_row(subject, target, precision, batch, slices, error, str(fused.tile))


def largest_error(fused: nn.Module, block: nn.Module, image: Tensor) -> float:
    """Largest difference of two modules on one input, relative to the largest value, the second in 32-bit floats."""
    from nas.measure.cuda import exact_products

    with torch.no_grad(), exact_products():
        found = fused(image).float()
        dtype = next(block.parameters()).dtype
        expected = block.float()(image.float())
        block.to(dtype)
    return float((found - expected).abs().max() / expected.abs().max())


def gap_row(
    subject: Subject,
    target: Target,
    precision: str,
    batch: int,
    slices: NDArray[np.float64],
    error: float,
    tile: str,
) -> GapRow:
    """The figures of a block from its slices, [WAYS, turns] seconds. Raises _Left for times that cannot be believed."""
    timings: list[Timing] = [summarize(row) for row in slices]
    for way, timing in zip(WAYS, timings, strict=True):
        if timing.noisy:
            share = timing.spread_s / timing.median_s
            raise _Left(f"{way} spreads over {share:.0%} of its median: something else runs on this GPU")
    ratio = summarize(slices[WAYS.index("compiled")] / slices[WAYS.index("fused")])
    part = described_part(subject.description)
    workload = put_precision(part_workload(part, batch), costed_precision(precision))
    chain, fused = (
        estimate_part(workload, replace(target, overhead=replace(target.overhead, block_fusion=mode)), (False, False))
        for mode in ("none", "recompute")
    )
    return GapRow(
        block=subject.name,
        what=described(subject),
        macs=chain.macs,
        eager_s=timings[0].median_s,
        compiled_s=timings[1].median_s,
        fused_s=timings[2].median_s,
        ratio=ratio.median_s,
        ratio_low=ratio.low_s,
        ratio_high=ratio.high_s,
        model_chain_s=chain.latency_s[0],
        model_fused_s=fused.latency_s[0],
        peak_s=sum(group.ideal_s for group in chain.groups),
        error=error,
        tile=tile,
    )


def described(subject: Subject) -> str:
    """A block in words: "dwconv7 x4 gelu, 64 channels at 56"."""
    data = subject.record("any", "fp32", 1.0).described()
    arguments = data["arguments"]
    mixer = f"{arguments['mixer']}{arguments.get('kernel') or ''}"
    return (
        f"{mixer} x{arguments.get('expansion', 1):g} {arguments.get('activation', '')}, {data['channels']} channels at "
        f"{subject.input_size}"
    )


def gap_text(gap: Gap) -> str:
    """A table for a person, then what it comes to."""
    lines = [f"{gap.precision}, batch {gap.batch}, on {gap.state.get('processor', 'this GPU')} as target {gap.target}"]
    head = ("block", "eager", "compiled", "fused", "compiled/fused", "cost model", "of peak")
    lines.append(f"{head[0]:<44} {head[1]:>10} {head[2]:>10} {head[3]:>10} {head[4]:>21} {head[5]:>10} {head[6]:>11}")
    for row in gap.rows:
        eager, compiled, fused = (format_quantity(s, SECONDS) for s in (row.eager_s, row.compiled_s, row.fused_s))
        ratio = f"{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
        peak = f"{row.peak_s / row.compiled_s:.0%} > {row.peak_s / row.fused_s:.0%}"
        lines.append(
            f"{row.what:<44} {eager:>10} {compiled:>10} {fused:>10} {ratio:>21} {row.model_ratio:>10.2f} {peak:>11}"
        )
    for name, reason in gap.left_out.items():
        lines.append(f"{name} left out: {reason}")
    if gap.rows:
        lines.append(_summary(gap.rows))
    return "\n".join(lines)


def _summary(rows: Sequence[GapRow]) -> str:
    middle = float(np.median([row.ratio for row in rows]))
    model = float(np.median([row.model_ratio for row in rows]))
    return (
        f"median of {len(rows)} blocks: fused kernels are {middle:.2f} times as fast as the compiled chain (the cost "
        f"model's block fusion: {model:.2f} times); inputs and weights are in the second-level cache where they fit"
    )
