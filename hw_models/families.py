"""A cost taken apart by kernel family: the seconds that a calibration scales, and what describes each kernel.

The time of a fused group belongs to one column: to memory when its transfers decide it, else to the family of its
kernel, in the number format it computes in. Launches and the start of a network have columns of their own. The
columns of a network add up to its predicted latency, so that factors of 1 are the cost model itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2

import numpy as np
from numpy.typing import NDArray

from hw_models.estimate import network_overhead_s, streamed_share
from hw_models.group_cost import GroupCost, group_dram_s, group_seconds
from hw_models.kernel import FAMILIES
from hw_models.part_cost import PartCost
from hw_models.target import Target

FORMATS = ("float", "int")

COLUMNS = (*(f"{family}/{kind}" for kind in FORMATS for family in (*FAMILIES, "dram")), "launch", "network")
"""Where time can go."""

LAUNCH, NETWORK = COLUMNS.index("launch"), COLUMNS.index("network")

KERNEL_FEATURES = (
    *FAMILIES,
    "bound by dram",
    "integer",
    "log2 positions or rows",
    "log2 channels",
    "log2 summed",
    "log2 taps",
    "log2 elements",
    "log2 macs per byte",
    "log2 seconds",
    "vector share",
    "dram share",
    "weight bits",
    "activation bits",
)

LIBRARY_FEATURES = (
    "activation",
    "product",
    "conversion",
    "reorder",
    "idle outputs",
    "idle inputs",
    "strided",
    "grouped",
)
"""What decides the time of a library's kernels besides: which pass over memory it is, the share of vectors that
channels leave idle on either side of a convolution, whether it skips positions or has groups. Zeros for all other
targets."""

FEATURES = (*KERNEL_FEATURES, *LIBRARY_FEATURES)
"""What a residual model knows of a kernel, each of the order of 1."""


@dataclass(frozen=True)
class Units:
    """Pieces of time: fused groups, launches, network starts.

    column: [units] index into COLUMNS. seconds: [units] as the cost model has it. features: [units, FEATURES], zeros
    for launches and starts. names: of the kernels, "" for the others.
    """

    column: NDArray[np.intp]
    seconds: NDArray[np.float64]
    features: NDArray[np.float64]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.seconds)

    def by_column(self) -> NDArray[np.float64]:
        """[COLUMNS] seconds."""
        return np.bincount(self.column, self.seconds, len(COLUMNS)).astype(np.float64)


def network_units(parts: Sequence[PartCost], target: Target) -> Units:
    """A whole network from its parts in order of execution; seconds add up to the latency of `combine`."""
    share = streamed_share(sum(part.weight_bytes for part in parts), target)
    host_bytes = (parts[0].input_bytes + parts[-1].output_bytes) if parts else 0
    units = [part_units(part, share) for part in parts]
    return join_units([*units, _plain(NETWORK, network_overhead_s(host_bytes, target))])


def part_units(part: PartCost, share: float) -> Units:
    """A part of a network, a share of whose weights is streamed, launches included."""
    rows = [_unit(group, part.target, share) for group in part.groups]
    kernels = Units(
        np.array([column for column, _, _ in rows], dtype=np.intp),
        np.array([seconds for _, seconds, _ in rows]),
        np.array([features for _, _, features in rows]).reshape(len(rows), len(FEATURES)),
        tuple(group.name for group in part.groups),
    )
    return join_units([kernels, _plain(LAUNCH, sum(group.launch_s for group in part.groups))])


def join_units(pieces: Sequence[Units]) -> Units:
    return Units(
        np.concatenate([piece.column for piece in pieces]),
        np.concatenate([piece.seconds for piece in pieces]),
        np.concatenate([piece.features for piece in pieces]),
        tuple(name for piece in pieces for name in piece.names),
    )


def _plain(column: int, seconds: float) -> Units:
    return Units(np.array([column]), np.array([seconds]), np.zeros((1, len(FEATURES))), ("",))


def _unit(group: GroupCost, target: Target, share: float) -> tuple[int, float, list[float]]:
    """(column, seconds without the launch, features). A partly streamed group counts as what bounds its mixture."""
    compute_s = max(group.matrix_s, group.vector_s, group.onchip_s)
    resident_s, streamed_s = (group_dram_s(group, end, target) for end in (0.0, 1.0))
    ends = [group_seconds(group, end, target) - group.launch_s for end in (0.0, 1.0)]
    seconds = (1 - share) * ends[0] + share * ends[1]
    dram_s = (1 - share) * resident_s + share * streamed_s
    by_dram = dram_s > compute_s
    kind = "int" if group.integer else "float"
    column = COLUMNS.index(f"{'dram' if by_dram else group.family}/{kind}")
    features = _features(group, seconds, dram_s, group.dram_bytes(share), by_dram)
    return column, seconds, features + _library_features(group, target)


def _features(group: GroupCost, seconds: float, dram_s: float, dram_bytes: float, by_dram: bool) -> list[float]:
    m, n, k = group.sizes
    moved = max(group.onchip_bytes + dram_bytes, 1.0)
    least = 1e-9
    return [
        *(float(group.family == family) for family in FAMILIES),
        float(by_dram),
        float(group.integer),
        log2(m) / 8,
        log2(n) / 8,
        log2(k) / 8,
        log2(group.taps) / 4,
        log2(max(group.elements, 1)) / 16,
        log2(1 + group.macs / moved) / 8,
        log2(max(seconds, least) / 1e-5) / 8,
        group.vector_s / max(seconds, group.vector_s, least),
        dram_s / max(seconds, dram_s, least),
        group.weight_bits / 8,
        group.activation_bits / 8,
    ]


def _library_features(group: GroupCost, target: Target) -> list[float]:
    if not target.runtime.own_layout:
        return [0.0] * len(LIBRARY_FEATURES)
    lanes = target.matrix.columns
    groups, _, outputs, summed = group.gemm or (1, 1, lanes, lanes)
    depthwise = group.family == "depthwise"
    channels = groups * outputs if depthwise else outputs
    inputs = lanes if depthwise else max(summed // group.taps, 1)
    return [
        float(group.kind == "activation"),
        float(group.function == "mul"),
        float(group.function in ("quantize", "dequantize")),
        float(group.kind == "transpose"),
        1 - channels / (ceil(channels / lanes) * lanes),
        1 - inputs / (ceil(inputs / lanes) * lanes),
        float(group.stride > 1),
        float(groups > 1 and group.family in ("dense", "pointwise")),
    ]
