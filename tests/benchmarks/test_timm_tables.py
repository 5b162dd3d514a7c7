"""Traces on disk and at another batch are what tracing anew gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.traced import from_json, to_json, traced
from hw_models import estimate, load_target
from nas.bits import put_precision
from nas.cost import timm_workload

MODELS = ("test_vit", "test_convnext", "test_efficientnet", "test_maxvit")


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_is_proportional(name: str) -> None:
    """Second way: tracing at that batch."""
    target = load_target("rtx_4090")
    ours = put_precision(timm_workload(name).with_batch(6), "fp16")
    theirs = put_precision(timm_workload(name, batch=6), "fp16")
    assert ours.macs == theirs.macs
    assert ours.weight_bytes == theirs.weight_bytes
    assert [op.kind for op in ours.ops] == [op.kind for op in theirs.ops]
    assert estimate(ours, target).latency_s == pytest.approx(estimate(theirs, target).latency_s, rel=1e-9)
    assert ours.input_shapes == theirs.input_shapes


@pytest.mark.parametrize("name", MODELS)
def test_a_trace_survives_the_disk(name: str, tmp_path: Path) -> None:
    workload = timm_workload(name)
    assert from_json(to_json(workload)) == workload
    first = traced(name, None, tmp_path)
    assert traced(name, None, tmp_path) == first == workload
