"""Attention in channel-first form: projections are 1x1 convolutions, tokens are the pixels of the map.

q, k and v are separate tensors, heads lie one after the other in them: a prefix of channels is a prefix of heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search_spaces.layers import Add, MatMul


class SelfAttention(nn.Module):
    """Multi-head softmax attention over all tokens, no position term (CAFormer, arXiv:2210.13452), heads of 32.

    macs: 4 N C^2 + 2 N^2 C.
    """

    kernels = (0,)
    norm_after = False
    replaces_block = False
    late_only = True
    head_dim = 32

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        self.heads = max(1, dim // self.head_dim)
        inner = self.heads * self.head_dim
        self.q = nn.Conv2d(dim, inner, 1)
        self.k = nn.Conv2d(dim, inner, 1)
        self.v = nn.Conv2d(dim, inner, 1)
        self.scale = self.head_dim**-0.5
        self.scores = MatMul()
        self.softmax = nn.Softmax(dim=-1)
        self.mix = MatMul()
        self.proj = nn.Conv2d(inner, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        shape = (batch, self.heads, self.head_dim, height * width)
        q = self.q(x).reshape(shape).transpose(2, 3)
        if self.scale != 1.0:
            q = q * self.scale
        attention = self.softmax(self.scores(q, self.k(x).reshape(shape)))  # [batch, heads, query, key]
        out = self.mix(self.v(x).reshape(shape), attention.transpose(2, 3))  # [batch, heads, head_dim, query]
        return self.proj(out.reshape(batch, self.heads * self.head_dim, height, width))

    def norm_consumers(self) -> list[nn.Conv2d | nn.Linear]:
        return [self.q, self.k, self.v]

    def output_layer(self) -> nn.Module:
        return self.proj

    @torch.no_grad()
    def fold_(self) -> None:
        assert self.q.bias is not None
        self.q.weight.mul_(self.scale)
        self.q.bias.mul_(self.scale)
        self.scale = 1.0


class LinearAttention(nn.Module):
    """ReLU linear attention (EfficientViT, arXiv:2205.14756, Eq. 2) plus a depthwise 3x3 on v; heads of 16 channels.

    out = ReLU(q) (ReLU(k)^T v) / (ReLU(q) sum ReLU(k)) + dw3x3(v). k is divided by the number of tokens, which cancels
    and keeps the state of the order of one. macs: 4 N C^2 + N C (2 d + 1) + 9 N C with d = 16 (C a multiple of d).
    """

    kernels = (0,)
    norm_after = False
    replaces_block = False
    late_only = False
    head_dim = 16
    eps = 1e-4

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        self.heads = max(1, dim // self.head_dim)
        inner = self.heads * self.head_dim
        self.q = nn.Conv2d(dim, inner, 1)
        self.act_q = nn.ReLU()
        self.k = nn.Conv2d(dim, inner, 1)
        self.act_k = nn.ReLU()
        self.v = nn.Conv2d(dim, inner, 1)
        self.dwconv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.state = MatMul(role="accumulator")
        self.numerator = MatMul(role="accumulator")
        self.denominator = MatMul(role="accumulator")
        self.add = Add()
        self.proj = nn.Conv2d(inner, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        tokens = height * width
        shape = (batch, self.heads, self.head_dim, tokens)
        values = self.v(x)
        q = self.act_q(self.q(x)).reshape(shape)
        k = self.act_k(self.k(x)).reshape(shape) * (1.0 / tokens)
        state = self.state(values.reshape(shape), k.transpose(2, 3))  # [batch, heads, head_dim of v, head_dim of k]
        numerator = self.numerator(state, q)  # [batch, heads, head_dim, tokens]
        denominator = self.denominator(k.sum(dim=3, keepdim=True).transpose(2, 3), q)  # [batch, heads, 1, tokens]
        out = (numerator / (denominator + self.eps)).reshape(batch, self.heads * self.head_dim, height, width)
        return self.proj(self.add(out, self.dwconv(values)))

    def norm_consumers(self) -> list[nn.Conv2d | nn.Linear]:
        return [self.q, self.k, self.v]

    def output_layer(self) -> nn.Module:
        return self.proj
