"""Integer products in torch on a GPU: pointwise convolutions and linear layers through int8 tensor cores.

torch multiplies int8 matrices on CUDA (`torch._int_mm`, 32-bit sums) but has no int8 convolution. So a network in w8a8
runs its pointwise and linear layers in int8, each behind a rounding of its input; what has no weights of its own
(attention's products) and depthwise convolutions, which do not use tensor cores, stay in 16-bit floats. A dense or
grouped convolution with a window would run in the wrong format: what holds one is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas.errors import NasError

ALIGNMENT = 8
"""`torch._int_mm` on CUDA takes reductions and outputs that are multiples of 8 ..."""

LEAST_ROWS = 17
"""... and more than 16 rows."""


class Int8Linear(nn.Module):
    """A linear layer over the last axis, or a pointwise convolution, with weights in int8, a scale per output channel,
    and its input rounded to int8 with one scale.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        matrix = layer.weight.detach().flatten(1).float()  # [out, in]
        scale = matrix.abs().amax(dim=1).clamp(min=1e-8) / 127
        self.is_map = isinstance(layer, nn.Conv2d)
        self.register_buffer("weight", (matrix / scale[:, None]).round().to(torch.int8))  # [out, in]
        self.register_buffer("scale", scale.to(layer.weight.dtype))
        bias = torch.zeros(len(matrix)) if layer.bias is None else layer.bias.detach()
        self.register_buffer("bias", bias.to(layer.weight))
        self.input_scale = 4.0 / 127
        """Inputs are of the order of 1 with random weights; the value does not change the time."""

    def forward(self, x: Tensor) -> Tensor:
        """A map [batch, channels, height, width] in channels-last order, or [..., channels]."""
        if self.is_map:
            x = x.permute(0, 2, 3, 1)
        shape = x.shape
        rows = (x.reshape(-1, shape[-1]) / self.input_scale).round().clamp(-128, 127).to(torch.int8)
        count = len(rows)
        if count < LEAST_ROWS:
            rows = nn.functional.pad(rows, (0, 0, 0, LEAST_ROWS - count))
        sums = torch._int_mm(rows, self.weight.t())[:count]
        # Scaled in 32 bits: sums exceed what 16-bit floats hold.
        out = (sums.float() * (self.scale.float() * self.input_scale) + self.bias.float()).to(x.dtype)
        out = out.view(*shape[:-1], out.shape[-1])
        return out.permute(0, 3, 1, 2) if self.is_map else out


def quantize_(module: nn.Module) -> int:
    """Put int8 products in the place of pointwise and linear layers, in place. Returns how many.

    Raises NasError for another matrix layer, and when there is none of them.
    """
    found = [
        (parent, name, layer)
        for parent in module.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and not _is_depthwise(layer))
    ]
    for _, _, layer in found:
        if not _is_product(layer):
            raise NasError(
                f"{layer} has no int8 kernel in torch for CUDA; times of an engine that has one (TensorRT) can be "
                "imported with `nas measure import`"
            )
    if not found:
        raise NasError("no layer of it multiplies weights in int8")
    for parent, name, layer in found:
        setattr(parent, name, Int8Linear(layer))
    return len(found)


def _is_depthwise(layer: nn.Conv2d) -> bool:
    return layer.groups == layer.in_channels and layer.in_channels > 1


def _is_product(layer: nn.Module) -> bool:
    """Whether `torch._int_mm` can stand for the layer."""
    if isinstance(layer, nn.Conv2d):
        pointwise = layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding in ((0, 0), "valid")
        sizes = (layer.in_channels, layer.out_channels) if pointwise and layer.groups == 1 else (1,)
    else:
        sizes = (int(layer.in_features), int(layer.out_features))  # type: ignore[arg-type]
    return all(size % ALIGNMENT == 0 for size in sizes)
