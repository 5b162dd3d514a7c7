"""Single published facts about accelerators beside what the cost model predicts for them.

A check of magnitudes, not of ranks: ratios such as a capacity cliff, milliseconds, effective speed. Where a prediction
is off, the table says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hw_models import estimate, estimate_part, load_target
from nas.bits import put_precision
from nas.cost import cost_model
from nas.trace import trace_module

AGREES = 0.25
"""A prediction agrees when it lies within this share of the published value."""


@dataclass(frozen=True)
class Fact:
    """A published value with its unit and source, and the function that predicts it."""

    what: str
    published: float
    unit: str
    source: str
    predict: Callable[[], float]


@dataclass(frozen=True)
class Finding:
    """A fact with its prediction. agrees: within AGREES of the published value."""

    what: str
    published: float
    predicted: float
    unit: str
    source: str
    agrees: bool


def _ms(model: str, target: str, precision: str, size: int | None = None) -> float:
    return cost_model(model, load_target(target), size, precision).latency_s * 1e3


def _ratio(slow: str, fast: str, target: str) -> float:
    return _ms(slow, target, "w8a8") / _ms(fast, target, "w8a8")


def _effective_tops(model: str, target: str) -> float:
    report = cost_model(model, load_target(target), 224, "w8a8")
    return 2 * report.macs / report.latency_s / 1e12


def _cycles(module: nn.Module, shape: tuple[int, ...]) -> float:
    """Cycles of one layer on the Ethos-U85, at 1 GHz, its tensors in on-chip memory."""
    workload = put_precision(trace_module(module, [shape]), "w8a8")
    return estimate_part(workload, load_target("ethos_u85_2048")).latency_s[1] * 1e9


def _sl1680_convolutions_ms() -> float:
    """913.5 G operations of dense 5x5 convolutions, as 87 layers of 128 channels on 114 x 114 pixels."""
    with torch.device("meta"):
        layers = nn.Sequential(*[nn.Conv2d(128, 128, 5, padding=2) for _ in range(87)])
    workload = put_precision(trace_module(layers, [(1, 128, 114, 114)]), "w8a8")
    return estimate(workload, load_target("sl1680")).latency_s * 1e3 * 913.5e9 / (2 * workload.macs)


def _tokens_per_s() -> float:
    """LLaMA2-7B, batch 1: 6.74 G weights of 4 bits are read once per token (Touvron et al. 2023)."""
    memory = load_target("npu_40tops").memory
    return memory.dram_bytes_per_s * memory.dram_efficiency / (6.74e9 / 2)


_HAILO = "Hailo model zoo"
_QUALCOMM = "Qualcomm AI Hub"
_VELA = "Vela 5.2.0, a compiler's estimate"
_SYNAP = "synaptics-synap/doc manual/benchmark.rst"

FACTS: tuple[Fact, ...] = (
    Fact("Hailo-10H: ResNet34 over ResNet18", 7.7, "times", _HAILO, lambda: _ratio("resnet34", "resnet18", "hailo10h")),
    Fact("Hailo-8: ResNet34 over ResNet18", 1.8, "times", _HAILO, lambda: _ratio("resnet34", "resnet18", "hailo8")),
    Fact("Hailo-8: ResNet50", 11.2, "TOPS", _HAILO, lambda: _effective_tops("resnet50", "hailo8")),
    Fact("Hailo-8: MobileNetV2", 1.56, "TOPS", _HAILO, lambda: _effective_tops("mobilenetv2_100", "hailo8")),
    Fact("Hailo-8: Swin-T", 0.25, "TOPS", _HAILO, lambda: _effective_tops("swin_tiny_patch4_window7_224", "hailo8")),
    Fact("X Elite: ResNet50 fp16", 2.379, "ms", _QUALCOMM, lambda: _ms("resnet50", "snapdragon_x_elite", "fp16")),
    Fact("X Elite: ResNet50 w8a8", 0.958, "ms", _QUALCOMM, lambda: _ms("resnet50", "snapdragon_x_elite", "w8a8")),
    Fact(
        "X Elite: MobileNetV2 fp16",
        1.048,
        "ms",
        _QUALCOMM,
        lambda: _ms("mobilenetv2_100", "snapdragon_x_elite", "fp16"),
    ),
    Fact(
        "X Elite: MobileNetV2 w8a8",
        0.579,
        "ms",
        _QUALCOMM,
        lambda: _ms("mobilenetv2_100", "snapdragon_x_elite", "w8a8"),
    ),
    Fact(
        "X Elite: ConvNeXt-B w8a16", 6.26, "ms", _QUALCOMM, lambda: _ms("convnext_base", "snapdragon_x_elite", "w8a16")
    ),
    Fact(
        "X Elite: ViT-B fp16",
        11.827,
        "ms",
        _QUALCOMM,
        lambda: _ms("vit_base_patch16_224", "snapdragon_x_elite", "fp16"),
    ),
    Fact("X Elite: DenseNet121 w8a8", 2.663, "ms", _QUALCOMM, lambda: _ms("densenet121", "snapdragon_x_elite", "w8a8")),
    Fact("Galaxy S25: ResNet50 w8a8", 15.4, "TOPS", _QUALCOMM, lambda: _effective_tops("resnet50", "galaxy_s25")),
    Fact(
        "Galaxy S25: ViT-B w8a8", 10.4, "TOPS", _QUALCOMM, lambda: _effective_tops("vit_base_patch16_224", "galaxy_s25")
    ),
    Fact("AX650N, one core: ResNet50", 2.85, "TOPS", "ax-samples", lambda: _effective_tops("resnet50", "ax650n")),
    Fact(
        "AX650N, one core: DeiT-T",
        1.46,
        "TOPS",
        "ax-samples",
        lambda: _effective_tops("deit_tiny_patch16_224", "ax650n"),
    ),
    Fact("SL1680: 913.5 G operations of 5x5 convolutions", 119.34, "ms", _SYNAP, _sl1680_convolutions_ms),
    Fact("SL1680: MobileNetV2", 1.79, "ms", _SYNAP, lambda: _ms("mobilenetv2_100", "sl1680", "w8a8")),
    Fact("SL1680: Inception-v4", 19.59, "ms", _SYNAP, lambda: _ms("inception_v4", "sl1680", "w8a8")),
    Fact("Ethos-U85: softmax of 6x196x196", 205_607, "cycles", _VELA, lambda: _cycles(nn.Softmax(-1), (6, 196, 196))),
    Fact(
        "Ethos-U85: depthwise 7x7, 56x56x96", 65_577, "cycles", _VELA, lambda: _cycles(_depthwise(7), (1, 96, 56, 56))
    ),
    Fact("Ethos-U85: GELU of 196x1536", 29_400, "cycles", _VELA, lambda: _cycles(nn.GELU(), (196, 1536))),
    Fact("npu_40tops: LLaMA2-7B, 4-bit weights", 20.0, "tokens/s", "VeriSilicon", _tokens_per_s),
)


def _depthwise(kernel: int) -> nn.Module:
    return nn.Conv2d(96, 96, kernel, padding=kernel // 2, groups=96, bias=False, device="meta")


def findings(facts: Sequence[Fact] = FACTS) -> list[Finding]:
    """Every fact with its prediction."""
    out = []
    for fact in facts:
        predicted = fact.predict()
        agrees = abs(predicted / fact.published - 1) <= AGREES
        out.append(Finding(fact.what, fact.published, predicted, fact.unit, fact.source, agrees))
    return out


def markdown(found: Sequence[Finding]) -> str:
    """The findings as a table."""
    agreeing = sum(finding.agrees for finding in found)
    lines = [
        "## Facts",
        "",
        f"{agreeing} of {len(found)} predictions lie within {AGREES:.0%} of the published value.",
        "",
        "| fact | published | predicted | unit | agrees | source |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {finding.what} | {finding.published:g} | {finding.predicted:.4g} | {finding.unit} | "
        f"{'yes' if finding.agrees else 'no'} | {finding.source} |"
        for finding in found
    ]
    return "\n".join(lines) + "\n"
