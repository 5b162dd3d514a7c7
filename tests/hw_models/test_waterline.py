"""Waterline and efficiency gap add up to the report they come from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hw_models import CostReport, Op, Target, Tensor, Workload, estimate, load_target
from hw_models.waterline import LOSSES, balance_macs_per_byte, efficiency_gap, peak_macs_per_s, waterline


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("npu_40tops")


@pytest.fixture(scope="module")
def report(target: Target) -> CostReport:
    return _report(target, "int8")


def _report(target: Target, dtype: str) -> CostReport:
    tensors = [Tensor("x", (1, 196, 384), dtype)]
    ops = []
    for number in range(3):
        tensors += [
            Tensor(f"w{number}", (384, 384), dtype, constant=True),
            Tensor(f"y{number}", (1, 196, 384), dtype),
            Tensor(f"z{number}", (1, 196, 384), dtype),
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
        slope = bar.intensity_macs_per_byte / balance_macs_per_byte(report, target)
        assert bar.reached_macs_per_s <= target.matrix.peak_macs_per_s * min(1.0, slope) * (1 + 1e-9)


def test_the_roof_is_that_of_the_number_formats(report: CostReport, target: Target) -> None:
    wide = _report(target, "fp16")
    rate = target.matrix.rates["fp16"]
    assert peak_macs_per_s(report, target) == pytest.approx(target.matrix.peak_macs_per_s)
    assert peak_macs_per_s(wide, target) == pytest.approx(target.matrix.peak_macs_per_s * rate)
    assert balance_macs_per_byte(wide, target) == pytest.approx(balance_macs_per_byte(report, target) * rate)


def test_transfers_that_nothing_hides_are_no_overhead(target: Target) -> None:
    """On a device whose cores wait for memory, the gap of memory is the time of its transfers."""
    waiting = replace(target, runtime=replace(target.runtime, one_core=True))
    report = _report(waiting, "int8")
    gap = next(gap for gap in efficiency_gap(report) if gap.kind == "linear")
    rows = [row for row in report.rows if row["kind"] == "linear"]
    assert gap.seconds["dram"] == pytest.approx(sum(row["dram_s"] for row in rows))
    assert gap.seconds["overhead"] == pytest.approx(len(rows) * target.overhead.launch_s)


def test_gaps_add_up_to_the_latency(report: CostReport) -> None:
    gaps = efficiency_gap(report)
    assert sum(gap.total_s for gap in gaps) == pytest.approx(report.latency_s)
    assert {gap.kind for gap in gaps} == {"linear", "softmax", "network"}
    assert all(value >= 0 for gap in gaps for value in gap.seconds.values())
    assert all(tuple(gap.seconds) == LOSSES for gap in gaps)
