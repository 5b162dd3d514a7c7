"""Mixers whose matrices act on the tokens themselves: bound to the number of tokens, and so to one resolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search_spaces.layers import ACTIVATION_LAYERS, Add, Multiply
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


class RaftMLP(TokenMixer):
    """A residual MLP along the columns, then one along the rows (RaftMLP, arXiv:2108.04384, section 3): each takes the
    pixels of a line in a raft of 4 neighbouring channels and is twice as wide inside. macs: 32 N C side.
    """

    token_bound = True
    raft = 4

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str, size: int) -> None:
        super().__init__()
        if dim % self.raft:
            raise ValueError(f"raft_mlp needs a width that is a multiple of {self.raft}, but got {dim}")
        self.rafts, self.size, line = dim // self.raft, size, self.raft * size
        self.fc1_h, self.fc2_h = nn.Linear(line, 2 * line), nn.Linear(2 * line, line)
        self.fc1_w, self.fc2_w = nn.Linear(line, 2 * line), nn.Linear(2 * line, line)
        self.act_h, self.act_w = ACTIVATION_LAYERS[activation](), ACTIVATION_LAYERS[activation]()
        self.add_h, self.add_w = Add(), Add()

    def forward(self, x: Tensor) -> Tensor:
        batch, side = x.shape[0], self.size
        rafts = (batch, self.rafts, self.raft, side, side)
        lines = (batch, self.rafts * side, self.raft * side)
        # Columns: [batch, rafts, width] lines of [raft, height]; then rows likewise.
        columns = self.fc2_h(self.act_h(self.fc1_h(x.reshape(rafts).permute(0, 1, 4, 2, 3).reshape(lines))))
        y = columns.reshape(batch, self.rafts, side, self.raft, side).permute(0, 1, 3, 4, 2).reshape(x.shape)
        z = self.add_h(x, y)
        rows = self.fc2_w(self.act_w(self.fc1_w(z.reshape(rafts).permute(0, 1, 3, 2, 4).reshape(lines))))
        out = rows.reshape(batch, self.rafts, side, self.raft, side).permute(0, 1, 3, 2, 4).reshape(x.shape)
        return self.add_w(y, out)  # the block adds x

    def output_layer(self) -> nn.Module:
        return self.fc2_w


class TokenGate(TokenMixer):
    """A 1x1 convolution times a whole MLP-Mixer block of the same input (NiNformer, arXiv:2403.02411, Fig. 1).

    macs: N C^2 + 2 N^2 C + 4 N C^2.
    """

    late_only = True
    token_bound = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str, size: int) -> None:
        super().__init__()
        self.value = nn.Conv2d(dim, dim, 1)
        self.tokens = SpatialMLP(dim, kernel, expansion, role_width, activation, size)
        self.add1, self.add2 = Add(), Add()
        self.pwconv1, self.pwconv2 = nn.Conv2d(dim, 2 * dim, 1), nn.Conv2d(2 * dim, dim, 1)
        self.act = ACTIVATION_LAYERS[activation]()
        self.product = Multiply()

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.add1(x, self.tokens(x))
        mixed = self.add2(mixed, self.pwconv2(self.act(self.pwconv1(mixed))))
        return self.product(self.value(x), mixed)

    def output_layer(self) -> nn.Module:
        return self.value
