"""The metaformer space: four stages of MetaFormer blocks with elastic mixer, kernel, depth, width, expansion,
resolution, norm, activation and bit policy. Two presets: `small` for images up to 64 px, `mobile` for 160 to 288 px.
Further norms and activations, stems, channel mixers and gates stay closed until a study opens them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from search_spaces.architecture import ACTIVATIONS, CHANNEL_MIXERS, GATES, NORMS, STEMS, USUAL
from search_spaces.menu import MENU, chosen_mixers
from search_spaces.space import Choice, SearchSpace, Value

OPENABLE: dict[str, tuple[Value, ...]] = {
    "norm": NORMS,
    "activation": ACTIVATIONS,
    "stem": tuple(STEMS),
    "channel_mixer": CHANNEL_MIXERS,
    "gate": GATES,
}
"""Last word of a gene -> all its values. `--set space.choices.GENE=[...]` takes any of them."""

OPEN_NORMS = ("batchnorm", "layernorm")
OPEN_ACTIVATIONS = ("relu", "hardswish", "gelu")
"""What the presets offer unasked."""

BITS = ("w4a8", "w8a8", "w4a16", "w8a16")


@dataclass(frozen=True)
class Preset:
    """Sizes of a preset: per stage the widths in channels and the depths in blocks."""

    stem: str
    resolutions: tuple[int, ...]
    widths: tuple[tuple[int, ...], ...]
    depths: tuple[tuple[int, ...], ...]
    expansions: tuple[float, ...]


PRESETS = {
    "small": Preset(
        stem="conv3s2",
        resolutions=(24, 32, 40, 48, 56, 64),
        widths=((16, 24, 32), (32, 48, 64), (64, 80, 96), (96, 128, 160)),
        depths=((1, 2), (1, 2), (1, 2, 3), (1, 2)),
        expansions=(2.0, 3.0, 4.0),
    ),
    "mobile": Preset(
        stem="conv3s2x2",
        resolutions=(160, 192, 224, 256, 288),
        widths=((32, 48, 64), (64, 96, 128), (128, 192, 256), (256, 320, 384, 512)),
        depths=((1, 2, 3), (1, 2, 3), (3, 4, 6, 9), (1, 2, 3)),
        expansions=(2.0, 3.0, 4.0),
    ),
}


def metaformer(
    preset: str = "small", granularity: str = "stage", mixers: Sequence[str] | None = None, multiplex: int = 1
) -> SearchSpace:
    """The metaformer space. `mixers`: families to offer, or groups of them (None: the group "core"). `multiplex`: see
    `SearchSpace`.

    Raises ValueError for an unknown granularity or mixer, and when a stage is left without a mixer.
    """
    if multiplex < 1:
        raise ValueError(f"multiplex must be 1 (no sharing) or more blocks, but got {multiplex}")
    if granularity not in ("stage", "block"):
        raise ValueError(f"granularity must be 'stage' or 'block', but got {granularity!r}")
    families = chosen_mixers(mixers or ["core"])
    words = {
        word: (family, kernel)
        for family in families
        for word, kernel in zip(MENU[family].words(family), MENU[family].kernels, strict=True)
    }
    sizes = PRESETS[preset]
    choices = [
        Choice("resolution", sizes.resolutions),
        Choice("norm", OPEN_NORMS),
        Choice("activation", OPEN_ACTIVATIONS),
        Choice("stem", (sizes.stem,)),
    ]
    last = len(sizes.widths) - 1
    for stage, (widths, depths) in enumerate(zip(sizes.widths, sizes.depths, strict=True)):
        offered = tuple(word for word, (family, _) in words.items() if not MENU[family].late_only or stage >= last - 1)
        if not offered:
            early = [family for family in chosen_mixers(["core"]) if not MENU[family].late_only]
            raise ValueError(
                f"stage {stage + 1} has no mixer left: {', '.join(families)} is for the last two stages only; "
                f"add one of {', '.join(early)}"
            )
        prefix = f"stage{stage + 1}"
        choices += [Choice(f"{prefix}.depth", depths), Choice(f"{prefix}.width", widths)]
        blocks = [prefix] if granularity == "stage" else [f"{prefix}.block{n + 1}" for n in range(max(depths))]
        for block in blocks:
            choices += [
                Choice(f"{block}.mixer", offered),
                Choice(f"{block}.expansion", sizes.expansions),
                Choice(f"{block}.bits", BITS),
                Choice(f"{block}.channel_mixer", (USUAL["channel_mixer"],)),
                Choice(f"{block}.gate", (USUAL["gate"],)),
            ]
    return SearchSpace(
        name="metaformer",
        preset=preset,
        granularity=granularity,
        role_widths=tuple(min(widths) for widths in sizes.widths),
        mixer_kernels=words,
        choices=tuple(choices),
        openable=OPENABLE,
        multiplex=multiplex,
    )


@dataclass(frozen=True)
class Builder:
    """Makes the spaces of one name: `build(preset, granularity, mixers, multiplex)`. presets: the usual one first."""

    build: Callable[..., SearchSpace]
    presets: tuple[str, ...]


SPACES: dict[str, Builder] = {"metaformer": Builder(metaformer, tuple(PRESETS))}
"""Space name -> its builder."""


def load_space(
    name: str,
    preset: str = "small",
    granularity: str = "stage",
    mixers: Sequence[str] | None = None,
    choices: Mapping[str, list[Value]] | None = None,
    multiplex: int = 1,
) -> SearchSpace:
    """The space of that name, narrowed or opened to `choices` (gene or last word of a gene -> allowed values).

    Raises ValueError, one line with the cure, for anything unknown, and for mixers that are bound to one resolution
    beside several resolutions.
    """
    if name not in SPACES:
        near = difflib.get_close_matches(name, SPACES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(SPACES)}"
        raise ValueError(f"unknown space {name!r}; {hint}")
    presets = SPACES[name].presets
    if preset not in presets:
        raise ValueError(f"space {name} has presets {', '.join(presets)}, but got {preset!r}")
    space = SPACES[name].build(preset=preset, granularity=granularity, mixers=mixers, multiplex=multiplex)
    space = space.restrict(choices) if choices else space
    bound = [family for family in space.mixers if MENU[family].token_bound]
    sizes = space["resolution"].values
    if bound and len({STEMS[str(stem)] for stem in space["stem"].values}) > 1:
        raise ValueError(
            f"mixers bound to one resolution ({', '.join(bound)}) cannot go with stems of different strides; choose "
            f"one, as by --set 'space.choices.stem=[\"{space['stem'].values[0]}\"]'"
        )
    if bound and len(sizes) > 1:
        raise ValueError(
            f"mixers bound to one resolution ({', '.join(bound)}) cannot go with {len(sizes)} of them; choose one, as "
            f"by --set 'space.choices={{resolution=[{sizes[-1]}]}}', or leave them out, as by --mixers ...,-{bound[0]}"
        )
    return space
