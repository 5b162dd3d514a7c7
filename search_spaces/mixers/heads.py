"""What mixers of queries, keys and values share. Projections are 1x1 convolutions, tokens are the pixels of the map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from search_spaces.layers import MatMul
from search_spaces.mixers.contract import TokenMixer


class HeadMixer(TokenMixer):
    """Queries, keys and values in heads of `head_dim` channels, which lie one after the other in separate tensors: a
    prefix of channels is a prefix of heads.

    A mixer of this base adds `proj`, from `inner` channels back to its width. project: what makes a projection of
    (channels in, channels out, kernel). keys_of_all: one key and one value for all heads.
    """

    head_dim: ClassVar[int] = 32
    proj: Any

    def __init__(
        self, dim: int, project: Callable[[int, int, int], nn.Module] = nn.Conv2d, keys_of_all: bool = False
    ) -> None:
        super().__init__()
        self.heads = max(1, dim // self.head_dim)
        self.inner = self.heads * self.head_dim
        of_keys = self.head_dim if keys_of_all else self.inner
        self.q: Any = project(dim, self.inner, 1)
        self.k: Any = project(dim, of_keys, 1)
        self.v: Any = project(dim, of_keys, 1)

    def split(self, x: Tensor) -> Tensor:
        """[batch, inner, height, width] -> [batch, heads, head_dim, tokens]."""
        return x.reshape(x.shape[0], self.heads, self.head_dim, -1)

    def norm_consumers(self) -> list[nn.Conv2d | nn.Linear]:
        return [self.q, self.k, self.v]

    def output_layer(self) -> nn.Module:
        layer: nn.Module = getattr(self.proj, "norm", self.proj)
        return layer


class SoftmaxMixer(HeadMixer):
    """softmax(q^T k / sqrt(head_dim)) v (arXiv:1706.03762, Eq. 1). Folded, the scale is in the queries."""

    def __init__(
        self, dim: int, project: Callable[[int, int, int], nn.Module] = nn.Conv2d, keys_of_all: bool = False
    ) -> None:
        super().__init__(dim, project, keys_of_all)
        self.scale = self.head_dim**-0.5
        self.scores = MatMul()
        self.softmax = nn.Softmax(dim=-1)
        self.mix = MatMul()

    def queries(self, q: Tensor) -> Tensor:
        """[..., head_dim, queries] -> [..., queries, head_dim], scaled."""
        q = q.transpose(-2, -1)
        return q if self.scale == 1.0 else q * self.scale

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """Attention [..., query, key] of q [..., head_dim, queries] and k [..., head_dim, keys]."""
        return self.softmax(self.scores(self.queries(q), k))

    def attend(self, weights: Tensor, v: Tensor) -> Tensor:
        """[..., head_dim, queries] of v [..., head_dim, keys]."""
        return self.mix(v, weights.transpose(-2, -1))

    @torch.no_grad()
    def fold_(self) -> None:
        conv = getattr(self.q, "conv", self.q)
        conv.weight.mul_(self.scale)
        conv.bias.mul_(self.scale)
        self.scale = 1.0
