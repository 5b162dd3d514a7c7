"""An ONNX file as plain data: nodes in order, constants by name or by shape alone, inputs with their sizes.

Weights are not read: what a network costs depends on their shapes and number formats only. Constants small enough to
be sizes, axes or indices are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from nas.trace import TraceError

SMALL_ELEMENTS = 65536
"""Constants of at most that many elements are read: sizes, axes, indices of relative positions."""

FORMATS: Mapping[int, str] = {
    TensorProto.INT4: "int4",
    TensorProto.UINT4: "int4",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
    TensorProto.INT16: "int16",
    TensorProto.UINT16: "int16",
    TensorProto.INT32: "int32",
}
"""ONNX type of quantized values -> number format of the cost model."""

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})


@dataclass(frozen=True)
class Constant:
    """A constant of the file. onnx_type: a `TensorProto` type; value: None where only the shape was read."""

    shape: tuple[int, ...]
    onnx_type: int
    value: NDArray[Any] | None = None

    @property
    def is_float(self) -> bool:
        return self.onnx_type in _FLOATS


@dataclass(frozen=True)
class Node:
    """One operator. Inputs that are left out are ""."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A network as its file describes it. inputs: name -> sizes, an axis without a fixed size as its name.

    missing: files that should hold weights and are not there.
    """

    path: Path
    opset: int
    nodes: tuple[Node, ...]
    constants: Mapping[str, Constant]
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: tuple[str, ...]
    missing: tuple[str, ...] = ()

    @property
    def params(self) -> int:
        """Elements of the trained constants: floats, and integers behind a DequantizeLinear; no scales."""
        scales = {name for node in self.nodes if node.op in QUANTIZERS for name in node.inputs[1:]}
        stored = {node.inputs[0] for node in self.nodes if node.op == "DequantizeLinear"}
        used = {name for node in self.nodes for name in node.inputs} - scales
        return sum(
            prod(constant.shape)
            for name, constant in self.constants.items()
            if name in used and (constant.is_float or name in stored)
        )


QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


def read_onnx(path: Path) -> Graph:
    """The network of an ONNX file, its local functions written out.

    Raises TraceError, one line with the cure, for a file that is not readable, not ONNX, empty, or whose sizes and
    indices lie in another file that is missing. Weights may be missing: they are not read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror or error}; name an ONNX file") from error
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own exception classes differ between its backends
        raise TraceError(f"{path} is not an ONNX file (it does not parse); export it again") from error
    if not model.graph.node or not model.opset_import:
        raise TraceError(f"{path} is not an ONNX file, or holds no network; export it again")
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    graph = model.graph
    constants = {tensor.name: _constant(tensor, path) for tensor in graph.initializer}
    missing = tuple(dict.fromkeys(filter(None, (missing_file(tensor, path) for tensor in graph.initializer))))
    nodes: list[Node] = []
    same: dict[str, str] = {}  # name -> the value it is only another name of
    for position, node in enumerate(graph.node):
        _check_node(node, path)
        attributes = {attribute.name: _attribute(attribute, path) for attribute in node.attribute}
        read = tuple(same.get(name, name) for name in node.input)
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant_node(attributes)
        elif node.op_type == "Identity":
            same[node.output[0]] = read[0]
        else:
            name = node.name.strip("/") or f"{node.op_type}_{position}"
            nodes.append(Node(node.op_type, name, read, tuple(node.output), attributes))
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    inputs = {value.name: _sizes(value, path) for value in graph.input if value.name not in constants}
    outputs = tuple(same.get(value.name, value.name) for value in graph.output)
    return Graph(path, opset, tuple(nodes), constants, inputs, outputs, missing)


def fix_sizes(graph: Graph, input_size: int | None, batch: int | None) -> tuple[tuple[int, ...], ...]:
    """Shape of every input. Only axes that the file leaves open can be chosen.

    input_size: height and width in pixels of the image input; batch: its first axis, 1 where it is open and not given.
    Raises TraceError for other open axes, and for a size that the file fixes otherwise.
    """
    shapes = []
    for position, (name, sizes) in enumerate(graph.inputs.items()):
        fixed = list(sizes)
        chosen = {axis: value for axis, value in _chosen(sizes, input_size, batch).items() if position == 0}
        for axis, size in enumerate(sizes):
            if isinstance(size, str) and axis in chosen:
                fixed[axis] = chosen[axis]
            elif axis in chosen and size != chosen[axis] and (axis > 0 or batch is not None):
                what = "batch" if axis == 0 else "size"
                raise TraceError(
                    f"{graph.path} is exported for the {what} {size} of its input {name!r}, not {chosen[axis]}; "
                    "leave the option out, or export it again"
                )
        if left := [str(size) for size in fixed if isinstance(size, str)]:
            raise TraceError(
                f"{graph.path}: the axes {', '.join(left)} of the input {name!r} have no fixed size; give the size of "
                "the image (--input-size), or export with fixed shapes"
            )
        shapes.append(tuple(int(size) for size in fixed))
    if not shapes:
        raise TraceError(f"{graph.path} has no input: everything in it is constant; export the network itself")
    return tuple(shapes)


def _chosen(sizes: Sequence[int | str], input_size: int | None, batch: int | None) -> dict[int, int]:
    chosen = {0: batch or 1} if sizes else {}
    if input_size is not None and len(sizes) == 4:
        channels_last = isinstance(sizes[3], int) and sizes[3] <= 4
        chosen |= dict.fromkeys((1, 2) if channels_last else (2, 3), input_size)
    return chosen


def _check_node(node: Any, path: Path) -> None:
    if node.domain not in _DOMAINS:
        raise TraceError(
            f"{path} uses the op {node.op_type} of the domain {node.domain!r}, which the cost model does not know; "
            "export the network with standard ONNX ops"
        )


def _attribute(attribute: Any, path: Path) -> Any:
    if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
        return None  # control flow: the op is refused by name when it is reached
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.type == onnx.AttributeProto.TENSOR:
        return _constant(value, path)
    if isinstance(value, bytes):
        return value.decode()
    return value


def _constant(tensor: Any, path: Path) -> Constant:
    shape = tuple(tensor.dims)
    small = prod(shape) <= SMALL_ELEMENTS
    if tensor.data_location == TensorProto.EXTERNAL:
        location = missing_file(tensor, path)
        if location and small and tensor.data_type not in _FLOATS and tensor.data_type not in FORMATS:
            raise TraceError(
                f"{path} keeps sizes or indices ({tensor.name}) in {location}, which is missing; put that file into "
                f"{path.parent}"
            )
        if small and not location:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = TensorProto.DEFAULT
    known = small and tensor.data_location != TensorProto.EXTERNAL
    return Constant(shape, tensor.data_type, onnx.numpy_helper.to_array(tensor) if known else None)


def missing_file(tensor: Any, path: Path) -> str:
    """Name of the file that should hold the values of a constant and is not there, "" if all is well."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return ""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    return "" if (path.parent / location).is_file() else location or "another file"


def _constant_node(attributes: Mapping[str, Any]) -> Constant:
    """The value of a `Constant` node, which has it in one of several attributes."""
    if "value" in attributes:
        return attributes["value"]
    name, value = next(iter(attributes.items()))
    array = np.asarray(value, dtype=np.float32 if "float" in name else np.int64)
    return Constant(array.shape, TensorProto.FLOAT if "float" in name else TensorProto.INT64, array)


def _sizes(value: Any, path: Path) -> tuple[int | str, ...]:
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        raise TraceError(f"{path}: the input {value.name!r} has no shape; export it with fixed shapes")
    axes = value.type.tensor_type.shape.dim
    return tuple(
        axis.dim_value if axis.dim_value > 0 else (axis.dim_param or f"{value.name}[{number}]")
        for number, axis in enumerate(axes)
    )
