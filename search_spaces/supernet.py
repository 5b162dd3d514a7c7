"""All networks of a space in one set of weights.

A network is run piece by piece: stem, downsamplings, blocks, head. A piece is the plain module, without weights (on the
meta device), which is given slices of the shared weights for the time it runs. Supernet and extracted network therefore
run the same code on equal numbers. A piece knows its slices and is remembered, so that another architecture costs a
look-up per piece.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.architecture import STEMS, Architecture
from search_spaces.elastic import Index, share, shared_index
from search_spaces.layers import ConvNorm
from search_spaces.mixers import MIXERS
from search_spaces.network import Head, MetaFormerBlock, MetaFormerNet, block_kwargs, bound_size, network_kwargs
from search_spaces.plugin import install
from search_spaces.shared import (
    GAIN,
    SharedBlock,
    SharedHead,
    SharedStage,
    norms_of,
    offer,
    widest_activation,
)
from search_spaces.space import SearchSpace
from search_spaces.stems import Stem

PIECES_KEPT = 1024
"""Pieces that are remembered, the most recently used ones."""


@dataclass(frozen=True)
class Source:
    """Where one tensor of a piece lies in the supernet: attribute `attribute` of `owner`, at `index`.

    gain: owner and attribute of a vector [output channels] that multiplies it; None: nothing does.
    """

    name: str
    owner: nn.Module
    attribute: str
    index: Index | None
    is_buffer: bool
    gain: tuple[nn.Module, str] | None = None

    def read(self) -> Tensor:
        tensor: Tensor = getattr(self.owner, self.attribute)
        if self.is_buffer:  # a view, so that BatchNorm in training mode can write its statistics
            return tensor if self.index is None else tensor[self.index]
        part = share(tensor, self.index)
        if self.gain is None:
            return part
        gain: Tensor = getattr(*self.gain)
        return part * gain[: len(part)].view(-1, *[1] * (part.ndim - 1))


@dataclass(frozen=True)
class Piece:
    """A part of a network: its module path there, the module without weights, and the sources of its weights.

    slots: for every source the dict of the module that holds the tensor while the piece runs, and the key in it.
    """

    path: str
    template: nn.Module
    sources: tuple[Source, ...]
    slots: tuple[tuple[dict[str, Any], str], ...] = field(repr=False)

    def run(self, x: Tensor, training: bool) -> Tensor:
        """What the module computes of `x` with the shared weights."""
        if self.template.training != training:
            self.template.train(training)
        empty = [(slot, key, slot[key]) for slot, key in self.slots]
        try:
            for source, (slot, key) in zip(self.sources, self.slots, strict=True):
                slot[key] = source.read()
            out: Tensor = self.template(x)
        finally:
            for slot, key, tensor in empty:
                slot[key] = tensor
        return out


class Supernet(nn.Module):
    """Weight-sharing network of a space. `forward(x, arch)` runs one of its architectures."""

    def __init__(self, space: SearchSpace, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        if space.plugin is not None:  # in a process that has not seen it yet
            install(space.plugin)
        self.space, self.num_classes, self.in_chans = space, num_classes, in_chans
        widths = [max(map(int, space[f"stage{stage + 1}.width"].values)) for stage in range(space.stage_count)]
        activation = widest_activation(space)
        self.stem = nn.ModuleDict(
            {str(kind): Stem(str(kind), in_chans, widths[0], activation) for kind in space["stem"].values}
        )
        reduction = max(STEMS[str(kind)] for kind in space["stem"].values)
        stages = []
        for stage, width in enumerate(widths):
            downsample: nn.Module = nn.Identity()
            if stage > 0:
                downsample = ConvNorm(widths[stage - 1], width, 3, stride=2)
            blocks: list[SharedBlock] = []
            for block in range(space.max_depth(stage)):
                leader = block - block % space.multiplex
                offered = offer(space, stage, block, size=-(-space.max_resolution // (reduction * 2**stage)))
                blocks.append(SharedBlock(offered, width, blocks[leader] if leader < block else None))
            stages.append(SharedStage(downsample, blocks))
        self.stages = nn.ModuleList(stages)
        self.head = SharedHead(widths[-1], num_classes, norms_of(space))
        self._pieces: OrderedDict[tuple[Any, ...], Piece] = OrderedDict()

    def forward(self, x: Tensor, arch: Architecture) -> Tensor:
        """Logits [batch, num_classes] of `arch` for images x [batch, in_chans, resolution, resolution]."""
        for piece in self.pieces(arch):
            x = piece.run(x, self.training)
        return x

    def template(self, arch: Architecture) -> nn.ModuleList:
        """The modules that a forward pass of `arch` runs, without weights; for hooks."""
        return nn.ModuleList(piece.template for piece in self.pieces(arch))

    def subnet(self, arch: Architecture) -> MetaFormerNet:
        """The plain network of `arch` with its own copy of the shared weights, in this module's mode."""
        with torch.device("meta"):
            network = MetaFormerNet(**network_kwargs(arch), num_classes=self.num_classes, in_chans=self.in_chans)
        weights = {
            f"{piece.path}.{source.name}": source.read().detach().clone()
            for piece in self.pieces(arch)
            for source in piece.sources
        }
        network.load_state_dict(weights, strict=True, assign=True)
        return network.train(self.training).requires_grad_(True)

    def pieces(self, arch: Architecture) -> list[Piece]:
        """The pieces of `arch` in order of execution. Bits do not matter, resolution only to mixers bound to it."""
        first, last = arch.stages[0], arch.stages[-1]
        stem = {"kind": arch.stem, "in_chans": self.in_chans, "dim": first.width, "activation": first.activation}
        out = [self._piece("stem", f"stem.{arch.stem}", Stem, stem)]
        before, size = first.width, -(-arch.resolution // STEMS[arch.stem])
        for i, stage in enumerate(arch.stages):
            if i > 0:
                size = -(-size // 2)
                path = f"stages.{i}.downsample"
                out.append(
                    self._piece(
                        path, path, ConvNorm, {"in_chans": before, "out_chans": stage.width, "kernel": 3, "stride": 2}
                    )
                )
            before = stage.width
            for j, block in enumerate(stage.blocks):
                kwargs = {
                    "dim": stage.width,
                    **block_kwargs(block),
                    "norm": stage.norm,
                    "activation": stage.activation,
                    "role_width": stage.role_width,
                    **bound_size(block.mixer, size),
                }
                out.append(self._piece(f"stages.{i}.blocks.{j}", f"stages.{i}.blocks.{j}", MetaFormerBlock, kwargs))
        head = {"dim": before, "num_classes": self.num_classes, "norm": last.norm}
        out.append(self._piece("head", "head", Head, head))
        return out

    def _piece(self, path: str, shared: str, make: Callable[..., nn.Module], kwargs: dict[str, Any]) -> Piece:
        """The piece at `path` of a network, whose weights lie under `shared` in the supernet."""
        # A plugin may have put another mixer under the same name.
        key = (path, MIXERS.get(kwargs.get("mixer", "")), *kwargs.items())
        if key in self._pieces:
            self._pieces.move_to_end(key)
            return self._pieces[key]
        with torch.device("meta"):
            template = make(**kwargs)
        self._pieces[key] = piece = self._connected(path, self.get_submodule(shared), template, kwargs)
        if len(self._pieces) > PIECES_KEPT:
            self._pieces.popitem(last=False)
        return piece

    def _connected(self, path: str, shared: nn.Module, template: nn.Module, kwargs: dict[str, Any]) -> Piece:
        buffers = {name for name, _ in template.named_buffers()}
        sources, slots = [], []
        for name, tensor in template.state_dict().items():
            where, _, attribute = _shared_name(name, kwargs).rpartition(".")
            owner, gain = shared.get_submodule(where), None
            if not hasattr(owner, attribute):
                gain = (owner, attribute + GAIN)
                owner = self._leader(path).get_submodule(where)
            index = shared_index(tuple(getattr(owner, attribute).shape), tuple(tensor.shape))
            sources.append(Source(name, owner, attribute, index, name in buffers, gain))
            holder = template.get_submodule(name.rpartition(".")[0])
            slots.append((holder._buffers if name in buffers else holder._parameters, attribute))
        return Piece(path, template, tuple(sources), tuple(slots))

    def _leader(self, path: str) -> nn.Module:
        """The block whose matrices the block at `path` shares."""
        stage, _, block = path.rpartition(".")
        return self.get_submodule(f"{stage}.{int(block) - int(block) % self.space.multiplex}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pieces": OrderedDict()}


def _shared_name(name: str, kwargs: dict[str, Any]) -> str:
    """Name in the shared weights of tensor `name` of a piece built from `kwargs`."""
    words = name.split(".")
    if words[0] == "token_mixer":
        words.insert(1, kwargs["mixer"])
    elif words[0] == "mlp":
        words.insert(1, kwargs.get("channel_mixer", "mlp"))
    elif words[0] == "norm1":
        words[1:1] = [kwargs["mixer"], kwargs["norm"]]
    elif words[0] == "norm2" or (words[0] == "norm" and "num_classes" in kwargs):
        words.insert(1, kwargs["norm"])
    if words[2:3] == ["gate"] and (words[0] == "mlp" or MIXERS[kwargs["mixer"]].gated):
        words.insert(3, kwargs["gate"])
    return ".".join(words)
