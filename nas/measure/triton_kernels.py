"""Whole blocks as one GPU kernel each, in Triton: what lies between the convolutions of a block never leaves the chip.

Maps are [batch, height, width, channels] in memory (torch's channels_last). A program makes a tile of TILE_H x TILE_W
positions with all CHANNELS of them (a power of two, at least 16; what is beyond the map's own is masked or zero). The
hidden layer of a block passes by in slices of SLICE channels, each multiplied in by the second product at once, so it
exists as a slice of a tile only. Sums are 32-bit floats. Weights come packed and padded by `nas.measure.triton_blocks`.

Block fusion of a convolution followed by an inverted bottleneck is the idea of A. Lavin (arXiv:2404.03617).
"""

from __future__ import annotations

import triton
import triton.language as tl

# Names in capitals are compile-time constants. Nothing in here is typed further: Python does not run these bodies.


@triton.jit
def _activate(x, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """x: 32-bit floats."""
    if KIND == "relu":
        x = tl.maximum(x, 0.0)
    elif KIND == "squared_relu":
        x = tl.maximum(x, 0.0)
        x = x * x
    elif KIND == "hardswish":
        x = x * tl.minimum(tl.maximum(x + 3.0, 0.0), 6.0) * (1.0 / 6.0)
    else:
        tl.static_assert(KIND == "gelu", "unknown activation")
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    return x


@triton.jit
def _tile(height, width, TILE_H: tl.constexpr, TILE_W: tl.constexpr):  # type: ignore[no-untyped-def]
    """(offset of the image's first position, first row, first column) of this program's tile."""
    across = tl.cdiv(width, TILE_W)
    down = tl.cdiv(height, TILE_H)
    program = tl.program_id(0)
    image = program // (across * down)
    tile = program % (across * down)
    return image.to(tl.int64) * height * width, (tile // across) * TILE_H, (tile % across) * TILE_W


@triton.jit
def conv_first(  # type: ignore[no-untyped-def]
    x_ptr, conv_ptr, conv_bias_ptr, expand_ptr, expand_bias_ptr, project_ptr, project_bias_ptr, out_ptr,
    height, width, channels, hidden,
    CONV: tl.constexpr, KERNEL: tl.constexpr, SPAN: tl.constexpr, MIDDLE: tl.constexpr, ACT: tl.constexpr,
    CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """z = conv(x), then z's 1x1 convolution, activation, 1x1 convolution, and a sum with x, or with z if MIDDLE.

    CONV: "none" (z = x), "depthwise", or "grouped": groups as diagonal blocks of SPAN x SPAN matrices, which multiply
    SPAN channels at a time. MIDDLE: z = x + conv(x).
    conv: depthwise [KERNEL^2, CHANNELS], grouped [KERNEL^2, CHANNELS / SPAN, SPAN in, SPAN out]; expand [CHANNELS,
    HIDDEN]; project [HIDDEN, CHANNELS]. hidden: channels of the hidden layer, HIDDEN: the same, padded.
    """
    POSITIONS: tl.constexpr = TILE_H * TILE_W
    start, top, left = _tile(height, width, TILE_H, TILE_W)
    m = tl.arange(0, POSITIONS)
    row, column = top + m // TILE_W, left + m % TILE_W
    inside = (row < height) & (column < width)
    c = tl.arange(0, CHANNELS)
    place = (start + row * width + column)[:, None] * channels + c[None, :]
    mine = inside[:, None] & (c < channels)[None, :]
    x = tl.load(x_ptr + place, mask=mine, other=0.0)
    residual = x.to(tl.float32)
    if CONV == "none":
        z = x
    else:
        if CONV == "depthwise":
            z32 = tl.zeros([POSITIONS, CHANNELS], dtype=tl.float32)
            for tap in range(KERNEL * KERNEL):
                y, at = row + tap // KERNEL - KERNEL // 2, column + tap % KERNEL - KERNEL // 2
                seen = (y >= 0) & (y < height) & (at >= 0) & (at < width)
                reach = (start + y * width + at)[:, None] * channels + c[None, :]
                value = tl.load(x_ptr + reach, mask=seen[:, None] & (c < channels)[None, :], other=0.0)
                weight = tl.load(conv_ptr + tap * CHANNELS + c)
                z32 += value.to(tl.float32) * weight.to(tl.float32)[None, :]
        else:
            BLOCKS: tl.constexpr = CHANNELS // SPAN
            s = tl.arange(0, SPAN)
            own = tl.arange(0, BLOCKS)[:, None, None] * SPAN + s[None, None, :]  # [blocks, 1, span]
            square = tl.arange(0, BLOCKS)[:, None, None] * SPAN * SPAN + s[None, :, None] * SPAN + s[None, None, :]
            sums = tl.zeros([BLOCKS, POSITIONS, SPAN], dtype=tl.float32)
            for tap in range(KERNEL * KERNEL):
                y, at = row + tap // KERNEL - KERNEL // 2, column + tap % KERNEL - KERNEL // 2
                seen = (y >= 0) & (y < height) & (at >= 0) & (at < width)
                reach = (start + y * width + at)[None, :, None] * channels + own
                value = tl.load(x_ptr + reach, mask=seen[None, :, None] & (own < channels), other=0.0)
                weight = tl.load(conv_ptr + tap * BLOCKS * SPAN * SPAN + square)
                sums = tl.dot(value, weight, sums, input_precision="ieee")
            z32 = tl.reshape(tl.permute(sums, (1, 0, 2)), (POSITIONS, CHANNELS))
        z32 += tl.load(conv_bias_ptr + c).to(tl.float32)[None, :]
        if MIDDLE:
            z32 += residual
            residual = z32
        z = z32.to(x.dtype)
    out = tl.zeros([POSITIONS, CHANNELS], dtype=tl.float32)
    for begin in range(0, hidden, SLICE):
        h = begin + tl.arange(0, SLICE)
        matrix = tl.load(expand_ptr + c[:, None] * HIDDEN + h[None, :])
        inner = tl.dot(z, matrix, input_precision="ieee") + tl.load(expand_bias_ptr + h).to(tl.float32)[None, :]
        inner = _activate(inner, ACT).to(x.dtype)
        out = tl.dot(inner, tl.load(project_ptr + h[:, None] * CHANNELS + c[None, :]), out, input_precision="ieee")
    out += residual + tl.load(project_bias_ptr + c).to(tl.float32)[None, :]
    tl.store(out_ptr + place, out.to(x.dtype), mask=mine)


@triton.jit
def dense_expand(  # type: ignore[no-untyped-def]
    x_ptr, expand_ptr, expand_bias_ptr, project_ptr, project_bias_ptr, out_ptr, height, width, channels, hidden,
    KERNEL: tl.constexpr, ACT: tl.constexpr, CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, TILE_H: tl.constexpr,
    TILE_W: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """x plus the fused inverted bottleneck: dense KERNEL x KERNEL convolution, activation, 1x1 convolution.

    expand: [KERNEL^2, CHANNELS, HIDDEN]; project: [HIDDEN, CHANNELS].
    """
    POSITIONS: tl.constexpr = TILE_H * TILE_W
    start, top, left = _tile(height, width, TILE_H, TILE_W)
    m = tl.arange(0, POSITIONS)
    row, column = top + m // TILE_W, left + m % TILE_W
    inside = (row < height) & (column < width)
    c = tl.arange(0, CHANNELS)
    place = (start + row * width + column)[:, None] * channels + c[None, :]
    mine = inside[:, None] & (c < channels)[None, :]
    x = tl.load(x_ptr + place, mask=mine, other=0.0)
    out = tl.zeros([POSITIONS, CHANNELS], dtype=tl.float32)
    for begin in range(0, hidden, SLICE):
        h = begin + tl.arange(0, SLICE)
        sums = tl.zeros([POSITIONS, SLICE], dtype=tl.float32)
        for tap in range(KERNEL * KERNEL):
            y, at = row + tap // KERNEL - KERNEL // 2, column + tap % KERNEL - KERNEL // 2
            seen = (y >= 0) & (y < height) & (at >= 0) & (at < width)
            reach = (start + y * width + at)[:, None] * channels + c[None, :]
            value = tl.load(x_ptr + reach, mask=seen[:, None] & (c < channels)[None, :], other=0.0)
            matrix = tl.load(expand_ptr + (tap * CHANNELS + c)[:, None] * HIDDEN + h[None, :])
            sums = tl.dot(value, matrix, sums, input_precision="ieee")
        inner = _activate(sums + tl.load(expand_bias_ptr + h).to(tl.float32)[None, :], ACT).to(x.dtype)
        out = tl.dot(inner, tl.load(project_ptr + h[:, None] * CHANNELS + c[None, :]), out, input_precision="ieee")
    out += x.to(tl.float32) + tl.load(project_bias_ptr + c).to(tl.float32)[None, :]
    tl.store(out_ptr + place, out.to(x.dtype), mask=mine)


@triton.jit
def inverted_bottleneck(  # type: ignore[no-untyped-def]
    x_ptr, expand_ptr, expand_bias_ptr, conv_ptr, conv_bias_ptr, project_ptr, project_bias_ptr, out_ptr,
    height, width, channels, hidden,
    KERNEL: tl.constexpr, ACT: tl.constexpr, CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, TILE_H: tl.constexpr,
    TILE_W: tl.constexpr, SLICE: tl.constexpr, HALO: tl.constexpr,
):  # fmt: skip
    """x plus MBConv: 1x1 convolution, activation, depthwise KERNEL x KERNEL convolution, activation, 1x1 convolution.

    The first product is made for the tile and the rows and columns around it that the window needs, HALO positions (a
    power of two) in all; neighbouring tiles make those again. conv: [KERNEL^2, HIDDEN].
    """
    POSITIONS: tl.constexpr = TILE_H * TILE_W
    WIDE: tl.constexpr = TILE_W + KERNEL - 1
    HIGH: tl.constexpr = TILE_H + KERNEL - 1
    start, top, left = _tile(height, width, TILE_H, TILE_W)
    m = tl.arange(0, POSITIONS)
    c = tl.arange(0, CHANNELS)
    r = tl.arange(0, HALO)
    y, at = top - KERNEL // 2 + r // WIDE, left - KERNEL // 2 + r % WIDE
    seen = (y >= 0) & (y < height) & (at >= 0) & (at < width) & (r < HIGH * WIDE)
    reach = (start + y * width + at)[:, None] * channels + c[None, :]
    around = tl.load(x_ptr + reach, mask=seen[:, None] & (c < channels)[None, :], other=0.0)
    out = tl.zeros([POSITIONS, CHANNELS], dtype=tl.float32)
    for begin in range(0, hidden, SLICE):
        h = begin + tl.arange(0, SLICE)
        matrix = tl.load(expand_ptr + c[:, None] * HIDDEN + h[None, :])
        inner = tl.dot(around, matrix, input_precision="ieee") + tl.load(expand_bias_ptr + h).to(tl.float32)[None, :]
        # The window pads the hidden map with zeros, not with what the bias makes of them.
        inner = tl.where(seen[:, None], _activate(inner, ACT), 0.0).to(around.dtype).to(tl.float32)
        sums = tl.zeros([POSITIONS, SLICE], dtype=tl.float32)
        for tap in range(KERNEL * KERNEL):
            source = (m // TILE_W + tap // KERNEL) * WIDE + m % TILE_W + tap % KERNEL
            value = tl.gather(inner, tl.broadcast_to(source[:, None], [POSITIONS, SLICE]), 0)
            sums += value * tl.load(conv_ptr + tap * HIDDEN + h).to(tl.float32)[None, :]
        sums = _activate(sums + tl.load(conv_bias_ptr + h).to(tl.float32)[None, :], ACT).to(around.dtype)
        out = tl.dot(sums, tl.load(project_ptr + h[:, None] * CHANNELS + c[None, :]), out, input_precision="ieee")
    row, column = top + m // TILE_W, left + m % TILE_W
    mine = ((row < height) & (column < width))[:, None] & (c < channels)[None, :]
    place = (start + row * width + column)[:, None] * channels + c[None, :]
    x = tl.load(x_ptr + place, mask=mine, other=0.0)
    out += x.to(tl.float32) + tl.load(project_bias_ptr + c).to(tl.float32)[None, :]
    tl.store(out_ptr + place, out.to(x.dtype), mask=mine)
