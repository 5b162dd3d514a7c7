"""The README of an exported network: what it is, every figure with its kind, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hw_models import CostReport
from nas.accuracy import Accuracy
from nas.export.macs import MacCounts
from nas.export.verify import Agreement
from nas.units import BYTES, JOULES, SECONDS, format_quantity
from search_spaces.architecture import Architecture


@dataclass(frozen=True)
class Findings:
    """What was measured of an exported network.

    selected_by: the accuracy it was chosen by; None when it was not chosen by one.
    floating: the folded float network on the validation images. agreement: fake-quantized torch and ONNX QDQ on them.
    reload_difference, onnx_difference: of float logits to the network's, by timm and by ONNX Runtime, over
    the largest logit, on `compared` images.
    """

    selected_by: Accuracy | None
    floating: Accuracy
    agreement: Agreement
    macs: MacCounts
    reload_difference: float
    onnx_difference: float
    compared: int

    def optimism(self) -> dict[str, float]:
        """By how much the figure it was selected by exceeds those on validation images, as fractions."""
        if self.selected_by is None:
            return {}
        return {
            "torch": self.selected_by.top1 - self.agreement.torch.top1,
            "onnx": self.selected_by.top1 - self.agreement.onnx.top1,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; accuracies as fractions."""
        return {
            "selected_by": self.selected_by and self.selected_by.to_dict(),
            "val_float": self.floating.to_dict(),
            "val_quantized_torch": self.agreement.torch.to_dict(),
            "val_quantized_onnx": self.agreement.onnx.to_dict(),
            "equal_predictions": self.agreement.equal,
            "optimism": self.optimism(),
            "macs": self.macs.to_dict(),
            "timm_relative_difference": self.reload_difference,
            "onnx_relative_difference": self.onnx_difference,
        }


def card(
    name: str,
    arch: Architecture,
    num_classes: int,
    in_chans: int,
    costs: Mapping[str, CostReport],
    findings: Findings,
    provenance: Mapping[str, Any],
) -> str:
    """The README in Markdown. provenance: readable key -> value pairs of where the network comes from."""
    size = arch.resolution
    policies = ", ".join(dict.fromkeys(str(block.bits) for stage in arch.stages for block in stage.blocks))
    lines = [
        "---",
        "library_name: timm",
        "pipeline_tag: image-classification",
        "---",
        f"# {name}",
        "",
        f"An image classifier of {num_classes} classes for {size} x {size} px, found by `nas` for quantized "
        f"inference. Blocks are quantized {policies} (weights, activations); stem, downsampling and head w8a8.",
        "",
        *_structure(arch),
        "",
        "## Figures",
        "",
        "| figure | value | what it is |",
        "|---|---|---|",
        *_accuracy_rows(findings),
        *(row for target, report in costs.items() for row in _cost_rows(target, report)),
        "",
        *(f"- {warning}" for warning in dict.fromkeys(w for report in costs.values() for w in report.warnings)),
        "",
        *_check_lines(findings),
        "",
        *_loading_lines(name, (1, in_chans, size, size)),
        "",
        "## Where it comes from",
        "",
        *(f"- {key}: {value}" for key, value in provenance.items()),
        "",
    ]
    return "\n".join(lines)


def _structure(arch: Architecture) -> list[str]:
    lines = ["| stage | width | norm, activation | blocks (mixer, expansion, bits) |", "|---|---|---|---|"]
    for index, stage in enumerate(arch.stages):
        blocks = "; ".join(
            " ".join([block.mixer_token, f"{block.expansion:g}", *block.modifiers, str(block.bits)])
            for block in stage.blocks
        )
        lines.append(f"| {index} | {stage.width} | {stage.norm}, {stage.activation} | {blocks} |")
    return lines


def _accuracy_rows(findings: Findings) -> list[str]:
    def row(title: str, accuracy: Accuracy, how: str) -> str:
        figure = f"{accuracy.top1:.2%} ± {accuracy.stderr:.2%}"
        about = f"{how}; {accuracy.kind} weights, {accuracy.samples} {accuracy.images} images, ± standard error"
        return f"| {title} | {figure} | {about} |"

    rows = []
    if findings.selected_by is not None:
        rows.append(row("top-1, selection", findings.selected_by, "fake-quantized in torch; it was selected by this"))
    unseen = "not read before the selection"
    rows += [
        row("top-1", findings.agreement.torch, f"fake-quantized in torch, {unseen}"),
        row("top-1, ONNX QDQ", findings.agreement.onnx, f"model_qdq.onnx in ONNX Runtime, {unseen}"),
        row("top-1, float", findings.floating, f"before quantization, {unseen}"),
    ]
    if optimism := findings.optimism():
        points = f"{optimism['torch'] * 100:+.2f} points (ONNX QDQ {optimism['onnx'] * 100:+.2f})"
        rows.append(f"| optimism of selection | {points} | top-1 at selection minus top-1 on validation images |")
    return rows


def _cost_rows(target: str, report: CostReport) -> list[str]:
    batch = report.input_shape[0] if report.input_shape else 1
    predicted = f"predicted for {target}, {report.precision}, batch {batch}"
    return [
        f"| latency | {format_quantity(report.latency_s, SECONDS)} | {predicted}; {report.accuracy} |",
        f"| energy | {format_quantity(report.energy_j, JOULES)} | {predicted} |",
        f"| peak on-chip memory | {format_quantity(report.peak_onchip_bytes, BYTES)} | {predicted} |",
        f"| DRAM traffic | {format_quantity(report.dram_bytes, BYTES)} | {predicted} |",
        f"| weights | {format_quantity(report.weight_bytes, BYTES)} | at their bits, {report.params:,} parameters |",
    ]


def _check_lines(findings: Findings) -> list[str]:
    macs, agreement = findings.macs, findings.agreement
    return [
        "## Checked when it was exported",
        "",
        f"- timm, new process, this folder only: logits differ by {findings.reload_difference:.1e} of the largest "
        f"({findings.compared} images); `features_only=True` and `num_classes=` work.",
        f"- model.onnx in ONNX Runtime: logits differ by {findings.onnx_difference:.1e} of the largest.",
        f"- model_qdq.onnx in ONNX Runtime against the fake-quantized torch network: {agreement.equal:.2%} equal "
        f"predictions, top-1 {(agreement.onnx.top1 - agreement.torch.top1) * 100:+.2f} points "
        f"({agreement.torch.samples} validation images).",
        f"- macs of one image: {macs.trace:,} traced, {macs.torch:,} by torch's flop counter / 2, {macs.fvcore:,} by "
        f"fvcore{'' if macs.equal else ' (they differ)'}.",
    ]


def _loading_lines(name: str, shape: tuple[int, ...]) -> list[str]:
    return [
        "## How to load it",
        "",
        "```python",
        "import sys, timm",
        'sys.path.insert(0, "FOLDER")  # this folder',
        f"import {name}  # registers the network; needs torch and timm only",
        "",
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()',
        "preprocessing = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        "```",
        "",
        "```python",
        "import numpy, onnxruntime",
        "",
        "options = onnxruntime.SessionOptions()",
        'options.add_session_config_entry("session.x64quantprecision", "1")  # x86 without VNNI saturates otherwise',
        'session = onnxruntime.InferenceSession("FOLDER/model_qdq.onnx", options)  # or model.onnx, float',
        f'logits = session.run(None, {{"images": numpy.zeros({shape}, "float32")}})[0]',
        "```",
        "",
        "Files: `model.safetensors` float weights, BatchNorm folded; `model_qdq.onnx` integer weights, and the",
        "ranges of `calibration.safetensors`; `cost.json` the cost report per operator.",
    ]
