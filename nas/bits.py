"""The only place that decides how many bits a tensor has: (network, bit policy) -> number formats.

A searched network has one policy per block (`BlockBits`); stem, downsampling and head are always w8a8.
Tensors with the role "accumulator" (products whose range 8 bits do not hold) always have 16-bit activations.
Layers with the role "residual" (a residual is folded into their kernel: one weight of 1 among small ones, 20 dB
at 4 bits) have weights of at least 8 bits.
The quantizer asks `bits_at`, the cost model puts whole workloads through `put_precision`: both follow the
same rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from hw_models.workload import MATRIX_KINDS, Workload
from search_spaces.architecture import Architecture, BlockBits

FIXED_BITS = BlockBits(8, 8)
"""Policy of everything outside the blocks: the first and last layers lose most by fewer bits and cost
least.
"""

ROLES = ("", "accumulator", "residual")
FLOAT_PRECISIONS = ("fp32", "fp16")
PRECISIONS = (*FLOAT_PRECISIONS, "w8a8", "w8a16", "w4a8", "w4a16", "w16a16")
"""Precisions a whole model can be costed at."""


def costed_precision(precision: str) -> str:
    """The precision at which the cost model knows a measured one: bf16 as fp16, all others as they are."""
    return "fp16" if precision == "bf16" else precision


_BLOCK_PATH = re.compile(r"stages\.(\d+)\.blocks\.(\d+)(\.|$)")


def block_bits(path: str, arch: Architecture) -> BlockBits:
    """Policy of the block that the module path (`stages.1.blocks.0.mlp.fc1`) lies in; FIXED_BITS outside the
    blocks.

    Raises ValueError when the path names a block that `arch` does not have.
    """
    match = _BLOCK_PATH.match(path)
    if match is None:
        return FIXED_BITS
    stage, block = int(match[1]), int(match[2])
    if stage >= len(arch.stages) or block >= len(arch.stages[stage].blocks):
        raise ValueError(f"module path {path!r} names a block that the architecture {arch} does not have")
    return arch.stages[stage].blocks[block].bits


def apply_role(role: str, bits: BlockBits) -> BlockBits:
    """The policy of one op of a block: an "accumulator" writes 16-bit activations and a "residual" has weights of
    at least 8 bits, whatever the block's policy is.
    """
    if role not in ROLES:
        raise ValueError(f"unknown tensor role {role!r}; known: {', '.join(repr(known) for known in ROLES)}")
    if role == "residual":
        return BlockBits(max(8, bits.weights), bits.activations)
    return BlockBits(bits.weights, 16) if role == "accumulator" else bits


def bits_at(path: str, role: str, arch: Architecture) -> tuple[int, int]:
    """(weight bits, activation bits) of the module at `path` with tensor role `role`."""
    bits = apply_role(role, block_bits(path, arch))
    return bits.weights, bits.activations


def part_precisions(part_names: list[str], arch: Architecture) -> list[tuple[str, int]]:
    """Per part of a network, in order of execution: (its precision such as "w4a8", bits of the activations it
    reads).
    """
    out, input_bits = [], FIXED_BITS.activations
    for name in part_names:
        bits = block_bits(name, arch)
        out.append((str(bits), input_bits))
        input_bits = bits.activations
    return out


def put_precision(workload: Workload, precision: str, input_bits: int | None = None) -> Workload:
    """The workload with a number format on every tensor.

    precision: "fp32", "fp16" or a bit policy such as "w4a8"; input_bits: bits of the activations that come
    in, where another part wrote them (default: as this part's own).
    Vectors of constants (biases, per-channel scales) have 32 bits in an integer precision: accelerators add
    them to the accumulator. Raises ValueError for an unknown precision.
    """
    if precision in FLOAT_PRECISIONS:
        return workload.with_dtypes(dict.fromkeys(range(len(workload.tensors)), precision))
    try:
        bits = BlockBits.parse(precision)
    except ValueError as error:
        raise ValueError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}") from error
    own = f"int{bits.activations}"
    dtypes = {index: f"int{apply_role(tensor.role, bits).activations}" for index, tensor in enumerate(workload.tensors)}
    dtypes |= dict.fromkeys(workload.inputs, f"int{input_bits}" if input_bits else own)
    return workload.with_dtypes(dtypes | _constant_dtypes(workload, bits))


_MOVES = frozenset({"transpose", "copy", "gather", "pool", "resize"})
_FOLLOWED = frozenset({"activation", "elementwise", "scale"})


def put_formats(workload: Workload, known: Mapping[int, str]) -> Workload:
    """The workload with a number format on every tensor, from those that quantizers give to some of them.

    A value that only goes into pointwise ops, or is only moved (a convolution's before its activation or before a
    concatenation), has the format of what they make of it; one that is moved, or multiplied by a plain number, keeps
    its own; vectors of constants beside quantized weights are added to the accumulator (int32). What no quantizer
    reaches stays in floating point (fp32).
    """
    dtypes = dict(known)
    for op in reversed(workload.ops):
        index = op.outputs[0]
        readers = [workload.ops[position] for position in workload.consumers.get(index, ())]
        if index not in dtypes and readers and index not in workload.outputs:
            made = [dtypes.get(reader.outputs[0]) for reader in readers if reader.kind in _FOLLOWED | _MOVES]
            if len(made) == len(readers) and made[0] is not None and len(set(made)) == 1:
                dtypes[index] = made[0]
    for op in workload.ops:
        moving = [dtypes[index] for index in op.inputs if index in dtypes]
        same_values = op.kind in _MOVES or (op.kind == "scale" and not op.weights)
        if op.outputs[0] not in dtypes and same_values and moving:
            dtypes[op.outputs[0]] = moving[0]
        for index in op.weights:
            if index in dtypes or not dtypes.get(op.outputs[0], "").startswith("int"):
                continue
            vector = sum(size > 1 for size in workload.tensors[index].shape) <= 1
            dtypes[index] = "int32" if vector else dtypes[op.outputs[0]]
    return workload.with_dtypes({index: dtypes.get(index, "fp32") for index in range(len(workload.tensors))})


def _constant_dtypes(workload: Workload, bits: BlockBits) -> dict[int, str]:
    """Matrix operands at the weights' bits, vectors at 32, all other constants (position embeddings) as
    activations.
    """
    dtypes: dict[int, str] = {}
    for op in workload.ops:
        for index in op.weights:
            if sum(size > 1 for size in workload.tensors[index].shape) <= 1 and not _is_matrix_operand(
                op.kind, index, op.weights
            ):
                dtypes[index] = "int32"
            elif op.kind in MATRIX_KINDS:
                dtypes[index] = f"int{apply_role(op.role, bits).weights}"
            else:
                dtypes.setdefault(index, f"int{bits.activations}")
    return dtypes


def _is_matrix_operand(kind: str, index: int, weights: tuple[int, ...]) -> bool:
    return kind == "conv" and index == weights[0]
