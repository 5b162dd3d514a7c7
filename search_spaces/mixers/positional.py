"""Attention that weighs where a token is beside what it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search_spaces.layers import Add, Constant
from search_spaces.mixers.heads import SoftmaxMixer

OFFSETS = sorted(
    ((row, column) for row in range(-2, 3) for column in range(-2, 3)), key=lambda at: (at[0] ** 2 + at[1] ** 2, at)
)
"""Where the heads look at first, in pixels: nearest first, so that a head has one place at every width."""


class GatedPositionalAttention(SoftmaxMixer):
    """(1 - g) softmax(q k^T / sqrt(d)) + g softmax(P) with g = sigmoid(gate) of each head, and P = a dx + b dy +
    c (dx^2 + dy^2) of the way from query to key (ConViT, arXiv:2103.10697, Eq. 5 to 8), times v.

    Heads begin as a convolution does, each at an offset of its own. softmax(P) does not depend on the image: folded, it
    is a constant, and 1 - g is in the values. macs: 4 N C^2 + 2 N^2 C.
    """

    late_only = True
    sized = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str, size: int) -> None:
        super().__init__(dim)
        self.size = size
        places = torch.tensor([OFFSETS[head % len(OFFSETS)] for head in range(self.heads)], dtype=torch.float32)
        self.position: nn.Parameter | None = nn.Parameter(torch.cat((2 * places, -torch.ones(self.heads, 1)), dim=1))
        self.blend: nn.Parameter | None = nn.Parameter(torch.ones(self.heads))
        self.positions: nn.Module = nn.Identity()
        self.add = Add()
        self.proj = nn.Conv2d(self.inner, dim, 1)

    def shares(self) -> Tensor:
        """softmax(P) [heads, query, key]; as P is a sum over the axes, it is a product over them."""
        assert self.position is not None
        place = torch.arange(self.size, device=self.position.device, dtype=self.position.dtype)
        way = place[None, :] - place[:, None]  # [query, key] along one axis
        down, right, both = (weight[:, None, None] for weight in self.position.unbind(1))
        rows = (down * way + both * way * way).softmax(dim=2)
        columns = (right * way + both * way * way).softmax(dim=2)
        product = rows[:, :, None, :, None] * columns[:, None, :, None, :]
        return product.reshape(self.heads, self.size**2, self.size**2)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        weights = self.weights(self.split(self.q(x)), self.split(self.k(x)))
        if self.blend is None:
            weights = self.add(weights, self.positions())
        else:
            gate = self.blend.sigmoid()[:, None, None]
            weights = weights * (1 - gate) + self.shares() * gate
        out = self.attend(weights, self.split(self.v(x)))
        return self.proj(out.reshape(batch, self.inner, height, width))

    @torch.no_grad()
    def fold_(self) -> None:
        if self.blend is None:
            return
        super().fold_()
        left = (1 - self.blend.sigmoid()).repeat_interleave(self.head_dim)
        self.v.weight.mul_(left[:, None, None, None])
        self.v.bias.mul_(left)
        self.positions = Constant(self.shares() * self.blend.exp()[:, None, None])  # g / (1 - g) = exp(gate)
        self.position = self.blend = None
