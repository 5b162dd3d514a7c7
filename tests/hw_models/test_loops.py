"""How a compiled network runs on a GPU: loops around products, as torch's profiler saw it on an H200."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hw_models import Target, Workload, estimate, estimate_part, load_target
from hw_models.fusion import fuse
from hw_models.kernel import FAMILIES
from hw_models.lowering import lower
from hw_models.measurements import Measurement, load_pack
from hw_models.part_cost import PartEstimator
from nas.bits import put_precision
from nas.subjects import measured_workload
from nas.trace import trace_module

H200 = load_target("h200")
PROFILES = json.loads((Path(__file__).parents[2] / "studies/results/h200_kernels.json").read_text())["profiles"]
PLAIN = [row for row in PROFILES if row["batch"] == 1 and not row["copies"]]
"""Those in which no library put copies of its own between kernels, as cuDNN does where no kernel fits a window."""


def _record(row: dict[str, object]) -> Measurement:
    wanted = (row["subject"], row["batch"], "fp16")
    records = (*load_pack("h200"), *load_pack("h200_networks"))
    return next(one for one in records if (one.subject, one.batch, one.precision) == wanted)


def _run(workload: Workload) -> Workload:
    return lower(workload, H200.runtime, loops=True)


def _workload(module: nn.Module, *shape: int, precision: str = "fp16") -> Workload:
    with torch.device("meta"):
        return put_precision(trace_module(module.eval(), [shape], "module"), precision)


def _with_overhead(**changes: object) -> Target:
    return replace(H200, overhead=replace(H200.overhead, **changes))


@pytest.mark.parametrize("row", PLAIN, ids=lambda row: row["subject"])
def test_the_kernels_are_those_that_the_profiler_saw(row: dict[str, object]) -> None:
    run = _run(put_precision(measured_workload(_record(row)), "fp16"))
    groups = fuse(run, "loops")
    loops = sum(all(run.ops[position].gemm is None for position in group.ops) for group in groups)
    scores = sum(op.kind == "matmul" for op in run.ops)  # the compiler clones an operand of attention's products
    assert 0 <= row["loops"] - loops <= scores / 2
    assert len(groups) - loops == row["products"] + row["depthwise"]


def test_profiles_have_networks_and_attention() -> None:
    assert {row["subject"] for row in PLAIN} > {"mobilenetv2_100", "block:50d49f704d39"}


def test_what_stands_around_a_product_is_a_loop_of_its_own() -> None:
    module = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 8, 1, bias=False))
    run = _run(_workload(module, 1, 8, 12, 12))
    kinds = [[run.ops[position].function or run.ops[position].kind for position in g.ops] for g in fuse(run, "loops")]
    assert kinds == [["conv"], ["bias", "batchnorm", "gelu"], ["conv"]]


def test_a_linear_layer_takes_its_bias_in() -> None:
    run = _run(_workload(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), 1, 16, 8))
    assert Counter(op.kind for op in run.ops) == {"linear": 1, "activation": 1}


def test_a_convolution_copies_its_part_of_a_map_and_a_loop_does_not() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left, right = torch.relu(x).chunk(2, 1)
            return self.conv(left) * torch.sigmoid(right)

    run = _run(_workload(Halves(), 1, 16, 12, 12))
    assert Counter(op.function or op.kind for op in run.ops) == Counter(["relu", "slice", "conv", "sigmoid", "mul"])


@pytest.mark.parametrize("block_fusion", ["none", "recompute"])
def test_an_estimator_knows_what_it_costed_before(block_fusion: str) -> None:
    target = _with_overhead(block_fusion=block_fusion)
    estimator = PartEstimator(target)
    for row in PLAIN[1:]:
        bare = measured_workload(_record(row))
        for precision in ("fp16", "w8a8", "fp32", "fp16", "w8a8"):
            workload = put_precision(bare, precision)
            assert estimator.cost(workload) == estimate_part(workload, target)


def test_a_loop_waits_for_no_product_that_needs_it() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(x)
            return torch.relu(y * torch.sigmoid(self.conv(y)))

    run = _run(_workload(Gated(), 1, 8, 12, 12))
    assert [len(group.ops) for group in fuse(run, "loops")] == [1, 1, 3]


def test_a_mean_joins_the_loop_before_it_and_a_window_does_not() -> None:
    def sizes(layer: nn.Module) -> list[int]:
        run = _run(_workload(nn.Sequential(nn.ReLU(), layer, nn.Hardtanh()), 1, 8, 12, 12))
        return [len(group.ops) for group in fuse(run, "loops")]

    assert sizes(nn.AdaptiveAvgPool2d(1)) == [3]
    assert sizes(nn.AvgPool2d(3, 1, 1)) == [1, 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_kernel_costs_what_its_family_starts_with(family: str) -> None:
    module = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 8, 1), nn.AvgPool2d(2))
    workload = _workload(module, 1, 8, 12, 12)
    part = estimate_part(workload, H200)
    count = sum(group.family == family for group in part.groups)
    start_s = dict(H200.overhead.start_s) | {family: H200.overhead.start_s.get(family, 0.0) + 1e-3}
    slower = estimate_part(workload, _with_overhead(start_s=start_s))
    assert slower.latency_s[0] - part.latency_s[0] == pytest.approx(1e-3 * count)
    assert count == {"dense": 1, "depthwise": 1, "pointwise": 1, "elementwise": 3, "pool": 1}.get(family, 0)


def test_a_product_takes_as_long_as_what_it_sums_one_by_one() -> None:
    workload = _workload(nn.Conv2d(64, 8, 3, bias=False), 1, 64, 12, 12)
    target = _with_overhead(serial_s={"dense": 1e-6}, start_s={})
    assert estimate_part(workload, target).latency_s[0] == pytest.approx(64 * 9 * 1e-6 + target.overhead.launch_s)


@pytest.mark.parametrize(
    ("kernel", "stride", "channels", "size", "expected_us"),
    [
        ((5, 5), 1, 96, 2, 96 * 1.0),  # outsized: its padding is the whole map
        ((5, 5), 2, 96, 2, 96 * 1.0),
        ((5, 5), 2, 96, 4, 0.0),  # what it writes is as small
        ((5, 5), 1, 96, 3, 0.0),
        ((1, 11), 1, 8, 24, 8 * 24 * 2.0 + 8 * 24 * 24 * 11 * 3.0),  # narrow and flat
        ((1, 11), 1, 16, 24, 16 * 24 * 24 * 11 * 3.0),  # flat
        ((9, 9), 1, 16, 24, 16 * 24 * 24 * 81 * 5.0),  # long
        ((7, 7), 1, 16, 24, 0.0),
    ],
)
def test_a_window_without_a_fast_kernel(kernel, stride: int, channels: int, size: int, expected_us: float) -> None:
    padding = (kernel[0] // 2, kernel[1] // 2)
    module = nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels)
    workload = _workload(module, 1, channels, size, size)
    unfit_s = {"outsized.channel": 1e-6, "narrow.row": 2e-6, "flat.mac": 3e-6, "long.mac": 5e-6}
    fast, slow = (replace(H200, runtime=replace(H200.runtime, unfit_s=per)) for per in ({}, unfit_s))
    extra_s = estimate(workload, slow).latency_s - estimate(workload, fast).latency_s
    assert extra_s == pytest.approx(1e-6 * expected_us, rel=0.05, abs=1e-9)  # memory may hide some
