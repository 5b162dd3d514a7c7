"""One estimator at many number formats against one estimate for each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch

from hw_models import PartEstimator, Workload, estimate_part, list_targets, load_target
from nas.bits import put_precision
from nas.trace import trace_module
from search_spaces import load_space
from search_spaces.parts import network_parts

FORMATS = [("w8a8", 8), ("w4a8", 8), ("w4a8", 16), ("w8a16", 8), ("fp32", None), ("w4a8", 8)]


@pytest.fixture(scope="module")
def workloads() -> list[Workload]:
    space = load_space("metaformer")
    genome = {choice.name: choice.values[-1] for choice in space.choices}
    workloads = []
    with torch.device("meta"):
        for part in network_parts(space.decode(genome), 10):
            workloads.append(trace_module(part.build(), [part.input_shape], part.name))
        workloads.append(trace_module(timm.create_model("efficientvit_b0"), [(1, 3, 224, 224)]))
    return workloads


@pytest.mark.parametrize("name", list_targets())
def test_equals_estimates_one_by_one(name: str, workloads: list[Workload]) -> None:
    target = load_target(name)
    small = replace(target, memory=replace(target.memory, onchip_bytes=200_000))
    for device, some in ((target, workloads[2:4]), (small, workloads[-1:])):
        for workload in some:
            estimator = PartEstimator(device, (False, True))
            for precision, incoming in (
                ("w8a8", 8),
                ("w4a8", 8),
                ("w4a8", 16),
                ("w8a16", 8),
                ("w8a8", 16),
                ("fp32", None),
            ):
                formatted = put_precision(workload, precision, incoming)
                assert estimator.cost(formatted) == estimate_part(formatted, device, (False, True))


def test_an_estimator_takes_another_workload(workloads: list[Workload]) -> None:
    target = load_target("npu_40tops")
    estimator = PartEstimator(target)
    for workload in (workloads[0], workloads[1], workloads[0]):
        formatted = put_precision(workload, "w8a8")
        assert estimator.cost(formatted) == estimate_part(formatted, target)


def test_formats_do_not_leak_into_what_is_known_of_a_graph(workloads: list[Workload]) -> None:
    wide = put_precision(workloads[0], "fp32")
    assert max(wide.sizes_bytes) == 2 * max(put_precision(wide, "fp16").sizes_bytes)
    assert wide.weight_bytes == put_precision(put_precision(workloads[0], "w8a8"), "fp32").weight_bytes
