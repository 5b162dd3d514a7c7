"""What a library's convolutions take beyond their products: edges, channels that fill no vectors, narrow groups."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from hw_models import load_target
from hw_models.library import library_seconds
from hw_models.lowering import has_blocked_kernel, lower
from hw_models.npu import matrix_seconds
from nas.bits import put_precision
from nas.trace import trace_module

WIDE, NARROW, NPU = (load_target(name) for name in ("epyc_zen5_core", "epyc_zen3_core", "npu_40tops"))


def _traced(conv: nn.Conv2d, size: int, precision: str):
    """(workload, its only op)."""
    workload = put_precision(trace_module(conv, [(1, conv.in_channels, size, size)], "conv"), precision)
    return workload, workload.ops[0]


def _conv(inputs: int, outputs: int, kernel: int, groups: int = 1, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    with torch.device("meta"):
        return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation=dilation, groups=groups)


def beyond_s(conv: nn.Conv2d, precision: str, target=NARROW, size: int = 14, product_s: float = 1e-6) -> float:
    workload, op = _traced(conv, size, precision)
    return library_seconds(workload, op, target.matrix, target.runtime, product_s)


@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
@pytest.mark.parametrize("conv", [_conv(32, 32, 7, 32), _conv(30, 60, 3, 30), _conv(32, 32, 3)])
def test_an_accelerator_has_no_such_kernels(conv: nn.Conv2d, precision: str) -> None:
    assert beyond_s(conv, precision, NPU) == 0.0


@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
@pytest.mark.parametrize("target", [WIDE, NARROW], ids=["zen5", "zen3"])
def test_a_depthwise_convolution_with_two_outputs_a_channel_has_no_kernel_of_its_own(target, precision: str) -> None:
    """ONNX Runtime computes it group by group."""

    def seconds(outputs: int) -> float:
        workload, op = _traced(_conv(96, outputs, 7, 96), 28, precision)
        product_s = matrix_seconds(op, target.matrix, precision)
        return product_s + library_seconds(workload, op, target.matrix, target.runtime, product_s)

    times = seconds(192) / seconds(96)
    assert (4 if precision == "fp32" else 20) < times < (15 if precision == "fp32" else 300)


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [12, 13, 14])
def test_positions_at_the_edge_are_counted_as_the_window_meets_it(
    kernel: int, stride: int, dilation: int, size: int
) -> None:
    """Against counting along ones: a window that meets padding sums less than all its taps."""
    channels = 8
    runtime = replace(NARROW.runtime, float_start_cycles=0.0, depthwise_edge_cycles=1.0)
    ones, padding = torch.ones(1, 1, size), dilation * (kernel // 2)
    met = nn.functional.conv1d(ones, torch.ones(1, 1, kernel), None, stride, padding, dilation)[0, 0]
    at_edge, rows = float((met < kernel).float().mean()), float(met.mean()) / kernel
    workload, op = _traced(_conv(channels, channels, kernel, channels, stride, dilation), size, "fp32")
    seconds = library_seconds(workload, op, NARROW.matrix, runtime, 0.0)
    assert op.gemm is not None
    expected = op.gemm[1] * at_edge * rows * kernel**2 / NARROW.matrix.clock_hz
    assert seconds == pytest.approx(expected)


class _OfTokens(nn.Module):
    """A depthwise convolution of tokens, [batch, tokens, channels], or of a map that lies channels last."""

    def __init__(self, *, is_map: bool) -> None:
        super().__init__()
        self.first, self.conv, self.is_map = nn.Linear(16, 16), nn.Conv2d(16, 16, 3, padding=1, groups=16), is_map

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.is_map:
            return self.conv(self.first(x).permute(0, 3, 1, 2))
        return self.conv(self.first(x).transpose(1, 2).reshape(1, 16, 14, 14))


@pytest.mark.parametrize("shape", [(1, 196, 16), (1, 14, 14, 16)], ids=["tokens", "channels last"])
def test_what_is_read_as_a_map_has_its_edges(shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        module = _OfTokens(is_map=len(shape) == 4)
    workload = put_precision(trace_module(module, [shape], "tokens"), "fp32")
    op = next(op for op in workload.ops if op.is_depthwise)
    assert library_seconds(workload, op, NARROW.matrix, NARROW.runtime, 0.0) == pytest.approx(
        beyond_s(_conv(16, 16, 3, 16), "fp32", product_s=0.0)
    )


def test_edges_weigh_more_on_small_maps_in_fp32_alone() -> None:
    def at(size: int, precision: str) -> float:
        return beyond_s(_conv(64, 64, 7, 64), precision, size=size) / size**2

    assert at(7, "fp32") > 2 * at(28, "fp32") > 4 * at(112, "fp32")
    assert at(7, "w8a8") == pytest.approx(at(112, "w8a8"))


@pytest.mark.parametrize("target", [WIDE, NARROW], ids=["zen5", "zen3"])
def test_ragged_depthwise_kernels_are_slower_in_integers(target) -> None:
    lanes = target.matrix.depthwise_channels
    whole, ragged = (_conv(c, c, 3, c) for c in (2 * lanes, 2 * lanes - 4))
    assert beyond_s(ragged, "w8a8", target) > 1.3 * beyond_s(whole, "w8a8", target)
    assert beyond_s(ragged, "fp32", target) == pytest.approx(beyond_s(whole, "fp32", target))  # padded to a vector


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "blocked"),
    [
        (32, 30, 1, True),  # outputs are padded
        (30, 32, 1, False),
        (12, 32, 1, True),
        (3, 32, 1, True),  # an image
        (6, 32, 1, True),
        (60, 60, 60, True),
        (62, 62, 62, False),
        (48, 96, 48, False),
        (64, 64, 8, True),
        (64, 64, 16, False),
    ],
)
def test_which_convolutions_have_a_blocked_kernel(inputs: int, outputs: int, groups: int, *, blocked: bool) -> None:
    """As ONNX Runtime 1.32 put reorders around these on a core with blocks of eight."""
    _, op = _traced(_conv(inputs, outputs, 3, groups), 14, "fp32")
    assert has_blocked_kernel(op, NARROW.runtime.block_channels) is blocked


def test_float_convolutions_work_on_padded_channels() -> None:
    def padding(channels: int, outputs: int, precision: str = "fp32") -> float:
        target = replace(WIDE, runtime=replace(WIDE.runtime, requantize_cycles=0.0))
        return beyond_s(_conv(channels, outputs, 1), precision, target, product_s=1.0)

    assert padding(64, 64) == padding(3, 64) == padding(24, 64, "w8a8") == 0.0
    assert padding(24, 64) == pytest.approx(32 / 24 - 1)
    assert padding(64, 16) > padding(64, 32) > padding(64, 64)


@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
def test_sequences_and_transposed_convolutions_have_no_blocked_kernel(precision: str) -> None:
    with torch.device("meta"):
        sequence, transposed = nn.Conv1d(32, 32, 3, padding=1), nn.ConvTranspose2d(32, 32, 2, 2)
    flat = put_precision(trace_module(sequence, [(1, 32, 100)], "conv"), precision)
    assert lower(flat, NARROW.runtime).ops == flat.ops  # no reorder
    wide = replace(NARROW.runtime, partial_blocks=10.0, gather_channel_cycles=0.0, requantize_cycles=0.0)
    wide = replace(wide, integer_tap_cycles=0.0, integer_gather_cycles=0.0)
    assert library_seconds(flat, flat.ops[0], NARROW.matrix, wide, 1.0) == 0.0
    grown = put_precision(trace_module(transposed, [(1, 32, 7, 7)], "conv"), precision)
    assert not has_blocked_kernel(grown.ops[0], 8)
