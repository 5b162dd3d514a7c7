"""What a device cannot do: values that say what was asked, the bound, and the gap. Never exceptions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from hw_models.npu import matrix_precision
from hw_models.target import Target
from hw_models.workload import MATRIX_KINDS, Op, Workload


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
        return f"{self.what}: {self.value:g} {self.unit}, but the device allows {self.bound:g}"


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
    for word in (op.kind, op.function):
        if word and word in legality.unsupported:
            yield Infeasible(f"{word} is not supported at {op.name}", 1, 0, "uses")
    if op.kind in MATRIX_KINDS:
        precision = matrix_precision(workload, op)
        if precision not in target.matrix.rates:
            known = ", ".join(target.matrix.rates)
            yield Infeasible(f"precision {precision} is not among {known} at {op.name}", 1, 0, "uses")
    if op.window is None:
        return
    if op.kind == "conv" and op.window.kernel == op.window.stride:
        return  # patches do not overlap: a linear layer on rearranged pixels
    side = max(op.window.kernel)
    if side > legality.max_kernel:
        yield Infeasible(f"kernel of {op.kind} at {op.name}", side, legality.max_kernel, "pixels")
    if max(op.window.stride) > legality.max_stride:
        yield Infeasible(f"stride of {op.kind} at {op.name}", max(op.window.stride), legality.max_stride, "pixels")
    if max(op.window.dilation) > legality.max_dilation:
        yield Infeasible(f"dilation at {op.name}", max(op.window.dilation), legality.max_dilation, "pixels")
    if op.kind == "conv" and op.window.groups > 1:
        yield from _group_violations(op, target)


def _group_violations(op: Op, target: Target) -> Iterator[Infeasible]:
    assert op.window is not None
    assert op.gemm is not None
    allowed = target.legality.depthwise_kernels
    if op.is_depthwise:
        for side in sorted(set(op.window.kernel) - {1}):
            if allowed and side not in allowed:
                bound = max((known for known in allowed if known <= side), default=0)
                yield Infeasible(f"depthwise kernel at {op.name}", side, bound, "pixels")
    elif target.legality.groups == "depthwise":
        channels = op.gemm[3] // prod(op.window.kernel)
        yield Infeasible(f"channels per group at {op.name}", channels, 1, "channels")
