"""Attention within neighbourhoods. A neighbourhood is cut by slices, padding and concatenation, never by a gather."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.layers import Add, MatMul
from search_spaces.mixers.contract import TokenMixer
from search_spaces.mixers.heads import SoftmaxMixer
from search_spaces.mixers.sparse import parts_of


def with_neighbours(lines: Tensor, before: int, after: int) -> Tensor:
    """[..., parts, side, length] -> [..., parts, before + side + after, length]: every part with the last `before`
    lines of the part ahead of it and the first `after` of the one behind it; zeros where there is none.
    """
    pieces = [lines]
    if before:
        pieces.insert(0, F.pad(lines[..., -before:, :], (0, 0, 0, 0, 1, 0))[..., :-1, :, :])
    if after:
        pieces.append(F.pad(lines[..., :after, :], (0, 0, 0, 0, 0, 1))[..., 1:, :, :])
    return torch.cat(pieces, dim=-2) if len(pieces) > 1 else lines


class RelativeLogits(nn.Module):
    """What queries say of keys that lie so many pixels further along a line, of one table for all heads.

    side: queries of a line in pixels, at most `most`; halo: keys on either side of them besides. The table is that of
    the longest line: a shorter one reads its middle.
    """

    def __init__(self, head_dim: int, side: int, halo: int, most: int, widest: int) -> None:
        super().__init__()
        self.side, self.window, self.reach = side, side + 2 * halo, most - 1 + widest
        self.span = side + self.window - 1  # offsets between a query and a key of these lines
        self.table = nn.Linear(head_dim, 2 * self.reach + 1)

    def forward(self, q: Tensor) -> Tensor:
        """[batch, blocks, lines, side, head_dim] -> [batch, blocks, lines, side, window]."""
        first = self.reach - self.span // 2
        near = self.table(q)[..., first : first + self.span]
        if self.side == 1:
            return near
        # Key c of query i stands at offset c - i + side - 1: in the flattened table, rows that are one entry shorter.
        flat = near.reshape(q.shape[0], q.shape[1], q.shape[2], self.side * self.span)
        skewed = flat[..., self.side - 1 : self.side * self.span - 1]
        rows = skewed.reshape(q.shape[0], q.shape[1], q.shape[2], self.side, self.span - 1)
        return rows[..., : self.window]


class HaloAttention(SoftmaxMixer):
    """Softmax attention of blocks to themselves and 3 pixels around them, zeros beyond the border, with relative
    positions along each axis that depend on the query (HaloNet, arXiv:2103.12731, section 3).

    The blocks are equal parts of at most 8 pixels a side. A single block has no halo, which would be zeros only.
    macs: 4 N C^2 + 2 N w^2 C + 42 N C for neighbourhoods of w^2 pixels.
    """

    sized = True
    halo = 3
    largest_block = 8

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str, size: int) -> None:
        super().__init__(dim)
        self.count = parts_of(size, self.largest_block)
        self.side = size // self.count
        self.around = min(self.halo, self.side) if self.count > 1 else 0
        lines = (self.head_dim, self.side, self.around, self.largest_block, self.halo)
        self.rows, self.columns = RelativeLogits(*lines), RelativeLogits(*lines)
        self.add_positions, self.add_scores = Add(), Add()
        self.proj = nn.Conv2d(self.inner, dim, 1)

    def _blocks(self, x: Tensor, side: int) -> Tensor:
        """[batch, inner, count * side, count * side] -> [batch, heads * blocks, head_dim, side^2]."""
        split = x.reshape(x.shape[0], self.heads, self.head_dim, self.count, side, self.count, side)
        return split.permute(0, 1, 3, 5, 2, 4, 6).reshape(x.shape[0], -1, self.head_dim, side * side)

    def _neighbourhoods(self, x: Tensor) -> Tensor:
        """[batch, inner, height, width] -> [batch, heads * blocks, head_dim, w^2]."""
        batch, count, side, window = x.shape[0], self.count, self.side, self.side + 2 * self.around
        x = with_neighbours(x.reshape(batch, self.inner, count, side, count * side), self.around, self.around)
        x = x.reshape(batch, self.inner, count * window, count, side, 1)
        x = with_neighbours(x, self.around, self.around)
        return self._blocks(x.reshape(batch, self.inner, count * window, count * window), window)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        side, window = self.side, self.side + 2 * self.around
        q = self.queries(self._blocks(self.q(x), side))
        by_row = q.reshape(batch, -1, side, side, self.head_dim)  # [batch, blocks, row, column, head_dim]
        along_rows = self.rows(by_row)[..., None, :]
        along_columns = self.columns(by_row.transpose(2, 3)).transpose(2, 3)[..., None]
        positions = self.add_positions(along_columns, along_rows).reshape(batch, -1, side * side, window * window)
        weights = self.softmax(self.add_scores(self.scores(q, self._neighbourhoods(self.k(x))), positions))
        out = self.attend(weights, self._neighbourhoods(self.v(x)))
        split = (batch, self.heads, self.count, self.count, self.head_dim, side, side)
        out = out.reshape(split).permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, self.inner, height, width)
        return self.proj(out)


class OutlookAttention(TokenMixer):
    """Weights of every 3x3 neighbourhood read off its middle, without keys (outlook attention, VOLO, arXiv:2106.13112,
    Alg. 1): each of its 9 pixels becomes a mixture of the 9, and overlapping neighbourhoods are summed.

    Neighbourhoods lie 2 pixels apart, their weights come of the 2x2 average; heads of 32.
    macs: 2 N C^2 + N/4 (81 h C + 81 C) for h heads (an even side).
    """

    sized = True
    head_dim = 32

    def __init__(self, dim: int, kernel: int, expansion: float, role_width: int, activation: str, size: int) -> None:
        super().__init__()
        self.heads, self.size, self.count = max(1, dim // self.head_dim), size, -(-size // 2)
        self.inner = self.heads * self.head_dim
        self.v = nn.Conv2d(dim, self.inner, 1)
        self.pool = nn.AvgPool2d(2, padding=size % 2, count_include_pad=False)
        self.outlook = nn.Conv2d(dim, self.heads * 81, 1)
        self.scale = self.head_dim**-0.5
        self.softmax = nn.Softmax(dim=-1)
        self.mix = MatMul()
        self.add_rows, self.add_columns = Add(), Add()
        self.proj = nn.Conv2d(self.inner, dim, 1)

    def _cut(self, v: Tensor) -> Tensor:
        """[batch, inner, side, side] -> [batch, neighbourhoods, heads, 9, head_dim]."""
        batch, count = v.shape[0], self.count
        if self.size % 2:
            v = F.pad(v, (0, 1, 0, 1))
        v = with_neighbours(v.reshape(batch, self.inner, count, 2, 2 * count), 1, 0)
        v = with_neighbours(v.reshape(batch, self.inner, 3 * count, count, 2, 1), 1, 0)
        v = v.reshape(batch, self.heads, self.head_dim, count, 3, count, 3).permute(0, 3, 5, 1, 4, 6, 2)
        return v.reshape(batch, count * count, self.heads, 9, self.head_dim)

    def _join(self, y: Tensor) -> Tensor:
        """The transpose of `_cut`: what lies on one pixel is summed."""
        batch, count = y.shape[0], self.count
        y = y.reshape(batch, count, count, self.heads, 3, 3, self.head_dim).permute(0, 3, 6, 1, 4, 2, 5)
        y = _overlapped(y.reshape(batch, self.inner, 3 * count, count, 3, 1), self.add_columns)
        y = _overlapped(y.reshape(batch, self.inner, count, 3, 2 * count), self.add_rows)
        return y.reshape(batch, self.inner, 2 * count, 2 * count)[:, :, : self.size, : self.size]

    def forward(self, x: Tensor) -> Tensor:
        logits = self.outlook(self.pool(x))
        if self.scale != 1.0:
            logits = logits * self.scale
        logits = logits.reshape(x.shape[0], self.heads, 9, 9, self.count * self.count).permute(0, 4, 1, 2, 3)
        return self.proj(self._join(self.mix(self.softmax(logits), self._cut(self.v(x)))))

    def norm_consumers(self) -> list[nn.Conv2d | nn.Linear]:
        return [self.v, self.outlook]  # an average of what BatchNorm wrote is BatchNorm of the average

    def output_layer(self) -> nn.Module:
        return self.proj

    @torch.no_grad()
    def fold_(self) -> None:
        assert self.outlook.bias is not None
        self.outlook.weight.mul_(self.scale)
        self.outlook.bias.mul_(self.scale)
        self.scale = 1.0


def _overlapped(lines: Tensor, add: nn.Module) -> Tensor:
    """[..., parts, 3, length] -> [..., parts, 2, length]: the first of a part's lines lies on the last of the part
    ahead of it, where `add` sums them; the transpose of `with_neighbours(..., 1, 0)`.
    """
    behind = F.pad(lines[..., :1, :], (0, 0, 0, 0, 0, 1))[..., 1:, :, :]
    return torch.cat((lines[..., 1:2, :], add(lines[..., 2:, :], behind)), dim=-2)
