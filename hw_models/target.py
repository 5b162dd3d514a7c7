"""A device as data: frozen dataclasses. `hw_models.target_file` reads them from TOML files.

All values are in SI base units.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

ABSENT = "absent"
"""What stands for the value of an entry that a target file declares absent, such as a precision."""

RUNS = ("window", "matrix", "depthwise", "vector", "transpose", "output")
"""How a feature map is read, and that it is written."""

STREAMS = tuple(
    f"{memory}.{stream}"
    for memory in ("onchip", "dram")
    for stream in ("input", "operand", "weights", "constants", "output")
)
"""What asks of a memory: the input of the array, other operands, weights, constants per channel, the output."""

UNFIT = ("outsized.channel", "flat.mac", "narrow.row", "long.mac")
"""Depthwise windows for which a library may have no fast kernel, and what the time of its slow one grows with:
"outsized" ones, whose padding is not less than the map, with the channels; "flat" ones, a single row or column wide,
with the multiply-accumulates, and on at most `NARROW` channels with the rows of all of them too; "long" ones, a side of
which is more than `LONG`, with the multiply-accumulates.
"""

NARROW, LONG = 8, 7
"""Channels, and taps along a side (seen with cuDNN 9.19, studies/results/h200_windows.md)."""

DATAFLOWS = ("weight_stationary", "output_stationary", "input_stationary")


def _value(
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field with the bounds the loader checks: low <= value <= high, value > above, value in choices."""
    return field(metadata={"low": low, "high": high, "above": above, "choices": choices})


def _table(*, low: float | None = None, high: float | None = None, above: float | None = None) -> Any:
    """As `_value` for every entry of a mapping; left out of the hash, so that sections can key a cache."""
    return field(hash=False, metadata={"low": low, "high": high, "above": above, "choices": ()})


@dataclass(frozen=True)
class MatrixEngine:
    """Cores of `rows` x `columns` multipliers each; rows hold the reduction, columns the output channels.

    positions: output positions one core computes side by side (1: a systolic or a plain dot-product array).
    reduction: "channels" when a row takes one input channel and kernel taps follow each other in time,
        "im2col" when rows take any part of kernel x channels.
    packed_taps: most taps of a kernel row that stand side by side in the rows when a convolution has few
        channels, with reduction "channels"; 1 for none.
    tile_load_cycles: cycles to bring the next stationary tile into a core; hidden behind computing when
        double_buffered_tiles.
    block_positions: output positions a core's accumulators hold; weight tiles are loaded again for every such block.
    systolic: the idealised array, every tile filled and drained by itself; tile_load_cycles, block_positions and
        positions then have no meaning.
    depthwise_channels, depthwise_taps: channels and kernel taps per cycle and core of a depthwise path; 0
        when there is none and depthwise convolution runs block-diagonally on the array. depthwise_rated: whether
        that path is faster in narrower formats, as `rates` says.
    accumulator_bytes, input_buffer_bytes: what holds the output, and the input, of a block (hw_models/blocks.py); 0
        when an op is not cut into blocks. constant_bytes: what is read per output channel (bias, scale) with every
        block of positions.
    rates: precision -> speed relative to one multiply-accumulate per multiplier and cycle; a precision that
        is not listed cannot run.
    sparse_speedup: how much faster a product goes whose weights have the zeros that the multipliers skip (2 for two of
        four on NVIDIA's tensor cores); 1 for dense weights, as every network has them that is not pruned for it.
        What such weights save in traffic is `Memory.weight_compression`.
    """

    cores: int = _value(low=1, high=1e5)
    rows: int = _value(low=1, high=1e5)
    columns: int = _value(low=1, high=1e5)
    positions: int = _value(low=1, high=1e5)
    clock_hz: float = _value(low=1e6, high=1e11)
    dataflow: str = _value(choices=DATAFLOWS)
    reduction: str = _value(choices=("channels", "im2col"))
    packed_taps: int = _value(low=1, high=1e3)
    tile_load_cycles: float = _value(low=0, high=1e6)
    double_buffered_tiles: bool = _value()
    block_positions: int = _value(low=1, high=1e9)
    systolic: bool = _value()
    depthwise_channels: int = _value(low=0, high=1e6)
    depthwise_taps: int = _value(low=0, high=1e4)
    depthwise_rated: bool = _value()
    accumulator_bytes: int = _value(low=0, high=1e9)
    input_buffer_bytes: int = _value(low=0, high=1e9)
    constant_bytes: float = _value(low=0, high=1e3)
    sparse_speedup: float = _value(low=1, high=16)
    rates: Mapping[str, float] = _table(above=0, high=64)

    @property
    def peak_macs_per_s(self) -> float:
        """At the precision of rate 1."""
        return self.cores * self.rows * self.columns * self.positions * self.clock_hz


@dataclass(frozen=True)
class VectorUnit:
    """Everything that is not a matrix product. `lanes` elements of `lane_bits` bits go through at once.

    cycles_per_element: op kind, or function of an op (which then wins over its kind), -> cycles one lane spends on an
        element, for every `lane_bits` of its width. "requantize" is added once per element of integer arithmetic and
        concatenation: its products have 32 bits whatever the element has. Softmax, norms and reductions count input
        elements, pooling counts window elements, others output elements. "operand" is per element of the second operand
        of a product of two activations, brought into the order of weights before the product starts. "gelu.int": of
        integers, where they take longer. "row": once for every row that softmax or a norm combines, 0 if not given.
        "activation.wide": of elements too wide for a look-up table (`npu.LOOKUP_BITS`), where they take longer.
        "mean.last": of a mean over the positions of a map that lies channels last.
    fused: functions that the output path of the matrix engine applies at full rate, at no cost.
    """

    lanes: int = _value(low=1, high=1e6)
    lane_bits: int = _value(low=4, high=64)
    clock_hz: float = _value(low=1e6, high=1e11)
    cycles_per_element: Mapping[str, float] = _table(low=0, high=1e4)
    fused: tuple[str, ...] = _value()


@dataclass(frozen=True)
class Memory:
    """On-chip memory, and "dram": whatever memory behind it weights and spilled activations stream from.

    activation_fraction: share of on-chip bytes that activations may take; the rest buffers weights.
    boundary_fraction: a tensor between two segments of the network stays on chip iff it takes at most this
        share of the bytes for activations.
    ends_onchip: whether the network's input and result may stay on chip too.
    onchip_burst_bytes, dram_burst_bytes: bytes that one access moves, whether they are used or not. run_elements: how
        many elements follow each other in a map at an end of the network, which lies row by row, where it is read for a
        "window", for other "matrix" ops, "depthwise", by "vector" ops or across ("transpose"), and as "output".
    stream_bytes_per_s: what a stream of a memory gets at most, such as "dram.input" (`STREAMS`); no entry: no limit but
        that of the memory. Runs and streams concern targets that compute in blocks (`MatrixEngine.accumulator_bytes`).
    resident_weight_bytes: on-chip bytes that may hold weights from one inference to the next; 0 when weights
        are always streamed. residency: "whole" when a network that does not fit is streamed entirely,
        "partial" when only the excess is, "nested" when resident weights beyond the on-chip bytes lie in a cache behind
        them. cached_share: with "nested", of the time in dram that a weight in that cache takes. spill: whether
        activations may go to dram.
    weights_first: whether streamed weights are on chip before the layers that need them compute, as where a network is
        cut into contexts that are loaded and run in turn, rather than on the way while they compute.
    weight_compression: number format ("int8") -> bytes moved from dram for a byte of such weights, which are unpacked
        on the way in; 1 for all others.
    """

    onchip_bytes: int = _value(low=1, high=1e12)
    activation_fraction: float = _value(above=0, high=1)
    boundary_fraction: float = _value(low=0, high=1)
    ends_onchip: bool = _value()
    onchip_bytes_per_s: float = _value(above=0, high=1e16)
    onchip_burst_bytes: int = _value(low=1, high=1e5)
    run_elements: Mapping[str, float] = _table(low=1, high=1e5)
    stream_bytes_per_s: Mapping[str, float] = _table(above=0, high=1e16)
    resident_weight_bytes: int = _value(low=0, high=1e12)
    residency: str = _value(choices=("whole", "partial", "nested"))
    cached_share: float = _value(low=0, high=1)
    weights_first: bool = _value()
    dram_bytes: int = _value(low=0, high=1e14)
    dram_bytes_per_s: float = _value(above=0, high=1e15)
    dram_efficiency: float = _value(above=0, high=1)
    dram_burst_bytes: int = _value(low=1, high=1e5)
    spill: bool = _value()
    weight_compression: Mapping[str, float] = _table(above=0, high=1)

    @property
    def activation_bytes(self) -> float:
        return self.onchip_bytes * self.activation_fraction

    @property
    def weight_buffer_bytes(self) -> float:
        """On-chip bytes that buffer streamed weights; never less than one burst."""
        return max(self.onchip_bytes - self.activation_bytes, float(self.dram_burst_bytes))


@dataclass(frozen=True)
class Energy:
    """Joules per event, and the power that is drawn whether anything happens or not."""

    mac_j: Mapping[str, float] = _table(low=0, high=1e-6)
    vector_element_j: float = _value(low=0, high=1e-6)
    onchip_byte_j: float = _value(low=0, high=1e-6)
    dram_byte_j: float = _value(low=0, high=1e-6)
    static_w: float = _value(low=0, high=1e4)


@dataclass(frozen=True)
class Overhead:
    """What a network pays besides its ops. link_bytes_per_s: bus to the host; 0 when the memory is shared.

    fusion: "pointwise" when the compiler joins pointwise ops to the op before them; "loops" when it joins those that
        run over the same elements to one another, norms and reductions too, and leaves matrix ops by themselves, whose
        bias is then a pass of such a loop (torch.compile on a GPU); "none" when every op is a launch.
    block_fusion: whether chains of groups run stripe by stripe, and what becomes of the rows that two stripes share:
        "none", "recompute" or "rolling" (see hw_models/block_fusion.py). Without fusion there is none.
    attention_fusion: whether attention runs stripe by stripe of queries when its scores do not fit on chip
        (hw_models/attention_fusion.py).
    start_s: kernel family (`hw_models.kernel.FAMILIES`) -> what one of its kernels takes besides launch_s.
    serial_s: family of those that sum (`hw_models.kernel.SUMMING`) -> the least time for each element that is summed
        (of a product's reduction, a depthwise window, a norm, a softmax), one behind the other however many multipliers
        there are. A family that is in neither table has none. In a chain of stripes each stripe pays launch_s, start_s
        and serial_s; chains are made of the groups of "loops" as of others.
    """

    launch_s: float = _value(low=0, high=1)
    network_s: float = _value(low=0, high=10)
    link_bytes_per_s: float = _value(low=0, high=1e13)
    fusion: str = _value(choices=("pointwise", "loops", "none"))
    block_fusion: str = _value(choices=("none", "recompute", "rolling"))
    attention_fusion: bool = _value()
    start_s: Mapping[str, float] = _table(low=0, high=1)
    serial_s: Mapping[str, float] = _table(low=0, high=1)


@dataclass(frozen=True)
class Runtime:
    """How a library of kernels runs a network, where that is not as a compiler for an accelerator does
    (`hw_models/lowering.py`).

    float_ops: op kinds ("norm"), functions ("gelu") or both ("scale.mul") that are computed in floating point between
        integers, behind conversions; "linear.bias" where integer products of tokens leave their bias to an addition,
        "slice" where a part of a map is copied before it is read. "reduce.mean" is a mean over axes.
    split: activations that between integers are two operators, a gate and a product with it, each of which has its own
        dequantized copy of the input.
    joins, float_joins: what joins the matrix op that made its input: all kernels, or those in floating point alone;
        "all" in `joins` for every pointwise op.
    own_layout: whether convolutions take maps in a layout of their own, to and from which they are copied.
    block_channels: channels of a block of that layout, a vector in fp32.
    one_core: whether matrix and vector work are done by the same core, one after the other, which also waits for
        what comes from dram.
    float_start_cycles: of a depthwise convolution in floating point, for each vector of channels of each position.
        depthwise_edge_cycles: of such a one besides, for each tap of each such vector at the left and right edge, where
        the window reaches over.
    integer_start_cycles: as float_start_cycles, of one in integers. integer_ragged_cycles: of one in integers, for
        each tap of each channel beyond whole vectors.
    integer_tap_cycles: of any wider than 1x1 in integers, for each tap of each position, whatever its channels.
    gather_channel_cycles: of a convolution in floating point that is not computed in blocks, for each tap of each input
        channel and position. integer_gather_cycles: of one in integers, for every piece that is copied together: a tap
        of a group, or a row of taps when there is one group and its channels do not fill vectors.
    requantize_cycles: of an integer product that is not depthwise, for each vector of its outputs.
    partial_blocks: share of a block's time that a float convolution in the own layout loses when its blocks of output
        channels are not whole fours.
    weight_passes: how often the weights of a convolution cross the memory in an inference that streams them: 1, or more
        where a library brings them into an order of its own in every call.
    rereads: whether the matrix engine reads its input from on-chip memory again for every tile of output channels;
        false where registers and the nearest cache hold a block of it.
    unfit_s: of `UNFIT` -> seconds for each channel, row or multiply-accumulate of a depthwise convolution, besides what
        its products take; no entry: none.
    """

    float_ops: tuple[str, ...] = _value()
    split: tuple[str, ...] = _value()
    joins: tuple[str, ...] = _value()
    float_joins: tuple[str, ...] = _value()
    own_layout: bool = _value()
    block_channels: int = _value(low=1, high=1024)
    one_core: bool = _value()
    float_start_cycles: float = _value(low=0, high=1e4)
    depthwise_edge_cycles: float = _value(low=0, high=1e4)
    integer_start_cycles: float = _value(low=0, high=1e4)
    integer_tap_cycles: float = _value(low=0, high=1e4)
    integer_ragged_cycles: float = _value(low=0, high=1e4)
    gather_channel_cycles: float = _value(low=0, high=1e4)
    integer_gather_cycles: float = _value(low=0, high=1e4)
    requantize_cycles: float = _value(low=0, high=1e4)
    partial_blocks: float = _value(low=0, high=10)
    weight_passes: float = _value(low=1, high=16)
    rereads: bool = _value()
    unfit_s: Mapping[str, float] = _table(low=0, high=1)


@dataclass(frozen=True)
class Legality:
    """What the device can run at all; what it cannot is said, and costed as if it could.

    conv_kernels, depthwise_kernels: sides that dense and depthwise convolution may have; empty for any up to
        max_kernel. max_strided_kernel: largest side of a convolution whose stride is not 1.
    max_pool_kernel: largest side of a pooling window.
    strided_dilation: whether one convolution may have both a stride and a dilation.
    groups: "any", or "depthwise" when a convolution has one group or as many as input channels. max_groups:
        most groups of one that is not depthwise.
    concat_alignment: the channels of every operand of a concatenation along channels are a multiple of this.
    max_extent: most elements that softmax, a norm or a reduction combines.
    unsupported: op kinds ("norm"), functions ("gelu") or both ("pool.max") that the device lacks.
    """

    max_kernel: int = _value(low=1, high=1e4)
    conv_kernels: tuple[int, ...] = _value(low=1, high=1e4)
    depthwise_kernels: tuple[int, ...] = _value(low=1, high=1e4)
    max_strided_kernel: int = _value(low=1, high=1e4)
    max_pool_kernel: int = _value(low=1, high=1e4)
    max_stride: int = _value(low=1, high=1e4)
    max_dilation: int = _value(low=1, high=1e4)
    strided_dilation: bool = _value()
    groups: str = _value(choices=("any", "depthwise"))
    max_groups: int = _value(low=1, high=1e6)
    concat_alignment: int = _value(low=1, high=1e4)
    max_extent: int = _value(low=1, high=1e12)
    unsupported: tuple[str, ...] = _value()


LATER_TABLES: Mapping[str, tuple[str, ...]] = {"overhead": ("start_s", "serial_s"), "runtime": ("unfit_s",)}
"""Section -> tables that came after files, studies and calibrations without them: where they have no entries they need
not be there, and count for nothing.
"""


def numbers_of(section: Any) -> dict[str, Any]:
    """What of a section of a target decides a figure."""
    later = [table for tables in LATER_TABLES.values() for table in tables]
    return {key: value for key, value in asdict(section).items() if value or key not in later}


KINDS = ("npu", "cpu", "gpu", "mcu")
UNKNOWN_STACK = "unknown"
"""Of a target that says `like` and no stack: it has no kin."""


@dataclass(frozen=True)
class Target:
    """A device. sources: "section.key" -> where that value comes from, or why the device lacks it (`ABSENT`).

    kind: of `KINDS`; stack: the vendor's core and compiler, such as "Hexagon". What is measured of a device tells of
    others of its kind, and most of those of its stack.
    """

    name: str
    title: str
    description: str
    accuracy: str
    kind: str
    stack: str
    matrix: MatrixEngine
    vector: VectorUnit
    memory: Memory
    energy: Energy
    overhead: Overhead
    runtime: Runtime
    legality: Legality
    sources: Mapping[str, str] = field(hash=False)

    def content(self) -> str:
        """What of it decides a figure, as text: its name and its numbers, not its prose, nor of what kind it is."""
        numbers = asdict(self)
        for prose in ("title", "description", "accuracy", "kind", "stack", "sources"):
            del numbers[prose]
        numbers |= {section: numbers_of(getattr(self, section)) for section in LATER_TABLES}
        return json.dumps(numbers, sort_keys=True, default=str)
