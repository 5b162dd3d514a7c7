"""All networks of a space in one set of weights.

The supernet holds, for every block, each mixer family at its widest, and one MLP and norms that all mixers share.
A forward pass takes the plain network of the architecture (on the meta device, without weights), gives it slices of the
shared weights and runs it. Supernet and extracted network therefore run the same code on equal numbers.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from search_spaces.architecture import Architecture
from search_spaces.elastic import Index, share, shared_index
from search_spaces.layers import NORM_LAYERS, ConvNorm, damp_
from search_spaces.mixers import MIXERS
from search_spaces.network import MetaFormerBlock, MetaFormerNet, Mlp, Stem, bound_size, network_kwargs
from search_spaces.plugin import install
from search_spaces.space import SearchSpace

_PLANS_KEPT = 256
"""Architectures whose slicing plan is remembered. A plan is a few hundred tuples: some 100 KB."""


class SharedBlock(nn.Module):
    """Weights of one block position: each mixer family and its norms at the widest, one MLP for all of them."""

    def __init__(
        self, families: dict[str, int], dim: int, expansion: float, norms: list[str], role_width: int, size: int
    ) -> None:
        super().__init__()
        self.token_mixer = nn.ModuleDict()
        self.norm1 = nn.ModuleDict()
        for family, kernel in families.items():
            make: Any = MIXERS[family]
            bound = bound_size(family, size)
            mixer = make(dim, kernel=kernel, expansion=expansion, role_width=role_width, activation="relu", **bound)
            self.token_mixer[family] = mixer
            norm1 = _norms(norms, dim)
            if family != "identity" and not mixer.norm_inside:
                self.norm1[family] = norm1
            if mixer.norm_after:
                for norm in norm1.values():
                    damp_(norm)
            elif family != "identity" and not mixer.residual_inside:
                damp_(mixer.output_layer())
        self.norm2 = _norms(norms, dim)
        self.mlp = Mlp(dim, expansion, "relu")
        damp_(self.mlp.fc2)


class SharedStage(nn.Module):
    """Weights of one stage: its downsampling and as many blocks as its greatest depth."""

    def __init__(self, downsample: nn.Module, blocks: list[SharedBlock]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)


class SharedHead(nn.Module):
    """Weights of the head: one norm of each kind, one classifier."""

    def __init__(self, dim: int, num_classes: int, norms: list[str]) -> None:
        super().__init__()
        self.norm = _norms(norms, dim)
        self.fc = nn.Linear(dim, num_classes)


def _norms(kinds: list[str], dim: int) -> nn.ModuleDict:
    return nn.ModuleDict({kind: NORM_LAYERS[kind](dim) for kind in kinds})


@dataclass(frozen=True)
class _Source:
    """Where one tensor of a plain network lies in the supernet: attribute `attribute` of `owner`, at `index`."""

    name: str
    owner: nn.Module
    attribute: str
    index: Index | None
    is_buffer: bool

    def read(self) -> Tensor:
        tensor: Tensor = getattr(self.owner, self.attribute)
        if self.is_buffer:  # a view, so that BatchNorm in training mode can write its statistics
            return tensor if self.index is None else tensor[self.index]
        return share(tensor, self.index)


@dataclass(frozen=True)
class _Plan:
    """A network without weights (meta device) and the sources of its weights."""

    template: MetaFormerNet
    sources: tuple[_Source, ...]


class Supernet(nn.Module):
    """Weight-sharing network of a space. `forward(x, arch)` runs one of its architectures."""

    def __init__(self, space: SearchSpace, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        if space.plugin is not None:  # in a process that has not seen it yet
            install(space.plugin)
        self.space, self.num_classes, self.in_chans = space, num_classes, in_chans
        norms = [str(value) for value in space["norm"].values]
        widths = [max(map(int, space[f"stage{stage + 1}.width"].values)) for stage in range(space.stage_count)]
        self.stem = Stem(space.stem, in_chans, widths[0], "relu")
        stages = []
        for stage, width in enumerate(widths):
            downsample: nn.Module = nn.Identity()
            if stage > 0:
                downsample = ConvNorm(widths[stage - 1], width, 3, stride=2)
            blocks = [
                SharedBlock(
                    families=self._families(stage, block),
                    dim=width,
                    expansion=max(map(float, space[f"{space.block_prefix(stage, block)}.expansion"].values)),
                    norms=norms,
                    role_width=space.role_widths[stage],
                    size=-(-space.max_resolution // (self.stem.reduction * 2**stage)),
                )
                for block in range(space.max_depth(stage))
            ]
            stages.append(SharedStage(downsample, blocks))
        self.stages = nn.ModuleList(stages)
        self.head = SharedHead(widths[-1], num_classes, norms)
        self._plans: OrderedDict[str, _Plan] = OrderedDict()
        self._block_cache: dict[tuple[Any, ...], nn.Module] = {}

    def _families(self, stage: int, block: int) -> dict[str, int]:
        """Mixer family -> its largest kernel on offer at this position."""
        out: dict[str, int] = {}
        for word in self.space[f"{self.space.block_prefix(stage, block)}.mixer"].values:
            family, kernel = self.space.mixer_kernels[str(word)]
            out[family] = max(kernel, out.get(family, 0))
        return out

    def forward(self, x: Tensor, arch: Architecture) -> Tensor:
        """Logits [batch, num_classes] of `arch` for images x [batch, in_chans, resolution, resolution]."""
        plan = self._plan(arch)
        plan.template.train(self.training)
        return functional_call(plan.template, {source.name: source.read() for source in plan.sources}, (x,))

    def template(self, arch: Architecture) -> MetaFormerNet:
        """The network without weights (meta device) that runs in `forward`; other architectures share its blocks."""
        return self._plan(arch).template

    def subnet(self, arch: Architecture) -> MetaFormerNet:
        """The plain network of `arch` with its own copy of the shared weights, in this module's mode."""
        plan = self._plan(arch)
        network = self._template(arch)
        network.load_state_dict({s.name: s.read().detach().clone() for s in plan.sources}, strict=True, assign=True)
        return network.train(self.training).requires_grad_(True)

    def _template(self, arch: Architecture, **kwargs: Any) -> MetaFormerNet:
        with torch.device("meta"):
            return MetaFormerNet(**network_kwargs(arch), num_classes=self.num_classes, in_chans=self.in_chans, **kwargs)

    def _plan(self, arch: Architecture) -> _Plan:
        """The plan of `arch`; those of the most recently used architectures are kept. Bits do not matter."""
        key = repr(network_kwargs(arch)["stages"])
        if key in self._plans:
            self._plans.move_to_end(key)
            return self._plans[key]
        template = self._template(arch, block_factory=self._block_factory())
        buffers = {name for name, _ in template.named_buffers()}
        sources = []
        for name, tensor in template.state_dict().items():
            path, _, attribute = _shared_name(name, arch).rpartition(".")
            owner = self.get_submodule(path)
            index = shared_index(tuple(getattr(owner, attribute).shape), tuple(tensor.shape))
            sources.append(_Source(name, owner, attribute, index, name in buffers))
        self._plans[key] = plan = _Plan(template, tuple(sources))
        if len(self._plans) > _PLANS_KEPT:
            self._plans.popitem(last=False)
        return plan

    def _block_factory(self) -> Callable[..., nn.Module]:
        """Makes the blocks of one template; equal blocks of two templates are one object."""
        used: Counter[tuple[Any, ...]] = Counter()

        def make(**kwargs: Any) -> nn.Module:
            spec = tuple(sorted(kwargs.items()))
            key = (*spec, used[spec])
            used[spec] += 1
            if key not in self._block_cache:
                self._block_cache[key] = MetaFormerBlock(**kwargs)
            return self._block_cache[key]

        return make

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_plans": OrderedDict(), "_block_cache": {}}


def _shared_name(name: str, arch: Architecture) -> str:
    """Name in the supernet of tensor `name` of the plain network of `arch`."""
    words = name.split(".")
    if words[:2] == ["head", "norm"]:
        words.insert(2, arch.stages[-1].norm)
    elif words[0] == "stages" and words[2] == "blocks":
        stage = arch.stages[int(words[1])]
        family = stage.blocks[int(words[3])].mixer
        if words[4] == "token_mixer":
            words.insert(5, family)
        elif words[4] == "norm1":
            words[5:5] = [family, stage.norm]
        elif words[4] == "norm2":
            words.insert(5, stage.norm)
    return ".".join(words)
