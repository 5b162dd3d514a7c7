"""Attention to less than every token, and without softmax. Channel-first, heads of 32, as in `attention`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from search_spaces.layers import ACTIVATION_LAYERS, Add, ConvNorm, MatMul
from search_spaces.mixers.contract import TokenMixer


def parts_of(size: int, most: int) -> int:
    """The least number of equal parts of at most `most` pixels that a side of `size` pixels divides into."""
    return next(count for count in range(1, size + 1) if size % count == 0 and size // count <= most)


@torch.no_grad()
def scale_queries_(conv: nn.Conv2d, scale: float) -> float:
    """Take the scale of the scores into the layer that makes the queries; returns the scale that is left: 1."""
    assert conv.bias is not None
    conv.weight.mul_(scale)
    conv.bias.mul_(scale)
    return 1.0


class WindowAttention(TokenMixer):
    """Softmax attention within windows that do not shift (Swin, arXiv:2103.14030, section 3.1), plus a depthwise 3x3 on
    v, which carries over their borders in place of shifting.

    The windows are equal parts of at most 8 pixels a side. macs: 4 N C^2 + 2 N w^2 C + 9 N C for windows of w^2.
    """

    sized = True
    head_dim = 32

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str, size: int) -> None:
        super().__init__()
        self.heads = max(1, dim // self.head_dim)
        self.count = parts_of(size, 8)
        self.side = size // self.count
        inner = self.heads * self.head_dim
        self.q = nn.Conv2d(dim, inner, 1)
        self.k = nn.Conv2d(dim, inner, 1)
        self.v = nn.Conv2d(dim, inner, 1)
        self.dwconv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.scale = self.head_dim**-0.5
        self.scores = MatMul()
        self.softmax = nn.Softmax(dim=-1)
        self.mix = MatMul()
        self.add = Add()
        self.proj = nn.Conv2d(inner, dim, 1)

    def _windows(self, x: Tensor) -> Tensor:
        """[batch, heads * windows, head_dim, pixels of a window]."""
        split = (x.shape[0], self.heads, self.head_dim, self.count, self.side, self.count, self.side)
        together = x.reshape(split).permute(0, 1, 3, 5, 2, 4, 6)
        return together.reshape(x.shape[0], self.heads * self.count**2, self.head_dim, self.side**2)

    def forward(self, x: Tensor) -> Tensor:
        values = self.v(x)
        q = self._windows(self.q(x)).transpose(2, 3)
        if self.scale != 1.0:
            q = q * self.scale
        attention = self.softmax(self.scores(q, self._windows(self.k(x))))
        out = self.mix(self._windows(values), attention.transpose(2, 3))
        split = (x.shape[0], self.heads, self.count, self.count, self.head_dim, self.side, self.side)
        out = out.reshape(split).permute(0, 1, 4, 2, 5, 3, 6).reshape(values.shape)
        return self.proj(self.add(out, self.dwconv(values)))

    def norm_consumers(self) -> list[nn.Conv2d | nn.Linear]:
        return [self.q, self.k, self.v]

    def output_layer(self) -> nn.Module:
        return self.proj

    def fold_(self) -> None:
        self.scale = scale_queries_(self.q, self.scale)


class PooledAttention(TokenMixer):
    """Linear spatial-reduction attention (PVT v2, arXiv:2106.13797, section 3.2): keys and values of a map averaged
    down to at most 7 pixels a side, behind a 1x1 convolution, a norm and an activation.

    macs: 2 N C^2 + 3 M C^2 + 2 N M C with M <= 49 keys. BatchNorm stands for the LayerNorm on the averaged map.
    """

    sized = True
    head_dim = 32

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str, size: int) -> None:
        super().__init__()
        self.heads = max(1, dim // self.head_dim)
        inner = self.heads * self.head_dim
        self.q = nn.Conv2d(dim, inner, 1)
        step = size // _keys_a_side(size)
        self.pool: nn.Module = nn.AvgPool2d(step) if step > 1 else nn.Identity()
        self.reduce = ConvNorm(dim, dim, 1)
        self.act = ACTIVATION_LAYERS[activation]()
        self.k = nn.Conv2d(dim, inner, 1)
        self.v = nn.Conv2d(dim, inner, 1)
        self.scale = self.head_dim**-0.5
        self.scores = MatMul()
        self.softmax = nn.Softmax(dim=-1)
        self.mix = MatMul()
        self.proj = nn.Conv2d(inner, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        heads = (batch, self.heads, self.head_dim, -1)
        reduced = self.act(self.reduce(self.pool(x)))
        q = self.q(x).reshape(heads).transpose(2, 3)
        if self.scale != 1.0:
            q = q * self.scale
        attention = self.softmax(self.scores(q, self.k(reduced).reshape(heads)))  # [batch, heads, query, key]
        out = self.mix(self.v(reduced).reshape(heads), attention.transpose(2, 3))
        return self.proj(out.reshape(batch, self.heads * self.head_dim, height, width))

    def norm_consumers(self) -> list[nn.Conv2d | nn.Linear]:
        return [self.q, self.reduce.conv]  # an average of what BatchNorm wrote is BatchNorm of the average

    def output_layer(self) -> nn.Module:
        return self.proj

    def fold_(self) -> None:
        self.scale = scale_queries_(self.q, self.scale)


def _keys_a_side(size: int) -> int:
    """The greatest divisor of `size` that is at most 7: windows of the average are whole, so that norms fold."""
    return next(keys for keys in range(7, 0, -1) if size % keys == 0)


class ClusterAttention(TokenMixer):
    """Attention to 49 clusters of the tokens (PaCa, arXiv:2203.11987, Eq. 4 to 6): a small convolutional network says
    how much of every token goes into every cluster, and keys and values are of the clusters.

    BatchNorm follows the convolutions and folds into them.
    macs: N (49 C + 3 C^2) + 4 N M C + 2 M C^2 with M = 49.
    """

    norm_inside = True
    head_dim = 32
    clusters = 49

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        self.heads = max(1, dim // self.head_dim)
        inner = self.heads * self.head_dim
        self.dwconv = ConvNorm(dim, dim, 7, groups=dim)
        self.act1 = ACTIVATION_LAYERS[activation]()
        self.pwconv = ConvNorm(dim, dim, 1)
        self.act2 = ACTIVATION_LAYERS[activation]()
        self.assign = nn.Conv2d(dim, self.clusters, 1)
        self.share = nn.Softmax(dim=-1)
        self.gather = MatMul()
        self.q = ConvNorm(dim, inner, 1)
        self.k = ConvNorm(dim, inner, 1)
        self.v = ConvNorm(dim, inner, 1)
        self.scale = self.head_dim**-0.5
        self.scores = MatMul()
        self.softmax = nn.Softmax(dim=-1)
        self.mix = MatMul()
        self.proj = ConvNorm(inner, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        logits = self.assign(self.act2(self.pwconv(self.act1(self.dwconv(x)))))
        shares = self.share(logits.flatten(2))  # [batch, cluster, token]
        clusters = self.gather(x.flatten(2), shares.transpose(1, 2)).reshape(batch, dim, self.clusters, 1)
        heads = (batch, self.heads, self.head_dim, -1)
        q = self.q(x).reshape(heads).transpose(2, 3)
        if self.scale != 1.0:
            q = q * self.scale
        attention = self.softmax(self.scores(q, self.k(clusters).reshape(heads)))  # [batch, heads, query, cluster]
        out = self.mix(self.v(clusters).reshape(heads), attention.transpose(2, 3))
        return self.proj(out.reshape(batch, self.heads * self.head_dim, height, width))

    def output_layer(self) -> nn.Module:
        return self.proj.norm

    def fold_(self) -> None:
        self.scale = scale_queries_(self.q.conv, self.scale)


class UnitLength(nn.Module):
    """A tensor [batch, heads, head_dim, tokens], every token of every head divided by its length."""

    eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x / (torch.linalg.vector_norm(x, dim=2, keepdim=True) + self.eps)


class AngularAttention(TokenMixer):
    """Linear-angular attention (Castling-ViT, arXiv:2211.10526, Eq. 6 and 7), at inference: v / 2 + q (k^T v) / pi with
    q and k of unit length, itself brought to unit length, plus a depthwise convolution of 9 along the tokens of v.

    The masked softmax branch that the authors train beside it is left out. macs: N (4 C^2 + 2 C d + 9 C) with d = 32.
    """

    head_dim = 32

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__()
        self.heads = max(1, dim // self.head_dim)
        inner = self.heads * self.head_dim
        self.q = nn.Conv2d(dim, inner, 1)
        self.k = nn.Conv2d(dim, inner, 1)
        self.v = nn.Conv2d(dim, inner, 1)
        self.unit_q, self.unit_k, self.unit = UnitLength(), UnitLength(), UnitLength()
        self.state = MatMul(role="accumulator")
        self.product = MatMul(role="accumulator")
        self.add = Add()
        self.dwconv = nn.Conv2d(inner, inner, (9, 1), padding=(4, 0), groups=inner)
        self.add_conv = Add()
        self.proj = nn.Conv2d(inner, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        shape = (batch, self.heads, self.head_dim, height * width)
        flat = self.v(x).reshape(batch, self.heads * self.head_dim, height * width, 1)
        v = flat.reshape(shape)
        q, k = self.unit_q(self.q(x).reshape(shape)), self.unit_k(self.k(x).reshape(shape))
        state = self.state(v, k.transpose(2, 3))  # [batch, heads, head_dim of v, head_dim of k]
        out = self.unit(self.add(v * 0.5, self.product(state, q) * (1 / math.pi)))
        mixed = self.add_conv(out.reshape(batch, self.heads * self.head_dim, height * width, 1), self.dwconv(flat))
        return self.proj(mixed.reshape(batch, self.heads * self.head_dim, height, width))

    def norm_consumers(self) -> list[nn.Conv2d | nn.Linear]:
        return [self.q, self.k, self.v]

    def output_layer(self) -> nn.Module:
        return self.proj
