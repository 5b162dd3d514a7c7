"""The facts: published latencies, ratios and cycles, each with the function that predicts it.

`HAILO`: the vendor's model zoo, docs of Hailo-8 and Hailo-15H (the NPU of the Hailo-10H). `QUALCOMM`: Qualcomm AI Hub.
`VELA`: Arm Vela 5.2.0, a compiler's estimate. Units are in the table; predictions are in the same.
"""

from __future__ import annotations

from functools import partial

import timm
import torch
from torch import nn

from benchmarks.facts import Fact
from benchmarks.generative import llama_tokens_per_s, stable_diffusion_s
from hw_models import Workload, estimate, estimate_part, load_target
from nas.bits import put_precision
from nas.cost import cost_model
from nas.trace import trace_module

HAILO, QUALCOMM, VELA = "Hailo model zoo", "Qualcomm AI Hub", "Vela 5.2.0"
SYNAPTICS = "synaptics-synap/doc manual/benchmark.rst"
ORT = "ONNX Runtime, one thread of a VNNI CPU, chains of layers"

VIT = {size: f"vit_{size}_patch16_224" for size in ("tiny", "small", "base")}
DEIT = {size: f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")}


def _seconds(model: str, target: str, precision: str = "w8a8", batch: int = 1) -> float:
    """Of one image."""
    return cost_model(model, load_target(target), None, precision, batch).latency_s / batch


def _ms(model: str, target: str, precision: str) -> float:
    return _seconds(model, target, precision) * 1e3


def _per_s(model: str, target: str, precision: str = "w8a8", batch: int = 1) -> float:
    return 1.0 / _seconds(model, target, precision, batch)


def _ratio(slow: str, fast: str, target: str, precision: str = "w8a8", batch: int = 1) -> float:
    return _seconds(slow, target, precision, batch) / _seconds(fast, target, precision, batch)


def _formats(model: str, target: str, one: str, other: str) -> float:
    return _seconds(model, target, one) / _seconds(model, target, other)


def _effective_tops(model: str, target: str) -> float:
    report = cost_model(model, load_target(target), 224, "w8a8")
    return 2 * report.macs / report.latency_s / 1e12


def _workload(module: nn.Module, *shapes: tuple[int, ...], precision: str = "w8a8") -> Workload:
    return put_precision(trace_module(module.eval(), list(shapes)), precision)


def _norms_cost(size: str, batch: int) -> float:
    """A ViT with LayerNorm over the same with BatchNorm, which folds into the layers behind it."""
    target = load_target("hailo10h")
    seconds = []
    for norm in (None, nn.Identity):
        with torch.device("meta"):
            model = timm.create_model(VIT[size], norm_layer=norm)
        workload = _workload(model, (1, 3, 224, 224)).with_batch(batch)
        seconds.append(estimate(workload, target).latency_s)
    return seconds[0] / seconds[1]


class _Product(nn.Module):
    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return one @ other


class _Heads(nn.Module):
    """[1, tokens, heads, width] -> [1, heads, tokens, width], written to memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2).contiguous()


def _cycles(workload: Workload) -> float:
    """Cycles of one layer on the Ethos-U85, at 1 GHz, its tensors in on-chip memory."""
    return estimate_part(workload, load_target("ethos_u85_2048")).latency_s[1] * 1e9


def _softmax_over_product() -> float:
    product = _workload(_Product(), (6, 196, 64), (6, 64, 196))
    return _cycles(_workload(nn.Softmax(-1), (6, 196, 196))) / _cycles(product)


def _conv(channels: int, kernel: int, groups: int = 1) -> nn.Module:
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups, bias=False, device="meta")


def _int16_over_int8() -> float:
    shape = (1, 64, 56, 56)
    wide, narrow = (_cycles(_workload(_conv(64, 3), shape, precision=name)) for name in ("w8a16", "w8a8"))
    return wide / narrow


def _integer_gain(module: nn.Module, shape: tuple[int, ...]) -> float:
    """fp32 over int8 on a core with VNNI."""
    target = load_target("epyc_zen5_core")
    floating, integer = (
        estimate_part(_workload(module, shape, precision=name), target).latency_s[1] for name in ("fp32", "w8a8")
    )
    return floating / integer


def _sl1680_convolutions_ms() -> float:
    """913.5 G operations of dense 5x5 convolutions, as 87 layers of 128 channels on 114 x 114 pixels."""
    with torch.device("meta"):
        layers = nn.Sequential(*[nn.Conv2d(128, 128, 5, padding=2) for _ in range(87)])
    workload = _workload(layers, (1, 128, 114, 114))
    return estimate(workload, load_target("sl1680")).latency_s * 1e3 * 913.5e9 / (2 * workload.macs)


def _other_work(model: str, target: str) -> float:
    """Share of the latency of kernels without a matrix product, batch 1, fp16."""
    report = cost_model(model, load_target(target), None, "fp16")
    return sum(row["latency_s"] for row in report.rows if not row["macs"]) / report.latency_s


def _peak_tops(target: str) -> float:
    return 2 * load_target(target).matrix.peak_macs_per_s / 1e12


_CONTEXTS = (
    "Lite2 has 6.1 M weights, which fit, and runs in several contexts all the same: the compiler "
    "also runs out of compute "
    "and control units, by rules that are not published"
)
_WINDOWS = (
    "predicted 20.6 ms, all of it softmax, transposes, norms and shifts; the vendor says that such "
    "reordering runs badly or "
    "in part not at all, and how is not published"
)
_NARROW_NORM = (
    "LayerNorm costs ViT-T 1.5 ms, ViT-S 0.5 and ViT-B 0.3 at batch 8, the wider the less, which no "
    "cost per element or row "
    "gives: the compiler cuts the narrow network otherwise"
)
_SLOW_FLOAT = (
    "every fp16 row of this device is predicted short (median 0.71): it shares its rates with phones "
    "of the same NPU, which "
    "are predicted at 0.93"
)
_WEIGHTS = (
    "published time is hardly more than the transfer of 26 MB of weights (0.34 ms); predicted are "
    "transfer, output stage and "
    "array one after the other, layer by layer"
)

_ONE_SIZE = "another core (Zen 5), and layers of 128 channels on 28 x 28; the source gives no sizes; the order agrees"
_EAGER = "published with PyTorch from Python, where a ViT waits for the interpreter; predicted with launches of 3 us"

FACTS: tuple[Fact, ...] = (
    *(
        Fact(
            f"Hailo-10H: ViT-{size[0].upper()} with LayerNorm over BatchNorm, batch {batch}",
            published,
            "times",
            HAILO,
            partial(_norms_cost, size, batch),
            _NARROW_NORM if size == "tiny" else "",
        )
        for size, batch, published in (
            ("tiny", 1, 331 / 134),
            ("tiny", 8, 1361 / 455),
            ("small", 1, 155 / 119),
            ("small", 8, 549 / 428),
            ("base", 1, 68.9 / 61.2),
            ("base", 8, 205 / 191),
        )
    ),
    Fact("Hailo-10H: ResNet18", 2709, "images/s", HAILO, partial(_per_s, "resnet18", "hailo10h")),
    Fact("Hailo-10H: ResNet34", 351, "images/s", HAILO, partial(_per_s, "resnet34", "hailo10h")),
    Fact(
        "Hailo-10H: ResNet34 over ResNet18",
        7.7,
        "times",
        HAILO,
        partial(_ratio, "resnet34", "resnet18", "hailo10h"),
        "either is within 25 percent, in opposite directions; the step itself, loading 21.8 MB "
        "before each run, is there",
    ),
    Fact(
        "Hailo-10H: ResNet34 over ResNet18, batch 8",
        2.6,
        "times",
        HAILO,
        partial(_ratio, "resnet34", "resnet18", "hailo10h", batch=8),
    ),
    Fact(
        "Hailo-10H: EfficientNet-Lite2 over Lite1",
        998 / 214,
        "times",
        HAILO,
        partial(_ratio, "efficientnet_lite2", "efficientnet_lite1", "hailo10h"),
        _CONTEXTS,
    ),
    Fact("Hailo-8: ResNet34 over ResNet18", 1.8, "times", HAILO, partial(_ratio, "resnet34", "resnet18", "hailo8")),
    Fact("Hailo-8: ResNet50", 11.2, "TOPS", HAILO, partial(_effective_tops, "resnet50", "hailo8")),
    Fact(
        "Hailo-8: MobileNetV2",
        1.56,
        "TOPS",
        HAILO,
        partial(_effective_tops, "mobilenetv2_100", "hailo8"),
        "0.37 of 0.54 ms are 54 layers at 5 us, an estimate of what every layer of the pipeline "
        "holds up the others, and the "
        "start of a request, which a stream of requests hides in part",
    ),
    Fact(
        "Hailo-8: Swin-T",
        0.25,
        "TOPS",
        HAILO,
        partial(_effective_tops, "swin_tiny_patch4_window7_224", "hailo8"),
        _WINDOWS,
    ),
    *(
        Fact(
            f"X Elite: {title} {precision}",
            published,
            "ms",
            QUALCOMM,
            partial(_ms, model, "snapdragon_x_elite", precision),
            why,
        )
        for title, model, precision, published, why in (
            ("ResNet50", "resnet50", "fp16", 2.379, ""),
            ("ResNet50", "resnet50", "w8a8", 0.958, _WEIGHTS),
            ("MobileNetV2", "mobilenetv2_100", "fp16", 1.048, _SLOW_FLOAT),
            ("MobileNetV2", "mobilenetv2_100", "w8a8", 0.579, ""),
            ("ConvNeXt-B", "convnext_base", "fp16", 8.589, _SLOW_FLOAT),
            ("ConvNeXt-B", "convnext_base", "w8a16", 6.26, ""),
            ("ViT-B", VIT["base"], "fp16", 11.827, _SLOW_FLOAT),
            ("DenseNet121", "densenet121", "fp16", 2.077, ""),
            ("DenseNet121", "densenet121", "w8a8", 2.663, ""),
            ("DenseNet121", "densenet121", "w8a16", 3.433, ""),
        )
    ),
    Fact(
        "X Elite: DenseNet121, fp16 over w8a8 (int8 loses)",
        2.077 / 2.663,
        "times",
        QUALCOMM,
        partial(_formats, "densenet121", "snapdragon_x_elite", "fp16", "w8a8"),
    ),
    Fact(
        "Galaxy S25: ResNet50 w8a8",
        15.4,
        "TOPS",
        QUALCOMM,
        partial(_effective_tops, "resnet50", "galaxy_s25"),
        _WEIGHTS,
    ),
    Fact(
        "Galaxy S25: ViT-B w8a8",
        10.4,
        "TOPS",
        QUALCOMM,
        partial(_effective_tops, VIT["base"], "galaxy_s25"),
        "half the prediction, 1.2 of 2.3 ms, is the transfer of 87 MB of weights at the bandwidth of "
        "the memory chips; the "
        "published 3.4 ms would be met at half that bandwidth, which ResNet50 rules out",
    ),
    Fact("AX650N, one core: ResNet50", 2.85, "TOPS", "ax-samples", partial(_effective_tops, "resnet50", "ax650n")),
    Fact("AX650N, one core: DeiT-T", 1.46, "TOPS", "ax-samples", partial(_effective_tops, DEIT["tiny"], "ax650n")),
    Fact("SL1680: 913.5 G operations of 5x5 convolutions", 119.34, "ms", SYNAPTICS, _sl1680_convolutions_ms),
    Fact("SL1680: MobileNetV2", 1.79, "ms", SYNAPTICS, partial(_ms, "mobilenetv2_100", "sl1680", "w8a8")),
    Fact(
        "SL1680: Inception-v4",
        19.59,
        "ms",
        SYNAPTICS,
        partial(_ms, "inception_v4", "sl1680", "w8a8"),
        "bound by DRAM in the prediction, 78 MB in 5.8 ms; the published time is 1.25 of 7.9 TOPS, "
        "for a quantized file that is "
        "not timm's and whose 1x7 and 7x1 convolutions the array may run as wider ones",
    ),
    Fact(
        "Ethos-U85: softmax of 6x196x196",
        205_607,
        "cycles",
        VELA,
        lambda: _cycles(_workload(nn.Softmax(-1), (6, 196, 196))),
    ),
    Fact("Ethos-U85: that softmax over its product of queries and keys", 6.6, "times", VELA, _softmax_over_product),
    Fact(
        "Ethos-U85: transpose of six heads of 196x64",
        34_300,
        "cycles",
        VELA,
        lambda: _cycles(_workload(_Heads(), (1, 196, 6, 64))),
        "Vela's own rows differ in cycles per element by the axes that are exchanged; one value stands for all",
    ),
    Fact("Ethos-U85: 3x3 convolution in w8a16 over w8a8", 1.62, "times", VELA, _int16_over_int8),
    Fact(
        "Ethos-U85: depthwise 7x7, 56x56x96",
        65_577,
        "cycles",
        VELA,
        lambda: _cycles(_workload(_conv(96, 7, 96), (1, 96, 56, 56))),
    ),
    Fact("Ethos-U85: GELU of 196x1536", 29_400, "cycles", VELA, lambda: _cycles(_workload(nn.GELU(), (196, 1536)))),
    *(
        Fact(
            f"GPU, {title}: share of work that is no matrix product, {how}",
            published,
            "of latency",
            "arXiv 2404.11788",
            partial(_other_work, model, target),
        )
        for title, model in (("ViT-B", VIT["base"]), ("Swin-T", "swin_tiny_patch4_window7_224"))
        for how, target, published in (("op by op", "rtx_4090", (0.11, 0.74)), ("fused", "h200", (0.15, 0.48)))
    ),
    *(
        Fact(f"CPU core: {title}, fp32 over int8", published, "times", ORT, partial(_integer_gain, module, shape), why)
        for title, published, module, shape, why in (
            ("3x3 convolution and ReLU", 3.52, nn.Sequential(_conv(128, 3), nn.ReLU()), (1, 128, 28, 28), ""),
            ("1x1 convolution", 2.42, _conv(128, 1), (1, 128, 28, 28), _ONE_SIZE),
            ("linear layer", 3.11, nn.Linear(384, 384, device="meta"), (1, 196, 384), ""),
            ("depthwise 7x7", 0.63, _conv(128, 7, 128), (1, 128, 28, 28), _ONE_SIZE),
        )
    ),
    *(
        Fact(
            f"GPU: DeiT-Ti over DeiT-B in images/s, batch {batch}",
            published,
            "times",
            "RTX 3090; predicted for an RTX 4090",
            partial(_ratio, DEIT["base"], DEIT["tiny"], "rtx_4090", "fp16", batch),
            _EAGER if batch == 1 else "the larger chip has 2.3 times the matrix rate at hardly more bandwidth",
        )
        for batch, published in ((1, 102 / 103), (128, 8453 / 1343))
    ),
    Fact(
        "npu_40tops: LLaMA2-7B, w4a8",
        20.0,
        "tokens/s",
        "VeriSilicon",
        lambda: llama_tokens_per_s(load_target("npu_40tops"), "w4a8"),
        "the source does not say the bits: with 8-bit weights the bus allows 12",
    ),
    Fact(
        "npu_40tops: Stable Diffusion 1.5, 20 steps, w4a8",
        (0.0, 2.0),
        "s",
        "VeriSilicon",
        lambda: stable_diffusion_s(load_target("npu_40tops"), "w4a8"),
        "bits not said by the source; lanes of the vector unit were chosen with this in view",
    ),
    Fact("npu_64tops: VIP9400", 64.0, "TOPS", "VeriSilicon", partial(_peak_tops, "npu_64tops")),
)

BEYOND = (
    (
        "int4 over int8, 1.45 times on ResNet50, and mixed int4 and int8, 23 percent (HAWQ-V3)",
        "an NVIDIA T4, for which there is no target",
    ),
    (
        "Galaxy S25: ViT-B at 0.18 TOPS in w8a16",
        "the network left the NPU for the CPU; a cost model of the NPU cannot say so",
    ),
    ("Metis PCIe: ResNet50 at 15.4 TOPS", "no target: nothing about the device but its TOPS is published"),
    ("Spearman of macs against published latency", "in the first table, beside ours"),
    ("RapidNet-Ti, MobileNetV2 x1.4 on an iPhone 13 mini", "an A15, for which there is no target"),
    ("ConvFirst with block fusion against ConvNeXt", "kernels of one GPU; `nas measure gap` measures them"),
    ("EfficientViT and TinyViT quantized", "accuracies, not costs"),
)
"""(fact, why the cost model does not speak to it)."""
