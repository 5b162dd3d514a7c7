"""What a measurement is of: descriptions rebuild what was described."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hw_models.measurements import Measurement
from nas.cost import part_workload
from nas.errors import UsageError
from nas.subjects import (
    check_subject,
    describe_architecture,
    describe_part,
    described_network,
    described_part,
    measured_workload,
    part_key,
)
from search_spaces import load_space
from search_spaces.parts import network_parts

_SPACE = load_space("metaformer", "small")


@pytest.mark.parametrize("seed", range(3))
def test_a_described_part_is_the_part(seed: int) -> None:
    arch = _SPACE.decode(_SPACE.sample(np.random.default_rng(seed)))
    for part in network_parts(arch, 10):
        again = described_part(describe_part(part))
        assert again.spec == part.spec
        assert again.input_shape == part.input_shape
        assert part_workload(again) == part_workload(part)
        shapes = [{name: value.shape for name, value in p.build().state_dict().items()} for p in (part, again)]
        assert shapes[0] == shapes[1]


def test_a_described_network_is_the_network_and_costs_its_parts() -> None:
    arch = _SPACE.decode(_SPACE.sample(np.random.default_rng(5)))
    text = describe_architecture(arch, 10)
    assert described_network(text) == (arch, 10, 3)
    record = Measurement("t", "arch:x", "network", arch.resolution, "fp32", 1.0, description=text)
    check_subject(record)
    assert measured_workload(record).macs == sum(part_workload(part).macs for part in network_parts(arch, 10))


def test_keys_tell_parts_apart() -> None:
    arch = _SPACE.decode(_SPACE.sample(np.random.default_rng(1)))
    texts = {describe_part(part) for part in network_parts(arch, 10)}
    assert len({part_key(text) for text in texts}) == len(texts) > 3


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (Measurement("t", "resnet19", "network", 224, "fp32", 1.0), "did you mean"),
        (Measurement("t", "block:1", "block", 8, "fp32", 1.0), "has no description"),
        (Measurement("t", "block:1", "block", 8, "fp32", 1.0, description='{"part":"X"}'), "does not describe a block"),
        (Measurement("t", "a", "network", 8, "fp32", 1.0, description='{"a":1}'), "does not describe a network"),
    ],
)
def test_an_unknown_subject_is_refused(record: Measurement, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_subject(record)


def test_a_block_runs() -> None:
    arch = _SPACE.decode(_SPACE.sample(np.random.default_rng(2)))
    for part in network_parts(arch, 10):
        out = described_part(describe_part(part)).build()(torch.zeros(part.input_shape))
        assert torch.isfinite(out).all()
