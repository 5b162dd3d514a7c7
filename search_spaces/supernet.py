"""All networks of a space in one set of weights.

A network is run piece by piece: stem, downsamplings, blocks, head. A piece is the plain module, without weights (on the
meta device), which is given slices of the shared weights for the time it runs. Supernet and extracted network therefore
run the same code on equal numbers. A piece is put together of parts (mixer, norms, channel mixer), which many pieces
share; both know their slices and are remembered, so that another architecture costs little.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.architecture import STEMS, Architecture
from search_spaces.elastic import shared_index
from search_spaces.layers import ConvNorm
from search_spaces.mixers import MIXERS
from search_spaces.network import Head, MetaFormerBlock, MetaFormerNet, block_kwargs, bound_size, network_kwargs
from search_spaces.pieces import Blank, Part, Piece, Ready, Source, Unfilled, blank
from search_spaces.plugin import install
from search_spaces.recent import Recent
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

PIECES_KEPT, PARTS_KEPT = 1024, 12288
"""How many are remembered, the most recently used ones. A piece takes 10 KB, a part of one 20 KB."""


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
        reduction = min(STEMS[str(kind)] for kind in space["stem"].values)
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
        self._pieces, self._parts, self._blanks = Recent(PIECES_KEPT), Recent(PARTS_KEPT), Recent(PARTS_KEPT)
        self._ready: Ready | None = None

    def forward(self, x: Tensor, arch: Architecture) -> Tensor:
        """Logits [batch, num_classes] of `arch` for images x [batch, in_chans, resolution, resolution]."""
        if self.training or torch.is_grad_enabled():
            self._ready = None
            for piece in self.pieces(arch):
                x = piece.run(x, piece.read(), self.training)
            return x
        ready = self.ready(arch)
        for piece, weights in zip(ready.pieces, ready.weights, strict=True):
            x = piece.run(x, weights, self.training)
        return x

    def ready(self, arch: Architecture) -> Ready:
        """What inference needs of `arch`. That of the network which ran last is kept, until its weights change."""
        pieces = self.pieces(arch)
        if self._ready is None or not self._ready.serves(pieces):
            self._ready = Ready(pieces)
        return self._ready

    def template(self, arch: Architecture) -> nn.ModuleList:
        """The modules that a forward pass of `arch` runs, without weights; for hooks."""
        return nn.ModuleList(piece.template for piece in self.pieces(arch))

    def subnet(self, arch: Architecture) -> MetaFormerNet:
        """The plain network of `arch` with its own copy of the shared weights, in this module's mode."""
        with torch.device("meta"), Unfilled():
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
        out = [self._piece("stem", Stem, stem)]
        before, size = first.width, -(-arch.resolution // STEMS[arch.stem])
        for i, stage in enumerate(arch.stages):
            if i > 0:
                size = -(-size // 2)
                convolution = {"in_chans": before, "out_chans": stage.width, "kernel": 3, "stride": 2}
                out.append(self._piece(f"stages.{i}.downsample", ConvNorm, convolution))
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
                out.append(self._piece(f"stages.{i}.blocks.{j}", MetaFormerBlock, kwargs))
        head = {"dim": before, "num_classes": self.num_classes, "norm": last.norm}
        out.append(self._piece("head", Head, head))
        return out

    def _piece(self, path: str, make: Callable[..., nn.Module], kwargs: dict[str, Any]) -> Piece:
        """The piece at `path` of a network."""
        key = (path, make, *kwargs.items(), MIXERS.get(kwargs.get("mixer", "")))  # plugins may take a name over
        return self._pieces.get(key, lambda: self._new_piece(path, make, kwargs))

    def _new_piece(self, path: str, make: Callable[..., nn.Module], kwargs: dict[str, Any]) -> Piece:
        """Put together of parts; those that were never asked for are made (on the meta device)."""
        parts = []

        def build(name: str, make_part: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
            spec = (name, make_part, *arguments)
            made: Blank = self._blanks.get(spec, lambda: blank(make_part, arguments))
            key = (path, kwargs.get("mixer"), *spec)
            parts.append(self._parts.get(key, lambda: self._connected(path, name, made, kwargs)))
            return made.module

        template = make(**kwargs, build=build) if make is MetaFormerBlock else build("", make, *kwargs.values())
        return Piece(path, template, tuple(parts), tuple(template.modules()))

    def _connected(self, path: str, name: str, made: Blank, kwargs: dict[str, Any]) -> Part:
        shared = self.get_submodule(path)
        sources, slots, homes = [], [], []
        owners: dict[str, tuple[str, nn.Module]] = {}
        loans = shared.loans if isinstance(shared, SharedBlock) else {}
        for within, holder, attribute, shape, is_buffer in made.tensors:
            prefix = ".".join(word for word in (name, within) if word)
            if prefix not in owners:
                where = _shared_name(f"{prefix}.{attribute}" if prefix else attribute, kwargs).rpartition(".")[0]
                owners[prefix] = where, _descendant(shared, where)
            where, owner = owners[prefix]
            gain = None
            if f"{where}.{attribute}" in loans:
                owner = _descendant(shared, loans[f"{where}.{attribute}"])
            elif attribute not in (owner._buffers if is_buffer else owner._parameters):
                gain = (owner, attribute + GAIN)
                homes.append((owner._parameters, attribute + GAIN))
                owner = _descendant(self._leader(path), where)
            held: dict[str, Any] = owner._buffers if is_buffer else owner._parameters
            index = shared_index(tuple(held[attribute].shape), shape)
            homes.append((held, attribute))
            full_name = f"{prefix}.{attribute}" if prefix else attribute
            sources.append(Source(full_name, owner, attribute, index, is_buffer, gain))
            slots.append((holder._buffers if is_buffer else holder._parameters, attribute))
        return Part(tuple(sources), tuple(slots), tuple(homes))

    def _leader(self, path: str) -> nn.Module:
        """The block whose matrices the block at `path` shares."""
        stage, _, block = path.rpartition(".")
        return self.get_submodule(f"{stage}.{int(block) - int(block) % self.space.multiplex}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {name: Recent(cache.kept) for name, cache in self._caches().items()} | {"_ready": None}

    def _caches(self) -> dict[str, Recent]:
        return {name: value for name, value in self.__dict__.items() if isinstance(value, Recent)}


def _descendant(module: nn.Module, path: str) -> nn.Module:
    """As `get_submodule`, which takes five times as long."""
    for word in path.split(".") if path else ():
        found = module._modules[word]
        assert found is not None
        module = found
    return module


def _shared_name(name: str, kwargs: dict[str, Any]) -> str:
    """Name in the shared weights of tensor `name` of a piece built from `kwargs`."""
    words = name.split(".")
    if "kind" in kwargs:
        words.insert(0, kwargs["kind"])
    elif words[0] == "token_mixer":
        words.insert(1, kwargs["mixer"])
    elif words[0] == "mlp":
        words.insert(1, kwargs.get("channel_mixer", "mlp"))
    elif words[0] == "norm1":
        words[1:1] = [kwargs["mixer"], kwargs["norm"]]
    elif words[0] == "norm2" or (words[0] == "norm" and "num_classes" in kwargs):
        words.insert(1, kwargs["norm"])
    if words[2:3] == ["gate"] and (words[0] == "mlp" or (words[0] == "token_mixer" and MIXERS[kwargs["mixer"]].gated)):
        words.insert(3, kwargs["gate"])
    return ".".join(words)
