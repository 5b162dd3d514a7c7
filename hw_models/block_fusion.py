"""Block fusion: a chain of groups run depth-first, stripe of rows by stripe, so that what lies between stays on chip.

A searchable execution choice. A chain is a run of consecutive groups of one block; only ops that make a row from a
window of rows may be in it, so attention, global pooling and other reductions break it. Its inputs and outputs stay
where the memory model has put them; between them a tensor exists only as the stripe in work. Windows need rows above
and below their own: a device that keeps them ("rolling": row buffers as in Arm's cascades) pays with memory, one that
does not ("recompute": the pyramid of fused layers of Alwani et al., MICRO 2016, section III) makes them again for every
stripe. The stripe is the highest that fits. A chain is taken when it saves time, or energy at equal time, and moves no
more bytes than its groups one after the other, with resident and with streamed weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from hw_models.fusion import Group
from hw_models.memory import Placement, alive_steps
from hw_models.row_flow import RowFlow
from hw_models.target import Memory
from hw_models.workload import Workload

LONGEST_CHAIN = 16
"""Groups in a chain. Blocks have fewer; a network without blocks (VGG) is searched in linear time."""


@dataclass(frozen=True)
class Loop:
    """A chain as it runs.

    first, last: positions of its groups. stripes: how often each is run; stripe_rows: rows of the last tensor made at
    a time. factor: tensor -> rows read or made over all stripes, per row it has (1: none twice). inside: tensors that
    exist only as stripes. reread: whether weights are read from dram for every stripe, because together they do not
    fit the weight buffer. live_bytes: on-chip activations while it runs.
    """

    first: int
    last: int
    stripes: int
    stripe_rows: int
    factor: Mapping[int, float]
    inside: frozenset[int]
    reread: bool
    live_bytes: int


@dataclass(frozen=True, slots=True)
class Price:
    """What a group costs. Pairs: with resident weights, with streamed weights."""

    seconds: tuple[float, float]
    dram_bytes: tuple[float, float]
    energy_j: float


def block_of(network: str, module: str) -> str:
    """The block a module path lies in: "stages.1.blocks.0" of "stages.1.blocks.0.mlp.fc1".

    It ends at the second number of the path, or the only one; a number at the very end is an element of a plain
    sequence and not counted. Without a number it is the module around the op.
    """
    words = f"{network}.{module}".strip(".").split(".")
    numbers = [position for position, word in enumerate(words[:-1]) if word.isdigit()][:2]
    return ".".join(words[: numbers[-1] + 1] if numbers else words[:-1])


def find_loops(
    workload: Workload,
    groups: Sequence[Group],
    placement: Placement,
    memory: Memory,
    mode: str,
    price: Callable[[int, Loop | None], Price],
) -> list[Loop | None]:
    """For every group the loop it is part of, None when it runs by itself.

    mode: "none", "recompute" or "rolling". price: cost of the group at a position, by itself or in a loop. The cheapest
    division of every block into loops and single groups is found by dynamic programming over its groups.
    """
    loops: list[Loop | None] = [None] * len(groups)
    inner = {index for group in groups for index in group.outputs} - set(workload.outputs)
    if mode == "none" or not memory.spill or inner <= placement.onchip:
        return loops  # nothing between two groups leaves the chip
    search = _Search(workload, groups, placement, memory, mode == "rolling")
    for start, stop in search.runs():
        if stop - start > 1 and search.spills(start, stop - 1):
            for loop in _cheapest(search, start, stop, price):
                loops[loop.first : loop.last + 1] = [loop] * (loop.last + 1 - loop.first)
    return loops


def _cheapest(search: _Search, start: int, stop: int, price: Callable[[int, Loop | None], Price]) -> Iterator[Loop]:
    """Loops of the cheapest division of groups start..stop-1, the last first."""
    alone = {position: price(position, None) for position in range(start, stop)}
    best: dict[int, tuple[float, float]] = {start: (0.0, 0.0)}
    taken: dict[int, Loop | None] = {}
    for end in range(start + 1, stop + 1):
        best[end], taken[end] = _add(best[end - 1], [alone[end - 1]]), None
        for begin in range(max(start, end - LONGEST_CHAIN), end - 1):
            if not search.spills(begin, begin + 1):
                continue  # without its first group the chain saves as much
            loop = search.loop(begin, end)
            if loop is None:
                continue
            fused = [price(position, loop) for position in range(begin, end)]
            if no_worse(fused, [alone[position] for position in range(begin, end)]):
                total = _add(best[begin], fused)
                if total < best[end]:
                    best[end], taken[end] = total, loop
    end = stop
    while end > start:
        chosen = taken[end]
        if chosen is not None:
            yield chosen
        end = chosen.first if chosen is not None else end - 1


def _add(before: tuple[float, float], prices: Sequence[Price]) -> tuple[float, float]:
    """(time, energy): what is minimised, time first."""
    return (
        before[0] + sum(sum(one.seconds) for one in prices),
        before[1] + sum(one.energy_j for one in prices),
    )


def no_worse(fused: Sequence[Price], alone: Sequence[Price]) -> bool:
    """Whether groups that run as a chain take no longer and move no more bytes than one after the other."""
    return all(
        sum(new.seconds[share] for new in fused) <= sum(old.seconds[share] for old in alone)
        and sum(new.dram_bytes[share] for new in fused) <= sum(old.dram_bytes[share] for old in alone)
        for share in (0, 1)
    )


class _Search:
    """Chains of one workload, and how high their stripes can be."""

    def __init__(
        self, workload: Workload, groups: Sequence[Group], placement: Placement, memory: Memory, rolling: bool
    ) -> None:
        self.workload, self.groups, self.placement, self.memory = workload, groups, placement, memory
        self.rolling = rolling
        self.flow = RowFlow(workload)
        self.alive = alive_steps(workload, groups)
        self.size = [tensor.size_bytes for tensor in workload.tensors]
        self.last_use = {index: step for step, group in enumerate(groups) for index in group.inputs}

    def runs(self) -> Iterator[tuple[int, int]]:
        """(first, one past last) of consecutive groups of one block whose ops all work row by row."""
        start, before = 0, None
        for position, group in enumerate(self.groups):
            first = self.workload.ops[group.ops[0]]
            local = all(self.flow.is_local(op) for op in group.ops)
            block = block_of(self.workload.name, first.module) if local else None
            if block is None or block != before:
                if before is not None:
                    yield start, position
                start = position
            before = block
        if before is not None:
            yield start, len(self.groups)

    def spills(self, first: int, stop: int) -> bool:
        """Whether an output of groups first..stop-1 leaves the chip."""
        return any(set(group.outputs) - self.placement.onchip for group in self.groups[first:stop])

    def loop(self, first: int, stop: int) -> Loop | None:
        """The chain first..stop-1 with the highest stripes that fit, or None when no stripe of it does."""
        chain = self.groups[first:stop]
        made = {index for group in chain for index in group.outputs}
        inside = frozenset(
            index for index in made if index not in self.workload.outputs and self.last_use.get(index, stop) < stop
        )
        if not inside - self.placement.onchip:
            return None
        steps = self.flow.steps(position for group in chain for position in group.ops)
        read = {index for group in chain for index in group.inputs} - made
        outputs = made - inside
        if not made <= self.flow.needed(steps, outputs, 1).keys():
            return None  # something made here is needed whole
        weights = {index for group in chain for index in group.weights}
        whole = set().union(*self.alive[first:stop]) & self.placement.onchip - inside
        resting = sum(self.size[index] for index in whole)
        rows = self.flow.rows(steps[-1][1])
        low, high, best = 1, rows, None
        while low <= high:  # the higher the stripe, the more it takes
            height = (low + high) // 2
            need = self.flow.needed(steps, outputs, ceil(rows / height))
            live = resting + self._stripes_bytes(first, stop, need, read, outputs, inside)
            if live <= self.memory.activation_bytes:
                best, low = (height, need, live), height + 1
            else:
                high = height - 1
        if best is None:
            return None
        height, need, live = best
        stripes = ceil(rows / height)
        return Loop(
            first=first,
            last=stop - 1,
            stripes=stripes,
            stripe_rows=ceil(rows / stripes),
            factor={index: self._factor(index, wanted, stripes) for index, wanted in need.items()},
            inside=inside,
            reread=stripes > 1 and sum(self.size[index] for index in weights) > self.memory.weight_buffer_bytes,
            live_bytes=int(live),
        )

    def _factor(self, index: int, wanted: int, stripes: int) -> float:
        """Two neighbouring stripes share the rows by which `wanted` exceeds an even division."""
        if self.rolling:
            return 1.0
        rows = self.flow.rows(index)
        shared = max(0, wanted - ceil(rows / stripes))
        return min(rows + (stripes - 1) * shared, stripes * rows) / rows

    def _stripes_bytes(
        self, first: int, stop: int, need: Mapping[int, int], read: set[int], outputs: set[int], inside: frozenset[int]
    ) -> int:
        """Stripes held at the fullest step; those that come from or go to dram twice, one moves while one is used."""

        def stripe(index: int) -> int:
            return ceil(self.size[index] * need[index] / self.flow.rows(index))

        moving = (read | outputs) - self.placement.onchip
        always = sum(2 * stripe(index) if index in need else self.size[index] for index in moving)
        if self.rolling:  # rows stay for the next stripe, so all buffers exist at the same time
            return always + sum(stripe(index) for index in inside)
        fullest, held = 0, 0
        for step in range(first, stop):
            held += sum(stripe(index) for index in self.groups[step].outputs if index in inside)
            fullest = max(fullest, held)
            held -= sum(
                stripe(index) for index in self.groups[step].inputs if index in inside and self.last_use[index] == step
            )
        return always + fullest


def fused_peak_bytes(workload: Workload, groups: Sequence[Group], loops: Sequence[Loop | None], memory: Memory) -> int:
    """Activations and buffered weights at the fullest step, as `memory.Placement.peak_bytes`, chains as they run."""
    size = [tensor.size_bytes for tensor in workload.tensors]
    peak = 0
    for alive, group, loop in zip(alive_steps(workload, groups), groups, loops, strict=True):
        chain = groups[loop.first : loop.last + 1] if loop is not None else [group]
        weights = sum(size[index] for index in {index for one in chain for index in one.weights})
        held = sum(size[index] for index in alive)
        live = min(held, loop.live_bytes) if loop is not None else held
        peak = max(peak, live + int(min(weights, memory.weight_buffer_bytes)))
    return peak
