"""Objectives and constraints: names, units, gaps, and what is said about mistakes."""

from __future__ import annotations

import pytest

from hw_models import CostReport
from nas.errors import UsageError
from nas.objectives import LEGALITY, OBJECTIVES, parse_constraints, resolve_axes, resolve_goal

TARGETS = ["npu_a", "npu_b"]
COSTS = {
    name: CostReport(
        target=name,
        latency_s=scale * 1e-3,
        energy_j=scale * 1e-4,
        peak_onchip_bytes=1000,
        weight_bytes=2000,
        dram_bytes=3000,
        macs=10**7,
        params=10**5,
        overhead_s=0.0,
        accuracy="",
    ).summary()
    for name, scale in (("npu_a", 1), ("npu_b", 2))
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_reads_a_cost_summary_or_an_accuracy(name):
    (axis, *_) = resolve_axes(name, TARGETS)
    entry = axis.objective.key
    assert axis.objective.needs_images or entry in COSTS["npu_a"], f"CostReport.summary has no entry {entry}"
    assert axis.value(COSTS, 0.5) > 0
    assert axis.objective.direction in ("minimize", "maximize")
    assert axis.metric_name.startswith(axis.objective.key)


def test_one_target_needs_no_name_and_several_give_an_axis_each():
    assert [axis.name for axis in resolve_axes("latency", ["npu_a"])] == ["latency"]
    assert [axis.name for axis in resolve_axes("latency", TARGETS)] == ["latency@npu_a", "latency@npu_b"]
    assert [axis.name for axis in resolve_axes("latency@npu_b", TARGETS)] == ["latency@npu_b"]
    assert [axis.name for axis in resolve_axes("macs", TARGETS)] == ["macs"]


def test_goal_keeps_order_and_drops_repetition():
    goal = resolve_goal(["latency", "top1", "latency"], [], ["npu_a"])
    assert [axis.name for axis in goal.axes] == ["latency", "top1"]
    assert goal.directions == ("minimize", "maximize")
    assert goal.values(COSTS, 0.5) == (1e-3, 0.5)


def test_gaps_are_relative_and_feasible_at_the_bound():
    goal = resolve_goal(["top1"], ["latency<=1ms", "top1>=80%"], ["npu_a"])
    gaps = goal.gaps(COSTS, 0.6)
    assert gaps["latency<=1ms"] == pytest.approx(0)
    assert gaps["top1>=80%"] == pytest.approx(0.25)
    assert gaps[LEGALITY] == 0
    (missed,) = goal.shortfalls(COSTS, 0.6)
    assert missed.reason == "top1 60% is 25.0% below 80%"


def test_what_needs_images_is_not_asked_before_images_are_seen():
    goal = resolve_goal(["top1"], ["latency<=0.5ms", "top1>=80%"], ["npu_a"])
    assert [s.demand for s in goal.shortfalls(COSTS, None, images=False)] == ["latency<=0.5ms"]


def test_what_a_target_cannot_do_is_a_shortfall_with_its_reason():
    missing = {"what": "no dilation", "value": 1, "bound": 0, "unit": "uses", "excess": 1}
    large = {"what": "kernel at conv1", "value": 7, "bound": 5, "unit": "pixels", "excess": 2}
    costs = {"npu_a": {**COSTS["npu_a"], "violations": [missing, large]}}
    goal = resolve_goal(["top1"], [], ["npu_a"])
    assert goal.gaps(costs, None) == {LEGALITY: pytest.approx(1.4)}
    assert [s.reason for s in goal.shortfalls(costs, None)] == [
        "npu_a: no dilation",
        "npu_a: kernel at conv1: 7 pixels > 5",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("latency<2ms", "cannot read the constraint 'latency<2ms'; write it like"),
        ("latency<=2", "no unit"),
        ("latncy<=2ms", "did you mean 'latency'"),
        ("latency@npu_c<=2ms", "target that this study does not have; did you mean"),
        ("<=2ms", "cannot read"),
        ("", "cannot read"),
    ],
)
def test_a_constraint_that_cannot_be_read_is_refused_in_one_line(text, said):
    with pytest.raises(UsageError, match=said) as caught:
        parse_constraints(text, TARGETS)
    assert "\n" not in str(caught.value)
