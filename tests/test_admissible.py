"""Mixers a device cannot run are left out or refused before anything is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hw_models import Target, load_target
from nas.admissible import admissible_space
from nas.errors import NothingFeasible, UsageError
from search_spaces.metaformer import load_space


def target(**legality: object) -> Target:
    whole = load_target("npu_40tops")
    return replace(whole, legality=replace(whole.legality, **legality))  # type: ignore[arg-type]


def test_the_default_search_keeps_its_mixers() -> None:
    space = load_space("metaformer")
    assert admissible_space(space, {"npu_40tops": load_target("npu_40tops")}) == (space, [])


def test_a_device_without_the_bits_of_stem_and_head_is_refused() -> None:
    space = load_space("metaformer")
    with pytest.raises(UsageError, match=r"apple_a14 has fp16, w8a16, w4a16, and no w8a8, in which stem and head"):
        admissible_space(space, {"apple_a14": load_target("apple_a14")})


def test_what_cannot_run_is_left_out_with_the_reason() -> None:
    space = load_space("metaformer", mixers=["dwconv", "pool", "mhsa"])
    kept, notes = admissible_space(space, {"mine": target(depthwise_kernels=(3, 5), unsupported=("softmax",))})
    assert kept["stage1.mixer"].values == ("pool", "dwconv3", "dwconv5")
    assert kept["stage3.mixer"].values == ("pool", "dwconv3", "dwconv5")
    (note,) = notes
    assert "mine cannot run them: dwconv7 (depthwise kernel at token_mixer" in note
    assert "mhsa (softmax is not supported" in note


def test_what_was_asked_for_by_name_is_refused() -> None:
    bars = {"mine": target(depthwise_kernels=(3, 5))}
    space = load_space("metaformer", mixers=["pool", "largekernel"])
    with pytest.raises(UsageError, match=r"token mixer largekernel: mine cannot run it: .*kernel.*leave it out"):
        admissible_space(space, bars, ["pool", "largekernel"])
    assert admissible_space(space, bars, ["first"])[0].mixers == ("pool",)
    with pytest.raises(NothingFeasible, match=r"no mixer is left for stage1\.mixer"):
        admissible_space(load_space("metaformer", mixers=["largekernel"]), bars)
