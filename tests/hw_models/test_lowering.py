"""How a library runs a network: conversions, reorders and unfused operators; accelerators are left alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from hw_models import Workload, estimate, estimate_part, load_target
from hw_models.estimate import streamed_share
from hw_models.fusion import fuse
from hw_models.lowering import lower
from nas.bits import put_precision
from nas.cost import part_workload
from nas.measure.design import part_pool
from nas.trace import trace_module
from search_spaces import load_space

CORE, NPU = load_target("epyc_zen5_core"), load_target("npu_40tops")
SPACE = load_space("metaformer", "small", mixers=["dwconv", "mhsa", "inception", "relu_linear", "mbconv"])
PARTS = [part for part in part_pool(SPACE, 40, 0, 10, 3) if part.spec[0] == "MetaFormerBlock"]


def _chain(*layers: nn.Module, precision: str = "w8a8", channels: int = 32) -> Workload:
    """A convolution, the layers, and another."""
    with torch.device("meta"):
        module = nn.Sequential(nn.Conv2d(channels, channels, 1), *layers, nn.Conv2d(channels, channels, 1))
    return put_precision(trace_module(module.eval(), [(1, channels, 12, 12)], "chain"), precision)


def _put_in(workload: Workload) -> Counter[str]:
    """Functions of what the library puts in."""
    before = Counter(op.function for op in workload.ops)
    return Counter(op.function for op in lower(workload, CORE.runtime).ops) - before


@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
@pytest.mark.parametrize("part", PARTS[:12], ids=lambda part: part.name)
def test_the_same_work_is_done(part, precision: str) -> None:
    workload = put_precision(part_workload(part), precision)
    lowered = lower(workload, CORE.runtime)
    assert [op.name for op in lowered.ops if op.name in {op.name for op in workload.ops}] == [
        op.name for op in workload.ops
    ]
    assert lowered.macs == workload.macs
    assert lowered.weight_bytes == workload.weight_bytes
    assert len(lowered.outputs) == len(workload.outputs)
    assert {op.kind for op in lowered.ops} - {op.kind for op in workload.ops} <= {"copy", "transpose", "elementwise"}
    for op in lowered.ops:  # no kernel mixes formats but those that convert
        if op.function not in ("dequantize", "quantize"):
            formats = {lowered.tensors[index].dtype[:2] for index in (*op.inputs, *op.outputs)}
            assert len(formats) == 1, op.name
    assert lower(lowered, NPU.runtime) is lowered


def test_what_an_accelerator_runs_is_left_alone() -> None:
    workload = _chain(nn.GELU())
    assert lower(workload, NPU.runtime) is workload


def test_functions_without_an_integer_kernel_run_in_float_between_conversions() -> None:
    assert _put_in(_chain(nn.GELU())) == {"dequantize": 1, "quantize": 1}
    assert _put_in(_chain(nn.GELU(), nn.Tanh())) == {"dequantize": 1, "quantize": 1}  # once around both
    assert _put_in(_chain(nn.ReLU())) == {}
    assert _put_in(_chain(nn.GELU(), precision="fp32")) == {}


def test_silu_between_integers_is_a_gate_and_a_product_with_copies_of_their_own() -> None:
    assert _put_in(_chain(nn.SiLU())) == Counter(dequantize=2, mul=1, quantize=1)
    assert _put_in(_chain(nn.Hardswish())) == Counter(dequantize=1, quantize=1)
    assert _put_in(_chain(nn.SiLU(), precision="fp32")) == Counter()
    lowered = lower(_chain(nn.SiLU()), CORE.runtime)
    product = next(op for op in lowered.ops if op.function == "mul")
    gate = next(op for op in lowered.ops if op.function == "silu")
    assert product.inputs[1] == gate.outputs[0]
    assert product.inputs[0] != gate.inputs[0]
    quantized = next(op for op in lowered.ops if op.function == "quantize")
    assert quantized.inputs == product.outputs


class _Gated(nn.Module):
    """x times the mean of its map."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.mean((2, 3), keepdim=True)


def test_a_mean_is_taken_in_float() -> None:
    own = {"dequantize": 2, "quantize": 1, "mean.last": 1}  # copies for the mean, and for the product with it
    assert _put_in(_chain(_Gated())) == own
    assert _put_in(_chain(nn.SiLU(), _Gated()))["dequantize"] == 2  # the product of SiLU is still in float
    assert _put_in(_chain(_Gated(), precision="fp32"))["reorder"] == 2  # it and the product want plain maps


def test_pooling_to_one_position_has_an_integer_kernel_and_another_mean_has_none() -> None:
    pooled = lower(_chain(nn.AdaptiveAvgPool2d(1)), CORE.runtime)
    assert _put_in(_chain(nn.AdaptiveAvgPool2d(1))) == Counter()
    assert [op.function for op in pooled.ops if op.kind == "reduce"] == ["avg"]
    mean = lower(_chain(_Gated()), CORE.runtime)
    assert [op.function for op in mean.ops if op.kind == "reduce"] == ["mean.last"]  # integer maps lie channels last
    assert estimate(_chain(_Gated()), CORE).latency_s > estimate(_chain(nn.AdaptiveAvgPool2d(1)), CORE).latency_s


def test_a_mean_over_channels_is_no_walk_over_positions() -> None:
    class Spatial(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.mean(1, keepdim=True)

    assert "mean.last" not in _put_in(_chain(Spatial()))


class _Tokens(nn.Module):
    """A linear layer on the tokens of a map, and a map of them again."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.inner(x.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).reshape(x.shape)


class _TokensOfMap(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("layer", [_Tokens(), _TokensOfMap()], ids=["linear", "activation"])
def test_tokens_are_made_of_maps_and_read_as_maps_through_a_reorder(layer: nn.Module) -> None:
    assert _put_in(_chain(layer, precision="fp32"))["reorder"] == 2
    assert _put_in(_chain(layer))["reorder"] == 0  # integer maps lie as tokens do


def test_few_channels_are_read_as_they_are() -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Conv2d(32, 6, 1), nn.Conv2d(6, 32, 1))
    between = put_precision(trace_module(module, [(1, 32, 12, 12)], "chain"), "fp32")
    assert _put_in(between) == {"reorder": 1}
    with torch.device("meta"):
        image = put_precision(trace_module(nn.Conv2d(3, 32, 3), [(1, 3, 12, 12)], "stem"), "fp32")
    assert _put_in(image) == {}


def test_groups_are_narrow_where_they_fill_no_block() -> None:
    grouped = _chain(nn.Conv2d(32, 32, 3, padding=1, groups=4), precision="fp32")
    assert _put_in(grouped)["reorder"] == 2  # eight channels a group in blocks of sixteen
    blocks_of_eight = replace(CORE.runtime, block_channels=8)
    assert lower(grouped, blocks_of_eight).ops == grouped.ops


def test_maps_are_reordered_for_what_reads_channels_last() -> None:
    norm = nn.GroupNorm(1, 32)  # its own statistics, but not over channels last
    assert "reorder" in _put_in(_chain(norm, precision="fp32"))

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    assert _put_in(_chain(Last(), precision="fp32")) == {"reorder": 2}
    assert _put_in(_chain(Last())) == {"dequantize": 1, "quantize": 1}  # integer maps have channels last already


def test_kernels_take_in_what_is_named_and_no_more() -> None:
    def sizes(layer: nn.Module, precision: str) -> list[int]:
        run = lower(_chain(layer, precision=precision), CORE.runtime)
        return [len(g.ops) for g in fuse(run, "pointwise", CORE.runtime.joins, CORE.runtime.float_joins)]

    assert sizes(nn.ReLU(), "w8a8") == sizes(nn.Hardswish(), "fp32") == [2, 1]
    assert sizes(nn.GELU(), "fp32") == [1, 1, 1]
    assert sizes(nn.Hardswish(), "w8a8") == [1, 1, 1, 1, 1]


def test_weights_that_lie_behind_the_chip_are_waited_for_in_steps() -> None:
    near, capacity = CORE.memory.onchip_bytes, CORE.memory.resident_weight_bytes
    sizes = [near // 2, near, 2 * near, capacity, capacity + 1, 4 * capacity]
    shares = [streamed_share(size, CORE) for size in sizes]
    assert shares == sorted(shares)
    assert shares[0] == shares[1] == 0.0
    assert shares[2] == pytest.approx(CORE.memory.cached_share / 2)
    assert shares[3] < CORE.memory.cached_share
    assert shares[4] == shares[5] == 1.0


@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
def test_every_pass_takes_time(precision: str) -> None:
    """Without the library's passes the same network is faster."""
    workload = _chain(nn.GELU(), nn.GroupNorm(1, 32), precision=precision)
    plain = replace(CORE, runtime=replace(NPU.runtime, rereads=False))
    assert estimate(workload, CORE).latency_s > estimate(workload, plain).latency_s
    part = estimate_part(workload, CORE)
    assert all(group.matrix_s + group.vector_s > 0 for group in part.groups)
