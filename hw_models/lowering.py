"""A network as a library of kernels runs it: what it computes in floating point, and the copies in between.

An accelerator's compiler chooses one number format and one layout for the whole network. A library has integer kernels
for some ops only: the others run on dequantized values, which are quantized again for the next integer kernel. And its
convolutions want maps in a layout of their own (blocks of channels for float, channels last for integers), so that
maps are copied between them and ops that want another. Each of these copies is a pass over memory, and together they
are half of an int8 network's time on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

from hw_models.target import Runtime
from hw_models.workload import MATRIX_KINDS, Op, Tensor, Workload

OWN, LAST, PLAIN = "own", "last", "plain"
"""Layouts of a map: that of the convolutions, channels last, channels first."""

IMAGE_CHANNELS = 4

ALIGNMENT = 4
"""Channels of which a library's blocked kernels want a multiple; the rest of a block is padded."""

_UNARY = frozenset({"activation", "scale"})


def lower(workload: Workload, runtime: Runtime, *, loops: bool = False) -> Workload:
    """The workload with the conversions and reorders that the runtime puts in; itself for one that needs none.

    loops: convolutions leave their bias to a loop, and read a copy of a part of a map (`Overhead.fusion`).
    """
    if loops:
        workload = _around_convolutions(workload)
    if "slice" in runtime.float_ops:
        workload = _with_slices(workload)
    if runtime.float_ops:
        workload = _with_conversions(workload, frozenset(runtime.float_ops), frozenset(runtime.split))
    return _with_reorders(workload, runtime.block_channels) if runtime.own_layout else workload


@dataclass
class _Rewriting:
    """Ops and tensors of the workload to be. now: tensor of the old one -> the tensor that holds it by now."""

    tensors: list[Tensor]
    ops: list[Op] = field(default_factory=list)
    copies: dict[tuple[int, str], int] = field(default_factory=dict)

    def copy(self, index: int, kind: str, function: str, mark: str, dtype: str) -> int:
        """The tensor that holds `index` in another format or layout; copied at its first use."""
        if (index, mark) not in self.copies:
            tensor = self.tensors[index]
            self.tensors.append(replace(tensor, name=f"{tensor.name}.{mark}", dtype=dtype, constant=False))
            made = len(self.tensors) - 1
            name = f"{tensor.name}.{mark}"
            self.ops.append(Op(name, name, kind, (index,), (made,), reads=(tensor.elements,), function=function))
            self.copies[index, mark] = made
        return self.copies[index, mark]

    def slice(self, index: int, elements: int, reader: str) -> int:
        """The tensor that holds the part of `index` that an op reads."""
        name = f"{self.tensors[index].name}.part.{reader}"
        self.tensors.append(replace(self.tensors[index], name=name, shape=_part(self.tensors[index].shape, elements)))
        made = len(self.tensors) - 1
        self.ops.append(Op(name, name, "copy", (index,), (made,), reads=(elements,), function="slice"))
        return made

    def follow(self, op: Op, word: str, function: str, others: tuple[int, ...] = ()) -> None:
        """The last op, which does the work of `op`, leaves the rest of it to arithmetic of its own, which also reads
        `others`.
        """
        made, name = op.outputs[0], f"{op.name}.{word}"
        self.tensors.append(replace(self.tensors[made], name=f"{self.tensors[made].name}.before.{word}"))
        self.ops[-1] = replace(self.ops[-1], outputs=(len(self.tensors) - 1,))
        inputs = (*others, len(self.tensors) - 1)
        reads = tuple(self.tensors[index].elements for index in inputs)
        self.ops.append(Op(name, name, "elementwise", inputs, (made,), reads=reads, function=function))


def _part(shape: tuple[int, ...], elements: int) -> tuple[int, ...]:
    """Of a map some channels; of anything else a row of elements."""
    positions = shape[0] * shape[2] * shape[3] if len(shape) == 4 else 0
    return (shape[0], elements // positions, *shape[2:]) if positions and elements % positions == 0 else (elements,)


def _with_slices(workload: Workload) -> Workload:
    """Ops that read a part of a map read a copy of it. Ops that copy take their part themselves."""
    new = _Rewriting(list(workload.tensors))
    for op in workload.ops:
        inputs = [
            new.slice(index, read, op.name)
            if read < workload.tensors[index].elements and op.kind not in ("transpose", "copy", "gather", "reduce")
            else index
            for index, read in zip(op.inputs, op.reads, strict=True)
        ]
        new.ops.append(replace(op, inputs=tuple(inputs)))
    return replace(workload, tensors=tuple(new.tensors), ops=tuple(new.ops))


def _around_convolutions(workload: Workload) -> Workload:
    """Convolutions read copies of parts of maps, and are followed by the addition of their bias, if they have one. All
    else reads parts where they lie, and the product of a linear layer takes its bias in.
    """
    new = _Rewriting(list(workload.tensors))
    for op in workload.ops:
        if op.kind != "conv":
            new.ops.append(op)
            continue
        inputs = [
            new.slice(index, read, op.name) if read < workload.tensors[index].elements else index
            for index, read in zip(op.inputs, op.reads, strict=True)
        ]
        new.ops.append(replace(op, inputs=tuple(inputs)))
        if any(len(workload.tensors[index].shape) == 1 for index in op.weights):
            new.follow(op, "bias", "bias")
    return replace(workload, tensors=tuple(new.tensors), ops=tuple(new.ops))


def _has_bias_of_many(workload: Workload, op: Op) -> bool:
    """Whether it is a linear layer with a bias on more than one token; a single one's product takes its bias in."""
    if op.kind != "linear" or op.gemm is None or op.gemm[1] == 1:
        return False
    return any(len(workload.tensors[index].shape) == 1 for index in op.weights)


def _with_conversions(workload: Workload, float_ops: frozenset[str], split: frozenset[str]) -> Workload:
    """Ops of `float_ops` that read integers read dequantized values, and what they write is quantized for others. Those
    of `split` are followed by a product with another such copy.
    """
    new = _Rewriting(list(workload.tensors))
    quantized: dict[int, str] = {}
    """Tensors that a float op writes -> the integer format that other ops read."""

    for index in workload.inputs:  # an image comes in floating point
        if _is_image(new.tensors[index]) and _is_integer(new.tensors[index]):
            quantized[index] = new.tensors[index].dtype
            new.tensors[index] = replace(new.tensors[index], dtype="fp32")

    def as_float(index: int, reader: str) -> int:
        if index in quantized or not _is_integer(new.tensors[index]):
            return index
        return new.copy(index, "copy", "dequantize", f"dequantized.{reader}", "fp32")  # every reader has its own

    def as_integer(index: int) -> int:
        return new.copy(index, "copy", "quantize", "quantized", quantized[index]) if index in quantized else index

    for op in workload.ops:
        integer = all(_is_integer(workload.tensors[index]) for index in (*op.inputs, *op.outputs))
        named = {op.kind, op.function, f"{op.kind}.{op.function}"} & float_ops
        # A product of maps is an integer kernel only between integers: a gate that was made in float stays so.
        gated = op.function == "mul" and any(index in quantized for index in op.inputs)
        clips = op.function in ("relu", "relu6", "clamp")  # an integer kernel's output range does it
        in_float = integer and (bool(named) or gated) and not clips
        reader = "slices" if op.function == "slice" else op.name  # one operator splits a map
        inputs = tuple(as_float(index, reader) if in_float else as_integer(index) for index in op.inputs)
        for index in op.outputs if in_float else ():
            quantized[index] = workload.tensors[index].dtype
            new.tensors[index] = replace(new.tensors[index], dtype="fp32")
        gated_by_it = (as_float(op.inputs[0], f"{op.name}.gated"),) if in_float and op.function in split else ()
        new.ops.append(replace(op, inputs=inputs))
        if gated_by_it:
            new.follow(op, "product", "mul", gated_by_it)
        if integer and "linear.bias" in float_ops and _has_bias_of_many(workload, op):
            new.follow(op, "bias", "bias")
    outputs = tuple(as_integer(index) for index in workload.outputs)
    return replace(workload, tensors=tuple(new.tensors), ops=tuple(new.ops), outputs=outputs)


def _is_integer(tensor: Tensor) -> bool:
    return tensor.dtype.startswith("int")


def _with_reorders(workload: Workload, block: int) -> Workload:
    """Maps are copied where an op wants another layout than they have. What comes in is in that of the convolutions.

    block: channels of a block of that layout.
    """
    new = _Rewriting(list(workload.tensors))
    layout = {index: OWN for index in workload.inputs if _is_map(new.tensors[index])}
    integer = any(_is_integer(workload.tensors[op.outputs[0]]) for op in workload.ops if op.kind in MATRIX_KINDS)
    own = LAST if integer else OWN
    layout |= {index: PLAIN for index in layout if _is_image(new.tensors[index])}

    def held(index: int) -> str:
        found = LAST if _is_sequence(new.tensors[index]) else layout.get(index, PLAIN)
        return own if found == OWN else found

    for op in workload.ops:
        # A convolution reads tokens as a map that lies channels last.
        of_map = op.kind == "conv" and len(new.tensors[op.outputs[0]].shape) == 4
        maps = [i for i in op.inputs if _is_map(new.tensors[i]) or (of_map and _is_sequence(new.tensors[i]))]
        in_integers = all(_is_integer(new.tensors[index]) for index in op.inputs)
        reads, writes = _wanted(op, [held(index) for index in maps], own, block, integer=in_integers)
        if maps and not reads and _is_sequence(new.tensors[op.outputs[0]]):
            reads = LAST
        inputs = tuple(
            new.copy(index, "transpose", "reorder", reads, new.tensors[index].dtype)
            if index in maps and reads and held(index) != reads
            else index
            for index in op.inputs
        )
        for index in op.outputs:
            layout[index] = writes
        function = op.function
        if function == "mean" and reads == LAST and _keeps_channels(new.tensors, op):
            function = "mean.last"
        new.ops.append(replace(op, inputs=inputs, function=function))
    return replace(workload, tensors=tuple(new.tensors), ops=tuple(new.ops))


def _wanted(op: Op, held: Sequence[str], own: str, block: int, *, integer: bool) -> tuple[str, str]:
    """(layout in which the op reads its maps, "" for any; layout of what it writes)."""
    if op.kind == "conv":
        if own == LAST or not has_blocked_kernel(op, block):
            return (LAST, LAST) if own == LAST else (PLAIN, PLAIN)
        return (PLAIN if is_read_plain(op, block) else OWN), OWN
    if op.kind == "norm" and op.function == "layer":
        return LAST, LAST
    if op.kind in _UNARY or op.function in ("dequantize", "quantize"):
        return "", held[0] if held else PLAIN
    if op.kind == "pool" and own == LAST and not integer:
        return PLAIN, PLAIN  # the float kernel
    if op.function == "mean" and own == OWN:
        return PLAIN, PLAIN
    if op.kind in ("pool", "reduce") or op.function == "concat":
        return (own, own) if held and all(layout == own for layout in held) else (PLAIN, PLAIN)
    if op.kind == "elementwise":
        blocked = op.function in ("add", "mul") and len(held) == len(op.inputs)  # float kernels broadcast no blocks
        alike = len(set(held)) == 1 and (blocked or own == LAST)
        return ("", held[0]) if alike else (PLAIN, PLAIN)
    if op.kind == "linear":
        return LAST, LAST
    return PLAIN, PLAIN


def has_blocked_kernel(op: Op, block: int) -> bool:
    """Whether a float convolution on a map is computed in blocks of `block` channels.

    Depthwise ones and the input of dense ones must be multiples of `ALIGNMENT`; of other groups each must fill blocks
    on either side (seen in optimized graphs of ONNX Runtime 1.32).
    """
    if op.window is None or op.gemm is None or op.window.transposed:
        return False
    groups, _, outputs, summed = op.gemm
    inputs = summed // prod(op.window.kernel)
    if groups == 1:
        return inputs % ALIGNMENT == 0 or is_read_plain(op, block)
    if inputs == outputs == 1:
        return groups % ALIGNMENT == 0
    return outputs % block == 0 and inputs % block == 0


def is_read_plain(op: Op, block: int) -> bool:
    """Whether a blocked convolution reads its input as it is, an image for one: it has less channels than a block."""
    assert op.window is not None
    assert op.gemm is not None
    return op.gemm[0] == 1 and op.gemm[3] // prod(op.window.kernel) < block


def _keeps_channels(tensors: Sequence[Tensor], op: Op) -> bool:
    """Whether a reduction of a map is over its positions alone."""
    batch, channels = tensors[op.inputs[0]].shape[:2]
    return tensors[op.outputs[0]].elements == batch * channels


def _is_image(tensor: Tensor) -> bool:
    """Whether it is what a camera gives, rather than a map of features."""
    return len(tensor.shape) == 4 and tensor.shape[1] <= IMAGE_CHANNELS


def _is_sequence(tensor: Tensor) -> bool:
    """Whether it is tokens, which a linear layer may leave without a batch."""
    return len(tensor.shape) in (2, 3) and not tensor.constant and min(tensor.shape[-2:]) > 1


def _is_map(tensor: Tensor) -> bool:
    """Whether it has rows and columns; only then has it layouts that differ."""
    return len(tensor.shape) == 4 and not tensor.constant and min(tensor.shape[1:]) > 1
