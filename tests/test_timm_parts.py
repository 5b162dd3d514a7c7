"""Blocks of timm networks: what is found, and that it computes what the network computes."""

from __future__ import annotations

import json

import pytest
import timm
import torch

from nas.measure.jobs import Job, is_chained
from nas.subjects import Subject, canonical, described_part, part_subject
from nas.timm_parts import MOST_LAYERS, TimmPart, timm_descriptions

NAMES = ("mobilenetv3_small_050", "efficientvit_b0", "repvgg_a0", "vit_tiny_patch16_224")


def _subjects(name: str) -> list[Subject]:
    return [part_subject(described_part(canonical(found))) for found in timm_descriptions(name)]


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_described_whole_and_have_the_shapes_that_are_said(name: str) -> None:
    subjects = _subjects(name)
    assert len(subjects) >= 2
    assert len({subject.name for subject in subjects}) == len(subjects)
    for subject in subjects[:: max(1, len(subjects) // 6)]:
        module, shape = subject.build()
        arguments = json.loads(subject.description)["arguments"]
        with torch.no_grad():
            made = module(torch.zeros(shape))
        side = -(-shape[-1] // arguments["stride"])
        assert made.shape == (1, arguments["out_chans"], side, side)
        layers = sum(isinstance(layer, torch.nn.Conv2d | torch.nn.Linear) for layer in module.modules())
        assert 1 <= layers <= MOST_LAYERS
        assert not subject.must_fuse


def test_a_block_computes_what_it_computes_in_its_network() -> None:
    model = timm.create_model("mobilenetv3_small_050").eval()
    part = TimmPart("mobilenetv3_small_050", "blocks.1.1", 16, 16, 1, False)
    part.part.load_state_dict(model.get_submodule("blocks.1.1").state_dict())
    x = torch.randn(1, 16, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(part.eval()(x), model.get_submodule("blocks.1.1")(x))


def test_tokens_come_from_the_map_and_go_back() -> None:
    part = TimmPart("vit_tiny_patch16_224", "blocks.0.mlp", 192, 192, 1, True).eval()
    x = torch.randn(2, 192, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        by_position = torch.stack([part.part(x[:, :, i, j]) for i in range(5) for j in range(5)], dim=-1)
        assert torch.allclose(part(x), by_position.reshape(2, 192, 5, 5), atol=1e-5)


def test_branches_are_merged() -> None:
    found = [subject for subject in _subjects("repvgg_a0") if '"stages.1.1"' in subject.description]
    module, _ = found[0].build()
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in module.modules()) == 1


def test_how_blocks_are_timed() -> None:
    subjects = _subjects("mobilenetv3_small_050")
    for subject in subjects:
        part = json.loads(subject.description)
        arguments = part["arguments"]
        same = arguments["stride"] == 1 and arguments["out_chans"] == part["channels"]
        assert is_chained(part) == same
        assert len(Job(subject, "fp32").terms) == (2 if same else 5)
    stem = next(subject for subject in _subjects("repvgg_a0") if json.loads(subject.description)["channels"] == 3)
    assert len(Job(stem, "fp32").terms) == 3  # an image is read as it is
