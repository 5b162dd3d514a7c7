"""Mixers of three branches, along the rows, along the columns and of the pixel alone, weighed by the image."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.layers import ACTIVATION_LAYERS, Add, ConvNorm, Cosine, MatMul, Multiply, Sine, make_divisible
from search_spaces.mixers.contract import TokenMixer


class BranchSum(nn.Module):
    """Sum of three branches [batch, dim, height, width], each channel with three shares that add up to one: softmax of
    a small MLP of the branches' means (split attention, S2-MLPv2, arXiv:2108.01072, section 3.2). macs: C^2.
    """

    def __init__(self, dim: int, activation: str) -> None:
        super().__init__()
        squeeze = make_divisible(dim / 4)
        self.dim = dim
        self.add1, self.add2, self.add3, self.add4 = (Add() for _ in range(4))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(dim, squeeze, 1)
        self.act = ACTIVATION_LAYERS[activation]()
        self.fc2 = nn.Conv2d(squeeze, 3 * dim, 1)  # channel 3 c + branch: a prefix is that of fewer channels
        self.softmax = nn.Softmax(dim=2)
        self.scale1, self.scale2, self.scale3 = (Multiply() for _ in range(3))

    def forward(self, rows: Tensor, columns: Tensor, pixels: Tensor) -> Tensor:
        means = self.pool(self.add2(self.add1(rows, columns), pixels))
        logits = self.fc2(self.act(self.fc1(means)))
        shares = self.softmax(logits.reshape(rows.shape[0], self.dim, 3, 1))
        both = self.add3(self.scale1(rows, shares[:, :, 0:1]), self.scale2(columns, shares[:, :, 1:2]))
        return self.add4(both, self.scale3(pixels, shares[:, :, 2:3]))


class RegionMLP(nn.Module):
    """Regions of two pixels along one axis, both pixels' channels together: to C/4, BatchNorm, activation, back.

    size: side of the map. shifted: regions begin one pixel earlier. Beyond the border there are zeros.
    """

    def __init__(self, dim: int, size: int, rows: bool, shifted: bool, activation: str) -> None:
        super().__init__()
        self.dim, self.size, self.rows, self.shifted = dim, size, rows, shifted
        hidden = max(1, dim // 4)
        kernel, start = ((1, 2), (0, 1)) if rows else ((2, 1), (1, 0))
        self.down = ConvNorm(dim, hidden, kernel, stride=kernel, padding=start if shifted else (0, 0))
        self.act = ACTIVATION_LAYERS[activation]()
        self.up = nn.Conv2d(hidden, 2 * dim, 1)  # channel 2 c + pixel of the region

    def forward(self, x: Tensor) -> Tensor:
        if self.size % 2 and not self.shifted:
            x = F.pad(x, (0, 1, 0, 0) if self.rows else (0, 0, 0, 1))
        y = self.up(self.act(self.down(x)))
        batch, _, height, width = y.shape
        y = y.reshape(batch, self.dim, 2, height, width)
        first = int(self.shifted)
        last = first + self.size
        if self.rows:
            y = y.permute(0, 1, 3, 4, 2).reshape(batch, self.dim, height, 2 * width)
            return y[:, :, :, first:last]
        return y.permute(0, 1, 3, 2, 4).reshape(batch, self.dim, 2 * height, width)[:, :, first:last]


class HireMLP(TokenMixer):
    """MLPs over regions of two rows, over regions of two columns, and over the pixel (Hire-MLP, arXiv:2108.13341,
    section 3.2).

    There every other block rolls the map by a pixel, so that regions meet; here half of the hidden channels see the
    regions and half those shifted by a pixel, with zeros beyond the border. macs: 4 N C^2 + 2 side C^2 + C^2 (an even
    side).
    """

    norm_inside = True
    sized = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str, size: int) -> None:
        super().__init__()
        self.rows, self.rows_shifted, self.columns, self.columns_shifted = (
            RegionMLP(dim, size, rows, shifted, activation) for rows in (True, False) for shifted in (False, True)
        )
        self.add_rows, self.add_columns = Add(), Add()
        self.pixels = ConvNorm(dim, dim, 1)
        self.sum = BranchSum(dim, activation)
        self.proj = ConvNorm(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.add_rows(self.rows(x), self.rows_shifted(x))
        columns = self.add_columns(self.columns(x), self.columns_shifted(x))
        return self.proj(self.sum(rows, columns, self.pixels(x)))

    def output_layer(self) -> nn.Module:
        return self.proj.norm


class WaveLine(nn.Module):
    """Tokens as waves, mixed along one axis: sum over 7 pixels of w |z| cos(theta) + u |z| sin(theta), depthwise
    (Wave-MLP, arXiv:2111.12294, Eq. 9). theta = ReLU(BN(1x1)); the real and the imaginary part have kernels of their
    own, so that both keep their channels. macs: N (2 C^2 + 14 C).
    """

    def __init__(self, dim: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.phase = ConvNorm(dim, dim, 1)
        self.act = nn.ReLU()
        self.amplitude = nn.Conv2d(dim, dim, 1)
        self.cosine, self.sine = Cosine(), Sine()
        self.real, self.imaginary = Multiply(), Multiply()
        self.dwconv_real = nn.Conv2d(dim, dim, kernel, padding=padding, groups=dim)
        self.dwconv_imaginary = nn.Conv2d(dim, dim, kernel, padding=padding, groups=dim)
        self.add = Add()

    def forward(self, x: Tensor) -> Tensor:
        theta, amplitude = self.act(self.phase(x)), self.amplitude(x)
        real = self.dwconv_real(self.real(amplitude, self.cosine(theta)))
        return self.add(real, self.dwconv_imaginary(self.imaginary(amplitude, self.sine(theta))))


class WaveMLP(TokenMixer):
    """Phase-aware mixing along the rows and along the columns, and a 1x1 (Wave-MLP, arXiv:2111.12294, section 3.3).

    macs: N (6 C^2 + 28 C) + C^2.
    """

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        self.rows, self.columns = WaveLine(dim, (1, 7)), WaveLine(dim, (7, 1))
        self.pixels = nn.Conv2d(dim, dim, 1)
        self.sum = BranchSum(dim, activation)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.sum(self.rows(x), self.columns(x), self.pixels(x)))

    def norm_consumers(self) -> list[nn.Conv2d | nn.Linear]:
        lines = [conv for line in (self.rows, self.columns) for conv in (line.phase.conv, line.amplitude)]
        return [*lines, self.pixels]

    def output_layer(self) -> nn.Module:
        return self.proj


class DynamicLine(nn.Module):
    """The pixels of every line mixed by a matrix made of them: 2 numbers of each head and pixel, a linear layer of the
    whole line to [pixel, pixel], softmax (DynaMixer, arXiv:2201.12083, Alg. 1); then 1x1. Heads of 8 channels.
    """

    head_dim = 8
    reduced = 2

    def __init__(self, dim: int, size: int, rows: bool) -> None:
        super().__init__()
        self.heads, self.size, self.rows = dim // self.head_dim, size, rows
        self.compress = nn.Conv2d(dim, self.heads * self.reduced, 1)
        self.generate = nn.Linear(self.reduced * size, size * size)
        self.softmax = nn.Softmax(dim=-1)
        self.mix = MatMul()
        self.out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, side, heads = x.shape[0], self.size, self.heads
        order = (0, 3, 1, 2, 4) if self.rows else (0, 4, 1, 2, 3)  # [batch, line, head, number, pixel of the line]
        numbers = self.compress(x).reshape(batch, heads, self.reduced, side, side).permute(order)
        logits = self.generate(numbers.reshape(batch, side, heads, self.reduced * side))
        weights = self.softmax(logits.reshape(batch, side, heads, side, side))
        lines = x.reshape(batch, heads, self.head_dim, side, side).permute(order)
        mixed = self.mix(lines, weights.transpose(3, 4))  # [batch, line, head, channel, pixel]
        back = (0, 2, 3, 1, 4) if self.rows else (0, 2, 3, 4, 1)
        return self.out(mixed.permute(back).reshape(x.shape))


class DynaMixer(TokenMixer):
    """Mixing by matrices that are made of the tokens, along the rows and along the columns, and a 1x1 (DynaMixer,
    arXiv:2201.12083, section 3). macs: N C (4.5 C + 2 side + N/2) + C^2.
    """

    late_only = True
    token_bound = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str, size: int) -> None:
        super().__init__()
        if dim % DynamicLine.head_dim:
            raise ValueError(f"dynamixer needs a width that is a multiple of {DynamicLine.head_dim}, but got {dim}")
        self.pixels = nn.Conv2d(dim, dim, 1)
        self.rows, self.columns = DynamicLine(dim, size, rows=True), DynamicLine(dim, size, rows=False)
        self.sum = BranchSum(dim, activation)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.sum(self.rows(x), self.columns(x), self.pixels(x)))

    def norm_consumers(self) -> list[nn.Conv2d | nn.Linear]:
        """The weights of a mixture add up to one: a mixture of what BatchNorm wrote is BatchNorm of the mixture."""
        lines = [layer for line in (self.rows, self.columns) for layer in (line.compress, line.out)]
        return [*lines, self.pixels]

    def output_layer(self) -> nn.Module:
        return self.proj
