"""Blocks of the space as one fused kernel each: which have one, their weights packed for it, and the launch.

A block must be folded (`search_spaces.network.fold_`) and in channels-last order. Triton is imported here and only
here (its kernels in `nas.measure.triton_kernels`); it comes with torch's Linux wheels and is missing elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import NasError, UsageError
from search_spaces.layers import SquaredReLU
from search_spaces.network import MetaFormerBlock

ACTIVATIONS: Mapping[type[nn.Module], str] = {
    nn.ReLU: "relu",
    SquaredReLU: "squared_relu",
    nn.Hardswish: "hardswish",
    nn.GELU: "gelu",
}
"""StarReLU is SquaredReLU once it is folded."""

SPAN = 16
"""Channels of a grouped convolution that are multiplied together: the least that a tensor core takes."""

LEAST, PADDING = 16, 128
"""Channels are padded to a power of two from LEAST on, hidden channels to a multiple of PADDING, the largest slice."""

MOST_CHANNELS = 512
"""Beyond that a tile of 16 positions no longer fits the registers of a multiprocessor."""


@dataclass(frozen=True)
class Tile:
    """How a kernel is cut: positions of a tile, hidden channels at a time, warps, stages of loads in flight."""

    high: int
    wide: int
    slice: int
    warps: int
    stages: int


class FusedBlock(nn.Module):
    """A block as one kernel. Its forward takes and gives [batch, channels, height, width] in channels-last order."""

    def __init__(self, kernel: str, tensors: Mapping[str, Tensor], constants: Mapping[str, Any], channels: int) -> None:
        """kernel: name in `nas.measure.triton_kernels`. tensors: its weights in the order of its arguments."""
        super().__init__()
        self.kernel, self.constants, self.channels = kernel, dict(constants), channels
        self.names = tuple(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.hidden = int(self.constants.pop("hidden"))
        self.tile = self.tiles()[0]

    def forward(self, x: Tensor) -> Tensor:
        """Raises UsageError for a map of other channels or in another memory order."""
        from nas.measure import triton_kernels

        batch, channels, height, width = x.shape
        if channels != self.channels or not x.is_contiguous(memory_format=torch.channels_last):
            raise UsageError(
                f"a fused block of {self.channels} channels takes a channels-last map of as many, but got "
                f"{tuple(x.shape)} with strides {x.stride()}"
            )
        out = torch.empty_like(x, memory_format=torch.channels_last)
        tile = self.tile
        grid = (batch * -(-height // tile.high) * -(-width // tile.wide),)
        launch: Any = getattr(triton_kernels, self.kernel)
        launch[grid](
            x,
            *(getattr(self, name) for name in self.names),
            out,
            height,
            width,
            channels,
            self.hidden,
            **self.cut(tile),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        return out

    def cut(self, tile: Tile) -> dict[str, Any]:
        """The kernel's compile-time constants for a tile."""
        constants = self.constants | {"TILE_H": tile.high, "TILE_W": tile.wide, "SLICE": tile.slice}
        if self.kernel == "inverted_bottleneck":
            around = self.constants["KERNEL"] - 1
            constants["HALO"] = _power_of_two((tile.high + around) * (tile.wide + around))
        return constants

    def tiles(self) -> list[Tile]:
        """Cuts worth trying, the likely best first: as many positions as the sums of a tile leave registers for."""
        channels = self.constants["CHANNELS"]
        most = max(LEAST, min(128, 16384 // channels))
        if self.kernel == "inverted_bottleneck":
            most = min(most, 32)
        shapes = [(high, wide) for high, wide in ((8, 16), (8, 8), (4, 8), (4, 4)) if high * wide <= most][:2]
        slices = (64, 32) if channels <= 128 else (32, 16)
        return [
            Tile(high, wide, part, 8 if high * wide * channels >= 8192 else 4, 2)
            for high, wide in shapes
            for part in slices
        ]


def fused_block(block: nn.Module) -> FusedBlock:
    """A folded block as one kernel, with its weights. Raises UsageError, which says why, when there is none for it."""
    if not isinstance(block, MetaFormerBlock):
        raise UsageError(f"only blocks have a fused kernel, not {type(block).__name__}")
    mixer = block.token_mixer
    kind = type(mixer).__name__
    if kind in _WHOLE_BLOCKS and not block.has_mlp:
        if not isinstance(mixer.gate, nn.Identity):
            raise UsageError("a gate needs the whole map before it can scale it: no fused kernel")
        return _WHOLE_BLOCKS[kind](mixer)
    if not block.has_mlp or type(block.mlp).__name__ != "Mlp" or not isinstance(block.mlp.gate, nn.Identity):
        raise UsageError(f"no fused kernel for a block of {kind} with this channel mixer")
    norms = [getattr(block, name) for name in ("norm1", "norm2") if hasattr(block, name)]
    if not all(isinstance(norm, nn.Identity) for norm in norms):
        raise UsageError("a norm that does not fold needs all channels first: no fused kernel")
    mlp = block.mlp
    if not block.has_token_mixer:
        return _conv_first(None, mlp.fc1, mlp.act, mlp.fc2, middle=False)
    if kind == "DepthwiseConv":
        return _conv_first(mixer.dwconv, mlp.fc1, mlp.act, mlp.fc2, middle=True)
    raise UsageError(f"no fused kernel for the token mixer {kind}")


def _of_convfirst(mixer: Any) -> FusedBlock:
    return _conv_first(mixer.grouped.conv, mixer.expand.conv, mixer.act, mixer.project.conv, middle=False)


def _conv_first(conv: Any, expand: Any, act: nn.Module, project: Any, *, middle: bool) -> FusedBlock:
    wide = _channels(project.out_channels)
    if conv is None:
        kind, kernel = "none", 1
        weight = torch.zeros(1, dtype=expand.weight.dtype, device=expand.weight.device)
        bias = weight
    else:
        kind, kernel = ("depthwise" if conv.groups == conv.in_channels else "grouped"), conv.kernel_size[0]
        weight = _depthwise(conv, wide) if kind == "depthwise" else _diagonal(conv, wide)
        bias = _padded(conv.bias, wide)
    tensors = {"conv": weight, "conv_bias": bias} | _bottleneck(expand, project, wide)
    constants = _constants(kernel, act, expand, wide) | {"CONV": kind, "SPAN": SPAN, "MIDDLE": middle}
    return FusedBlock("conv_first", tensors, constants, project.out_channels)


def _of_fused_mbconv(mixer: Any) -> FusedBlock:
    expand, project = mixer.expand.conv, mixer.project.conv
    wide = _channels(project.out_channels)
    constants = _constants(expand.kernel_size[0], mixer.act, expand, wide)
    return FusedBlock("dense_expand", _bottleneck(expand, project, wide), constants, project.out_channels)


def _of_mbconv(mixer: Any) -> FusedBlock:
    expand, conv, project = mixer.expand.conv, mixer.dwconv.conv, mixer.project.conv
    wide, hidden = _channels(project.out_channels), _hidden(expand.out_channels)
    ends = _bottleneck(expand, project, wide)
    middle = {"conv": _depthwise(conv, hidden), "conv_bias": _padded(conv.bias, hidden)}
    tensors = {name: ends[name] for name in ("expand", "expand_bias")} | middle
    tensors |= {name: ends[name] for name in ("project", "project_bias")}
    first, second = ACTIVATIONS.get(type(mixer.act1)), ACTIVATIONS.get(type(mixer.act2))
    if first != second:
        raise UsageError("the two activations of this MBConv differ once it is folded: no fused kernel")
    constants = _constants(conv.kernel_size[0], mixer.act1, expand, wide)
    return FusedBlock("inverted_bottleneck", tensors, constants, project.out_channels)


_WHOLE_BLOCKS = {"ConvFirst": _of_convfirst, "FusedMBConv": _of_fused_mbconv, "MBConv": _of_mbconv}
"""Mixers that are the whole block -> their kernel."""


def _constants(kernel: int, act: nn.Module, expand: Any, wide: int) -> dict[str, Any]:
    name = ACTIVATIONS.get(type(act))
    if name is None or (isinstance(act, nn.GELU) and act.approximate != "none"):
        raise UsageError(f"no fused kernel with the activation {type(act).__name__}")
    hidden = expand.out_channels
    return {"KERNEL": kernel, "ACT": name, "CHANNELS": wide, "HIDDEN": _hidden(hidden), "hidden": hidden}


def _bottleneck(expand: Any, project: Any, wide: int) -> dict[str, Tensor]:
    """Both matrices with the reduction first: [taps, wide, HIDDEN] and [HIDDEN, wide], padded with zeros."""
    hidden = _hidden(expand.out_channels)
    first = expand.weight.detach().flatten(2).permute(2, 1, 0)
    second = project.weight.detach().flatten(1).T
    return {
        "expand": _padded(first, wide, hidden),
        "expand_bias": _padded(expand.bias, hidden),
        "project": _padded(second, hidden, wide),
        "project_bias": _padded(project.bias, wide),
    }


def _depthwise(conv: Any, wide: int) -> Tensor:
    """[taps, wide]."""
    return _padded(conv.weight.detach().flatten(1).T, wide)


def _diagonal(conv: Any, wide: int) -> Tensor:
    """[taps, wide / SPAN, SPAN in, SPAN out]: groups as blocks on the diagonal of one matrix, cut into SPAN x SPAN.

    Raises UsageError for groups that do not divide SPAN or that change the number of channels.
    """
    chans, group = conv.in_channels, conv.in_channels // conv.groups
    if conv.out_channels != chans or SPAN % group:
        raise UsageError(f"no fused kernel for groups of {group} channels: they must divide {SPAN}")
    taps = prod(conv.kernel_size)
    weight = conv.weight.detach().reshape(chans, group, taps)
    full = weight.new_zeros(taps, wide, wide)
    for first in range(0, chans, group):
        own = slice(first, first + group)
        full[:, own, own] = weight[own].permute(2, 1, 0)
    blocks = [full[:, start : start + SPAN, start : start + SPAN] for start in range(0, wide, SPAN)]
    return torch.stack(blocks, dim=1).contiguous()


def _padded(tensor: Tensor, *sizes: int) -> Tensor:
    """Zeros behind the last axes, up to `sizes`."""
    tensor = tensor.detach()
    missing = [size - have for size, have in zip(sizes, tensor.shape[-len(sizes) :], strict=True)]
    pads = [value for short in reversed(missing) for value in (0, short)]
    return nn.functional.pad(tensor, pads).contiguous()


def _channels(count: int) -> int:
    wide = max(LEAST, _power_of_two(count))
    if wide > MOST_CHANNELS:
        raise UsageError(f"no fused kernel for {count} channels: at most {MOST_CHANNELS} fit a multiprocessor")
    return wide


def _hidden(count: int) -> int:
    return -(-count // PADDING) * PADDING


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def require_triton() -> None:
    """Raises UsageError where Triton is missing."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "fused kernels need Triton, which comes with torch's wheels for CUDA on Linux: pip install triton"
        ) from error


def tune(block: FusedBlock, seconds_of: Any) -> None:
    """Keep the tile that is fastest. seconds_of: (block) -> seconds of one run. Raises NasError when none fits."""
    from triton.runtime.errors import OutOfResources

    best: tuple[float, Tile] | None = None
    for tile in block.tiles():
        block.tile = tile
        try:
            found = (float(seconds_of(block)), tile)
        except OutOfResources:
            continue  # more shared memory or registers than this GPU has
        if best is None or found[0] < best[0]:
            best = found
    if best is None:
        raise NasError(f"no tile of the fused kernel {block.kernel} fits this GPU at {block.channels} channels")
    block.tile = best[1]
