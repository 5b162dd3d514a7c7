"""The plain network an architecture describes: what is scored, costed and exported.

A sibling of timm's MetaFormer with its names and its API. It is built from JSON-able keyword arguments, so that
`timm.create_model` can rebuild it from a `config.json`. With `deploy=True` it has its folded form: BatchNorm is gone
into the convolutions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from search_spaces.architecture import USUAL, Architecture, Block
from search_spaces.channel_mixers import CHANNEL_MIXER_LAYERS, make_gate
from search_spaces.layers import Add, ConvNorm, fold_norm_before, make_divisible, norm_as_conv
from search_spaces.mixers import MIXERS
from search_spaces.norms import NORM_LAYERS, is_affine
from search_spaces.stems import Stem

Build = Callable[..., nn.Module]
"""(name in the block, function, its arguments) -> the module that the function makes, or one that it made before."""


def build_anew(name: str, make: Build, *arguments: Any) -> nn.Module:
    return make(*arguments)


class MetaFormerBlock(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)) (MetaFormer, arXiv:2111.11418, Eq. 2 and 3).

    Mixers that begin with a padded convolution take the norm behind them, where BatchNorm folds exactly. `identity` has
    no token branch; `mbconv` is the whole block; channel mixer "none" leaves the token branch alone. gate: on the
    hidden layer of the channel mixer, or of the mixer that is the whole block. size: side of the map in pixels, for
    mixers bound to it; else 0. build: how its parts are made; the supernet has many of them already.
    """

    def __init__(
        self,
        dim: int,
        mixer: str,
        kernel: int,
        expansion: float,
        norm: str,
        activation: str,
        role_width: int,
        channel_mixer: str = "mlp",
        gate: str = "none",
        size: int = 0,
        build: Build = build_anew,
    ) -> None:
        super().__init__()
        if mixer not in MIXERS:
            raise ValueError(f"unknown token mixer {mixer!r}; known: {', '.join(MIXERS)}")
        family: Any = MIXERS[mixer]
        if kernel not in family.kernels:
            raise ValueError(f"{mixer} has kernels {family.kernels}, but got {kernel}")
        # mixers that do not depend on the expansion are made once
        hidden = expansion if family.replaces_block or family.expands else 1.0
        self.token_mixer: Any = build(
            "token_mixer", _token_mixer, family, dim, kernel, hidden, role_width, activation, gate, size
        )
        self.norm_after: bool = family.norm_after
        self.residual_inside: bool = family.residual_inside
        self.has_token_mixer = mixer != "identity"
        self.has_mlp = not family.replaces_block and channel_mixer != "none"
        if self.has_token_mixer:
            self.norm1: nn.Module = nn.Identity() if family.norm_inside else build("norm1", NORM_LAYERS[norm], dim)
            if not family.residual_inside:
                self.add1 = Add()
        if self.has_mlp:
            if channel_mixer not in CHANNEL_MIXER_LAYERS:
                known = ", ".join(CHANNEL_MIXER_LAYERS)
                raise ValueError(f"unknown channel mixer {channel_mixer!r}; known: {known}, none")
            self.norm2: nn.Module = build("norm2", NORM_LAYERS[norm], dim)
            self.mlp: Any = build("mlp", CHANNEL_MIXER_LAYERS[channel_mixer], dim, expansion, activation, gate)
            self.add2 = Add()

    def forward(self, x: Tensor) -> Tensor:
        if self.has_token_mixer:
            if self.residual_inside:
                x = self.token_mixer(x)
            elif self.norm_after:
                x = self.add1(x, self.norm1(self.token_mixer(x)))
            else:
                x = self.add1(x, self.token_mixer(self.norm1(x)))
        if self.has_mlp:
            x = self.add2(x, self.mlp(self.norm2(x)))
        return x

    def fold_(self) -> None:
        if self.has_token_mixer and is_affine(self.norm1):
            if not self.norm_after and hasattr(self.token_mixer, "norm_consumers"):
                fold_norm_before(self.norm1, self.token_mixer.norm_consumers())
                self.norm1 = nn.Identity()
            elif self.norm_after and hasattr(self.token_mixer, "fold_norm_after_"):
                self.token_mixer.fold_norm_after_(self.norm1)
                self.norm1 = nn.Identity()
            else:
                self.norm1 = norm_as_conv(self.norm1)
        if self.has_mlp and is_affine(self.norm2):
            fold_norm_before(self.norm2, self.mlp.norm_consumers())
            self.norm2 = nn.Identity()


def _token_mixer(
    family: Any,
    dim: int,
    kernel: int,
    expansion: float,
    role_width: int,
    activation: str,
    gate: str,
    size: int,
) -> nn.Module:
    bound = {"size": size} if family.token_bound or family.sized else {}
    mixer: nn.Module = family(
        dim, kernel=kernel, expansion=expansion, role_width=role_width, activation=activation, **bound
    )
    if gate != "none" and family.gated:
        mixer.gate = make_gate(gate, make_divisible(dim * expansion), dim)
    return mixer


def bound_size(mixer: str, size: int) -> dict[str, Any]:
    """`size` as an argument of a block, for mixers that need it; blocks of the others are equal at all sizes."""
    needed = mixer in MIXERS and (MIXERS[mixer].token_bound or MIXERS[mixer].sized)
    return {"size": size} if needed else {}


class MetaFormerStage(nn.Module):
    """Downsampling (3x3 convolution of stride 2, then BatchNorm), then blocks of one width."""

    def __init__(self, downsample: nn.Module, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Head(nn.Module):
    """Global average, norm, classifier: [batch, dim, height, width] -> [batch, num_classes]."""

    def __init__(self, dim: int, num_classes: int, norm: str, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.global_pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.norm: nn.Module = NORM_LAYERS[norm](dim)
        self.flatten: nn.Module = nn.Flatten(1)
        self.drop = nn.Dropout(drop_rate)
        self.fc: nn.Module = nn.Linear(dim, num_classes) if num_classes > 0 else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(self.flatten(self.norm(self.global_pool(x))))
        return x if pre_logits else self.fc(x)

    def fold_(self) -> None:
        if is_affine(self.norm) and isinstance(self.fc, nn.Linear):
            fold_norm_before(self.norm, [self.fc])
            self.norm = nn.Identity()


class MetaFormerNet(nn.Module):
    """Searched MetaFormer: per stage a width, a norm and an activation; per block a mixer, a kernel and an expansion.

    Input [batch, in_chans, img_size, img_size], output [batch, num_classes].

    stages: one dict per stage, keys width, role_width, norm, activation, blocks; a block has mixer, kernel, expansion,
        and channel_mixer and gate where they are not "mlp" and "none".
    deploy: build the folded form; load folded weights into it.
    Raises ValueError for an unknown stem, mixer or kernel.
    """

    def __init__(
        self,
        stages: list[dict[str, Any]],
        stem: str = "conv3s2",
        img_size: int = 32,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.img_size = num_classes, in_chans, img_size
        self.drop_rate, self.deploy, self.grad_checkpointing = drop_rate, deploy, False
        self.stem = Stem(stem, in_chans, stages[0]["width"], stages[0]["activation"])
        reduction = self.stem.reduction
        self.feature_info: list[dict[str, Any]] = []
        built: list[nn.Module] = []
        for index, stage in enumerate(stages):
            downsample: nn.Module = nn.Identity()
            if index > 0:
                downsample = ConvNorm(stages[index - 1]["width"], stage["width"], 3, stride=2)
                reduction *= 2
            size = -(-img_size // reduction)
            blocks: list[nn.Module] = [
                MetaFormerBlock(
                    dim=stage["width"],
                    **block,
                    norm=stage["norm"],
                    activation=stage["activation"],
                    role_width=stage["role_width"],
                    **bound_size(block["mixer"], size),
                )
                for block in stage["blocks"]
            ]
            built.append(MetaFormerStage(downsample, blocks))
            self.feature_info.append({"num_chs": stage["width"], "reduction": reduction, "module": f"stages.{index}"})
        self.stages = nn.Sequential(*built)
        self.num_features = self.head_hidden_size = stages[-1]["width"]
        self.head = Head(self.num_features, num_classes, stages[-1]["norm"], drop_rate)
        self.reset_pool(global_pool)
        if deploy:
            fold_(self)

    def reset_pool(self, global_pool: str) -> None:
        """Choose the pooling of the head: "avg", or "" to keep the map (give num_classes=0 with it, as in timm)."""
        if global_pool not in ("avg", ""):
            raise ValueError(f"global_pool must be 'avg' or '', but got {global_pool!r}")
        keep = global_pool == "avg"
        self.head.global_pool = nn.AdaptiveAvgPool2d(1) if keep else nn.Identity()
        self.head.flatten = nn.Flatten(1) if keep else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            for stage in self.stages:
                x = checkpoint(stage, x, use_reentrant=False)
            return x
        return self.stages(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Features after the chosen stages (None: all; an int: the last n), as timm returns them.

        Raises ValueError for another layout than NCHW and for norm=True: there is no norm between stages and head.
        IndexError for a stage that is not there.
        """
        if output_fmt != "NCHW" or norm:
            raise ValueError(f"output_fmt must be 'NCHW' and norm False, but got {output_fmt!r} and {norm}")
        count = len(self.stages)
        if indices is None:
            wanted = list(range(count))
        elif isinstance(indices, int):
            wanted = list(range(count - indices, count))
        else:
            wanted = [range(count)[index] for index in indices]
        x = self.stem(x)
        intermediates = []
        for index, stage in enumerate(self.stages):
            if stop_early and index > max(wanted):
                break
            x = stage(x)
            if index in wanted:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New classifier for `num_classes` (0: none). In deploy form the norm of the old head has gone with it."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.reset_pool(global_pool)
        self.head.fc = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable


def fold_(network: nn.Module) -> nn.Module:
    """Merge, in place, every affine norm of `network` into its neighbours; children before parents. Returns it."""
    for module in reversed(list(network.modules())):
        merge = getattr(module, "fold_", None)
        if module is not network and merge is not None:
            merge()
    return network


def fold(network: MetaFormerNet) -> MetaFormerNet:
    """The folded copy of a network in evaluation mode: same function to rounding (1e-5 relative per block)."""
    out = copy.deepcopy(network).eval()
    fold_(out)
    out.deploy = True
    return out


def block_kwargs(block: Block) -> dict[str, Any]:
    """The part of the keyword arguments of `MetaFormerBlock` that its own genes decide; usual values left out."""
    unusual = {"channel_mixer": block.channel_mixer, "gate": block.gate}
    return {
        "mixer": block.mixer,
        "kernel": block.kernel,
        "expansion": block.expansion,
        **{key: value for key, value in unusual.items() if value != USUAL[key]},
    }


def network_kwargs(arch: Architecture) -> dict[str, Any]:
    """Keyword arguments of `MetaFormerNet` for this architecture: JSON-able. Bits are not part of the network."""
    stages = [
        {
            "width": stage.width,
            "role_width": stage.role_width,
            "norm": stage.norm,
            "activation": stage.activation,
            "blocks": [block_kwargs(block) for block in stage.blocks],
        }
        for stage in arch.stages
    ]
    return {"stages": stages, "stem": arch.stem, "img_size": arch.resolution}


def build_network(
    arch: Architecture, num_classes: int, in_chans: int = 3, device: str | torch.device | None = None
) -> MetaFormerNet:
    """The network of `arch` with fresh weights on `device` (default: CPU)."""
    with torch.device(device or "cpu"):
        return MetaFormerNet(**network_kwargs(arch), num_classes=num_classes, in_chans=in_chans)
