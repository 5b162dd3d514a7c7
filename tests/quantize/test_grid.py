"""Grids and rounding, against the ONNX reference and against brute force."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from nas.quantize.grid import Quantizer, activation_grid, clipped_range, layer_grid


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.sampled_from([8, 16]))
def test_a_grid_holds_zero_and_covers_the_range(one: float, other: float, bits: int) -> None:
    low, high = min(one, other), max(one, other)
    grid = activation_grid(low, high, bits)
    bottom, top = grid.bounds
    assert bottom <= grid.zero_point <= top
    slack = grid.scale * 0.5000001
    assert (bottom - grid.zero_point) * grid.scale <= min(low, 0) + slack
    assert (top - grid.zero_point) * grid.scale >= max(high, 0) - slack


@pytest.mark.parametrize(("bits", "onnx_type"), [(8, TensorProto.UINT8), (16, TensorProto.INT16)])
def test_the_quantizer_is_onnx_quantize_then_dequantize(bits: int, onnx_type: int) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 3
    grid = activation_grid(-2.0, 5.0, bits)
    values[:200] = (torch.arange(200) - 100 + 0.5) * grid.scale  # ties
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "qdq",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1000])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1000])],
        [
            helper.make_tensor("s", TensorProto.FLOAT, [], [grid.scale]),
            helper.make_tensor("z", onnx_type, [], [grid.zero_point]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    expected = ReferenceEvaluator(model).run(None, {"x": values.numpy()})[0]
    np.testing.assert_array_equal(Quantizer(grid, owns_input=False)(values).numpy(), expected)
    np.testing.assert_array_equal(Quantizer(grid, owns_input=True)(values.clone()).numpy(), expected)


def test_the_quantizer_leaves_a_borrowed_tensor_alone() -> None:
    values = torch.randn(10)
    before = values.clone()
    Quantizer(activation_grid(-1, 1, 8), owns_input=False)(values)
    assert torch.equal(values, before)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_weight_codes_are_in_range_and_near_the_weights(bits: int) -> None:
    weight = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 16).view(
        -1, 1, 1, 1
    )
    grid = layer_grid(weight, torch.zeros(16), bits, 0.1)
    codes = grid.codes(weight)
    assert codes.amin() >= -(2 ** (bits - 1))
    assert codes.amax() <= 2 ** (bits - 1) - 1
    relative = (grid.values(codes) - weight).norm() / weight.norm()
    assert relative < {4: 0.12, 8: 0.01, 16: 4e-5}[bits]


def test_four_bit_clipping_is_the_best_of_a_finer_search() -> None:
    weight = torch.randn(8, 72, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = layer_grid(weight.float(), torch.zeros(8), 4, 0.1)
    error = (grid.values(grid.codes(weight.float())).double() - weight).square().sum(1)
    for channel, row in enumerate(weight.numpy()):
        scales = np.linspace(0.3, 1.0, 701) * np.abs(row).max() / 7
        errors = [np.square(np.clip(np.rint(row / s), -8, 7) * s - row).sum() for s in scales]
        assert min(errors) <= error[channel] * (1 + 1e-6)
        assert error[channel] <= 1.1 * min(errors)
        assert error[channel] < errors[-1]


def test_a_weight_channel_of_zeros_stays_zero() -> None:
    for bits in (4, 8):
        grid = layer_grid(torch.zeros(2, 3), torch.tensor([0.0, 100.0]), bits, 0.1)
        assert torch.equal(grid.values(grid.codes(torch.zeros(2, 3))), torch.zeros(2, 3))


def test_a_bias_is_exact_to_half_a_unit_and_fits_32_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(8, 4, generator=generator), torch.randn(8, generator=generator)
    weight[0], bias[1] = 0, 1e6  # a dead channel, and one whose bias outweighs it by far
    grid = layer_grid(weight, bias, 8, 0.01)
    codes, unit = grid.bias_codes(bias).double(), grid.bias_scale.double()
    assert codes.abs().amax() <= 2**30
    rounding = bias.double().abs() * 1e-6  # of float32
    assert ((codes * unit - bias.double()).abs() <= unit / 2 + rounding).all()
    assert grid.scale[2:].equal(weight[2:].abs().amax(1) / 127)


def test_ranges_are_clipped_where_that_lowers_the_error() -> None:
    values = torch.randn(8192, generator=torch.Generator().manual_seed(0))
    low, high = clipped_range(-30.0, 30.0, values, 8)
    assert -13 < low < -3
    assert high == -low
    flat = torch.linspace(0, 1, 8192)
    assert clipped_range(0.0, 1.0, flat, 8) == (0.0, 1.0)
    assert clipped_range(-30.0, 30.0, values, 16) == (-30.0, 30.0)


def test_other_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="8 or 16 bits, but got 4"):
        activation_grid(0, 1, 4)
    with pytest.raises(ValueError, match="4, 8 or 16 bits, but got 5"):
        layer_grid(torch.ones(1, 1), torch.ones(1), 5, 1.0)
