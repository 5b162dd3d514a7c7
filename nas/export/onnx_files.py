"""ONNX files: the float network, and the quantized one as QuantizeLinear and DequantizeLinear pairs (QDQ).

The QDQ file holds integer weights and biases and the very scales of the fake-quantized network; its operators
do what that network does, in the same order.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.quantize import QuantizedNetwork
from nas.quantize.grid import ActivationGrid, LayerGrid, Quantizer

OPSET = 21
"""The first with 4-bit weights and 16-bit activations in QuantizeLinear and DequantizeLinear."""

INPUT_NAME, OUTPUT_NAME = "images", "logits"

_BITS = "nas.bits"
"""Under this key a node carries the bits of its constants through the exporter."""


def write_float_onnx(path: Path, folded: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Export `folded` for inputs of `input_shape` [batch, channels, height, width], which the file fixes."""
    onnx.save(export_graph(folded, input_shape), str(path))


def write_qdq_onnx(path: Path, quantized: QuantizedNetwork, input_shape: tuple[int, ...]) -> None:
    """Export `quantized` for inputs of `input_shape`: weights of 4 or 8 bits, biases of 32, activations of 8 or 16."""
    onnx.save(export_graph(integer_form(quantized), input_shape), str(path))


def integer_form(quantized: QuantizedNetwork) -> nn.Module:
    """`quantized` with pairs of ONNX operators for its quantizers and with integer weights: for `export_graph` only."""
    body = copy.deepcopy(quantized.body)
    for name, module in list(body.named_modules()):
        if isinstance(module, Quantizer):
            body.set_submodule(name, _QuantizeDequantize(module.grid))
    for path_in_network, grid in quantized.layer_grids.items():
        layer: Any = body.get_submodule(path_in_network)
        body.set_submodule(path_in_network, _IntegerLayer(layer, grid))
    return body


def export_graph(module: nn.Module, input_shape: tuple[int, ...]) -> onnx.ModelProto:
    """One static ONNX graph of `module` for one input of `input_shape`, checked, without notes of this machine."""
    example = torch.zeros(input_shape)
    with torch.no_grad(), _quiet():
        _read_operators_once()
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],  # further outputs get names of their own
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _pack_four_bits(model)
    _part_constants(model)
    _remove_notes(model)
    onnx.checker.check_model(model)
    return model


class _QuantizeDequantize(nn.Module):
    """A quantizer as the pair of ONNX operators that it is."""

    scale: Tensor
    zero: Tensor

    def __init__(self, grid: ActivationGrid) -> None:
        super().__init__()
        self.dtype = torch.uint8 if grid.bits == 8 else torch.int16
        self.register_buffer("scale", torch.tensor(grid.scale))
        self.register_buffer("zero", torch.tensor(grid.zero_point, dtype=self.dtype))

    def forward(self, x: Tensor) -> Tensor:
        codes = _operator("QuantizeLinear", (x, self.scale, self.zero), self.dtype, x.shape)
        return _operator("DequantizeLinear", (codes, self.scale, self.zero), torch.float32, x.shape)


class _IntegerLayer(nn.Module):
    """A convolution or linear layer whose weight and bias are integers behind a DequantizeLinear.

    The bias must be one too: from a float bias ONNX Runtime 1.31 makes its own, with an error as large as all
    the rest of quantization (24 dB against 40 dB of signal to noise on a network with every mixer).
    """

    codes: Tensor
    weight_scale: Tensor
    weight_zero: Tensor
    bias_codes: Tensor
    bias_scale: Tensor
    bias_zero: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear, grid: LayerGrid) -> None:
        super().__init__()
        assert layer.bias is not None
        self.layer, self.bits = layer, grid.bits
        codes, bias_codes = grid.codes(layer.weight), grid.bias_codes(layer.bias)
        self.register_buffer("codes", codes)
        self.register_buffer("weight_scale", grid.scale.clone())
        self.register_buffer("weight_zero", torch.zeros_like(grid.scale, dtype=codes.dtype))
        self.register_buffer("bias_codes", bias_codes)
        self.register_buffer("bias_scale", grid.bias_scale)
        self.register_buffer("bias_zero", torch.zeros_like(bias_codes))

    def forward(self, x: Tensor) -> Tensor:
        weight = _dequantized(self.codes, self.weight_scale, self.weight_zero, self.bits)
        bias = _dequantized(self.bias_codes, self.bias_scale, self.bias_zero, 32)
        layer: Any = self.layer
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        return F.linear(x, weight, bias)


def _operator(kind: str, inputs: tuple[Tensor, ...], dtype: torch.dtype, shape: torch.Size, **more: Any) -> Tensor:
    return torch.onnx.ops.symbolic(kind, inputs, dtype=dtype, shape=shape, version=OPSET, **more)


def _dequantized(codes: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Constants with one scale per output channel."""
    marks: dict[str, Any] = {"attrs": {"axis": 0}, "metadata_props": {_BITS: str(bits)}}
    return _operator("DequantizeLinear", (codes, scale, zero), torch.float32, codes.shape, **marks)


@cache
def _read_operators_once() -> None:
    """Keep onnxscript's list of operators: torch 2.15 asks for it at every export, and onnxscript 0.7 parses the source
    of 500 functions to make it, which takes half the time of a small graph.
    """
    try:
        from torch.onnx._internal._lazy_import import onnxscript_apis as apis

        apis.get_torchlib_ops = cache(apis.get_torchlib_ops)
    except (ImportError, AttributeError):
        pass  # another torch, which may do it otherwise


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints and warns about its own parts; what can go wrong raises."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _pack_four_bits(model: onnx.ModelProto) -> None:
    """Let every DequantizeLinear that is marked as of 4 bits read 4-bit initializers, in place.

    torch has no such type to export; and equal constants have become one initializer, so names do not tell.
    """
    graph = model.graph
    known = {initializer.name: initializer for initializer in graph.initializer}
    packed: dict[str, onnx.TensorProto] = {}
    for node in graph.node:
        if any(entry.key == _BITS and entry.value == "4" for entry in node.metadata_props):
            for position in (0, 2):  # codes and zero points
                codes = onnx.numpy_helper.to_array(known[node.input[position]])
                name = f"{node.input[position]}.int4"
                if name not in packed:
                    values = codes.flatten().tolist()
                    packed[name] = onnx.helper.make_tensor(name, onnx.TensorProto.INT4, codes.shape, values)
                node.input[position] = name
    used = {name for node in graph.node for name in node.input}
    kept = [initializer for initializer in graph.initializer if initializer.name in used]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *packed.values()])


def _part_constants(model: onnx.ModelProto) -> None:
    """Give every layer a DequantizeLinear of its own, with its own codes and zero point, in place: equal ones have
    become one.

    On a CPU without VNNI, ONNX Runtime saturates sums of products of unsigned and signed 8-bit numbers, unless it may
    make the weights unsigned (`session.x64quantprecision`). It cannot where two layers share some: 1.32 then fails with
    "Attempt to replace the existing tensor".
    """
    graph = model.graph
    known = {initializer.name: initializer for initializer in graph.initializer}
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, position))
    nodes: list[onnx.NodeProto] = []
    seen: set[str] = set()
    for node in graph.node:
        nodes.append(node)
        if node.op_type != "DequantizeLinear" or node.input[0] not in known:
            continue
        copies = [node]
        for number, (reader, position) in enumerate(readers[node.output[0]][1:], start=1):
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            copied.name, copied.output[0] = f"{node.name}.{number}", f"{node.output[0]}.{number}"
            reader.input[position] = copied.output[0]
            copies.append(copied)
        nodes += copies[1:]
        for reading in copies:
            for position in (0, 2):  # codes and zero points
                name = reading.input[position]
                if name in seen:
                    own = onnx.TensorProto()
                    own.CopyFrom(known[name])
                    own.name = reading.input[position] = f"{name}.{len(seen)}"
                    graph.initializer.append(own)
                seen.add(reading.input[position])
    copied_nodes = copy.deepcopy(nodes)
    del graph.node[:]
    graph.node.extend(copied_nodes)


def _remove_notes(model: onnx.ModelProto) -> None:
    """Stack traces with paths of this machine, and the exporter's notes: not for the reader of the file."""
    graph = model.graph
    values = (*graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for part in (model, graph, *graph.node, *values):
        del part.metadata_props[:]
