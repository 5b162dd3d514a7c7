"""Which rows of its inputs an op needs for some rows of its output: what decides whether ops can run in stripes.

A row is a row of a feature map [batch, channels, height, width], of all images of the batch together; where positions
carry no map it is one token. Tensors whose positions correspond one to one share a row count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import ceil

from hw_models.workload import Op, Workload

Step = tuple[int, int, int, int]
"""(tensor read, tensor made, rows of the window, rows between two windows)."""

POINTWISE = frozenset({"activation", "elementwise", "scale", "norm"})


class RowFlow:
    """The ops of a workload that make a row from a window of rows."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._leader = list(range(len(workload.tensors)))
        self._steps: list[list[Step] | None] = [self._steps_of(op) for op in workload.ops]
        self._rows = self._row_counts()
        for position, op in enumerate(workload.ops):
            if not self._is_known(position) or (op.kind == "norm" and not self._within_positions(op)):
                self._steps[position] = None

    def is_local(self, position: int) -> bool:
        """Whether the op at `position` of the workload makes each row from a window of rows."""
        return self._steps[position] is not None

    def steps(self, positions: Iterable[int]) -> list[Step]:
        """Steps of local ops, in order of execution."""
        return [step for position in sorted(positions) for step in self._steps[position] or ()]

    def rows(self, tensor: int) -> int:
        """Rows of a tensor that a local op reads or makes."""
        return self._rows[self._find(tensor)][0]

    def needed(self, steps: Sequence[Step], outputs: Iterable[int], stripes: int) -> dict[int, int]:
        """Tensor -> rows that must be there so that every tensor of `outputs` grows by its share of a stripe."""
        need = {index: ceil(self.rows(index) / stripes) for index in outputs}
        for read, made, window, stride in reversed(steps):
            if made in need:
                wanted = min(self.rows(read), (need[made] - 1) * stride + window)
                need[read] = max(need.get(read, 0), wanted)
        return need

    def _steps_of(self, op: Op) -> list[Step] | None:
        """None when the op is not local. A small operand that is broadcast makes no step: it is needed whole."""
        made = op.outputs[0]
        shape = self._workload.tensors[made].shape
        if op.kind in ("conv", "pool"):
            return self._window_step(op, made)
        if op.kind == "linear":
            if len(op.inputs) != 1 or op.gemm is None or op.gemm[0] != 1 or op.reads[0] != self._elements(op.inputs[0]):
                return None
            return [self._same(op.inputs[0], made)]
        if op.kind in POINTWISE:
            elements = self._elements(made)
            large = [index for index in op.inputs if self._elements(index) >= elements]
            if not all(self._elements(index) == elements or self._same_map(index, made) for index in large):
                return None
            return [self._same(index, made) for index in large] or None
        if op.function == "concat" and all(self._same_map(index, made) for index in op.inputs):
            return [self._same(index, made) for index in op.inputs]
        if op.function == "pad" and len(shape) == 4 and len(op.inputs) == 1:
            inner = self._workload.tensors[op.inputs[0]].shape
            return [(op.inputs[0], made, 1, 1)] if len(inner) == 4 and inner[2] <= shape[2] else None
        return None

    def _window_step(self, op: Op, made: int) -> list[Step] | None:
        if op.window is None or op.window.transposed or len(op.inputs) != 1:
            return None
        before, after = (self._workload.tensors[index].shape for index in (op.inputs[0], made))
        if len(before) != 4 or len(after) != 4:
            return None
        window, stride = (op.window.kernel[0] - 1) * op.window.dilation[0] + 1, op.window.stride[0]
        if not (before[2] - window) // stride + 1 <= after[2] <= ceil(before[2] / stride):
            return None  # part of the rows, or an axis that is no height
        if window == stride == 1 and before[2:] == after[2:]:
            return [self._same(op.inputs[0], made)]
        return [(op.inputs[0], made, window, stride)]

    def _same(self, read: int, made: int) -> Step:
        """A step between tensors with the same positions."""
        self._leader[self._find(read)] = self._find(made)
        return read, made, 1, 1

    def _find(self, tensor: int) -> int:
        while self._leader[tensor] != tensor:
            tensor = self._leader[tensor]
        return tensor

    def _row_counts(self) -> Mapping[int, tuple[int, int]]:
        """Leader -> (rows, positions) of its tensors; only where all that is known of them agrees."""
        maps: dict[int, set[tuple[int, int]]] = defaultdict(set)
        tokens: dict[int, set[int]] = defaultdict(set)
        for op, steps in zip(self._workload.ops, self._steps, strict=True):
            for index in (*op.inputs, *op.outputs) if steps else ():
                shape = self._workload.tensors[index].shape
                if op.kind in ("conv", "pool"):
                    maps[self._find(index)].add((shape[2], shape[0] * shape[2] * shape[3]))
                elif op.kind == "linear" and op.gemm is not None:
                    tokens[self._find(index)].add(op.gemm[1])
        counts: dict[int, tuple[int, int]] = {}
        for leader in maps.keys() | tokens.keys():
            known = maps[leader] or {(count, count) for count in tokens[leader]}
            if len(known) == 1 and tokens[leader] <= {positions for _, positions in known}:
                counts[leader] = next(iter(known))
        return counts

    def _is_known(self, position: int) -> bool:
        """Whether the rows of all tensors of a local op are known and divide it."""
        steps = self._steps[position]
        if steps is None:
            return False
        for index in {index for step in steps for index in step[:2]}:
            counts = self._rows.get(self._find(index))
            if counts is None or self._elements(index) % counts[1]:
                return False
        return True

    def _within_positions(self, op: Op) -> bool:
        """Whether a norm takes its statistics over the channels of single positions."""
        made = op.outputs[0]
        return op.extent * self._rows[self._find(made)][1] == self._elements(made)

    def _same_map(self, one: int, other: int) -> bool:
        shapes = [self._workload.tensors[index].shape for index in (one, other)]
        return all(len(shape) == 4 for shape in shapes) and (
            (shapes[0][0], *shapes[0][2:]) == (shapes[1][0], *shapes[1][2:])
        )

    def _elements(self, tensor: int) -> int:
        return self._workload.tensors[tensor].elements
