"""The pieces of a network that runs on shared weights: where each tensor lies, and how a piece runs on it."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from search_spaces.elastic import Index, share


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

    slots: for every source the dict of the module that holds the tensor while it runs, and the key in it. homes: dict
    and key of all tensors of the supernet that it reads.
    """

    sources: tuple[Source, ...]
    slots: tuple[tuple[dict[str, Any], str], ...] = field(repr=False)
    homes: tuple[tuple[dict[str, Any], str], ...] = field(repr=False)


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

    def read(self) -> list[Tensor]:
        """The tensors of its sources, in their order."""
        return [source.read() for source in self.sources]

    def run(self, x: Tensor, weights: Sequence[Tensor], training: bool) -> Tensor:
        """What the module computes of `x` with these weights."""
        if any(module.training is not training for module in self.modules):  # other pieces have some of them too
            self.template.train(training)
        slots = [slot for part in self.parts for slot in part.slots]
        empty = [holder[key] for holder, key in slots]
        try:
            for (holder, key), tensor in zip(slots, weights, strict=True):
                holder[key] = tensor
            out: Tensor = self.template(x)
        finally:
            for (holder, key), tensor in zip(slots, empty, strict=True):
                holder[key] = tensor
        return out


class Ready:
    """The pieces of one network and their weights as they are now, for inference: many batches read them once."""

    def __init__(self, pieces: list[Piece]) -> None:
        self.pieces = pieces
        self.weights = [piece.read() for piece in pieces]
        self._homes = [home for piece in pieces for part in piece.parts for home in part.homes]
        self._read, self._moments = self._now()

    def serves(self, pieces: list[Piece]) -> bool:
        """Whether it is of these pieces, and their weights are still the same."""
        if not _identical(pieces, self.pieces):
            return False
        read, moments = self._now()
        return _identical(read, self._read) and moments == self._moments

    def _now(self) -> tuple[list[Tensor], list[Any]]:
        """The tensors of the supernet that are read; where their numbers lie, and how often they were written to. What
        is written through `.data` does not count, and is not seen."""
        read: list[Tensor] = [held[key] for held, key in self._homes]
        moments: list[Any] = [tensor.data_ptr() for tensor in read]
        try:
            moments += [tensor._version for tensor in read]
        except RuntimeError:  # made in inference mode, they count nothing: to be read anew
            moments.append(object())
        return read, moments


def _identical(some: Sequence[object], others: Sequence[object]) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))


class Unfilled(TorchFunctionMode):
    """Parameters that are made stay without values: for modules that get theirs from elsewhere."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FILLERS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


_FILLERS = frozenset(
    {nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, nn.init.zeros_, nn.init.ones_, nn.init.constant_}
)


@dataclass(frozen=True)
class Blank:
    """A module without weights and its tensors: (path of the submodule, the submodule, name in it, shape, whether it is
    a buffer)."""

    module: nn.Module
    tensors: tuple[tuple[str, nn.Module, str, tuple[int, ...], bool], ...]


def blank(make: Any, arguments: tuple[Any, ...]) -> Blank:
    """What `make` makes, on the meta device."""
    with torch.device("meta"), Unfilled():
        module: nn.Module = make(*arguments)
    found = []
    for path, holder in module.named_modules():
        learned = ((name, tensor, False) for name, tensor in holder._parameters.items())
        kept = (
            (name, t, True) for name, t in holder._buffers.items() if name not in holder._non_persistent_buffers_set
        )
        found += [(path, holder, name, tuple(t.shape), fixed) for name, t, fixed in (*learned, *kept) if t is not None]
    return Blank(module, tuple(found))
