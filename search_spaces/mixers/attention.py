"""Attention in channel-first form: projections are 1x1 convolutions, tokens are the pixels of the map.

q, k and v are separate tensors, heads lie one after the other in them: a prefix of channels is a prefix of heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search_spaces.layers import Add, ConvNorm, MatMul
from search_spaces.mixers.contract import TokenMixer


class SelfAttention(TokenMixer):
    """Multi-head softmax attention over all tokens, no position term (CAFormer, arXiv:2210.13452), heads of 32.

    macs: 4 N C^2 + 2 N^2 C.
    """

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


class LinearKernel(nn.Module):
    """ReLU(q) (ReLU(k)^T v) / (ReLU(q) sum ReLU(k)) per head, linear in the number of tokens.

    q, k (both after their ReLU) and v: [batch, heads * head_dim, height, width]. k is divided by the number of tokens,
    which cancels and keeps the state of the order of one. macs: N C (2 d + 1), C = heads * d.
    """

    eps = 1e-4

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.state = MatMul(role="accumulator")
        self.numerator = MatMul(role="accumulator")
        self.denominator = MatMul(role="accumulator")

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, _, height, width = q.shape
        shape = (batch, self.heads, self.head_dim, height * width)
        q = q.reshape(shape)
        k = k.reshape(shape) * (1.0 / (height * width))
        state = self.state(v.reshape(shape), k.transpose(2, 3))  # [batch, heads, head_dim of v, head_dim of k]
        numerator = self.numerator(state, q)  # [batch, heads, head_dim, tokens]
        denominator = self.denominator(k.sum(dim=3, keepdim=True).transpose(2, 3), q)  # [batch, heads, 1, tokens]
        return (numerator / (denominator + self.eps)).reshape(batch, self.heads * self.head_dim, height, width)


class LinearAttention(TokenMixer):
    """ReLU linear attention (EfficientViT, arXiv:2205.14756, Eq. 2) plus a depthwise 3x3 on v; heads of 16 channels.

    macs: 4 N C^2 + N C (2 d + 1) + 9 N C with d = 16 (C a multiple of d).
    """

    head_dim = 16

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
        self.kernel = LinearKernel(self.heads, self.head_dim)
        self.add = Add()
        self.proj = nn.Conv2d(inner, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        values = self.v(x)
        out = self.kernel(self.act_q(self.q(x)), self.act_k(self.k(x)), values)
        return self.proj(self.add(out, self.dwconv(values)))

    def norm_consumers(self) -> list[nn.Conv2d | nn.Linear]:
        return [self.q, self.k, self.v]

    def output_layer(self) -> nn.Module:
        return self.proj


class MultiScaleLinearAttention(TokenMixer):
    """ReLU linear attention on q, k, v and on their 5x5 aggregation (EfficientViT, arXiv:2205.14756, Fig. 2).

    A scale's q, k and v go through a depthwise 5x5 and a 1x1 convolution within each head. Each scale has its own
    projection and these are added, which equals one projection of both scales laid side by side.
    macs: N (5 C^2 + 3 (25 C + C d) + 2 C (2 d + 1)) with d = 16 (C a multiple of d).
    """

    head_dim = 16

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        self.heads = max(1, dim // self.head_dim)
        inner = self.heads * self.head_dim
        self.q = nn.Conv2d(dim, inner, 1)
        self.k = nn.Conv2d(dim, inner, 1)
        self.v = nn.Conv2d(dim, inner, 1)
        self.aggregate_q, self.aggregate_k, self.aggregate_v = (self._aggregation(inner) for _ in range(3))
        self.act_q, self.act_k, self.act_q5, self.act_k5 = (nn.ReLU() for _ in range(4))
        self.kernel = LinearKernel(self.heads, self.head_dim)
        self.kernel5 = LinearKernel(self.heads, self.head_dim)
        self.proj = nn.Conv2d(inner, dim, 1)
        self.proj5 = nn.Conv2d(inner, dim, 1)
        self.add = Add()

    def _aggregation(self, inner: int) -> nn.Sequential:
        depthwise = nn.Conv2d(inner, inner, 5, padding=2, groups=inner)
        return nn.Sequential(depthwise, nn.Conv2d(inner, inner, 1, groups=self.heads))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        q5, k5, v5 = self.aggregate_q(q), self.aggregate_k(k), self.aggregate_v(v)
        out = self.proj(self.kernel(self.act_q(q), self.act_k(k), v))
        return self.add(out, self.proj5(self.kernel5(self.act_q5(q5), self.act_k5(k5), v5)))

    def norm_consumers(self) -> list[nn.Conv2d | nn.Linear]:
        return [self.q, self.k, self.v]

    def output_layer(self) -> nn.Module:
        return self.proj


class MultiQueryAttention(TokenMixer):
    """Heads of 32 that share one key and one value, of the map at half resolution (MobileNetV4, arXiv:2404.10518,
    section 4; multi-query attention: arXiv:1911.02150).

    Keys and values are read off a depthwise 3x3 convolution of stride 2. BatchNorm follows every projection and folds
    into it, as in LeViT (arXiv:2104.01136, section 4.3). macs: 2 N C^2 + (9 C + 2 C d) N/4 + 2 N (N/4) C with d = 32.
    """

    norm_inside = True
    late_only = True
    head_dim = 32

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        self.heads = max(1, dim // self.head_dim)
        inner = self.heads * self.head_dim
        self.q = ConvNorm(dim, inner, 1)
        self.reduce = ConvNorm(dim, dim, 3, stride=2, groups=dim)
        self.k = ConvNorm(dim, self.head_dim, 1)
        self.v = ConvNorm(dim, self.head_dim, 1)
        self.scale = self.head_dim**-0.5
        self.scores = MatMul()
        self.softmax = nn.Softmax(dim=-1)
        self.mix = MatMul()
        self.proj = ConvNorm(inner, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        reduced = self.reduce(x)
        q = self.q(x)
        if self.scale != 1.0:
            q = q * self.scale
        q = q.reshape(batch, self.heads, self.head_dim, height * width).transpose(2, 3)
        k = self.k(reduced).flatten(2)[:, None]
        v = self.v(reduced).flatten(2)[:, None]
        attention = self.softmax(self.scores(q, k))  # [batch, heads, query, key]
        out = self.mix(v, attention.transpose(2, 3))  # [batch, heads, head_dim, query]
        return self.proj(out.reshape(batch, self.heads * self.head_dim, height, width))

    def output_layer(self) -> nn.Module:
        return self.proj.norm

    @torch.no_grad()
    def fold_(self) -> None:
        assert self.q.conv.bias is not None
        self.q.conv.weight.mul_(self.scale)
        self.q.conv.bias.mul_(self.scale)
        self.scale = 1.0
