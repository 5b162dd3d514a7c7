"""Channel mixers, and the gates that may stand on their hidden layer. [batch, channels, height, width] throughout."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search_spaces.layers import ACTIVATION_LAYERS, Multiply, fold_star_relu, make_divisible


class SqueezeExcite(nn.Module):
    """Channels scaled by a function of their means (arXiv:1709.01507, with the hard sigmoid of arXiv:1905.02244).

    squeeze: width between the two dense layers. macs: 2 C squeeze, whatever the map's size.
    """

    def __init__(self, chans: int, squeeze: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(chans, squeeze, 1)
        self.act = nn.ReLU()
        self.fc2 = nn.Conv2d(squeeze, chans, 1)
        self.gate_act = nn.Hardsigmoid()
        self.scale = Multiply()

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(x, self.gate_act(self.fc2(self.act(self.fc1(self.pool(x))))))


class ResponseNorm(nn.Module):
    """Global response normalization (ConvNeXt V2, arXiv:2301.00808, Alg. 1): x + weight x n + bias.

    n is the norm of a channel over the map, divided by the mean of that over the channels. It depends on the image, so
    nothing of it folds.
    """

    eps = 1e-6

    def __init__(self, chans: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(chans))
        self.bias = nn.Parameter(torch.zeros(chans))

    def forward(self, x: Tensor) -> Tensor:
        response = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
        relative = response / (response.mean(dim=1, keepdim=True) + self.eps)
        return x + self.weight[:, None, None] * (x * relative) + self.bias[:, None, None]


def make_gate(kind: str, hidden: int, dim: int) -> nn.Module:
    """Gate over `hidden` channels of a block of width `dim`. Squeezes to a quarter of the block's width, as
    EfficientNet does (arXiv:1905.11946). Raises ValueError for an unknown kind."""
    if kind == "se":
        return SqueezeExcite(hidden, make_divisible(dim / 4))
    if kind == "grn":
        return ResponseNorm(hidden)
    if kind != "none":
        raise ValueError(f"gate must be 'none', 'se' or 'grn', but got {kind!r}")
    return nn.Identity()


class Mlp(nn.Module):
    """Two 1x1 convolutions with an activation between. macs: 2 e C^2 N."""

    def __init__(self, dim: int, expansion: float, activation: str, gate: str = "none") -> None:
        super().__init__()
        hidden = make_divisible(dim * expansion)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = ACTIVATION_LAYERS[activation]()
        self.gate = make_gate(gate, hidden, dim)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.gate(self.act(self.fc1(x))))

    def norm_consumers(self) -> list[nn.Conv2d]:
        return [self.fc1]

    def fold_(self) -> None:
        if isinstance(self.gate, nn.Identity):
            self.act = fold_star_relu(self.act, self.fc2)


class ConvFfn(nn.Module):
    """An MLP with a depthwise 3x3 convolution on its hidden layer (PVTv2, arXiv:2106.13797, section 3.3).

    macs: 2 e C^2 N + 9 e C N.
    """

    def __init__(self, dim: int, expansion: float, activation: str, gate: str = "none") -> None:
        super().__init__()
        hidden = make_divisible(dim * expansion)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = ACTIVATION_LAYERS[activation]()
        self.gate = make_gate(gate, hidden, dim)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.gate(self.act(self.dwconv(self.fc1(x)))))

    def norm_consumers(self) -> list[nn.Conv2d]:
        return [self.fc1]

    def fold_(self) -> None:
        if isinstance(self.gate, nn.Identity):
            self.act = fold_star_relu(self.act, self.fc2)


CHANNEL_MIXER_LAYERS: dict[str, type[nn.Module]] = {"mlp": Mlp, "dwconv_ffn": ConvFfn}
"""Channel mixer -> module with a layer fc2, which writes the branch, and `norm_consumers()`: every layer that reads the
norm ahead, each a dense 1x1 convolution, into which BatchNorm folds. "none" has no module."""
