"""Output blocks: how an array with small buffers cuts a matrix op, and what it therefore reads more than once.

A block is some rows, columns and channels of the output whose sums stay in the accumulators until they are done. What
lies around the rows and columns of a block is read with it, its input is read again for every block of channels, and
the weights again for every block of positions. Taken is the block that moves least, as compilers for such arrays choose
(Vela, ethos_u85.cpp, FindBlockConfig: input fetched plus weights fetched).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, isqrt

import numpy as np
from numpy.typing import NDArray

from hw_models.target import MatrixEngine
from hw_models.workload import Op, Workload

BRICK = 16
"""Channels of a block of a depthwise convolution: the depth of a brick of a feature map."""

UNIT_BYTES = 256
"""The input buffer is given out in squares of positions of this size: 4 x 4 of 16 channels (Vela, ethos_u85.cpp)."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """positions, channels: blocks that the output's positions, and its channels, fall into. reread: how often an
    element of the input is read, halos of windows included.
    """

    positions: int
    channels: int
    reread: float


def blocks_of(workload: Workload, op: Op, engine: MatrixEngine, slice_channels: float) -> Blocks:
    """Blocks of a matrix op. slice_channels: input channels of a block that are in the buffer at a time."""
    assert op.gemm is not None
    _, m, n, k = op.gemm
    bits = max(workload.tensors[index].bits for index in op.inputs)
    room = engine.accumulator_bytes // (8 if bits > 8 else 4), engine.input_buffer_bytes * 8 // bits
    made, read = workload.tensors[op.outputs[0]].shape, workload.tensors[op.inputs[0]].shape
    window = op.window
    if window is None or window.transposed or len(made) != 4 or len(read) != 4:
        sliced = min(slice_channels, k)
        return _search(1, m, 1, m, n, k, k, (1, 1), (1, 1), sliced, engine.columns, room[0] // 2, room[1] // 2)
    height, width = ((side - 1) * step + 1 for side, step in zip(window.kernel, window.dilation, strict=True))
    halves = 1 if op.is_depthwise else 2  # the next block of a dense op is begun while this one leaves
    inputs = k // (window.kernel[0] * window.kernel[1])
    found = _search(
        *made[2:],
        *read[2:],
        BRICK if op.is_depthwise else n,
        inputs,
        k,
        (height, width),
        window.stride,
        BRICK if op.is_depthwise else min(slice_channels, inputs),
        BRICK if op.is_depthwise else engine.columns,
        room[0] // halves,
        room[1] // halves,
        max(1, isqrt(int(UNIT_BYTES * 8 // bits // slice_channels))),
    )
    return Blocks(found.positions * made[0], found.channels, found.reread)


@lru_cache(maxsize=65536)
def _search(
    height: int,
    width: int,
    read_height: int,
    read_width: int,
    channels: int,
    inputs: int,
    products: int,
    window: tuple[int, int],
    stride: tuple[int, int],
    slice_channels: float,
    granule: int,
    accumulators: int,
    buffered: int,
    unit: int = 1,
) -> Blocks:
    """The block that moves the fewest elements among those that fit; the smallest one when none does.

    products: multiply-accumulates per output. unit: side of the squares in which input is buffered.
    """
    rows, columns = _sizes(height)[:, None, None], _sizes(width)[None, :, None]
    depth = granule * np.arange(1, ceil(channels / granule) + 1)
    tall = unit * np.ceil(((rows - 1) * stride[0] + window[0]) / unit)
    wide = unit * np.ceil(((columns - 1) * stride[1] + window[1]) / unit)
    count = np.ceil(height / rows) * np.ceil(width / columns)
    times = np.ceil(channels / depth)
    moved = (tall * wide * times * inputs + products * channels) * count
    fits = (rows * columns * depth <= accumulators) & (tall * wide * slice_channels <= buffered)
    moved = np.where(fits, moved, np.inf)
    row, column, level = np.unravel_index(int(np.argmin(moved)), moved.shape) if fits.any() else (0, 0, 0)
    read = min(tall[row, 0, 0], read_height) * min(wide[0, column, 0], read_width)
    blocks = int(count[row, column, 0])
    reread = max(1.0, float(read * blocks * times[level] / (read_height * read_width)))
    return Blocks(blocks, int(times[level]), reread)


def _sizes(length: int) -> NDArray[np.intp]:
    """Sides that cut `length` into as many pieces as they can: the smallest for every number of pieces."""
    return np.unique([ceil(length / pieces) for pieces in range(1, length + 1)])
