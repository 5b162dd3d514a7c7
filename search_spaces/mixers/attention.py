"""Attention of every token to every other, with softmax and without. Channel-first."""

from __future__ import annotations

from torch import Tensor, nn

from search_spaces.layers import Add, ConvNorm, MatMul
from search_spaces.mixers.heads import HeadMixer, SoftmaxMixer


class SelfAttention(SoftmaxMixer):
    """Multi-head softmax attention over all tokens, no position term (CAFormer, arXiv:2210.13452), heads of 32.

    macs: 4 N C^2 + 2 N^2 C.
    """

    late_only = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__(dim)
        self.proj = nn.Conv2d(self.inner, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        weights = self.weights(self.split(self.q(x)), self.split(self.k(x)))
        out = self.attend(weights, self.split(self.v(x)))
        return self.proj(out.reshape(batch, self.inner, height, width))


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


class LinearAttention(HeadMixer):
    """ReLU linear attention (EfficientViT, arXiv:2205.14756, Eq. 2) plus a depthwise 3x3 on v; heads of 16 channels.

    macs: 4 N C^2 + N C (2 d + 1) + 9 N C with d = 16 (C a multiple of d).
    """

    head_dim = 16

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__(dim)
        self.act_q = nn.ReLU()
        self.act_k = nn.ReLU()
        self.dwconv = nn.Conv2d(self.inner, self.inner, 3, padding=1, groups=self.inner)
        self.kernel = LinearKernel(self.heads, self.head_dim)
        self.add = Add()
        self.proj = nn.Conv2d(self.inner, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        values = self.v(x)
        out = self.kernel(self.act_q(self.q(x)), self.act_k(self.k(x)), values)
        return self.proj(self.add(out, self.dwconv(values)))


class MultiScaleLinearAttention(HeadMixer):
    """ReLU linear attention on q, k, v and on their 5x5 aggregation (EfficientViT, arXiv:2205.14756, Fig. 2).

    A scale's q, k and v go through a depthwise 5x5 and a 1x1 convolution within each head. Each scale has its own
    projection and these are added, which equals one projection of both scales laid side by side.
    macs: N (5 C^2 + 3 (25 C + C d) + 2 C (2 d + 1)) with d = 16 (C a multiple of d).
    """

    head_dim = 16

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__(dim)
        self.aggregate_q, self.aggregate_k, self.aggregate_v = (self._aggregation() for _ in range(3))
        self.act_q, self.act_k, self.act_q5, self.act_k5 = (nn.ReLU() for _ in range(4))
        self.kernel = LinearKernel(self.heads, self.head_dim)
        self.kernel5 = LinearKernel(self.heads, self.head_dim)
        self.proj = nn.Conv2d(self.inner, dim, 1)
        self.proj5 = nn.Conv2d(self.inner, dim, 1)
        self.add = Add()

    def _aggregation(self) -> nn.Sequential:
        depthwise = nn.Conv2d(self.inner, self.inner, 5, padding=2, groups=self.inner)
        return nn.Sequential(depthwise, nn.Conv2d(self.inner, self.inner, 1, groups=self.heads))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        q5, k5, v5 = self.aggregate_q(q), self.aggregate_k(k), self.aggregate_v(v)
        out = self.proj(self.kernel(self.act_q(q), self.act_k(k), v))
        return self.add(out, self.proj5(self.kernel5(self.act_q5(q5), self.act_k5(k5), v5)))


class MultiQueryAttention(SoftmaxMixer):
    """Heads of 32 that share one key and one value, of the map at half resolution (MobileNetV4, arXiv:2404.10518,
    section 4; multi-query attention: arXiv:1911.02150).

    Keys and values are read off a depthwise 3x3 convolution of stride 2. BatchNorm follows every projection and folds
    into it, as in LeViT (arXiv:2104.01136, section 4.3). macs: 2 N C^2 + (9 C + 2 C d) N/4 + 2 N (N/4) C with d = 32.
    """

    norm_inside = True
    late_only = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__(dim, ConvNorm, keys_of_all=True)
        self.reduce = ConvNorm(dim, dim, 3, stride=2, groups=dim)
        self.proj = ConvNorm(self.inner, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        reduced = self.reduce(x)
        q = self.split(self.q(x))
        k = self.k(reduced).flatten(2)[:, None]
        v = self.v(reduced).flatten(2)[:, None]
        out = self.attend(self.weights(q, k), v)
        return self.proj(out.reshape(batch, self.inner, height, width))
