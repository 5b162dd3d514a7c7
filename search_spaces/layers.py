"""Layers shared by the stem, the mixers and the blocks. Tensors are [batch, channels, height, width].

Operations that write a tensor an accelerator must hold (sums, matrix products) are small named modules, so that the
tracer and the quantizer see them and can treat one of them differently by its `role`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search_spaces.norms import norm_affine


class StarReLU(nn.Module):
    """s ReLU(x)^2 + b with two trained numbers (arXiv:2210.13452, Eq. 3).

    They start where normal noise comes out with mean 0 and variance 1: s = sqrt(4/5), b = -s/2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), 0.8**0.5))
        self.bias = nn.Parameter(torch.full((1,), -0.5 * 0.8**0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x)
        return y * y * self.scale.to(y.dtype) + self.bias.to(y.dtype)


class SquaredReLU(nn.Module):
    """ReLU(x)^2: what is left of StarReLU when the layer behind it has taken its two numbers in."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x)
        return y * y


ACTIVATION_LAYERS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "starrelu": StarReLU,
}


def make_divisible(value: float, divisor: int = 8) -> int:
    """Nearest positive multiple of `divisor`: accelerators pad channels to it anyway."""
    return max(divisor, int(value / divisor + 0.5) * divisor)


class Add(nn.Module):
    """Sum of two tensors, as a residual connection; axes of length one are repeated."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Multiply(nn.Module):
    """Product of two activations, element by element; axes of length one are repeated."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y


class Sine(nn.Module):
    """sin(x), x in radians."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Cosine(nn.Module):
    """cos(x), x in radians."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cos(x)


class Constant(nn.Module):
    """A tensor that inference does not compute any more, as an operand that is quantized like an activation."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self) -> Tensor:
        return self.value


class MatMul(nn.Module):
    """Batched matrix product of two activations, [..., m, k] x [..., k, n] -> [..., m, n].

    role: "accumulator" marks products whose dynamic range 8 bits do not hold (the state of linear attention,
    10 dB at 8 bits): the bit policy gives them 16-bit activations.
    """

    def __init__(self, role: str = "") -> None:
        super().__init__()
        self.role = role

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.matmul(x, y)


class ConvNorm(nn.Module):
    """Convolution, then BatchNorm; `fold_` merges the second into the first. padding: `same` if none is given."""

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        groups: int = 1,
        dilation: int = 1,
        padding: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        same = (dilation * (height // 2), dilation * (width // 2))
        self.conv = nn.Conv2d(
            in_chans, out_chans, kernel, stride, same if padding is None else padding, dilation, groups
        )
        self.norm: nn.Module = nn.BatchNorm2d(out_chans)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def fold_(self) -> None:
        if isinstance(self.norm, nn.BatchNorm2d):
            fold_norm_after(self.norm, [self.conv])
            self.norm = nn.Identity()


@torch.no_grad()
def fold_norm_after(norm: nn.Module, convs: list[nn.Conv2d]) -> None:
    """Merge `norm`, which reads the channels of `convs` one after the other, into their weights and biases."""
    scale, shift = norm_affine(norm)
    sizes = [conv.out_channels for conv in convs]
    for conv, a, b in zip(convs, scale.split(sizes), shift.split(sizes), strict=True):
        assert conv.bias is not None
        conv.weight.copy_(conv.weight.double() * a[:, None, None, None])
        conv.bias.copy_(conv.bias.double() * a + b)


@torch.no_grad()
def fold_norm_before(norm: nn.Module, consumers: list[nn.Conv2d | nn.Linear]) -> None:
    """Merge `norm` into the pointwise layers that read it. Exact only without padding, which is checked.

    Raises ValueError when a consumer is padded or grouped: there the shift would be missing at the border.
    """
    scale, shift = norm_affine(norm)
    for layer in consumers:
        assert layer.bias is not None
        if isinstance(layer, nn.Conv2d) and (layer.kernel_size != (1, 1) or layer.groups != 1):
            raise ValueError(f"a norm folds forward only into 1x1 dense convolutions, but got {layer}")
        matrix = layer.weight.double().flatten(1)
        layer.bias.copy_(layer.bias.double() + matrix @ shift)
        layer.weight.copy_((matrix * scale).view_as(layer.weight))


@torch.no_grad()
def norm_as_conv(norm: nn.Module) -> nn.Conv2d:
    """A norm that no convolution can take in, as the depthwise 1x1 convolution it is at inference."""
    scale, shift = norm_affine(norm)
    chans = scale.numel()
    conv = nn.Conv2d(chans, chans, 1, groups=chans, device=scale.device, dtype=next(norm.parameters()).dtype)
    assert conv.bias is not None
    conv.weight.copy_(scale[:, None, None, None])
    conv.bias.copy_(shift)
    return conv


@torch.no_grad()
def fold_star_relu(act: nn.Module, consumer: nn.Conv2d) -> nn.Module:
    """The activation that is left of `act` after its numbers went into the 1x1 convolution that alone reads it.

    Any activation but StarReLU is returned as it is. Before a padded convolution this would be wrong at the border.
    """
    if not isinstance(act, StarReLU):
        return act
    assert consumer.kernel_size == (1, 1)
    assert consumer.groups == 1
    assert consumer.bias is not None
    matrix = consumer.weight.double().flatten(1)
    consumer.bias.copy_(consumer.bias.double() + matrix.sum(1) * act.bias.double())
    consumer.weight.copy_(consumer.weight.double() * act.scale.double())
    return SquaredReLU()
