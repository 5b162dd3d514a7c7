"""Integer products: the layer within its rounding, and nothing in the wrong format."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nas.errors import NasError
from nas.measure.int8 import LEAST_ROWS, Int8Linear, quantize_


@pytest.mark.parametrize("rows", [1, LEAST_ROWS - 1, LEAST_ROWS, 50])
def test_a_linear_layer_within_its_rounding(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 24)
    x = torch.randn(rows, 64, generator=generator).clamp(-3.9, 3.9)
    found, expected = Int8Linear(layer)(x), layer(x)
    # Every product errs by half a step of one factor times the other, and the sum of 64 such at the very most.
    steps = 64 * (0.5 * Int8Linear(layer).input_scale * layer.weight.abs().max() + 0.5 * 3.9 / 127 / 8)
    assert (found - expected).abs().max() <= steps
    assert (found - expected).abs().max() > 0


def test_a_pointwise_convolution_is_the_linear_layer_at_each_position() -> None:
    conv = nn.Conv2d(16, 32, 1)
    linear = nn.Linear(16, 32)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.flatten(1))
        linear.bias.copy_(conv.bias)
    x = torch.randn(2, 16, 5, 3, generator=torch.Generator().manual_seed(0))
    x = x.to(memory_format=torch.channels_last)
    expected = Int8Linear(linear)(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(Int8Linear(conv)(x), expected, rtol=0, atol=0)


def test_depthwise_and_activations_stay() -> None:
    module = nn.Sequential(nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(), nn.Conv2d(16, 32, 1), nn.Linear(8, 8))
    assert quantize_(module) == 2
    assert [type(layer).__name__ for layer in module] == ["Conv2d", "ReLU", "Int8Linear", "Int8Linear"]


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 1, stride=2), nn.Conv2d(16, 16, 1, groups=2), nn.Linear(10, 8)]
)
def test_what_has_no_integer_kernel_is_refused_and_nothing_is_changed(layer: nn.Module) -> None:
    module = nn.Sequential(nn.Linear(8, 8), layer)
    with pytest.raises(NasError, match="has no int8 kernel in torch"):
        quantize_(module)
    assert isinstance(module[0], nn.Linear)


def test_a_block_without_weights_is_refused() -> None:
    with pytest.raises(NasError, match="no layer of it"):
        quantize_(nn.Sequential(nn.ReLU()))
