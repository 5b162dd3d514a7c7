"""Traffic of an array that works in blocks, stream by stream: input, second operands, weights, constants, output.

A stream is what one unit of the device asks of a memory. It gets no more than the bursts it may have in flight over the
latency of the memory (Little's law), however fast the memory is. Maps inside a network lie in bricks and move in whole
bursts; those at its ends lie row by row, where an access finds only a few elements in a row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

from hw_models.blocks import Blocks, blocks_of
from hw_models.fusion import Group
from hw_models.memory import Placement, Traffic, packed_bytes, read_bytes, whole_bursts
from hw_models.target import Memory, Target
from hw_models.workload import MATRIX_KINDS, Op, Tensor, Workload

if TYPE_CHECKING:
    from hw_models.block_fusion import Loop

_ACTIVATIONS = ("dram.input", "dram.operand", "dram.output")
_WEIGHTS = ("dram.weights", "dram.constants")


def block_traffic(
    workload: Workload, group: Group, placement: Placement, target: Target, loop: Loop | None = None
) -> Traffic:
    """As `memory.group_traffic` for a target whose `matrix.accumulator_bytes` is not 0."""
    memory = target.memory
    op = next((op for op in map(workload.ops.__getitem__, group.ops) if op.kind in MATRIX_KINDS), None)
    run = _run_of(workload, group, op)
    blocks = blocks_of(workload, op, target.matrix, memory.run_elements[run]) if op is not None else Blocks(1, 1, 1.0)
    rounds = max(blocks.positions, loop.stripes if loop is not None else 1)
    data, second = _operands(workload, group, op)
    main, before = _Moves(workload, placement, memory, loop), _Moves(workload, placement, memory, loop)
    for index, count in read_bytes(workload, group).items():
        if index == data:
            main.add(index, "input", count * blocks.reread, run)
        elif index != second:
            main.add(index, "operand", count, run if op is None else "vector")
        elif target.vector.cycles_per_element["operand"]:  # an op before this one brings it into the order of weights
            before.add(index, "operand", count, "transpose")
            before.add(index, "output", count)
            main.add(index, "operand", count * rounds)
        else:
            main.add(index, "operand", count * rounds, run)
    for index in group.outputs:
        main.add(index, "output", workload.tensors[index].size_bytes, "output")
    _add_weights(main.bytes, workload, group, op, rounds, target)
    return Traffic(
        dram_activation_bytes=whole_bursts(main.total(_ACTIVATIONS) + before.total(_ACTIVATIONS), memory),
        dram_weight_bytes=whole_bursts(main.total(_WEIGHTS), memory),
        onchip_bytes=main.total(("onchip",)) + before.total(("onchip",)),
        onchip_wait_s=main.slowest(("onchip",)),
        dram_wait_s=(main.slowest(_ACTIVATIONS), main.slowest(("dram",))),
        operand_wait_s=before.slowest(("",)),
    )


class _Moves:
    """Bytes by stream, such as "dram.input"."""

    def __init__(self, workload: Workload, placement: Placement, memory: Memory, loop: Loop | None) -> None:
        self.bytes: dict[str, float] = defaultdict(float)
        self._tensors, self._ends, self._memory = workload.tensors, placement.ends, memory
        self._onchip = placement.onchip | (loop.inside if loop is not None else frozenset())
        self._factor: Mapping[int, float] = loop.factor if loop is not None else {}

    def add(self, index: int, stream: str, count: float, run: str = "") -> None:
        """`count` bytes of a tensor. run: how it is touched if it lies row by row; a key of `Memory.run_elements`."""
        place = "onchip" if index in self._onchip else "dram"
        spread = self._spread(self._tensors[index], run, place) if run and index in self._ends else 1.0
        self.bytes[f"{place}.{stream}"] += count * self._factor.get(index, 1.0) * spread

    def _spread(self, tensor: Tensor, run: str, place: str) -> float:
        """Bytes that bursts move per byte used."""
        elements = self._memory.run_elements[run]
        channels = tensor.shape[1] if len(tensor.shape) == 4 else tensor.shape[-1]
        if channels <= elements:
            return 1.0  # whole rows follow each other
        burst = self._memory.onchip_burst_bytes if place == "onchip" else self._memory.dram_burst_bytes
        return max(1.0, burst / (elements * tensor.bits / 8))

    def total(self, streams: tuple[str, ...]) -> float:
        return sum(count for name, count in self.bytes.items() if name.startswith(streams))

    def slowest(self, streams: tuple[str, ...]) -> float:
        """Time of the stream that takes longest."""
        limits = self._memory.stream_bytes_per_s
        chosen = {name: count for name, count in self.bytes.items() if name in limits and name.startswith(streams)}
        return max((count / limits[name] for name, count in chosen.items()), default=0.0)


def _run_of(workload: Workload, group: Group, op: Op | None) -> str:
    """How the group reads its input: a key of `Memory.run_elements`."""
    if op is None:
        kinds = {workload.ops[position].kind for position in group.ops}
        return "transpose" if "transpose" in kinds else "vector"
    if op.is_depthwise:
        return "depthwise"
    return "window" if op.window is not None and prod(op.window.kernel) > 1 else "matrix"


def _operands(workload: Workload, group: Group, op: Op | None) -> tuple[int | None, int | None]:
    """What the array streams through (the first operand, or what the group pads or scales for it), and the second
    operand of a product of two activations.
    """
    if op is None:
        return None, None
    maker = {index: workload.ops[position] for position in group.folded for index in workload.ops[position].outputs}
    data = op.inputs[0]
    while data in maker:
        data = maker[data].inputs[0]
    return data, op.inputs[1] if op.kind == "matmul" and len(op.inputs) > 1 else None


def _add_weights(
    moved: dict[str, float], workload: Workload, group: Group, op: Op | None, rounds: int, target: Target
) -> None:
    """Weights cross to the chip once when their buffer holds them, else for every block of positions; the constants of
    an output channel (bias, scale) always for every block.
    """
    packed = packed_bytes(workload, group.weights, target.memory)
    stored = sum(workload.tensors[index].size_bytes for index in group.weights)
    if op is None or op.gemm is None:
        moved["dram.weights"] += packed
        return
    if stored <= target.memory.weight_buffer_bytes:
        moved["dram.weights"] += packed
        moved["onchip.weights"] += stored * rounds
    else:
        moved["dram.weights"] += packed * rounds
    if op.kind != "matmul":
        groups, _, n, _ = op.gemm
        moved["dram.constants"] += groups * n * target.matrix.constant_bytes * rounds
