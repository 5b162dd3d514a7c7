"""What stays on chip, and how many bytes go to and from the memory behind it.

One rule everywhere. A workload falls into segments at the places where a single tensor is alive. A tensor at
such a place stays on chip iff it takes at most `boundary_fraction` of the bytes for activations. Inside a
segment, all tensors up to some size stay: the largest size at which the fullest step still fits. Capacity is
therefore a step, and a bigger memory never moves more bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from hw_models.fusion import Group
from hw_models.target import Memory
from hw_models.workload import MATRIX_KINDS, Workload

if TYPE_CHECKING:
    from hw_models.block_fusion import Loop


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the activations of a workload live while it runs.

    onchip: indices of the tensors kept on chip. ends: of those that are the network's own input and result.
    peak_bytes: activations and buffered weights at the fullest step, were all activations kept on chip: what
        the network asks for, whether the device has it or not.
    """

    onchip: frozenset[int]
    peak_bytes: int
    ends: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes one group moves. dram_weight_bytes go only when the weights are streamed.

    onchip_wait_s: least time of the slowest of the streams that share the memory on chip; dram_wait_s: of those to and
    from dram, with resident and with streamed weights; operand_wait_s: of those that bring the second operand of a
    product into the order of weights before it starts. 0 when no stream has a limit of its own.
    """

    dram_activation_bytes: float
    dram_weight_bytes: float
    onchip_bytes: float
    onchip_wait_s: float = 0.0
    dram_wait_s: tuple[float, float] = (0.0, 0.0)
    operand_wait_s: float = 0.0


def place(
    workload: Workload,
    groups: Sequence[Group],
    memory: Memory,
    ends: tuple[bool, bool] = (True, True),
) -> Placement:
    """Decide for every activation whether it stays on chip.

    ends: whether the workload's inputs, and its outputs, are those of the network. An image comes from, and a result
    goes to, dram whatever its size, unless the memory says otherwise (`ends_onchip`); other inputs and outputs are
    boundary tensors like those between segments.
    """
    size = workload.sizes_bytes
    alive = alive_steps(workload, groups)
    peak = max(
        (
            sum(size[index] for index in step)
            + int(min(sum(size[index] for index in group.weights), memory.weight_buffer_bytes))
            for step, group in zip(alive, groups, strict=True)
        ),
        default=0,
    )
    outer = frozenset(workload.inputs if ends[0] else ()) | frozenset(workload.outputs if ends[1] else ())
    if not memory.spill:
        return Placement(frozenset().union(*alive), peak, outer)
    forced = frozenset() if memory.ends_onchip else outer
    boundary_bytes = memory.boundary_fraction * memory.activation_bytes
    onchip: set[int] = set()
    for start, stop in _segments(workload, groups, alive):
        before = alive[start - 1] & alive[start] if start else set(workload.inputs)
        after = alive[stop - 1] & alive[stop] if stop < len(groups) else set(workload.outputs)
        boundary = before | after
        kept = {index for index in boundary - forced if size[index] <= boundary_bytes}
        steps = [step - forced - (boundary - kept) for step in alive[start:stop]]
        onchip |= kept | _largest_fitting(steps, kept, size, memory.activation_bytes)
    return Placement(frozenset(onchip), peak, outer)


def alive_steps(workload: Workload, groups: Sequence[Group]) -> list[set[int]]:
    """Activations alive while each group runs: its inputs, its outputs, and what later groups still read."""
    last_use = dict.fromkeys(workload.outputs, len(groups))
    for step, group in enumerate(groups):
        for index in group.inputs:
            last_use[index] = max(last_use.get(index, 0), step)
    alive: set[int] = set(workload.inputs) & last_use.keys()
    steps = []
    for step, group in enumerate(groups):
        alive |= set(group.outputs)
        steps.append(set(alive) | set(group.inputs))
        alive = {index for index in alive if last_use.get(index, -1) > step}
    return steps


def _segments(workload: Workload, groups: Sequence[Group], alive: list[set[int]]) -> list[tuple[int, int]]:
    """(first, one past last) group of each segment, cut where a single tensor lives between two groups."""
    cuts = [0]
    for step in range(1, len(groups)):
        if len(alive[step - 1] & alive[step]) == 1:
            cuts.append(step)
    return list(zip(cuts, [*cuts[1:], len(groups)], strict=True)) if groups else []


def _largest_fitting(steps: list[set[int]], kept: set[int], size: Sequence[int], capacity: float) -> set[int]:
    """Inner tensors of at most the largest size at which every step fits beside the kept boundary tensors."""
    inner = {index for step in steps for index in step} - kept
    limit = max((size[index] for index in inner), default=0)
    for step in steps:
        free = capacity - sum(size[index] for index in step & kept)
        for index in sorted(step - kept, key=lambda i: size[i]):
            free -= size[index]
            if free < 0:
                limit = min(limit, size[index] - 1)
                break
    return {index for index in inner if size[index] <= limit}


def group_traffic(
    workload: Workload, group: Group, placement: Placement, memory: Memory, passes: int, loop: Loop | None = None
) -> Traffic:
    """Bytes a group moves. passes: how often the array reads its input from on-chip memory. loop: the block-fused
    chain it runs in.

    When the spilled operand of a matrix op and its weights both exceed their buffers, they are tiled so that
    fewer bytes move: the operand is read once per buffer of weights, or the weights once per buffer of it.
    """
    if loop is not None:
        return _loop_traffic(workload, group, placement, memory, passes, loop)
    size = workload.sizes_bytes
    reads = read_bytes(workload, group)
    operands = {
        index
        for position in group.ops
        if workload.ops[position].kind in MATRIX_KINDS
        for index in workload.ops[position].inputs
    }
    streamed = sum(reads[index] for index in reads if index in operands and index not in placement.onchip)
    once = sum(reads[index] for index in reads if index not in operands and index not in placement.onchip)
    spilled_out = sum(size[index] for index in group.outputs if index not in placement.onchip)
    weights = sum(size[index] for index in group.weights)
    operand_rounds = max(1, ceil(weights / memory.weight_buffer_bytes)) if streamed else 1
    weight_rounds = max(1, ceil(streamed / memory.activation_bytes))
    if streamed * operand_rounds + weights <= streamed + weights * weight_rounds:
        weight_rounds = 1
    else:
        operand_rounds = 1
    written = sum(size[index] for index in group.outputs)
    beyond = whole_bursts(streamed * operand_rounds + once, memory) + whole_bursts(spilled_out, memory)
    inside = sum(reads.values()) * passes + written
    return Traffic(
        dram_activation_bytes=beyond,
        dram_weight_bytes=whole_bursts(packed_bytes(workload, group.weights, memory) * weight_rounds, memory),
        onchip_bytes=inside + weights * weight_rounds,
    )


def _loop_traffic(
    workload: Workload, group: Group, placement: Placement, memory: Memory, passes: int, loop: Loop
) -> Traffic:
    """As `group_traffic` for a group of a chain that runs stripe by stripe; its weights reach the array anew for every
    stripe, from their buffer or, when that is too small, from dram.
    """
    size = {index: workload.tensors[index].size_bytes for index in (*group.outputs, *group.weights)}
    onchip = placement.onchip | loop.inside
    reads = {index: count * loop.factor.get(index, 1.0) for index, count in read_bytes(workload, group).items()}
    made = sum(size[index] * loop.factor[index] for index in group.outputs)
    packed = packed_bytes(workload, group.weights, memory)
    beyond = whole_bursts(sum(count for index, count in reads.items() if index not in onchip), memory) + whole_bursts(
        sum(size[index] for index in group.outputs if index not in onchip), memory
    )
    weights = sum(size[index] for index in group.weights) * loop.stripes
    return Traffic(
        dram_activation_bytes=beyond,
        dram_weight_bytes=whole_bursts(packed * (loop.stripes if loop.reread else 1), memory),
        onchip_bytes=sum(reads.values()) * passes + made + weights,
    )


def packed_bytes(workload: Workload, weights: Sequence[int], memory: Memory) -> float:
    """Bytes of some weights as they cross to the chip."""
    tensors = [workload.tensors[index] for index in weights]
    return sum(tensor.size_bytes * memory.weight_compression.get(tensor.dtype, 1.0) for tensor in tensors)


def read_bytes(workload: Workload, group: Group) -> dict[int, int]:
    """Bytes read of each activation from outside the group; ops of one group share what they read."""
    reads: dict[int, int] = {}
    for position in group.ops:
        op = workload.ops[position]
        for index, elements in zip(op.inputs, op.reads, strict=True):
            if index in group.inputs:
                count = -(-elements * workload.tensors[index].bits // 8)
                reads[index] = max(reads.get(index, 0), count)
    return reads


def whole_bursts(count: float, memory: Memory) -> float:
    """Bytes rounded up to whole bursts."""
    return ceil(count / memory.dram_burst_bytes) * memory.dram_burst_bytes
