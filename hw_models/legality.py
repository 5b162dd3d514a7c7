"""What a device cannot do: values that say what was asked, the bound, and the gap. Never exceptions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from hw_models.npu import matrix_precision
from hw_models.target import Legality, Target
from hw_models.workload import MATRIX_KINDS, Op, Window, Workload


@dataclass(frozen=True, slots=True)
class Infeasible:
    """A demand that exceeds a bound of the device.

    what: the demand in words, with the first op that makes it; value, bound: in `unit`; excess: how far
    beyond, > 0. A thing that is simply not there (an op, a precision) has value 1, bound 0, unit "uses".
    """

    what: str
    value: float
    bound: float
    unit: str

    @property
    def excess(self) -> float:
        return self.value - self.bound

    def to_dict(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "value": self.value,
            "bound": self.bound,
            "unit": self.unit,
            "excess": self.excess,
        }

    def __str__(self) -> str:
        if self.unit == "uses":
            return self.what
        if self.unit == "bytes" and self.bound >= 1e6:
            return f"{self.what}: {self.value / 1e6:.4g} MB, but the device allows {self.bound / 1e6:.4g}"
        return f"{self.what}: {self.value:.4g} {self.unit}, but the device allows {self.bound:.4g}"

    @property
    def cure(self) -> str:
        """What to change, in words."""
        return next((cure for demand, cure in _CURES.items() if self.what.startswith(demand)), _OTHER_CURE)


_CURES = {
    "memory behind the chip": "take a smaller network or input, or fewer bits",
    "peak on-chip memory": "take a smaller input or fewer bits: nothing can be spilled",
    "precision": "take one that the device has",
}
_OTHER_CURE = "take a network without it, or another target"


def illegal_ops(workload: Workload, target: Target) -> list[Infeasible]:
    """What the device cannot run, each kind of demand once, at the op where it is worst."""
    return worst_of(violation for op in workload.ops for violation in _op_violations(workload, op, target))


def worst_of(violations: Iterable[Infeasible]) -> list[Infeasible]:
    """One violation per demand (the words before " at "), the one with the greatest excess."""
    worst: dict[str, Infeasible] = {}
    for violation in violations:
        demand = violation.what.partition(" at ")[0]
        if demand not in worst or violation.excess > worst[demand].excess:
            worst[demand] = violation
    return list(worst.values())


def memory_violations(
    target: Target, peak_onchip_bytes: float, weight_bytes: float, activation_bytes: float
) -> list[Infeasible]:
    """Capacity of the whole network: on chip where activations cannot spill, and behind the chip."""
    out = []
    memory = target.memory
    if not memory.spill and peak_onchip_bytes > memory.onchip_bytes:
        out.append(Infeasible("peak on-chip memory", peak_onchip_bytes, memory.onchip_bytes, "bytes"))
    behind = weight_bytes + (activation_bytes if memory.spill else 0)
    capacity = memory.dram_bytes + memory.resident_weight_bytes
    if behind > capacity:
        out.append(Infeasible("memory behind the chip", behind, capacity, "bytes"))
    return out


def _op_violations(workload: Workload, op: Op, target: Target) -> Iterator[Infeasible]:
    legality = target.legality
    for word in (op.kind, op.function, f"{op.kind}.{op.function}"):
        if word and word in legality.unsupported:
            yield Infeasible(f"{word} is not supported at {op.name}", 1, 0, "uses")
    if op.kind in MATRIX_KINDS:
        precision = matrix_precision(workload, op, target.matrix.rates)
        if precision not in target.matrix.rates:
            known = ", ".join(target.matrix.rates)
            yield Infeasible(f"precision {precision} is not among {known} at {op.name}", 1, 0, "uses")
    if op.kind in ("softmax", "norm", "reduce"):
        yield from _at_most(f"elements that {op.kind} combines", op, op.extent, legality.max_extent, "elements")
    if op.function == "concat":
        yield from _concat_violations(workload, op, legality.concat_alignment)
    if op.window is None:
        return
    if op.kind == "pool":
        yield from _at_most("pooling window", op, max(op.window.kernel), legality.max_pool_kernel, "pixels")
    elif op.window.groups > 1 or op.window.kernel != op.window.stride:
        # Dense patches that do not overlap are a linear layer on rearranged pixels, and have no window to speak of.
        yield from _window_violations(op, op.window, legality)


def _at_most(what: str, op: Op, value: float, bound: float, unit: str) -> Iterator[Infeasible]:
    if value > bound:
        yield Infeasible(f"{what} at {op.name}", value, bound, unit)


def _window_violations(op: Op, window: Window, legality: Legality) -> Iterator[Infeasible]:
    side, stride, dilation = max(window.kernel), max(window.stride), max(window.dilation)
    yield from _at_most("kernel of convolution", op, side, legality.max_kernel, "pixels")
    yield from _at_most("stride of convolution", op, stride, legality.max_stride, "pixels")
    yield from _at_most("dilation", op, dilation, legality.max_dilation, "pixels")
    if stride > 1:
        yield from _at_most("kernel of strided convolution", op, side, legality.max_strided_kernel, "pixels")
        if dilation > 1 and not legality.strided_dilation:
            yield Infeasible(f"stride and dilation together are not supported at {op.name}", 1, 0, "uses")
    if window.groups == 1:
        yield from _sides_violations("dense kernel", op, window, legality.conv_kernels)
    elif op.is_depthwise:
        yield from _sides_violations("depthwise kernel", op, window, legality.depthwise_kernels)
    else:
        yield from _group_violations(op, window, legality)


def _sides_violations(what: str, op: Op, window: Window, allowed: tuple[int, ...]) -> Iterator[Infeasible]:
    for side in sorted(set(window.kernel) - {1}):
        if allowed and side not in allowed:
            bound = max((known for known in allowed if known <= side), default=0)
            yield Infeasible(f"{what} at {op.name}", side, bound, "pixels")


def _group_violations(op: Op, window: Window, legality: Legality) -> Iterator[Infeasible]:
    assert op.gemm is not None
    if legality.groups == "depthwise":
        channels = op.gemm[3] // prod(window.kernel)
        yield Infeasible(f"channels per group at {op.name}", channels, 1, "channels")
    yield from _at_most("groups of convolution", op, window.groups, legality.max_groups, "groups")


def _concat_violations(workload: Workload, op: Op, alignment: int) -> Iterator[Infeasible]:
    """Channels are the second of four axes, else the last (see `Tensor`)."""
    out = workload.tensors[op.outputs[0]].shape
    axis = 1 if len(out) == 4 else len(out) - 1
    for index in (*op.inputs, *op.weights):
        shape = workload.tensors[index].shape
        along = len(shape) == len(out) and shape[axis] != out[axis]
        if along and shape[axis] % alignment:
            multiple = shape[axis] // alignment * alignment
            yield Infeasible(f"channels of a concatenated tensor at {op.name}", shape[axis], multiple, "channels")
