"""Which ops run as one: groups that read their inputs and write their output once.

Two ways (`hw_models.target.Overhead.fusion`). What follows is of "pointwise"; "loops" is `_loops`.

A pointwise op (activation, arithmetic, per-channel scale) joins the group that made its newest input, when
nobody else reads that input. Padding joins the convolution that reads it, and a per-channel scale the 1x1
convolution or linear layer behind it, into whose weights it folds. Groups never cross the boundary of the
workload they are given.
"""

from __future__ import annotations

from dataclasses import dataclass

from hw_models.workload import MATRIX_KINDS, Op, Workload

POINTWISE_KINDS = frozenset({"activation", "elementwise", "scale"})


@dataclass(frozen=True, slots=True)
class Group:
    """Ops that run as one, by their positions in the workload.

    inputs, outputs: indices of the activations read from and left for outside; weights: constants read.
    folded: positions of ops that vanish into the weights of a matrix op of the group.
    """

    ops: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    weights: tuple[int, ...]
    folded: frozenset[int]


ALL = "all"


def fuse(
    workload: Workload, mode: str = "pointwise", joins: tuple[str, ...] = (ALL,), float_joins: tuple[str, ...] = ()
) -> tuple[Group, ...]:
    """Groups in execution order. mode: as `hw_models.target.Overhead.fusion`. joins, float_joins: as in
    `hw_models.target.Runtime`; they count with mode "pointwise" alone.
    """
    if mode not in ("pointwise", "loops", "none"):
        raise ValueError(f"fusion must be 'pointwise', 'loops' or 'none', but got {mode!r}")
    if mode == "loops":
        return _loops(workload)
    members: list[list[int]] = []
    group_of: dict[int, int] = {}
    for position, op in enumerate(workload.ops):
        joined = _joins(workload, op, group_of) if mode == "pointwise" else None
        if joined is not None and ALL not in joins:
            first = workload.ops[members[joined][0]]
            joined = joined if _takes(workload, first, op, (*joins, *_if_float(workload, op, float_joins))) else None
        if joined is None:
            joined = len(members)
            members.append([])
        members[joined].append(position)
        group_of[position] = joined
    # A group runs when its last op can: order by it, so that every input is made before.
    ordered = sorted(members, key=lambda positions: positions[-1])
    return tuple(_group(workload, positions) for positions in ordered)


_WINDOWED = frozenset({"pool", "resize"})
"""Ops that read an element many times: what made it is written first, not computed anew for each."""


def _loops(workload: Workload) -> tuple[Group, ...]:
    """Every matrix op by itself. Any other op joins the loop that made its newest input when it runs over as many
    elements as that loop, or over what that loop has summed up, and all else that it reads is there before the loop
    begins: as torch.compile's scheduler joins pointwise ops and reductions (seen in the names of its kernels,
    studies/results/h200_kernels.md).
    """
    members: list[list[int]] = []
    sizes: list[frozenset[int]] = []
    group_of: dict[int, int] = {}
    for position, op in enumerate(workload.ops):
        own = _loop_sizes(workload, op)
        made = [workload.producers[index] for index in op.inputs if index in workload.producers]
        joined = group_of[max(made)] if made and own and op.kind not in _WINDOWED else None
        if joined is not None:
            first = members[joined][0]
            is_ready = all(before < first or group_of[before] == joined for before in made)
            joined = joined if is_ready and max(own) in sizes[joined] else None
        if joined is None:
            joined = len(members)
            members.append([])
            sizes.append(frozenset())
        members[joined].append(position)
        sizes[joined] |= own
        group_of[position] = joined
    return tuple(_group(workload, positions) for positions in members)  # each can run where its first op stands


def _loop_sizes(workload: Workload, op: Op) -> frozenset[int]:
    """Elements over which a loop runs, and those that it writes; none of a matrix op."""
    if op.kind in MATRIX_KINDS:
        return frozenset()
    written = max(workload.tensors[index].elements for index in op.outputs)
    return frozenset({written, max([written, *op.reads])})


def _joins(workload: Workload, op: Op, group_of: dict[int, int]) -> int | None:
    """Number of the group that `op` joins, None when it starts one."""
    made = [(workload.producers[index], index) for index in op.inputs if index in workload.producers]
    if not made:
        return None
    newest, index = max(made)
    if len(workload.consumers[index]) > 1 or index in workload.outputs:
        return None
    before = workload.ops[newest]
    if op.kind in POINTWISE_KINDS and _same_size(workload, op, index):
        return group_of[newest]
    takes_padding = op.kind in ("conv", "pool") and before.function == "pad"
    if takes_padding or (before.kind == "scale" and _folds_forward(op)):
        starts_group = [p for p, number in group_of.items() if number == group_of[newest]] == [newest]
        return group_of[newest] if starts_group else None
    return None


def _if_float(workload: Workload, op: Op, names: tuple[str, ...]) -> tuple[str, ...]:
    return () if workload.tensors[op.outputs[0]].dtype.startswith("int") else names


def _takes(workload: Workload, first: Op, op: Op, names: tuple[str, ...]) -> bool:
    """Whether the kernel of a group's first op takes in an op of a runtime that fuses only what is named."""
    if op.kind not in POINTWISE_KINDS:
        return True  # a convolution that takes padding
    named = {op.kind, op.function, f"{op.kind}.{op.function}"} & set(names)
    return bool(named) and (first.kind in MATRIX_KINDS or first.function == "pad")


def _same_size(workload: Workload, op: Op, index: int) -> bool:
    """Broadcasting a small gate over a map is not the end of the op that made the gate."""
    return workload.tensors[index].elements == workload.tensors[op.outputs[0]].elements


def _folds_forward(op: Op) -> bool:
    pointwise = op.kind == "conv" and op.window is not None and op.window.kernel == (1, 1) and op.window.groups == 1
    return op.kind == "linear" or pointwise


def _group(workload: Workload, positions: list[int]) -> Group:
    inside = set(positions)
    ops = [workload.ops[position] for position in positions]
    made = {index for op in ops for index in op.outputs}
    inputs = dict.fromkeys(index for op in ops for index in op.inputs if index not in made)
    outputs = [
        index
        for op in ops
        for index in op.outputs
        if index in workload.outputs or not set(workload.consumers.get(index, (-1,))) <= inside
    ]
    weights = dict.fromkeys(index for op in ops for index in op.weights)
    return Group(
        tuple(positions),
        tuple(inputs),
        tuple(outputs),
        tuple(weights),
        frozenset(_folded(workload, positions)),
    )


def _folded(workload: Workload, positions: list[int]) -> list[int]:
    """Scales next to a matrix op of the group, with only other scales between: they go into its weights."""
    folded = []
    matrix = [position for position in positions if workload.ops[position].kind in MATRIX_KINDS - {"matmul"}]
    if not matrix:
        return []
    for position in positions:
        op = workload.ops[position]
        if position < matrix[0]:
            folded.append(position)  # padding, or a scale that folds forward
        elif position > matrix[0]:
            if op.kind != "scale":
                break
            folded.append(position)
    return folded
