"""What a GPU computes is what the processor computes: every mixer, forward and backward. Needs a GPU.

torch before 2.13 had wrong gradients of padded average pooling in channels-last order, without a word
(https://github.com/pytorch/pytorch/issues/188344): this test fails there for `pool` alone, and networks that pool reach
25 to 45 percent of CIFAR-10 where they should reach 58 to 63.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas.measure.cuda import exact_products
from search_spaces.mixers import MIXERS
from search_spaces.network import bound_size

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DIM, SIDE = 32, 8


@pytest.fixture(autouse=True)
def _in_32_bits() -> Iterator[None]:
    with exact_products():
        yield


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_gpu_computes_outputs_and_gradients_of_the_processor(mixer: str) -> None:
    torch.manual_seed(0)
    family: Any = MIXERS[mixer]
    layer = family(
        DIM, kernel=family.kernels[-1], expansion=2.0, role_width=16, activation="gelu", **bound_size(mixer, SIDE)
    ).train()
    x, seen = torch.randn(4, DIM, SIDE, SIDE), torch.randn(4, DIM, SIDE, SIDE)
    found, expected = gradients(copy.deepcopy(layer), x, seen, "cuda"), gradients(layer, x, seen, "cpu")
    rounding = 1e-5 * max(
        float(tensor.norm()) for tensor in expected.values()
    )  # a bias before BatchNorm has no gradient
    for name, tensor in expected.items():
        assert (found[name] - tensor).norm() <= 1e-3 * tensor.norm() + rounding, name


def gradients(layer: nn.Module, x: Tensor, seen: Tensor, device: str) -> dict[str, Tensor]:
    """The output, and the gradients of its product with `seen` for the input and every parameter, on the processor."""
    layer = layer.to(device).to(memory_format=torch.channels_last)
    image = x.to(device, memory_format=torch.channels_last).requires_grad_()
    out = layer(image)
    (out * seen.to(device)).sum().backward()
    found = {"output": out, "input": image.grad} | {name: p.grad for name, p in layer.named_parameters()}
    return {name: tensor.detach().cpu() for name, tensor in found.items() if tensor is not None}
