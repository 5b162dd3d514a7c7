"""Attention to less than every token, and without softmax. Channel-first, heads of 32."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from search_spaces.layers import ACTIVATION_LAYERS, Add, ConvNorm, MatMul
from search_spaces.mixers.heads import HeadMixer, SoftmaxMixer


def parts_of(size: int, most: int) -> int:
    """The least number of equal parts of at most `most` pixels that a side of `size` pixels divides into."""
    return next(count for count in range(1, size + 1) if size % count == 0 and size // count <= most)


class WindowAttention(SoftmaxMixer):
    """Softmax attention within windows that do not shift (Swin, arXiv:2103.14030, section 3.1), plus a depthwise 3x3 on
    v, which carries over their borders in place of shifting.

    The windows are equal parts of at most 8 pixels a side. macs: 4 N C^2 + 2 N w^2 C + 9 N C for windows of w^2.
    """

    sized = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str, size: int) -> None:
        super().__init__(dim)
        self.count = parts_of(size, 8)
        self.side = size // self.count
        self.dwconv = nn.Conv2d(self.inner, self.inner, 3, padding=1, groups=self.inner)
        self.add = Add()
        self.proj = nn.Conv2d(self.inner, dim, 1)

    def _windows(self, x: Tensor) -> Tensor:
        """[batch, heads * windows, head_dim, pixels of a window]."""
        split = (x.shape[0], self.heads, self.head_dim, self.count, self.side, self.count, self.side)
        together = x.reshape(split).permute(0, 1, 3, 5, 2, 4, 6)
        return together.reshape(x.shape[0], self.heads * self.count**2, self.head_dim, self.side**2)

    def forward(self, x: Tensor) -> Tensor:
        values = self.v(x)
        weights = self.weights(self._windows(self.q(x)), self._windows(self.k(x)))
        out = self.attend(weights, self._windows(values))
        split = (x.shape[0], self.heads, self.count, self.count, self.head_dim, self.side, self.side)
        out = out.reshape(split).permute(0, 1, 4, 2, 5, 3, 6).reshape(values.shape)
        return self.proj(self.add(out, self.dwconv(values)))


class PooledAttention(SoftmaxMixer):
    """Linear spatial-reduction attention (PVT v2, arXiv:2106.13797, section 3.2): keys and values of a map averaged
    down to at most 7 pixels a side, behind a 1x1 convolution, a norm and an activation.

    macs: 2 N C^2 + 3 M C^2 + 2 N M C with M <= 49 keys. BatchNorm stands for the LayerNorm on the averaged map.
    """

    sized = True

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str, size: int) -> None:
        super().__init__(dim)
        step = size // _keys_a_side(size)
        self.pool: nn.Module = nn.AvgPool2d(step) if step > 1 else nn.Identity()
        self.reduce = ConvNorm(dim, dim, 1)
        self.act = ACTIVATION_LAYERS[activation]()
        self.proj = nn.Conv2d(self.inner, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        reduced = self.act(self.reduce(self.pool(x)))
        weights = self.weights(self.split(self.q(x)), self.split(self.k(reduced)))
        out = self.attend(weights, self.split(self.v(reduced)))
        return self.proj(out.reshape(batch, self.inner, height, width))

    def norm_consumers(self) -> list[nn.Conv2d | nn.Linear]:
        return [self.q, self.reduce.conv]  # an average of what BatchNorm wrote is BatchNorm of the average


def _keys_a_side(size: int) -> int:
    """The greatest divisor of `size` that is at most 7: windows of the average are whole, so that norms fold."""
    return next(keys for keys in range(7, 0, -1) if size % keys == 0)


class ClusterAttention(SoftmaxMixer):
    """Attention to 49 clusters of the tokens (PaCa, arXiv:2203.11987, Eq. 4 to 6): a small convolutional network says
    how much of every token goes into every cluster, and keys and values are of the clusters.

    BatchNorm follows the convolutions and folds into them.
    macs: N (49 C + 3 C^2) + 4 N M C + 2 M C^2 with M = 49.
    """

    norm_inside = True
    clusters = 49

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__(dim, ConvNorm)
        self.dwconv = ConvNorm(dim, dim, 7, groups=dim)
        self.act1 = ACTIVATION_LAYERS[activation]()
        self.pwconv = ConvNorm(dim, dim, 1)
        self.act2 = ACTIVATION_LAYERS[activation]()
        self.assign = nn.Conv2d(dim, self.clusters, 1)
        self.share = nn.Softmax(dim=-1)
        self.gather = MatMul()
        self.proj = ConvNorm(self.inner, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        logits = self.assign(self.act2(self.pwconv(self.act1(self.dwconv(x)))))
        shares = self.share(logits.flatten(2))  # [batch, cluster, token]
        clusters = self.gather(x.flatten(2), shares.transpose(1, 2)).reshape(batch, dim, self.clusters, 1)
        weights = self.weights(self.split(self.q(x)), self.split(self.k(clusters)))
        out = self.attend(weights, self.split(self.v(clusters)))
        return self.proj(out.reshape(batch, self.inner, height, width))


class UnitLength(nn.Module):
    """A tensor [batch, heads, head_dim, tokens], every token of every head divided by its length."""

    eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x / (torch.linalg.vector_norm(x, dim=2, keepdim=True) + self.eps)


class AngularAttention(HeadMixer):
    """Linear-angular attention (Castling-ViT, arXiv:2211.10526, Eq. 6 and 7), at inference: v / 2 + q (k^T v) / pi with
    q and k of unit length, itself brought to unit length, plus a depthwise convolution of 9 along the tokens of v.

    The masked softmax branch that the authors train beside it is left out. macs: N (4 C^2 + 2 C d + 9 C) with d = 32.
    """

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str) -> None:
        super().__init__(dim)
        self.unit_q, self.unit_k, self.unit = UnitLength(), UnitLength(), UnitLength()
        self.state = MatMul(role="accumulator")
        self.product = MatMul(role="accumulator")
        self.add = Add()
        self.dwconv = nn.Conv2d(self.inner, self.inner, (9, 1), padding=(4, 0), groups=self.inner)
        self.add_conv = Add()
        self.proj = nn.Conv2d(self.inner, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        flat = self.v(x).reshape(batch, self.inner, height * width, 1)
        v, q, k = self.split(flat), self.unit_q(self.split(self.q(x))), self.unit_k(self.split(self.k(x)))
        state = self.state(v, k.transpose(2, 3))  # [batch, heads, head_dim of v, head_dim of k]
        out = self.unit(self.add(v * 0.5, self.product(state, q) * (1 / math.pi)))
        mixed = self.add_conv(out.reshape(batch, self.inner, height * width, 1), self.dwconv(flat))
        return self.proj(mixed.reshape(batch, self.inner, height, width))
