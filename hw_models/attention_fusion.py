"""Attention stripe by stripe of queries, so that scores and probabilities never leave the chip.

An execution choice like block fusion (`hw_models.block_fusion`), for what breaks its chains: the product of queries and
keys, softmax, and the product with the values. A stripe is a share of all heads and queries: whole heads as long as
their scores fit, else some queries of one head, whose keys and values stay meanwhile. So every operand is read once
(FlashAttention reads keys and values again for every stripe of queries, since its stripes also cut the keys: Dao et al.
2022, Theorem 2; here a whole row of scores fits). Taken when it is no slower and moves no more bytes than the three
groups one after the other, with resident and with streamed weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hw_models.block_fusion import Loop, Price, no_worse
from hw_models.fusion import POINTWISE_KINDS, Group
from hw_models.memory import Placement, alive_steps
from hw_models.target import Memory
from hw_models.workload import Op, Workload


def attention_loops(
    workload: Workload,
    groups: Sequence[Group],
    placement: Placement,
    memory: Memory,
    price: Callable[[int, Loop | None], Price],
) -> list[Loop | None]:
    """For every group the attention loop it is part of, None when it runs by itself.

    price: cost of the group at a position, by itself or in a loop. Only where scores or probabilities spill.
    """
    loops: list[Loop | None] = [None] * len(groups)
    made = {index for group in groups for index in group.outputs}
    if not memory.spill or made - set(workload.outputs) <= placement.onchip:
        return loops  # nothing between two groups leaves the chip
    alive = alive_steps(workload, groups)
    group_of = {op: position for position, group in enumerate(groups) for op in group.ops}
    for first in range(len(groups)):
        positions = _chain(workload, groups, group_of, first)
        found = _attention(workload, [groups[at] for at in positions])
        if found is None or found.inside <= placement.onchip:
            continue
        resting = set().union(*alive[first : positions[-1] + 1]) & placement.onchip - found.inside
        stripes = _stripes(workload, found, placement, memory, resting)
        if stripes is None:
            continue
        loop = Loop(
            first=first,
            last=positions[-1],
            stripes=stripes,
            stripe_rows=-(-found.heads * found.queries // stripes),
            factor=dict.fromkeys(found.made, 1.0),
            inside=found.inside,
            reread=False,
            live_bytes=int(_live_bytes(workload, found, placement, resting, stripes)),
        )
        if no_worse([price(at, loop) for at in positions], [price(at, None) for at in positions]):
            for at in positions:
                loops[at] = loop
    return loops


def _chain(workload: Workload, groups: Sequence[Group], group_of: dict[int, int], first: int) -> list[int]:
    """Positions of a group, of the only reader of what it makes, and of that one's only reader. What stands between
    them in the order of execution reads neither of the two tensors, so that it may run before.
    """
    chain = [first]
    while len(chain) < 3 and len(groups[chain[-1]].outputs) == 1:
        (made,) = groups[chain[-1]].outputs
        readers = {group_of[op] for op in workload.consumers.get(made, ())}
        if len(readers) != 1 or made in workload.outputs:
            break
        chain.append(readers.pop())
    return chain


@dataclass(frozen=True)
class _Attention:
    """Three groups that are one attention. Indices of tensors: inside: scores and probabilities; whole: keys and
    values; striped: what else is read and the result; made: all that its ops make.
    """

    heads: int
    queries: int
    inside: frozenset[int]
    whole: frozenset[int]
    striped: frozenset[int]
    made: frozenset[int]


def _attention(workload: Workload, chain: Sequence[Group]) -> _Attention | None:
    """Queries x keys, softmax, x values; None for any other chain."""
    if len(chain) != 3:
        return None
    scores, softmax, mixed = ([workload.ops[position] for position in group.ops] for group in chain)
    one, other = _only(scores, "matmul"), _only(mixed, "matmul")
    inside = frozenset({*chain[0].outputs, *chain[1].outputs})
    if one is None or other is None or _only(softmax, "softmax") is None or other.inputs[0] not in inside:
        return None
    assert one.gemm is not None
    whole = frozenset({one.inputs[-1], other.inputs[-1]})
    read = {index for group in chain for index in group.inputs} - inside - whole
    return _Attention(
        heads=one.gemm[0],
        queries=one.gemm[1],
        inside=inside,
        whole=whole,
        striped=frozenset(read | set(chain[2].outputs)),
        made=frozenset(index for op in (*scores, *softmax, *mixed) for index in op.outputs),
    )


def _only(ops: Sequence[Op], kind: str) -> Op | None:
    """The one op of a kind in a group of it and pointwise ops."""
    found = [op for op in ops if op.kind == kind]
    return found[0] if len(found) == 1 and all(op.kind in POINTWISE_KINDS | {kind} for op in ops) else None


def _stripes(
    workload: Workload, found: _Attention, placement: Placement, memory: Memory, resting: set[int]
) -> int | None:
    """The fewest stripes that fit, None when a single query of a head does not."""
    low, high = 1, found.heads * found.queries
    if _live_bytes(workload, found, placement, resting, high) > memory.activation_bytes:
        return None
    while low < high:
        middle = (low + high) // 2
        if _live_bytes(workload, found, placement, resting, middle) <= memory.activation_bytes:
            high = middle
        else:
            low = middle + 1
    return low


def _live_bytes(workload: Workload, found: _Attention, placement: Placement, resting: set[int], stripes: int) -> float:
    """On-chip bytes while a stripe runs. What comes from or goes to dram counts twice: one moves while one is used."""
    size = [tensor.size_bytes for tensor in workload.tensors]
    inside = sum(size[index] for index in found.inside) / stripes
    striped = sum(size[index] for index in found.striped - placement.onchip) / stripes
    whole = sum(size[index] for index in found.whole - placement.onchip) / min(stripes, found.heads)
    return sum(size[index] for index in resting) + inside + 2 * (striped + whole)
