"""A subject as the ONNX file that is timed: float, or with integer arithmetic (QDQ) from ONNX Runtime's quantizer.

Weights are random: they do not change the time, but equal biases would, since the exporter makes one of them and the
quantizer then leaves the convolutions that share it in float.
"""

from __future__ import annotations

import io
import json
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from nas.errors import NasError
from nas.files import write_whole
from nas.subjects import Subject
from nas.timm_parts import separate_attention

OPSET = 20
"""The first with GELU as one operator."""

INPUT_NAME = "images"

QUANTIZED_OPS = (
    "Conv", "MatMul", "Gemm", "Add", "Relu", "Clip", "Concat", "MaxPool", "GlobalAveragePool",
)  # fmt: skip
"""What ONNX Runtime has integer kernels for that are worth their conversions. With every operator it knows, products
with gates and GELU's parts become integer too and DeiT-Ti takes half as long again; its integer AveragePool takes forty
times as long as the float one (792 against 19 microseconds for 3x3 on 48x48x32)."""

_UNFUSED = {
    "fp32": frozenset({"BatchNormalization", "Relu", "Erf", "Pow", "Sqrt", "FusedConv"}),
    "w8a8": frozenset({"BatchNormalization", "Erf", "Pow", "Sqrt", "Conv", "FusedConv", "MatMul", "Gemm"}),
}
"""Operators that a graph of one precision must not hold once it is optimized: norms, activations and GELU in pieces,
matrix products left in float."""


@cache
def writers() -> str:
    """What decides what a file holds beside its subject: one that another version wrote is not timed as this one's."""
    return f"torch {torch.__version__}, onnx {onnx.__version__}, ONNX Runtime {version('onnxruntime')}, {QUANTIZED_OPS}"


def write_graph(
    path: Path, subject: Subject, precision: str, copies: int = 1, batch: int = 1, *, led: bool = False
) -> None:
    """Write the ONNX file of `copies` of the subject one behind the other, each with weights of its own.

    led: behind a pointwise convolution, so that the first copy reads a map in the layout that convolutions write, as it
    does inside a network. Raises UsageError when the subject cannot be built, NasError when it cannot be exported or
    written.
    """
    modules: list[nn.Module] = []
    for seed in range(copies):
        with separate_attention():
            module, shape = subject.build()
        modules.append(randomize_(module, seed))
    if led:
        modules.insert(0, randomize_(nn.Conv2d(shape[1], shape[1], 1), copies))
    module = modules[0] if len(modules) == 1 else nn.Sequential(*modules)
    try:
        model = export(module, (batch, *shape[1:]))
        if precision == "w8a8":
            model = quantize(model, (batch, *shape[1:]))
    except Exception as error:  # exporter and quantizer raise what they like
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise NasError(f"{subject.name} cannot be written as ONNX in {precision}: {line}") from error
    write_whole(path, model.SerializeToString())


@torch.no_grad()
def randomize_(module: nn.Module, seed: int) -> nn.Module:
    """Random weights that keep activations of the order of 1, in place. Returns the module."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if not value.is_floating_point():
            continue
        if name.endswith("running_var") or (value.dim() <= 1 and name.endswith(("weight", "gamma", "scale"))):
            value.copy_(0.75 + 0.5 * torch.rand(value.shape, generator=generator))
        elif value.dim() > 1:
            fan_in = max(1, prod(value.shape[1:]))
            value.copy_(torch.randn(value.shape, generator=generator) / fan_in**0.5)
        else:
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    return module


def export(module: nn.Module, input_shape: tuple[int, ...]) -> onnx.ModelProto:
    """The float graph, by torch's script exporter: the same optimized operators as by the newer one, in a fortieth of
    its time (0.03 s against 1 s a block).
    """
    stream = io.BytesIO()
    with torch.no_grad(), _quiet():
        torch.onnx.export(
            module.eval(),
            (torch.zeros(input_shape),),
            stream,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=["out"],
        )
    return onnx.load_from_string(stream.getvalue())


def quantize(model: onnx.ModelProto, input_shape: tuple[int, ...]) -> onnx.ModelProto:
    """The graph with QuantizeLinear and DequantizeLinear pairs: unsigned activations, signed weights per channel,
    which is what VNNI multiplies.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class OneBatch(CalibrationDataReader):
        def __init__(self) -> None:
            values = np.random.default_rng(0).standard_normal(input_shape, dtype=np.float32)
            self.batches = iter([{INPUT_NAME: values}])

        def get_next(self) -> Any:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory(prefix="nas-measure-") as folder, _quiet():
        before, after = Path(folder) / "float.onnx", Path(folder) / "qdq.onnx"
        onnx.save(model, str(before))
        quantize_static(
            str(before),
            str(after),
            OneBatch(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED_OPS),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(str(after))


def optimized_ops(path: Path) -> dict[str, int]:
    """Operator -> how often ONNX Runtime runs it, after its graph optimizations on this machine."""
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="nas-measure-") as folder:
        options = session_options(1)
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    return dict(sorted(Counter(node.op_type for node in graph.node).items()))


def session_options(threads: int) -> Any:
    """Options of a session of `threads` threads; all graph optimizations are on."""
    import onnxruntime

    # What is timed is the runtime's default. `session.x64quantprecision`, with which logits are compared
    # (nas/export/verify.py), takes other kernels where there is no VNNI, 1.1 to 1.4 times as slow (docs/measuring.md).
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; it warns of initializers that nothing reads after fusion
    return options


def unfused(ops: dict[str, int], precision: str) -> list[str]:
    """Operators of an optimized graph that should have been fused, as "2 Erf"."""
    return [f"{count} {name}" for name, count in ops.items() if name in _UNFUSED[precision]]


def write_notes(path: Path, ops: dict[str, int], precision: str) -> dict[str, Any]:
    """What is known of a graph, kept beside its file."""
    notes = {"ops": ops, "unfused": unfused(ops, precision)}
    write_whole(path.with_suffix(".json"), json.dumps(notes))
    return notes


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporter and quantizer warn about their own parts; what can go wrong raises."""
    logger = logging.getLogger()
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
