"""Layers whose weights are not learned: buffers, which no optimizer sees and every copy of a network keeps."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FixedDepthwise(nn.Conv2d):
    """Depthwise convolution with given kernels [channels, height, width], zero bias and `same` padding.

    At inference it is a convolution like any other: BatchNorm folds into it, and it is quantized.
    """

    def __init__(self, kernels: Tensor) -> None:
        chans, height, width = kernels.shape
        super().__init__(chans, chans, (height, width), padding=(height // 2, width // 2), groups=chans)
        fix_(self, kernels[:, None])


class FixedLinear(nn.Linear):
    """Linear layer with a given matrix [outputs, inputs] and zero bias."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(matrix.shape[1], matrix.shape[0])
        fix_(self, matrix)


def fix_(layer: nn.Conv2d | nn.Linear, weight: Tensor) -> None:
    """Give `layer` this weight and a zero bias as buffers in place of its parameters."""
    assert layer.bias is not None
    chans = layer.bias.shape[0]
    del layer.weight, layer.bias
    layer.register_buffer("weight", weight)
    layer.register_buffer("bias", torch.zeros(chans, device=weight.device))
