"""Waterline and efficiency gap add up to the report they come from."""

from __future__ import annotations

import pytest

from hw_models import CostReport, Op, Target, Tensor, Workload, estimate, load_target
from hw_models.waterline import LOSSES, balance_macs_per_byte, efficiency_gap, waterline


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("npu_40tops")


@pytest.fixture(scope="module")
def report(target: Target) -> CostReport:
    tensors = [Tensor("x", (1, 196, 384), "int8")]
    ops = []
    for number in range(3):
        tensors += [
            Tensor(f"w{number}", (384, 384), "int8", constant=True),
            Tensor(f"y{number}", (1, 196, 384), "int8"),
            Tensor(f"z{number}", (1, 196, 384), "int8"),
        ]
        source, weight, product, soft = 3 * number, 3 * number + 1, 3 * number + 2, 3 * number + 3
        elements = tensors[0].elements
        gemm = (1, 196, 384, 384)
        ops += [
            Op(f"fc{number}", "", "linear", (source,), (product,), (weight,), (elements,), gemm=gemm),
            Op(f"softmax{number}", "", "softmax", (product,), (soft,), (), (elements,), extent=384),
        ]
    workload = Workload("three layers", tuple(tensors), tuple(ops), (0,), (9,))
    return estimate(workload, target)


def test_bars_follow_each_other_and_hold_all_macs(report: CostReport, target: Target) -> None:
    bars = waterline(report)
    assert [bar.name for bar in bars] == ["fc0", "fc1", "fc2"]
    assert bars[1].start_s == pytest.approx(bars[0].start_s + bars[0].width_s)
    assert sum(bar.width_s for bar in bars) == pytest.approx(report.macs / target.matrix.peak_macs_per_s)
    assert all(bar.reached_macs_per_s <= target.matrix.peak_macs_per_s for bar in bars)


def test_nothing_lies_above_the_roof(report: CostReport, target: Target) -> None:
    for bar in waterline(report):
        slope = bar.intensity_macs_per_byte / balance_macs_per_byte(target)
        assert bar.reached_macs_per_s <= target.matrix.peak_macs_per_s * min(1.0, slope) * (1 + 1e-9)


def test_gaps_add_up_to_the_latency(report: CostReport) -> None:
    gaps = efficiency_gap(report)
    assert sum(gap.total_s for gap in gaps) == pytest.approx(report.latency_s)
    assert {gap.kind for gap in gaps} == {"linear", "softmax", "network"}
    assert all(value >= 0 for gap in gaps for value in gap.seconds.values())
    assert all(tuple(gap.seconds) == LOSSES for gap in gaps)
