"""Estimators that remember groups against one estimate for each workload and number format."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from hw_models import PartEstimator, Workload, estimate_part, list_targets, load_target
from hw_models.known_groups import KnownGroups
from nas.bits import put_precision
from nas.trace import trace_module
from search_spaces import load_space
from search_spaces.parts import network_parts

FORMATS = [("w8a8", 8), ("w4a8", 8), ("w4a8", 16), ("w8a16", 8), ("fp32", None), ("w4a8", 8)]
PLACE = "stages.1.blocks.0"


@pytest.fixture(scope="module")
def blocks() -> list[Workload]:
    """What can stand at one place: blocks with many groups in common, and more of which only the sizes differ."""
    space = load_space("metaformer", choices={"resolution": [32, 64], "expansion": [2.0, 3.0]})
    rng = np.random.default_rng(0)
    found = {}
    with torch.device("meta"):
        for _ in range(40):
            for part in network_parts(space.decode(space.sample(rng)), 10):
                if part.name == PLACE and part.spec not in found:
                    found[part.spec] = trace_module(part.build(), [part.input_shape], part.name)
    assert len(found) > 30
    return list(found.values())


@pytest.mark.parametrize("name", list_targets())
def test_blocks_that_share_groups(name: str, blocks: list[Workload]) -> None:
    target = load_target(name)
    known = KnownGroups(target)
    some = blocks if name == "npu_40tops" else blocks[:4]
    for number, workload in enumerate(some):
        ends = bool(number % 5 == 4), bool(number % 7 == 6)
        estimator = PartEstimator(target, ends, known)
        for precision, incoming in FORMATS:
            formatted = put_precision(workload, precision, incoming)
            assert estimator.cost(formatted) == estimate_part(formatted, target, ends)


@pytest.mark.parametrize("name", ["npu_40tops", "ethos_u85_2048", "i9_10940x"])
def test_a_network_whose_maps_spill(name: str) -> None:
    with torch.device("meta"):
        workload = trace_module(timm.create_model("efficientvit_b0"), [(1, 3, 224, 224)])
    target = load_target(name)
    target = replace(target, memory=replace(target.memory, onchip_bytes=200_000))
    estimator = PartEstimator(target)
    for precision, incoming in FORMATS:
        formatted = put_precision(workload, precision, incoming)
        assert estimator.cost(formatted) == estimate_part(formatted, target)


def test_what_is_alike_is_costed_once(blocks: list[Workload], monkeypatch: pytest.MonkeyPatch) -> None:
    target = load_target("npu_40tops")
    known = KnownGroups(target)
    formatted = put_precision(blocks[0], "w8a8")
    first = PartEstimator(target, known=known).cost(formatted)
    monkeypatch.setattr("hw_models.group_cost._group_cost", lambda *_: pytest.fail("costed again"))
    assert PartEstimator(target, known=known).cost(formatted) == first
    with pytest.raises(ValueError, match="known of npu_40tops, not of hailo8"):
        PartEstimator(load_target("hailo8"), known=known)


def test_an_estimator_takes_another_workload(blocks: list[Workload]) -> None:
    target = load_target("npu_40tops")
    estimator = PartEstimator(target)
    for workload in (blocks[0], blocks[1], blocks[0]):
        formatted = put_precision(workload, "w8a8")
        assert estimator.cost(formatted) == estimate_part(formatted, target)


def test_formats_do_not_leak_into_what_is_known_of_a_graph(blocks: list[Workload]) -> None:
    wide = put_precision(blocks[0], "fp32")
    assert max(wide.sizes_bytes) == 2 * max(put_precision(wide, "fp16").sizes_bytes)
    assert wide.weight_bytes == put_precision(put_precision(blocks[0], "w8a8"), "fp32").weight_bytes
