"""Does an exported folder compute what the network computed? Reloaded in timm and in ONNX Runtime."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from nas.accuracy import Accuracy, ImageSet, Kind
from nas.errors import NasError
from nas.export.onnx_files import INPUT_NAME

FLOAT_TOLERANCE = 1e-3
"""Largest difference of float logits, over the largest logit. Measured: 1e-6 to 1e-5."""

TOP1_TOLERANCE = 0.005
EQUAL_PREDICTIONS = 0.98

_RELOAD = """
import importlib, sys
import safetensors.torch, timm, torch
folder, name, images_file, logits_file = sys.argv[1:]
sys.path.insert(0, folder)
importlib.import_module(name)
images = safetensors.torch.load_file(images_file)["images"]
source = "local-dir:" + folder
model = timm.create_model(source, pretrained=True).eval()
features = timm.create_model(source, pretrained=True, features_only=True).eval()
other = timm.create_model(source, pretrained=True, num_classes=model.num_classes + 1).eval()
with torch.inference_mode():
    out = {"logits": model(images)}
    widths = [x.shape[1] for x in features(images)]
    assert widths == features.feature_info.channels(), "features_only is wrong"
    assert other(images).shape[1] == model.num_classes + 1, "num_classes= is wrong"
foreign = {module.partition(".")[0] for module in sys.modules} & {"nas", "search_spaces", "hw_models"}
assert not foreign, f"the standalone file imports {foreign}"
safetensors.torch.save_file(out, logits_file)
"""


@dataclass(frozen=True)
class Agreement:
    """The fake-quantized torch network and the QDQ file in ONNX Runtime on the same labelled images.

    equal: fraction of images on which both predict the same class.
    """

    torch: Accuracy
    onnx: Accuracy
    equal: float

    @property
    def within_tolerance(self) -> bool:
        """Top-1 within 0.5 points (on few images: one image) and at least 98 percent equal predictions."""
        allowed = max(TOP1_TOLERANCE, 1 / self.torch.samples)
        return abs(self.torch.top1 - self.onnx.top1) <= allowed + 1e-9 and self.equal >= EQUAL_PREDICTIONS


def onnx_session(model: Path | bytes) -> Any:
    """An ONNX file or model in ONNX Runtime on the CPU, with its default optimizations and exact sums.

    On a CPU without VNNI its default saturates products of unsigned and signed 8-bit numbers at 16 bits: logits moved
    by up to 30 percent of the largest.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; it warns of initializers that nothing reads after fusion
    options.add_session_config_entry("session.x64quantprecision", "1")
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


class OnnxRunner:
    """The first output of an ONNX file or model, one image at a time."""

    def __init__(self, model: Path | bytes) -> None:
        self.session = onnx_session(model)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [batch, num_classes] of images [batch, channels, height, width]."""
        pixels = images.contiguous().numpy()
        outputs = [self.session.run(None, {INPUT_NAME: pixels[i : i + 1]})[0] for i in range(len(pixels))]
        return torch.from_numpy(np.concatenate(outputs))


@torch.inference_mode()
def compare_quantized(
    quantized: nn.Module, qdq_path: Path, batches: Iterable[tuple[Tensor, Tensor]], kind: Kind, images: ImageSet
) -> Agreement:
    """Run both on (images, labels) batches. Raises ValueError without images."""
    runner = OnnxRunner(qdq_path)
    samples = hits_torch = hits_onnx = equal = 0
    for x, labels in batches:
        ours, theirs = quantized(x).argmax(1), runner(x).argmax(1)
        samples += len(labels)
        hits_torch += int((ours == labels).sum())
        hits_onnx += int((theirs == labels).sum())
        equal += int((ours == theirs).sum())
    return Agreement(
        Accuracy.of(hits_torch, samples, kind, images),
        Accuracy.of(hits_onnx, samples, kind, images),
        equal / max(1, samples),
    )


def reload_in_timm(folder: Path, name: str, images: Tensor, scratch: Path) -> Tensor:
    """Logits of `images` by the exported package, loaded by timm in a new process that has only this folder.

    Checks features_only and num_classes on the way. scratch: a folder for the tensors passed.
    Raises NasError with the last line of what the process said when it fails.
    """
    images_file, logits_file = scratch / "images.safetensors", scratch / "logits.safetensors"
    safetensors.torch.save_file({"images": images.contiguous()}, images_file)
    command = [sys.executable, "-c", _RELOAD, str(folder), name, str(images_file), str(logits_file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise NasError(f"timm cannot load the exported network {name}: {said[-1]}")
    return safetensors.torch.load_file(logits_file)["logits"]


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference of logits, over the largest absolute logit."""
    return float((ours - theirs).abs().max() / ours.abs().max().clamp_min(1e-12))
