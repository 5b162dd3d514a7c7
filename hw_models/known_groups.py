"""Groups that were costed before: the same ops on tensors of the same shapes and formats, wherever they stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from hw_models.fusion import Group
from hw_models.group_cost import GroupCost
from hw_models.memory import Placement
from hw_models.target import Target
from hw_models.workload import Op, Workload


class GroupKind:
    """All that decides what a group costs by itself, but for formats and placement.

    touched: indices of the group's tensors, each once; ends: of the activations it reads from and leaves for outside;
    number: equal for groups whose ops and shapes are.
    """

    __slots__ = ("ends", "number", "touched")

    def __init__(self, workload: Workload, group: Group, numbers: dict[tuple[object, ...], int]) -> None:
        ops = [workload.ops[position] for position in group.ops]
        touched = dict.fromkeys(index for op in ops for index in (*op.inputs, *op.outputs, *op.weights))
        local = {index: number for number, index in enumerate(touched)}

        def sides(part: Op | Group) -> Iterator[tuple[int, ...]]:
            return (tuple(local[index] for index in side) for side in (part.inputs, part.outputs, part.weights))

        self.touched = tuple(touched)
        self.ends = (*group.inputs, *group.outputs)
        kind = (
            *((op.name, op.kind, op.function, op.gemm, op.window, op.extent, op.reads, *sides(op)) for op in ops),
            *sides(group),
            tuple(group.ops.index(position) for position in sorted(group.folded)),
            tuple(workload.tensors[index].shape for index in touched),
        )
        self.number = numbers.setdefault(kind, len(numbers))


class KnownGroups:
    """Costs of groups by themselves on one target, each worked out once."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._numbers: dict[tuple[object, ...], int] = {}
        self._costs: dict[tuple[object, ...], GroupCost] = {}

    def kinds(self, workload: Workload, groups: Sequence[Group]) -> list[GroupKind]:
        """Of every group, in order."""
        return [GroupKind(workload, group, self._numbers) for group in groups]

    def cost(
        self, kind: GroupKind, workload: Workload, placement: Placement, make: Callable[[], GroupCost]
    ) -> GroupCost:
        """What `make` returned for such a group before; `make` is called for one that is new.

        workload, placement: with formats, of the group's workload.
        """
        key = (
            kind.number,
            *[workload.tensors[index].dtype for index in kind.touched],
            *[(index in placement.onchip) + 2 * (index in placement.ends) for index in kind.ends],
        )
        if key not in self._costs:
            self._costs[key] = make()
        return self._costs[key]
