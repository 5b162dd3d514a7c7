"""What a network asks of a device: tensors, the ops that make and read them, and the graph they form.

A workload is traced once without number formats (`Tensor.dtype` is empty) and then given them by the one
function that maps a bit policy (`nas.bits`). Nothing here knows torch, a device or a search space.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

DTYPE_BITS: Mapping[str, int] = {
    "int4": 4,
    "int8": 8,
    "int16": 16,
    "int32": 32,
    "fp16": 16,
    "fp32": 32,
}
"""Number formats and their width in bits."""

OP_KINDS: Mapping[str, str] = {
    "conv": "convolution with trained weights, dense, grouped or depthwise",
    "linear": "matrix product of activations with trained weights",
    "matmul": "matrix product of two activations, batched",
    "softmax": "softmax along one axis",
    "norm": "normalization by statistics of the input itself: LayerNorm, GroupNorm, RMSNorm",
    "scale": "per-channel affine map with constants: BatchNorm at inference, layer scale",
    "activation": "pointwise function of one tensor; `Op.function` names it",
    "elementwise": "pointwise arithmetic of one or two tensors; `Op.function` names it",
    "reduce": "sum, mean or maximum over some axes",
    "pool": "average or maximum over a sliding window",
    "resize": "interpolation to another spatial size",
    "transpose": "copy into another axis order",
    "copy": "copy that keeps the axis order: concatenation, padding, cyclic shift, repetition",
    "gather": "elements picked by index",
}
"""Every kind of op a workload may hold, with its meaning."""

_FUNCTIONS = """
    abs add addcmul avg batchnorm bias clamp clone compare concat cos cumsum dequantize div elu erf exp flip fold gelu
    grid_sample group hardsigmoid hardswish layer leaky_relu lerp log logsumexp max mean min mish mul neg norm pad
    pixel_shuffle pixel_unshuffle pow quantize reciprocal relu relu6 repeat rms roll rsqrt select shuffle sigmoid silu
    sin slice softplus sqrt square sub sum tanh unfold var
"""
FUNCTIONS = frozenset(_FUNCTIONS.split())
"""Every name that `Op.function` may have."""

MATRIX_KINDS = frozenset({"conv", "linear", "matmul"})


class WorkloadError(ValueError):
    """A workload that contradicts itself, or that lacks number formats where they are needed."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value of the graph.

    shape: sizes of the axes; convolutional maps are [batch, channels, height, width], tokens [batch, tokens,
        channels].
    dtype: a key of `DTYPE_BITS`, or "" as long as no bit policy has been put on.
    constant: trained weight or folded constant, known before the first input arrives.
    role: what the network's author calls the value where that decides its bits ("accumulator"), else "".
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = ""
    constant: bool = False
    role: str = ""

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def bits(self) -> int:
        """Width of one element in bits. Raises WorkloadError before a bit policy is put on."""
        try:
            return DTYPE_BITS[self.dtype]
        except KeyError:
            raise WorkloadError(
                f"tensor {self.name!r} has no number format: put a bit policy on the workload first"
            ) from None

    @property
    def size_bytes(self) -> int:
        """Bytes of the packed tensor, rounded up to a whole byte."""
        return -(-self.elements * self.bits // 8)


@dataclass(frozen=True, slots=True)
class Window:
    """Geometry of a convolution or pooling. Pairs are (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Op:
    """One operation.

    name: module path in the network, unique in the workload by a numeric suffix (`blocks.0.attn.matmul_1`).
    module: module path without that suffix.
    kind: a key of `OP_KINDS`; function: which activation, arithmetic, reduction or pooling it is.
    inputs, outputs: indices into `Workload.tensors`; weights: indices of the constant operands.
    reads: elements of each input that are actually read (a slice reads less, a broadcast no more than the
        tensor).
    gemm: (groups, m, n, k) of a matrix op: per group, m output positions, n output channels, reduction length
        k.
    extent: for softmax, norm and reduce, the number of elements reduced together; else 1.
    """

    name: str
    module: str
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    weights: tuple[int, ...] = ()
    reads: tuple[int, ...] = ()
    function: str = ""
    gemm: tuple[int, int, int, int] | None = None
    window: Window | None = None
    extent: int = 1
    role: str = ""

    def __post_init__(self) -> None:
        if self.kind not in OP_KINDS:
            raise WorkloadError(f"op {self.name!r} has the unknown kind {self.kind!r}; known: {', '.join(OP_KINDS)}")
        if (self.kind in MATRIX_KINDS) != (self.gemm is not None):
            raise WorkloadError(f"op {self.name!r} of kind {self.kind!r} must have gemm sizes iff it is a matrix op")
        if len(self.reads) != len(self.inputs):
            raise WorkloadError(
                f"op {self.name!r} must say how much it reads of each input, but got {len(self.reads)} "
                f"read counts for {len(self.inputs)} inputs"
            )

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the matrix kinds; 0 for all others, as torch's flop counter counts."""
        return prod(self.gemm) if self.gemm else 0

    @property
    def is_depthwise(self) -> bool:
        """One input channel per group (the output may have several)."""
        return self.kind == "conv" and self.window is not None and self.window.groups > 1 and self._group_inputs == 1

    @property
    def _group_inputs(self) -> int:
        assert self.gemm is not None
        assert self.window is not None
        return self.gemm[3] // prod(self.window.kernel)


@dataclass(frozen=True)
class Workload:
    """A network, or a part of one, as a graph of ops in execution order.

    inputs, outputs: indices of the tensors that come from and go to outside.
    params: trained parameters of the traced module, shared ones once, buffers not counted.
    folded_macs: work on constants alone (a relative-position MLP), done once when the network is compiled and
        therefore in no op; torch's counter counts it.
    """

    name: str
    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    params: int = 0
    folded_macs: int = 0
    input_shapes: tuple[tuple[int, ...], ...] = field(default=())

    def __post_init__(self) -> None:
        made = set(self.inputs) | {i for i, tensor in enumerate(self.tensors) if tensor.constant}
        for op in self.ops:
            for index in (*op.inputs, *op.weights):
                if index not in made:
                    raise WorkloadError(
                        f"op {op.name!r} of {self.name!r} reads {self.tensors[index].name!r} before it is made"
                    )
            made.update(op.outputs)

    @property
    def macs(self) -> int:
        return sum(op.macs for op in self.ops)

    @cached_property
    def weight_indices(self) -> tuple[int, ...]:
        """Constant tensors that some op reads, each once, in order of first use."""
        seen: dict[int, None] = {}
        for op in self.ops:
            seen.update(dict.fromkeys(op.weights))
        return tuple(seen)

    @property
    def weight_bytes(self) -> int:
        """Stored bytes of all constants, at their bits."""
        return sum(self.sizes_bytes[index] for index in self.weight_indices)

    @cached_property
    def sizes_bytes(self) -> tuple[int, ...]:
        """`Tensor.size_bytes` of every tensor."""
        return tuple(tensor.size_bytes for tensor in self.tensors)

    @cached_property
    def consumers(self) -> Mapping[int, tuple[int, ...]]:
        """Tensor index -> positions of the ops that read it as an input."""
        readers: dict[int, list[int]] = {}
        for position, op in enumerate(self.ops):
            for index in dict.fromkeys(op.inputs):
                readers.setdefault(index, []).append(position)
        return {index: tuple(positions) for index, positions in readers.items()}

    @cached_property
    def producers(self) -> Mapping[int, int]:
        """Tensor index -> position of the op that makes it."""
        return {index: position for position, op in enumerate(self.ops) for index in op.outputs}

    def with_dtypes(self, dtypes: Mapping[int, str]) -> Workload:
        """A copy in which every tensor named in `dtypes` (index -> format) has that number format."""
        unknown = sorted(set(dtypes.values()) - DTYPE_BITS.keys())
        if unknown:
            raise WorkloadError(f"unknown number formats {unknown}; known: {', '.join(DTYPE_BITS)}")
        tensors = tuple(
            Tensor(tensor.name, tensor.shape, dtypes.get(index, tensor.dtype), tensor.constant, tensor.role)
            for index, tensor in enumerate(self.tensors)
        )
        same = copy(self)  # a graph that was checked, with what is known of it
        vars(same).update(tensors=tensors)
        vars(same).pop("sizes_bytes", None)
        return same

    def with_batch(self, count: int) -> Workload:
        """The same network on `count` times as many images.

        Images do not meet in a network at inference, so everything that is not constant grows in proportion: positions
        of convolutions and linear layers, groups of products of two activations, elements of everything else.
        """
        tensors = tuple(
            tensor if tensor.constant or not tensor.shape else replace(tensor, shape=_more(tensor.shape, count))
            for tensor in self.tensors
        )
        ops = tuple(
            replace(op, reads=tuple(count * read for read in op.reads), gemm=_more_products(op, count))
            for op in self.ops
        )
        shapes = tuple(_more(shape, count) for shape in self.input_shapes)
        return replace(self, tensors=tensors, ops=ops, input_shapes=shapes)


def _more(shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    return (count * shape[0], *shape[1:])


def _more_products(op: Op, count: int) -> tuple[int, int, int, int] | None:
    if op.gemm is None:
        return None
    groups, m, n, k = op.gemm
    return (groups * count, m, n, k) if op.kind == "matmul" else (groups, m * count, n, k)
