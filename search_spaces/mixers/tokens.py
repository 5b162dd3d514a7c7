"""Mixers whose matrices act on the tokens themselves: bound to the number of tokens, and so to one resolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search_spaces.layers import ACTIVATION_LAYERS
from search_spaces.mixers.contract import TokenMixer
from search_spaces.mixers.fixed import FixedLinear


class SpatialMLP(TokenMixer):
    """Two linear layers over the tokens with an activation between (MLP-Mixer, arXiv:2105.01601, Eq. 1), as wide
    inside as there are tokens. macs: 2 N^2 C.
    """

    late_only = True
    token_bound = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str, size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size * size, size * size)
        self.act = ACTIVATION_LAYERS[activation]()
        self.fc2 = nn.Linear(size * size, size * size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x.flatten(2)))).reshape(x.shape)

    def output_layer(self) -> nn.Module:
        return self.fc2


class RandomMixing(TokenMixer):
    """A random matrix over the tokens, rows summing to one, never trained (RandFormer, arXiv:2210.13452, Eq. 6).

    macs: N^2 C.
    """

    norm_after = True
    late_only = True
    token_bound = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str, size: int) -> None:
        super().__init__()
        self.mixing = FixedLinear(torch.rand(size * size, size * size).softmax(dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        return self.mixing(x.flatten(2)).reshape(x.shape)
