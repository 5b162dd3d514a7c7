"""The one function that decides bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hw_models import Workload
from nas.bits import PRECISIONS, bits_at, block_bits, part_precisions, put_precision
from nas.trace import trace_module
from search_spaces.architecture import Architecture, Block, BlockBits, Stage
from search_spaces.layers import MatMul


@pytest.fixture
def arch() -> Architecture:
    def block(bits: str) -> Block:
        return Block("dwconv", 3, 2.0, BlockBits.parse(bits))

    first = Stage(16, 16, "batchnorm", "relu", (block("w4a8"), block("w8a16")))
    second = Stage(32, 32, "batchnorm", "relu", (block("w4a16"),))
    return Architecture(32, "conv3s2", (first, second))


def test_everything_outside_blocks_has_eight_bits(arch: Architecture) -> None:
    for path in ("stem.conv1.conv", "stages.1.downsample.conv", "head.fc", "head", ""):
        assert bits_at(path, "", arch) == (8, 8)


def test_blocks_have_their_policy(arch: Architecture) -> None:
    assert bits_at("stages.0.blocks.0.mlp.fc1", "", arch) == (4, 8)
    assert bits_at("stages.0.blocks.1", "", arch) == (8, 16)
    assert bits_at("stages.1.blocks.0.add2", "", arch) == (4, 16)
    assert str(block_bits("stages.1.blocks.0.add2", arch)) == "w4a16"


def test_accumulators_always_have_sixteen_bits(arch: Architecture) -> None:
    assert bits_at("stages.0.blocks.0.token_mixer.state", "accumulator", arch) == (4, 16)


def test_unknown_role_and_block_are_named(arch: Architecture) -> None:
    with pytest.raises(ValueError, match="'accumulater'"):
        bits_at("stem", "accumulater", arch)
    with pytest.raises(ValueError, match=r"stages\.0\.blocks\.7"):
        bits_at("stages.0.blocks.7.add1", "", arch)


def test_parts_read_what_the_part_before_wrote(arch: Architecture) -> None:
    names = [
        "stem",
        "stages.0.blocks.0",
        "stages.0.blocks.1",
        "stages.1.downsample",
        "stages.1.blocks.0",
        "head",
    ]
    assert part_precisions(names, arch) == [
        ("w8a8", 8),
        ("w4a8", 8),
        ("w8a16", 8),
        ("w8a8", 16),
        ("w4a16", 8),
        ("w8a8", 16),
    ]


class _Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 1)
        self.product = MatMul(role="accumulator")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.conv(x).flatten(2)
        return self.product(tokens, tokens.transpose(1, 2))


@pytest.fixture
def workload() -> Workload:
    with torch.device("meta"):
        return trace_module(_Product(), [(1, 8, 4, 4)])


def _dtypes(workload: Workload) -> dict[str, str]:
    return {tensor.name: tensor.dtype for tensor in workload.tensors}


def test_formats_of_a_policy(workload: Workload) -> None:
    assert _dtypes(put_precision(workload, "w4a8")) == {
        "input": "int8",
        "conv.weight": "int4",
        "conv.bias": "int32",
        "conv": "int8",
        "product.transpose": "int8",
        "product.matmul": "int16",
    }
    assert _dtypes(put_precision(workload, "w4a8", input_bits=16))["input"] == "int16"
    assert workload.tensors[0].dtype == ""


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_covers_every_tensor(workload: Workload, precision: str) -> None:
    put = put_precision(workload, precision)
    assert all(tensor.bits >= 4 for tensor in put.tensors)
    if precision.startswith("fp"):
        assert set(_dtypes(put).values()) == {precision}


def test_unknown_precision_lists_the_known(workload: Workload) -> None:
    with pytest.raises(ValueError, match="'int8'; known: fp32"):
        put_precision(workload, "int8")
