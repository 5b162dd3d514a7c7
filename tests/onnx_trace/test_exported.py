"""ONNX files of our own networks cost what the networks cost; timm's too, from the older exporter as well."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import pytest
import timm
import torch
from small_networks import MIXER_KERNELS, random_images, random_network, small_architecture
from torch import nn

from hw_models import CostReport, Target, load_target
from nas.cost import cost_architecture, cost_model, timm_workload
from nas.export.onnx_files import write_float_onnx, write_qdq_onnx
from nas.onnx_trace import trace_onnx
from nas.quantize import prepare
from search_spaces.network import fold


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("npu_40tops")


def _same(file: CostReport, network: CostReport) -> None:
    assert file.macs == network.macs
    assert file.dram_bytes == pytest.approx(network.dram_bytes, rel=1e-9)
    assert file.peak_onchip_bytes == network.peak_onchip_bytes
    assert [row["kind"] for row in file.rows] == [row["kind"] for row in network.rows]
    for theirs, ours in zip(file.rows, network.rows, strict=True):
        assert theirs["latency_s"] == pytest.approx(ours["latency_s"], rel=1e-9), ours["name"]


def test_the_float_file_of_every_mixer_costs_what_the_network_costs(tmp_path: Path, target: Target) -> None:
    """In fp16, where the bits of accumulators, which a float file does not have, play no part."""
    arch = small_architecture(MIXER_KERNELS, stages=1)
    network = _distinct(fold(random_network(arch)))
    write_float_onnx(tmp_path / "model.onnx", network, (1, 3, 16, 16))
    file = cost_model(tmp_path / "model.onnx", target, precision="fp16")
    _same(file, cost_architecture(arch, target, 10, precision="fp16"))
    assert file.violations == []
    assert file.input_shape == (1, 3, 16, 16)


def _distinct(network: nn.Module) -> nn.Module:
    """Equal constants become one in a file: here none are."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.01 * torch.rand(value.shape, generator=generator))
    return network


@pytest.mark.slow
def test_the_quantizers_of_a_file_give_the_bits(tmp_path: Path, target: Target) -> None:
    """Second way: the bit policy of the architecture."""
    chosen = [pair for pair in MIXER_KERNELS if pair[0] in ("relu_linear", "inception")]
    bits = "w4a8"
    arch = small_architecture(chosen, bits, stages=1)
    images = [random_images(4)]
    write_qdq_onnx(tmp_path / "q.onnx", prepare(random_network(arch), arch, images, images).quantized, (1, 3, 16, 16))
    file = cost_model(tmp_path / "q.onnx", target)
    _same(file, cost_architecture(arch, target, 10))
    assert file.violations == []
    assert file.precision.endswith("(quantizers)")
    assert bits in file.precision
    uniform = cost_model(tmp_path / "q.onnx", target, precision="w8a8")
    assert uniform.latency_s == pytest.approx(cost_architecture(arch, target, 10, precision="w8a8").latency_s, rel=0.01)


@pytest.mark.parametrize(("name", "opset"), [("mobilenetv3_small_050", 13), ("test_vit", 17), ("test_convnext", 14)])
def test_the_older_exporter_of_torch(name: str, opset: int, tmp_path: Path, target: Target) -> None:
    """LayerNorm, GELU and Hardswish are written out in older opsets; shapes are computed by the graph."""
    model = _distinct(timm.create_model(name).eval())
    size = model.default_cfg["input_size"]
    path = tmp_path / "model.onnx"
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.zeros(1, *size),), path, dynamo=False, opset_version=opset)
    ours = timm_workload(name)
    theirs = trace_onnx(path)
    assert theirs.macs == ours.macs
    assert theirs.params == pytest.approx(ours.params, rel=0.01)  # BatchNorms are folded, sizes are constants
    file, network = cost_model(path, target), cost_model(name, target)
    assert file.latency_s == pytest.approx(network.latency_s, rel=0.01)
