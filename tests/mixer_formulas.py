"""Token mixers from their formulas, in NumPy: a second implementation that shares nothing with the first but the
names of its weights.

A formula gets x [batch, channels, height, width], the mixer's `state_dict` and its kernel in pixels. What is fixed in
a mixer (shifts, averages) is written down here, not read from its buffers. Mixers are taken as they are trained, not
folded, with GELU; in `test_mixer_definitions` they are compared, and those are written out that are not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]
Formula = Callable[[Array, Weights, int], Array]

ROLE_WIDTH = 16
"""Channels of the narrowest mixer of the supernet: they are what `inception` counts its groups by."""


def conv(x: Array, w: Weights, name: str, stride: int = 1, dilation: int = 1) -> Array:
    """Convolution with zeros beyond the border. Groups follow from the shape of the weights."""
    weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    (batch, chans, rows, columns), (outs, per_group, height, width) = x.shape, weight.shape
    groups, down, right = chans // per_group, dilation * (height // 2), dilation * (width // 2)
    padded = np.pad(x, ((0, 0), (0, 0), (down, down), (right, right)))
    total: Any = 0.0
    for a in range(height):
        for b in range(width):
            top, left = dilation * a, dilation * b
            seen = padded[:, :, top : top + rows : stride, left : left + columns : stride]
            seen = seen.reshape(batch, groups, per_group, *seen.shape[2:])
            total = total + np.einsum(
                "goc,bgcij->bgoij", weight[:, :, a, b].reshape(groups, -1, per_group), seen, optimize=True
            )
    return total.reshape(batch, outs, *total.shape[3:]) + bias[:, None, None]


def batchnorm(x: Array, w: Weights, name: str) -> Array:
    """At inference (arXiv:1502.03167, Alg. 2), with torch's epsilon."""
    mean, variance, gain, shift = (
        w[f"{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(variance + 1e-5) * gain + shift


def conv_norm(x: Array, w: Weights, name: str, stride: int = 1, dilation: int = 1) -> Array:
    return batchnorm(conv(x, w, f"{name}.conv", stride, dilation), w, f"{name}.norm")


def linear(x: Array, w: Weights, name: str) -> Array:
    """Of the last axis."""
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def gelu(x: Array) -> Array:
    """x times the share of normal noise that lies below x (arXiv:1606.08415, Eq. 1)."""
    return x * np.vectorize(lambda value: 0.5 * (1 + math.erf(value / math.sqrt(2))))(x)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def softmax(x: Array) -> Array:
    """Over the last axis."""
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def heads_of(x: Array, width: int) -> Array:
    """[batch, heads * width, ...] -> [batch, heads, tokens, width]."""
    return x.reshape(x.shape[0], -1, width, math.prod(x.shape[2:])).swapaxes(2, 3)


def joined(heads: Array, like: Array) -> Array:
    """Inverse of `heads_of`, on the map of `like`."""
    batch, count, _, width = heads.shape
    return heads.swapaxes(2, 3).reshape(batch, count * width, *like.shape[2:])


def attention(q: Array, k: Array, v: Array) -> Array:
    """softmax(q k^T / sqrt(d)) v (arXiv:1706.03762, Eq. 1) of [..., tokens, d]."""
    return softmax(q @ k.swapaxes(-2, -1) / math.sqrt(q.shape[-1])) @ v


def identity(x: Array, w: Weights, kernel: int) -> Array:
    return x


def pool(x: Array, w: Weights, kernel: int) -> Array:
    """The mean of the 3x3 pixels that there are, minus the pixel itself."""
    out = np.empty_like(x)
    for i, j in np.ndindex(x.shape[2:]):
        out[:, :, i, j] = x[:, :, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].mean((2, 3)) - x[:, :, i, j]
    return out


def pool_dw(x: Array, w: Weights, kernel: int) -> Array:
    """The same where pixels beyond the border count, as zeros."""
    out = np.empty_like(x)
    for i, j in np.ndindex(x.shape[2:]):
        out[:, :, i, j] = x[:, :, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].sum((2, 3)) / 9 - x[:, :, i, j]
    return out


def dwconv(x: Array, w: Weights, kernel: int) -> Array:
    assert w["dwconv.weight"].shape == (x.shape[1], 1, kernel, kernel)
    return conv(x, w, "dwconv")


def sepconv(x: Array, w: Weights, kernel: int) -> Array:
    assert w["dwconv.weight"].shape == (2 * x.shape[1], 1, kernel, kernel)
    return conv(conv(gelu(conv(x, w, "pwconv1")), w, "dwconv"), w, "pwconv2")


def inception(x: Array, w: Weights, kernel: int) -> Array:
    g = ROLE_WIDTH // 8
    assert w["dwconv_hw.weight"].shape == (g, 1, 3, 3)
    assert w["dwconv_w.weight"].shape == (g, 1, 1, 11)
    assert w["dwconv_h.weight"].shape == (g, 1, 11, 1)
    out = x.copy()
    for number, name in enumerate(("dwconv_hw", "dwconv_w", "dwconv_h")):
        out[:, number * g : (number + 1) * g] = conv(x[:, number * g : (number + 1) * g], w, name)
    return out


def mbconv(x: Array, w: Weights, kernel: int) -> Array:
    assert w["dwconv.conv.weight"].shape == (2 * x.shape[1], 1, kernel, kernel)
    hidden = gelu(conv_norm(x, w, "expand"))
    return conv_norm(gelu(conv_norm(hidden, w, "dwconv")), w, "project")


def fused_mbconv(x: Array, w: Weights, kernel: int) -> Array:
    assert w["expand.conv.weight"].shape == (2 * x.shape[1], x.shape[1], 3, 3)
    return conv_norm(gelu(conv_norm(x, w, "expand")), w, "project")


def convfirst(x: Array, w: Weights, kernel: int) -> Array:
    assert w["grouped.conv.weight"].shape == (x.shape[1], 8, 3, 3)
    assert w["expand.conv.weight"].shape == (2 * x.shape[1], x.shape[1], 1, 1)
    return conv_norm(gelu(conv_norm(conv_norm(x, w, "grouped"), w, "expand")), w, "project")


BRANCHES = {
    9: [(9, 1), (5, 1), (5, 2), (3, 3), (3, 4)],
    11: [(11, 1), (5, 1), (5, 2), (3, 3), (3, 4), (3, 5)],
    13: [(13, 1), (5, 1), (7, 2), (3, 3), (3, 4), (3, 5)],
}
"""Kernels and dilations of UniRepLKNet (arXiv:2311.15599); the first is the large one."""


def largekernel(x: Array, w: Weights, kernel: int) -> Array:
    total: Any = 0.0
    for number, (side, dilation) in enumerate(BRANCHES[kernel]):
        name = f"dwconv.branches.dilated{dilation}" if number else "dwconv.branches.main"
        assert w[f"{name}.conv.weight"].shape == (x.shape[1], 1, side, side)
        total = total + conv_norm(x, w, name, dilation=dilation)
    return total


def repmixer(x: Array, w: Weights, kernel: int) -> Array:
    assert w["dwconv.branches.main.conv.weight"].shape == (x.shape[1], 1, kernel, kernel)
    assert w["dwconv.branches.scale.conv.weight"].shape == (x.shape[1], 1, 1, 1)
    mixed = conv_norm(x, w, "dwconv.branches.main") + conv_norm(x, w, "dwconv.branches.scale")
    mixed = mixed + batchnorm(x, w, "skip") - batchnorm(x, w, "norm")
    return x + w["layer_scale"][:, None, None] * mixed


def mldc(x: Array, w: Weights, kernel: int) -> Array:
    assert w["dwconv.weight"].shape == (x.shape[1], 1, 7, 7)
    y = conv_norm(x + conv(x, w, "dwconv"), w, "pwconv1")
    levels = [gelu(conv_norm(y, w, f"dilated{d}", dilation=d)) for d in (2, 3)]
    return conv_norm(levels[0] + levels[1], w, "pwconv2")


def mldc_dw(x: Array, w: Weights, kernel: int) -> Array:
    one, two, three = (conv_norm(x, w, f"dwconv.branches.dilated{d}", dilation=d) for d in (1, 2, 3))
    return one + two + three


def ffn_attn(x: Array, w: Weights, kernel: int) -> Array:
    query = conv_norm(x, w, "query")
    keys = conv_norm(query, w, "keys.branches.main")
    if kernel == 7:
        assert w["keys.branches.small.conv.weight"].shape[2:] == (3, 3)
        keys = keys + conv_norm(query, w, "keys.branches.small")
    assert w["values.conv.weight"].shape == (x.shape[1], 1, kernel, kernel)
    return conv_norm(gelu(keys), w, "values")


def gated_conv(order: int) -> Formula:
    def formula(x: Array, w: Weights, kernel: int) -> Array:
        """p_(k+1) = f_k(q_k) g_k(p_k) / alpha with alpha = 3 (HorNet, arXiv:2207.14284, Eq. 3.4)."""
        p = conv(x, w, "gate")
        for k in range(order):
            if k:
                p = conv(p, w, f"widen.{k - 1}")
            assert p.shape[1] == x.shape[1] >> (order - 1 - k)
            assert w[f"dwconv.{k}.weight"].shape[2:] == (7, 7)
            p = conv(conv(x, w, f"value.{k}"), w, f"dwconv.{k}") * p / 3
        return conv(p, w, "proj")

    return formula


def linear_attention(q: Array, k: Array, v: Array) -> Array:
    """Token by token: v_j weighed by ReLU(q_i) . ReLU(k_j) (arXiv:2205.14756, Eq. 1 and 2), and 0.0001 of every token
    in the denominator, which must not be zero."""
    q, k, v = (heads_of(part, 16) for part in (q, k, v))
    similar = relu(q) @ relu(k).swapaxes(2, 3)
    return similar / (similar.sum(3, keepdims=True) + 1e-4 * k.shape[2]) @ v


def relu_linear(x: Array, w: Weights, kernel: int) -> Array:
    q, k, v = (conv(x, w, name) for name in "qkv")
    return conv(joined(linear_attention(q, k, v), x) + conv(v, w, "dwconv"), w, "proj")


def relu_linear_ms(x: Array, w: Weights, kernel: int) -> Array:
    scales: list[list[Array]] = [[], []]
    for name in "qkv":
        of_pixel = conv(x, w, name)
        assert w[f"aggregate_{name}.0.weight"].shape[2:] == (5, 5)
        assert w[f"aggregate_{name}.1.weight"].shape[1] == 16
        scales[0].append(of_pixel)
        scales[1].append(conv(conv(of_pixel, w, f"aggregate_{name}.0"), w, f"aggregate_{name}.1"))
    pixel, aggregated = (joined(linear_attention(*parts), x) for parts in scales)
    return conv(pixel, w, "proj") + conv(aggregated, w, "proj5")


def mhsa(x: Array, w: Weights, kernel: int) -> Array:
    q, k, v = (heads_of(conv(x, w, name), 32) for name in "qkv")
    return conv(joined(attention(q, k, v), x), w, "proj")


def mqa(x: Array, w: Weights, kernel: int) -> Array:
    reduced = conv_norm(x, w, "reduce", stride=2)
    k, v = (heads_of(conv_norm(reduced, w, name), 32) for name in "kv")
    assert k.shape[1] == v.shape[1] == 1
    return conv_norm(joined(attention(heads_of(conv_norm(x, w, "q"), 32), k, v), x), w, "proj")


def window(x: Array, w: Weights, kernel: int) -> Array:
    """Windows of neighbouring pixels: as few a side as leave them at most 8 pixels."""
    q, k, v = (conv(x, w, name) for name in "qkv")
    side = max(n for n in range(1, 9) if x.shape[2] % n == 0)
    out = np.empty_like(v)
    for top in range(0, x.shape[2], side):
        for left in range(0, x.shape[3], side):
            here = (..., slice(top, top + side), slice(left, left + side))
            out[here] = joined(attention(*(heads_of(part[here], 32) for part in (q, k, v))), v[here])
    return conv(out + conv(v, w, "dwconv"), w, "proj")


def linear_sra(x: Array, w: Weights, kernel: int) -> Array:
    """Keys and values of the map averaged down to at most 7 pixels a side, in whole windows."""
    keys = max(n for n in range(1, 8) if x.shape[2] % n == 0)
    step = x.shape[2] // keys
    averaged = np.empty((*x.shape[:2], keys, keys))
    for i, j in np.ndindex(keys, keys):
        averaged[:, :, i, j] = x[:, :, i * step : (i + 1) * step, j * step : (j + 1) * step].mean((2, 3))
    reduced = gelu(conv_norm(averaged, w, "reduce"))
    q, k, v = (heads_of(conv(of, w, name), 32) for name, of in (("q", x), ("k", reduced), ("v", reduced)))
    return conv(joined(attention(q, k, v), x), w, "proj")


def paca(x: Array, w: Weights, kernel: int) -> Array:
    """Every cluster is a mean of the tokens, its weights adding up to one (arXiv:2203.11987, Eq. 4 to 6)."""
    assert w["dwconv.conv.weight"].shape == (x.shape[1], 1, 7, 7)
    logits = conv(gelu(conv_norm(gelu(conv_norm(x, w, "dwconv")), w, "pwconv")), w, "assign")
    clusters = np.zeros((*x.shape[:2], 49, 1))
    for cluster in range(49):
        of_tokens = softmax(logits[:, cluster].reshape(len(x), -1))
        clusters[:, :, cluster, 0] = np.einsum("bn,bcn->bc", of_tokens, x.reshape(*x.shape[:2], -1))
    q, k, v = (heads_of(conv_norm(of, w, name), 32) for name, of in (("q", x), ("k", clusters), ("v", clusters)))
    return conv_norm(joined(attention(q, k, v), x), w, "proj")


def castling(x: Array, w: Weights, kernel: int) -> Array:
    """v / 2 + q (k^T v) / pi with q and k of length one, brought to length one (arXiv:2211.10526, Eq. 6 and 7), plus a
    convolution over the 9 nearest tokens, line after line."""
    q, k, v = (heads_of(conv(x, w, name), 32) for name in "qkv")
    q, k = (part / np.sqrt((part**2).sum(3, keepdims=True)) for part in (q, k))
    y = v / 2 + (q @ k.swapaxes(2, 3) / math.pi) @ v
    y = joined(y / np.sqrt((y**2).sum(3, keepdims=True)), x)
    values = joined(v, x).reshape(len(x), v.shape[1] * 32, -1)
    tokens = values.shape[2]
    along = np.zeros_like(values)
    for token in range(tokens):
        for place in range(9):
            if 0 <= (other := token + place - 4) < tokens:
                along[:, :, token] += w["dwconv.weight"][:, 0, place, 0] * values[:, :, other]
        along[:, :, token] += w["dwconv.bias"]
    return conv(y + along.reshape(y.shape), w, "proj")


def moved(x: Array, down: int, right: int) -> Array:
    """The map moved by so many pixels; zeros come in."""
    out = np.zeros_like(x)
    height, width = x.shape[-2:]
    for i, j in np.ndindex(height, width):
        if 0 <= i - down < height and 0 <= j - right < width:
            out[..., i, j] = x[..., i - down, j - right]
    return out


def s2mlp(x: Array, w: Weights, kernel: int) -> Array:
    y = gelu(conv(x, w, "pwconv1"))
    for direction, (down, right) in enumerate([(0, 1), (0, -1), (1, 0), (-1, 0)]):
        y[:, direction::4] = moved(y[:, direction::4], down, right)
    return conv(y, w, "pwconv2")


def mixshift(x: Array, w: Weights, kernel: int) -> Array:
    along_rows, along_columns = x.copy(), x.copy()
    for channel in range(x.shape[1]):
        ahead = channel % 5 - 2  # pixels that it looks ahead: the map moves the other way
        along_rows[:, channel] = moved(x[:, channel], 0, -ahead)
        along_columns[:, channel] = moved(x[:, channel], -ahead, 0)
    assert w["dwconv_w.weight"].shape == w["dwconv_h.weight"].shape == (x.shape[1], 1, 5, 5)
    return conv(along_rows, w, "dwconv_w") + conv(along_columns, w, "dwconv_h")


def axial_global(x: Array, w: Weights, kernel: int) -> Array:
    """Every pixel of a line sees every other, by a weight of its distance."""
    out = np.zeros_like(x) + (w["dwconv_w.bias"] + w["dwconv_h.bias"])[:, None, None]
    side = x.shape[2]
    for here, there in np.ndindex(side, side):
        ahead = there - here + side - 1
        out[:, :, :, here] += w["dwconv_w.weight"][:, 0, 0, ahead, None] * x[:, :, :, there]
        out[:, :, here] += w["dwconv_h.weight"][:, 0, ahead, 0, None] * x[:, :, there]
    return out


def spatial_mlp(x: Array, w: Weights, kernel: int, prefix: str = "") -> Array:
    tokens = x.reshape(*x.shape[:2], -1)
    return linear(gelu(linear(tokens, w, f"{prefix}fc1")), w, f"{prefix}fc2").reshape(x.shape)


def random(x: Array, w: Weights, kernel: int) -> Array:
    mixing = w["mixing.weight"]
    assert (mixing > 0).all()
    np.testing.assert_allclose(mixing.sum(1), 1, rtol=1e-5)
    assert mixing.std() > 0.1 * mixing.mean(), "not the plain mean"
    return np.einsum("ij,bcj->bci", mixing, x.reshape(*x.shape[:2], -1)).reshape(x.shape)


def raft_mlp(x: Array, w: Weights, kernel: int) -> Array:
    """Lines of 4 neighbouring channels, with a residual around each of the two MLPs; the block adds x."""
    z = x.copy()
    for raft in range(0, x.shape[1], 4):
        for column in range(x.shape[3]):
            line = x[:, raft : raft + 4, :, column]
            y = linear(gelu(linear(line.reshape(len(x), -1), w, "fc1_h")), w, "fc2_h")
            z[:, raft : raft + 4, :, column] += y.reshape(line.shape)
    out = z.copy()
    for raft in range(0, x.shape[1], 4):
        for row in range(x.shape[2]):
            line = z[:, raft : raft + 4, row]
            y = linear(gelu(linear(line.reshape(len(x), -1), w, "fc1_w")), w, "fc2_w")
            out[:, raft : raft + 4, row] += y.reshape(line.shape)
    return out - x


def nin_gate(x: Array, w: Weights, kernel: int) -> Array:
    """x W times an MLP-Mixer block of x, which has a residual around its tokens' MLP and one around its channels'."""
    y = x + spatial_mlp(x, w, kernel, "tokens.")
    y = y + conv(gelu(conv(y, w, "pwconv1")), w, "pwconv2")
    return conv(x, w, "value") * y


FORMULAS: dict[str, Formula] = {
    "identity": identity,
    "pool": pool,
    "dwconv": dwconv,
    "sepconv": sepconv,
    "inception": inception,
    "mbconv": mbconv,
    "relu_linear": relu_linear,
    "mhsa": mhsa,
    "pool_dw": pool_dw,
    "largekernel": largekernel,
    "repmixer": repmixer,
    "fused_mbconv": fused_mbconv,
    "mldc": mldc,
    "mldc_dw": mldc_dw,
    "ffn_attn": ffn_attn,
    "gnconv_o2": gated_conv(2),
    "gnconv_o3": gated_conv(3),
    "relu_linear_ms": relu_linear_ms,
    "mqa": mqa,
    "spatial_mlp": spatial_mlp,
    "random": random,
    "convfirst": convfirst,
    "window": window,
    "linear_sra": linear_sra,
    "paca": paca,
    "castling": castling,
    "s2mlp": s2mlp,
    "mixshift": mixshift,
    "axial_global": axial_global,
    "raft_mlp": raft_mlp,
    "nin_gate": nin_gate,
}
