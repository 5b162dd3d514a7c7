"""The weights that all networks of a space share, place by place, each at its widest.

Nothing here computes: the templates of `search_spaces.supernet` run on slices of these tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.channel_mixers import CHANNEL_MIXER_LAYERS, make_gate
from search_spaces.layers import make_divisible
from search_spaces.mixers import MIXERS
from search_spaces.network import bound_size
from search_spaces.norms import NORM_LAYERS
from search_spaces.space import SearchSpace

GAIN = "_gain"
"""Suffix of the vector by which a block multiplies a matrix that it shares with the block before it."""


@dataclass(frozen=True)
class Offer:
    """What a block position can be: mixer family -> largest kernel, greatest expansion, and the kinds on offer."""

    families: dict[str, int]
    expansion: float
    channel_mixers: tuple[str, ...]
    gates: tuple[str, ...]
    norms: tuple[str, ...]
    activation: str
    role_width: int
    size: int


def offer(space: SearchSpace, stage: int, block: int, size: int) -> Offer:
    """What `space` offers at block `block` of stage `stage`, both counted from 0, on maps of `size` pixels a side."""
    prefix = space.block_prefix(stage, block)
    families: dict[str, int] = {}
    for word in space[f"{prefix}.mixer"].values:
        family, kernel = space.mixer_kernels[str(word)]
        families[family] = max(kernel, families.get(family, 0))
    kinds = [str(value) for value in space[f"{prefix}.channel_mixer"].values]
    if "none" in kinds and "identity" in families and "mlp" not in kinds:
        kinds.append("mlp")  # `identity` without a channel mixer would be an empty block
    if "mlp" not in kinds and any(MIXERS[family].channel_matrices for family in families):
        # Holds their matrices, whatever else is on offer: a narrower space finds them in a wider one's supernet. What
        # else it has is trained by nobody then.
        kinds.append("mlp")
    return Offer(
        families=families,
        expansion=max(map(float, space[f"{prefix}.expansion"].values)),
        channel_mixers=tuple(kind for kind in kinds if kind != "none"),
        gates=tuple(str(value) for value in space[f"{prefix}.gate"].values if value != "none"),
        norms=norms_of(space),
        activation=widest_activation(space),
        role_width=space.role_widths[stage],
        size=size,
    )


def norms_of(space: SearchSpace) -> tuple[str, ...]:
    return tuple(str(value) for value in space["norm"].values)


def widest_activation(space: SearchSpace) -> str:
    """The activation whose parameters the shared weights hold: only StarReLU has any."""
    return "starrelu" if "starrelu" in space["activation"].values else "relu"


class SharedBlock(nn.Module):
    """Weights of one block position: each mixer family and its norms, each channel mixer, and the norms they share.

    leader: a block whose mixers' matrices this one uses too, each times a vector of its own (`_multiplex_`). loans:
    name of a weight that a mixer lacks -> layer of the MLP whose weight it uses (`TokenMixer.channel_matrices`): weight
    entanglement (AutoFormer, arXiv:2107.00651) between a block in one piece and a block in two, so that a step that
    trains either trains both.
    """

    def __init__(self, offered: Offer, dim: int, leader: SharedBlock | None = None) -> None:
        super().__init__()
        self.token_mixer = nn.ModuleDict()
        self.norm1 = nn.ModuleDict()
        hidden = make_divisible(dim * offered.expansion)
        for family, kernel in offered.families.items():
            make: Any = MIXERS[family]
            mixer = make(
                dim,
                kernel=kernel,
                expansion=offered.expansion,
                role_width=offered.role_width,
                activation=offered.activation,
                **bound_size(family, offered.size),
            )
            if mixer.gated:
                mixer.gate = _gates(offered.gates, hidden, dim)
            self.token_mixer[family] = mixer
            norm1 = shared_norms(offered.norms, dim)
            if family != "identity" and not mixer.norm_inside:
                self.norm1[family] = norm1
            if leader is not None and family in leader.token_mixer:
                _multiplex_(mixer, leader.token_mixer[family])
        self.norm2 = shared_norms(offered.norms, dim)
        self.mlp = nn.ModuleDict()
        for kind in offered.channel_mixers:
            make = CHANNEL_MIXER_LAYERS[kind]
            channel_mixer = make(dim, offered.expansion, offered.activation)
            channel_mixer.gate = _gates(offered.gates, hidden, dim)
            self.mlp[kind] = channel_mixer
        self.loans: dict[str, str] = {}
        for family, mixer in self.token_mixer.items():
            for name, layer in MIXERS[family].channel_matrices:
                _remove_equal_(mixer, name, self.mlp["mlp"].get_parameter(f"{layer}.weight"))
                self.loans[f"token_mixer.{family}.{name}"] = f"mlp.mlp.{layer}"


def _gates(kinds: tuple[str, ...], hidden: int, dim: int) -> nn.ModuleDict:
    return nn.ModuleDict({kind: make_gate(kind, hidden, dim) for kind in kinds})


def _remove_equal_(mixer: nn.Module, name: str, matrix: Tensor) -> None:
    """Take tensor `name` of `mixer` away. Raises ValueError unless it is of the shape of `matrix`."""
    path, _, attribute = name.rpartition(".")
    owner = mixer.get_submodule(path)
    own = getattr(owner, attribute, None)
    if own is None or own.shape != matrix.shape:
        found = "there is none" if own is None else f"its shape is {list(own.shape)}"
        raise ValueError(f"channel_matrices names {name!r}, but {found}; that of an MLP is {list(matrix.shape)}")
    delattr(owner, attribute)


@torch.no_grad()
def _multiplex_(mixer: nn.Module, leader: nn.Module) -> None:
    """Take the matrices of `mixer` away where `leader` has equal ones, and put a gain per output channel in place.

    Weight multiplexing (MiniViT, arXiv:2204.07154) with the smallest of transforms: a vector, beside the block's own
    biases and norms. The network that is extracted holds the products, so it folds and runs as any other.
    """
    of_leader = dict(leader.named_parameters())
    for name, matrix in list(mixer.named_parameters()):
        if matrix.ndim > 1 and name in of_leader and of_leader[name].shape == matrix.shape:
            path, _, attribute = name.rpartition(".")
            owner = mixer.get_submodule(path)
            delattr(owner, attribute)
            owner.register_parameter(attribute + GAIN, nn.Parameter(matrix.new_ones(len(matrix))))


class SharedStage(nn.Module):
    """Weights of one stage: its downsampling and as many blocks as its greatest depth."""

    def __init__(self, downsample: nn.Module, blocks: list[SharedBlock]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)


class SharedHead(nn.Module):
    """Weights of the head: one norm of each kind, one classifier."""

    def __init__(self, dim: int, num_classes: int, norms: tuple[str, ...]) -> None:
        super().__init__()
        self.norm = shared_norms(norms, dim)
        self.fc = nn.Linear(dim, num_classes)


def shared_norms(kinds: tuple[str, ...], dim: int) -> nn.ModuleDict:
    return nn.ModuleDict({kind: NORM_LAYERS[kind](dim) for kind in kinds})
