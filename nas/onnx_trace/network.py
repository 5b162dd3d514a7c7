"""An ONNX file -> `Workload`: its nodes run on the meta device, under the recorder that traces modules.

So kinds, sizes, layout changes and fusing are those of a traced module. An op that is in none of the tables is unknown,
and tracing says so with its name.
A file without quantizers has no number formats, as every traced network. In a file with QuantizeLinear and
DequantizeLinear pairs (QDQ) the quantizers decide them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from hw_models import Workload
from nas.bits import put_formats
from nas.onnx_trace.call import Call, Handler, Value
from nas.onnx_trace.graph import FORMATS, QUANTIZERS, SMALL_ELEMENTS, Graph, Node, fix_sizes, read_onnx
from nas.onnx_trace.moves import MOVES
from nas.onnx_trace.ops import OPS
from nas.onnx_trace.patterns import put_together
from nas.onnx_trace.pointwise import POINTWISE
from nas.trace import Recorder, TraceError, meta_input, storage_key, tracing

FREE_OPS = frozenset({"Dropout", "Cast", "CastLike", *QUANTIZERS})
"""The same value for the cost model; quantizers decide its number format, and cost what requantizing costs."""

HANDLERS: Mapping[str, Handler] = {**OPS, **POINTWISE, **MOVES}

_SIZES = frozenset({"Shape", "Size"})


def trace_onnx(path: str | Path, input_size: int | None = None, batch: int | None = None) -> Workload:
    """The network of an ONNX file, with number formats exactly when the file has quantizers.

    input_size, batch: for axes that the file leaves open; an open batch is 1 unless given.
    Raises TraceError, one line with the cure: not an ONNX file, open or missing shapes, sizes that the file fixes
    otherwise, weights in a missing file, an op that no table of `nas.onnx_trace` knows (all of them named).
    """
    return trace_with_notes(path, input_size, batch)[0]


def trace_with_notes(
    path: str | Path, input_size: int | None = None, batch: int | None = None
) -> tuple[Workload, tuple[str, ...]]:
    """As `trace_onnx`, with what a reader of the cost should know of the file."""
    graph = put_together(read_onnx(Path(path)))
    shapes = fix_sizes(graph, input_size, batch)
    _check_ops(graph)
    notes = [
        f"{name}, which holds weights of the file, is missing; the cost does not need them" for name in graph.missing
    ]
    return _Network(graph, shapes).workload(), tuple(notes)


def _check_ops(graph: Graph) -> None:
    """Everything unknown at once. Ops on constants alone are computed, whatever they are."""
    constant = set(graph.constants)
    unknown: dict[str, str] = {}
    for node in graph.nodes:
        if node.op in _SIZES or all(name in constant for name in node.inputs if name):
            constant.update(node.outputs)
        elif node.op not in HANDLERS and node.op not in FREE_OPS:
            unknown.setdefault(node.op, node.name)
    if unknown:
        named = ", ".join(f"{op} (at {name})" for op, name in unknown.items())
        raise TraceError(
            f"{graph.path} uses ops that the cost model does not know: {named}; replace them in the network, or add "
            "them to a table of nas/onnx_trace"
        )


class _Network:
    """Values of a graph while its nodes run one after the other."""

    def __init__(self, graph: Graph, shapes: tuple[tuple[int, ...], ...]) -> None:
        self.graph = graph
        self.shapes = shapes
        self.values: dict[str, Value] = {}
        self.formats: list[tuple[torch.Tensor, str]] = []
        self.made: dict[str, torch.Tensor] = {}
        names: dict[int, str] = {}
        for name, constant in graph.constants.items():
            dtype = torch.float32 if constant.is_float or constant.onnx_type in FORMATS else torch.int64
            self.made[name] = torch.empty(constant.shape, dtype=dtype, device="meta")
            names[storage_key(self.made[name])] = name
            self.values[name] = self.made[name] if constant.value is None else constant.value
        self.inputs = [_input(shape) for shape in shapes]
        self.values |= dict(zip(graph.inputs, self.inputs, strict=True))
        self.recorder = Recorder(graph.path.name, self.inputs, names, {node.name for node in graph.nodes})

    def workload(self) -> Workload:
        cure = "try another input size, or let the exporter simplify the network"
        with tracing(self.graph.path.name, self.shapes, cure), self.recorder:
            for node in self.graph.nodes:
                self._run(node)
        results = [self._tensor(name, self.values[name]) for name in self.graph.outputs]
        workload = self.recorder.workload(results, self.shapes, self.graph.params)
        if not any(node.op in QUANTIZERS for node in self.graph.nodes):
            return workload
        return put_formats(workload, {self.recorder.lookup(value): kind for value, kind in self.formats})

    def _run(self, node: Node) -> None:
        arguments = [self.values[name] if name else None for name in node.inputs]
        if node.op in QUANTIZERS:
            self.values[node.outputs[0]] = self._quantized(node)
        elif node.op in _SIZES:
            sizes = np.array(arguments[0].shape, dtype=np.int64)  # type: ignore[union-attr]
            chosen = slice(node.attributes.get("start", 0), node.attributes.get("end"))
            self.values[node.outputs[0]] = sizes[chosen] if node.op == "Shape" else np.array(sizes.prod())
        elif all(value is None or isinstance(value, np.ndarray) for value in arguments):
            self._compute(node)
        elif node.op in FREE_OPS:
            self.values[node.outputs[0]] = arguments[0]  # type: ignore[assignment]
        else:
            self._record(node, tuple(arguments))

    def _record(self, node: Node, arguments: tuple[Value | None, ...]) -> None:
        function = HANDLERS.get(node.op)
        if function is None:
            raise TraceError(
                f"{self.graph.path} uses the op {node.op} at {node.name!r}, which the cost model knows on constants "
                "alone; replace it in the network"
            )
        call = Call(node, arguments, self.graph.opset, self._tensor)
        self.recorder.path.append(node.name)
        try:
            results = function(call)
        finally:
            self.recorder.path.pop()
        outputs = (results,) if isinstance(results, torch.Tensor) else results
        self.values |= {name: value for name, value in zip(node.outputs, outputs, strict=False) if name}

    def _compute(self, node: Node) -> None:
        """Numbers from numbers: sizes, axes, indices."""
        attributes = {
            name: onnx.numpy_helper.from_array(value.value) if hasattr(value, "onnx_type") else value
            for name, value in node.attributes.items()
            if value is not None
        }
        inputs = {name: self.values[name] for name in node.inputs if name}
        proto = onnx.helper.make_node(node.op, node.inputs, node.outputs, **attributes)
        try:
            results = ReferenceEvaluator(proto, opsets={"": self.graph.opset}).run(None, inputs)
        except Exception as error:  # the evaluator raises whatever numpy does
            raise TraceError(
                f"{self.graph.path}: the constant {node.outputs[0]!r} cannot be computed ({node.op}: {error})"
            ) from error
        for name, result in zip(node.outputs, results, strict=False):
            array = np.asarray(result)
            self.values[name] = array if array.size <= SMALL_ELEMENTS else self._tensor(name, array)

    def _quantized(self, node: Node) -> torch.Tensor:
        """The value itself; what it is quantized to is noted."""
        source = node.inputs[0]
        value = self._tensor(source, self.values[source])
        if node.op == "DequantizeLinear" and source in self.graph.constants:
            kind = self.graph.constants[source].onnx_type
        elif node.op == "QuantizeLinear":
            zero = self.graph.constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
            kind = zero.onnx_type if zero else node.attributes.get("output_dtype") or onnx.TensorProto.UINT8
        else:
            return value
        if kind not in FORMATS:
            name = onnx.TensorProto.DataType.Name(kind)
            raise TraceError(
                f"{self.graph.path}: the quantizer {node.name!r} makes {name}, which the cost model does not know; "
                f"known: {', '.join(dict.fromkeys(FORMATS.values()))}"
            )
        self.formats.append((value, FORMATS[kind]))
        return value

    def _tensor(self, name: str, value: Value) -> torch.Tensor:
        """A meta tensor that stands for numbers, the same one each time it is asked for."""
        if isinstance(value, torch.Tensor):
            return value
        if name not in self.made:
            self.made[name] = _stand_in(value)
        return self.made[name]


def _stand_in(value: NDArray[Any]) -> torch.Tensor:
    kind = torch.float32 if value.dtype.kind == "f" else torch.bool if value.dtype.kind == "b" else torch.int64
    return torch.empty(value.shape, dtype=kind, device="meta")


def _input(shape: tuple[int, ...]) -> torch.Tensor:
    """Image-like inputs are kept channels last; a file that asks for [batch, height, width, channels] has it so."""
    channels_last = len(shape) == 4 and shape[3] <= 4 < shape[1]
    return torch.empty(shape, device="meta") if channels_last else meta_input(shape)
