"""What kind of kernel a fused group is, told from the op it is named after."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from hw_models.workload import MATRIX_KINDS, Op, Workload

FAMILIES = ("dense", "pointwise", "depthwise", "attention", "norm", "elementwise", "pool", "movement")
"""Families of kernels: convolutions wider than 1x1; 1x1 convolutions and linear layers; one input channel per
group; products of two activations and softmax; normalization; other arithmetic; pooling, means, resizing; copies."""

SUMMING = ("dense", "pointwise", "depthwise", "attention", "norm")
"""Those whose kernels have an extent that is summed (`Kernel.sizes`), softmax among attention's."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """family: of `FAMILIES`. gemm: as in `Op`. taps: of the window, 1 without one.

    sizes: (positions of all groups, or rows of a norm; output channels of a group; what is summed for each), 1 where
    there is no such thing; of a depthwise convolution (positions, channels, taps).
    elements: of the first output. integer: whether it computes in integers. weight_bits: of the widest constant
    operand but accumulators, 0 without one; activation_bits: of the widest operand that is not constant.
    function, stride: as in `Op` and its `Window`, 1 without one.
    """

    family: str
    gemm: tuple[int, int, int, int] | None
    taps: int
    sizes: tuple[int, int, int]
    elements: int
    integer: bool
    weight_bits: int
    activation_bits: int
    function: str
    stride: int


def kernel_of(workload: Workload, op: Op) -> Kernel:
    tensors = workload.tensors
    moving = [tensors[index] for index in (*op.inputs, *op.outputs)]
    stored = [tensors[index].bits for index in op.weights if tensors[index].dtype != "int32"]
    return Kernel(
        family=_family(op),
        gemm=op.gemm,
        taps=prod(op.window.kernel) if op.window is not None else 1,
        sizes=_sizes(op),
        elements=tensors[op.outputs[0]].elements,
        integer=all(tensor.dtype.startswith("int") for tensor in moving),
        weight_bits=max(stored, default=0),
        activation_bits=max(tensor.bits for tensor in moving),
        function=op.function,
        stride=max(op.window.stride) if op.window is not None else 1,
    )


def _sizes(op: Op) -> tuple[int, int, int]:
    if op.gemm is None:
        rows = max(sum(op.reads) // op.extent, 1)
        return (rows, 1, op.extent) if op.kind in ("norm", "softmax") else (1, 1, 1)
    groups, m, n, k = op.gemm
    return (m, groups * n, k) if op.is_depthwise else (groups * m, n, k)


def _family(op: Op) -> str:
    if op.kind in ("matmul", "softmax"):
        return "attention"
    if op.is_depthwise:
        return "depthwise"
    if op.kind in MATRIX_KINDS:
        return "dense" if op.window is not None and prod(op.window.kernel) > 1 else "pointwise"
    if op.kind == "norm":
        return "norm"
    if op.kind in ("pool", "reduce", "resize"):
        return "pool"
    return "movement" if op.kind in ("transpose", "copy", "gather") else "elementwise"
