"""All networks of a space in one set of weights.

A network is run piece by piece: stem, downsamplings, blocks, head. A piece is the plain module, without weights (on the
meta device), which is given slices of the shared weights for the time it runs. Supernet and extracted network therefore
run the same code on equal numbers. A piece is put together of parts (mixer, norms, channel mixer), which many pieces
share; both know their slices and are remembered, so that another architecture costs little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
        held: dict[str, Any] = self.owner._buffers if self.is_buffer else self.owner._parameters  # getattr is slow
        tensor: Tensor = held[self.attribute]
        if self.is_buffer:  # a view, so that BatchNorm in training mode can write its statistics
            return tensor if self.index is None else tensor[self.index]
        part = share(tensor, self.index)
        if self.gain is None:
            return part
        gain: Tensor = getattr(*self.gain)
        return part * gain[: len(part)].view(-1, *[1] * (part.ndim - 1))


@dataclass(frozen=True)
class Part:
    """A module without weights, and the sources of its tensors at one place of the supernet.

    slots: for every source the dict of the module that holds the tensor while it runs, and the key in it.
    """

    sources: tuple[Source, ...]
    slots: tuple[tuple[dict[str, Any], str], ...] = field(repr=False)


@dataclass(frozen=True)
class Piece:
    """A stem, downsampling, block or head: its module path in a network, the module without weights, and its parts."""

    path: str
    template: nn.Module
    parts: tuple[Part, ...]
    modules: tuple[nn.Module, ...]

    @property
    def sources(self) -> Iterator[Source]:
        return (source for part in self.parts for source in part.sources)

    def run(self, x: Tensor, training: bool) -> Tensor:
        """What the module computes of `x` with the shared weights."""
        if any(module.training is not training for module in self.modules):  # other pieces have some of them too
            self.template.train(training)
        empty = []
        try:
            for part in self.parts:
                for source, (holder, key) in zip(part.sources, part.slots, strict=True):
                    empty.append((holder, key, holder[key]))
                    holder[key] = source.read()
            out: Tensor = self.template(x)
        finally:
            for holder, key, tensor in empty:
                holder[key] = tensor
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
        self._pieces, self._parts, self._modules_made = Recent(PIECES_KEPT), Recent(PARTS_KEPT), Recent(PARTS_KEPT)

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
            module: nn.Module = self._modules_made.get(spec, lambda: _without_weights(make_part, arguments))
            key = (path, kwargs.get("mixer"), *spec)
            parts.append(self._parts.get(key, lambda: self._connected(path, name, module, kwargs)))
            return module

        template = make(**kwargs, build=build) if make is MetaFormerBlock else build("", make, *kwargs.values())
        return Piece(path, template, tuple(parts), tuple(template.modules()))

    def _connected(self, path: str, name: str, module: nn.Module, kwargs: dict[str, Any]) -> Part:
        shared = self.get_submodule(path)
        buffers = {name for name, _ in module.named_buffers()}
        sources, slots = [], []
        for own_name, tensor in module.state_dict().items():
            full_name = f"{name}.{own_name}" if name else own_name
            where, _, attribute = _shared_name(full_name, kwargs).rpartition(".")
            owner, gain = shared.get_submodule(where), None
            if not hasattr(owner, attribute):
                gain = (owner, attribute + GAIN)
                owner = self._leader(path).get_submodule(where)
            index = shared_index(tuple(getattr(owner, attribute).shape), tuple(tensor.shape))
            is_buffer = own_name in buffers
            sources.append(Source(full_name, owner, attribute, index, is_buffer, gain))
            holder = module.get_submodule(own_name.rpartition(".")[0])
            slots.append((holder._buffers if is_buffer else holder._parameters, attribute))
        return Part(tuple(sources), tuple(slots))

    def _leader(self, path: str) -> nn.Module:
        """The block whose matrices the block at `path` shares."""
        stage, _, block = path.rpartition(".")
        return self.get_submodule(f"{stage}.{int(block) - int(block) % self.space.multiplex}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {name: Recent(cache.kept) for name, cache in self._caches().items()}

    def _caches(self) -> dict[str, Recent]:
        return {name: value for name, value in self.__dict__.items() if isinstance(value, Recent)}


def _without_weights(make: Callable[..., nn.Module], arguments: tuple[Any, ...]) -> nn.Module:
    with torch.device("meta"):
        return make(*arguments)


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
