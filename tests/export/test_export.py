"""Whole exports: reloaded in timm and ONNX Runtime, and what happens when they cannot be trusted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_networks import MIXER_KERNELS, random_images, random_network, small_architecture
from torch import Tensor

import nas.export.network
from hw_models import load_target
from nas.accuracy import Accuracy, predict
from nas.cost import cost_architecture, cost_model
from nas.data.bundle import ArrayPixels, DataBundle, ImageSource, LabelledPixels
from nas.errors import NasError, UsageError
from nas.export import export_network, model_name
from nas.export.onnx_files import write_qdq_onnx
from nas.export.verify import Agreement, OnnxRunner
from nas.quantize import Calibration, Prepared, prepare
from search_spaces.architecture import Architecture

CLASSES = 4
PROTOTYPES = random_images(CLASSES, seed=5)


def labelled(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images near one prototype per class: an accurate network is sure of them, so that predictions are comparable."""
    labels = torch.arange(count) % CLASSES
    return PROTOTYPES[labels] + 0.3 * random_images(count, seed), labels


def bundle() -> DataBundle:
    def source(count: int, seed: int) -> ImageSource:
        images, labels = labelled(count, seed)
        pixels = (images * 40 + 128).clamp(0, 255).to(torch.uint8).numpy()
        whole = LabelledPixels(ArrayPixels(pixels), labels.numpy().astype(np.int64))
        names = tuple(f"class {index}" for index in range(CLASSES))
        return ImageSource(lambda: whole, None, names, 3, 16, (128 / 255,) * 3, (40 / 255,) * 3)

    return DataBundle("prototypes", "0" * 16, source(64, 1), source(32, 2), source(50, 3))


def trained(arch: Architecture, data: DataBundle) -> Prepared:
    """Trained for a moment, until it is sure of the prototypes, then calibrated."""
    network = random_network(arch, CLASSES)
    images = data.train.batch(np.arange(len(data.train)), arch.resolution)
    targets = torch.nn.functional.one_hot(torch.from_numpy(data.train.labels), CLASSES).float() * 2 - 1
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(12):
        loss = (network(images) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return prepare(network.eval(), arch, [images], [images])


def export(arch: Architecture, out: Path, **options: object) -> tuple[Path, Prepared, DataBundle]:
    data = bundle()
    prepared = trained(arch, data)
    costs = {"npu_40tops": cost_architecture(arch, load_target("npu_40tops"), CLASSES)}
    return export_network(prepared, arch, data, costs, out, **options), prepared, data  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.timeout(600)  # 20 seconds of one idle core; two graph exports and a new process with timm
@pytest.mark.parametrize(("norm", "bits"), [("batchnorm", "w4a8"), ("layernorm", "w8a16")])
def test_every_core_mixer_is_exported_and_verified(tmp_path: Path, norm: str, bits: str) -> None:
    arch = small_architecture(MIXER_KERNELS, bits, norm, stages=1)
    selected = Accuracy.of(30, 32, "one-shot", "search")
    folder, prepared, data = export(arch, tmp_path / "network", selected_by=selected, provenance={"trial": 7})
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "calibration.safetensors", "config.json", "cost.json", "model.onnx", "model.safetensors",
        "model_qdq.onnx", f"{model_name(arch)}.py",
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    metrics = config["nas"]["metrics"]
    assert Architecture.from_dict(config["nas"]["architecture"]) == arch
    assert config["label_names"] == list(data.class_names)
    assert metrics["val_quantized_torch"]["samples"] == len(data.val)
    assert metrics["equal_predictions"] >= 0.98
    assert metrics["timm_relative_difference"] < 1e-4
    assert metrics["onnx_relative_difference"] < 1e-4
    assert len(set(metrics["macs"].values())) == 1
    card = (folder / "README.md").read_text()
    for words in ("93.75%", "optimism of selection", "predicted for npu_40tops", "50 val images", "trial: 7"):
        assert words in card
    assert "/" + str(tmp_path).strip("/") not in card
    costs = json.loads((folder / "cost.json").read_text())["npu_40tops"]
    again = cost_model(folder, load_target("npu_40tops"))
    assert again.latency_s == pytest.approx(costs["latency_s"], rel=1e-9)

    # The files alone give the scored network again: weights and calibration.
    calibration = Calibration.from_bytes((folder / "calibration.safetensors").read_bytes())
    assert calibration.key == prepared.calibration.key == config["nas"]["calibration"]["key"]
    weights = Counter(
        onnx.TensorProto.DataType.Name(tensor.data_type)
        for tensor in onnx.load(folder / "model_qdq.onnx").graph.initializer
        if len(tensor.dims) > 1 and max(tensor.dims) > 3
    )
    integers = {"INT4", "INT8"} if bits == "w4a8" else {"INT8"}
    assert integers <= set(weights)
    large = [t for t in onnx.load(folder / "model_qdq.onnx").graph.initializer if np.prod(t.dims) > 512]
    assert not [t.name for t in large if t.data_type == onnx.TensorProto.FLOAT], "a float weight is left"

    with pytest.raises(UsageError, match="--force"):
        export_network(prepared, arch, data, {}, folder)


def test_the_qdq_file_does_the_arithmetic_of_the_quantized_network(tmp_path: Path) -> None:
    """Without ONNX Runtime's integer kernels, which round otherwise, logits agree to the rounding of float32."""
    import onnxruntime

    arch = small_architecture([("relu_linear", 0), ("pool", 0)], "w4a8", stages=1)
    prepared = trained(arch, bundle())
    write_qdq_onnx(tmp_path / "model.onnx", prepared.quantized, (1, 3, 16, 16))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    images = labelled(20, 9)[0]
    theirs = np.concatenate([session.run(None, {"images": image[None].numpy()})[0] for image in images])
    ours = predict(prepared.quantized, [images])
    same = np.isclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-4).all(axis=1).mean()
    assert same > 0.5  # elsewhere a value fell on the other side of a rounding boundary
    assert np.abs(ours.numpy() - theirs).max() < 0.1 * ours.abs().max()
    fused = OnnxRunner(tmp_path / "model.onnx")(images)
    assert fused.shape == (20, CLASSES)
    assert (ours - fused).abs().max() < 0.1 * ours.abs().max()


def test_no_two_layers_share_weights_or_zero_points(tmp_path: Path) -> None:
    """Else ONNX Runtime cannot make weights unsigned, which it must where it would saturate (x86 without VNNI)."""
    arch = small_architecture([("pool_dw", 0), ("pool_dw", 0)], stages=1)  # equal, fixed kernels
    write_qdq_onnx(tmp_path / "model.onnx", trained(arch, bundle()).quantized, (1, 3, 16, 16))
    graph = onnx.load(tmp_path / "model.onnx").graph
    constants = {tensor.name for tensor in graph.initializer}
    weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    for position in (0, 2):
        names = [node.input[position] for node in weights]
        assert len(names) == len(set(names)) > 4
        assert set(names) <= constants
    read = Counter(name for node in graph.node for name in node.input)
    assert all(read[node.output[0]] == 1 for node in weights)
    assert OnnxRunner(tmp_path / "model.onnx")(labelled(2, 9)[0]).shape == (2, CLASSES)


def test_a_file_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arch = small_architecture([("dwconv", 3)], stages=1)
    data = bundle()
    prepared, other = trained(arch, data), prepare(random_network(arch, CLASSES), arch, [PROTOTYPES], [PROTOTYPES])
    faithful = write_qdq_onnx
    at = nas.export.network
    monkeypatch.setattr(at, "write_qdq_onnx", lambda path, _, shape: faithful(path, other.quantized, shape))
    # timm is right in this story; a new process would only take time.
    monkeypatch.setattr(at, "reload_in_timm", lambda folder, name, images, scratch: predict(prepared.folded, [images]))
    with pytest.raises(NasError, match=r"model_qdq\.onnx .* nothing was exported"):
        export_network(prepared, arch, data, {}, tmp_path / "network")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("hits", "equal", "good"), [((500, 504), 0.99, True), ((500, 506), 0.99, False), ((500, 500), 0.979, False)]
)
def test_tolerance_is_half_a_point_and_98_percent(hits: tuple[int, int], equal: float, good: bool) -> None:
    ours, theirs = (Accuracy.of(count, 1000, "one-shot", "val") for count in hits)
    assert Agreement(ours, theirs, equal).within_tolerance is good
