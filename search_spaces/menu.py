"""Which token mixers there are and what a space must know of them. Needs no torch; the modules are in `mixers`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class MixerFacts:
    """What of a mixer a space needs, as its class in `search_spaces.mixers.MIXERS` has it.

    group: "core", "first", "second", or "plugin" for one of the user's own. The others: see
    `search_spaces.mixers.contract.TokenMixer`.
    """

    group: str
    kernels: tuple[int, ...] = (0,)
    late_only: bool = False
    token_bound: bool = False
    replaces_block: bool = False
    gated: bool = False

    def words(self, family: str) -> list[str]:
        """The mixer as genes name it, one word per kernel: `dwconv5`, `mhsa`."""
        return [f"{family}{kernel}" if kernel else family for kernel in self.kernels]


MENU: dict[str, MixerFacts] = {
    "identity": MixerFacts("core"),
    "pool": MixerFacts("core"),
    "dwconv": MixerFacts("core", (3, 5, 7)),
    "sepconv": MixerFacts("core", (3, 5, 7)),
    "inception": MixerFacts("core"),
    "mbconv": MixerFacts("core", (3, 5), replaces_block=True, gated=True),
    "relu_linear": MixerFacts("core"),
    "mhsa": MixerFacts("core", late_only=True),
    "pool_dw": MixerFacts("first"),
    "largekernel": MixerFacts("first", (9, 11, 13)),
    "repmixer": MixerFacts("first", (3, 5)),
    "fused_mbconv": MixerFacts("first", (3,), replaces_block=True, gated=True),
    "mldc": MixerFacts("first"),
    "mldc_dw": MixerFacts("first"),
    "ffn_attn": MixerFacts("first", (3, 7)),
    "gnconv_o2": MixerFacts("first"),
    "gnconv_o3": MixerFacts("first"),
    "relu_linear_ms": MixerFacts("first"),
    "mqa": MixerFacts("first", late_only=True),
    "spatial_mlp": MixerFacts("first", late_only=True, token_bound=True),
    "random": MixerFacts("first", late_only=True, token_bound=True),
    "convfirst": MixerFacts("second", replaces_block=True, gated=True),
    "window": MixerFacts("second"),
    "linear_sra": MixerFacts("second"),
    "paca": MixerFacts("second"),
    "castling": MixerFacts("second"),
    "s2mlp": MixerFacts("second"),
    "mixshift": MixerFacts("second"),
    "axial_global": MixerFacts("second"),
    "raft_mlp": MixerFacts("second", token_bound=True),
    "nin_gate": MixerFacts("second", late_only=True, token_bound=True),
    "halo": MixerFacts("second"),
    "gpsa": MixerFacts("second", late_only=True),
    "hire_mlp": MixerFacts("second"),
    "wave_mlp": MixerFacts("second"),
    "dynamixer": MixerFacts("second", late_only=True, token_bound=True),
    "wavemix": MixerFacts("second"),
    "outlook": MixerFacts("second"),
}

GROUPS = {
    "core": ("core",),
    "first": ("core", "first"),
    "second": ("second",),
    "plugin": ("plugin",),
    "all": ("core", "first", "second", "plugin"),
}
"""Word that `--mixers` takes in place of names -> groups of the menu. The first menu holds the core."""


def chosen_mixers(words: Iterable[str]) -> list[str]:
    """Mixer families of names and groups, in the order of the menu; a word that begins with `-` takes away.

    Raises ValueError for an unknown word, naming the nearest, and when nothing is left.
    """
    words = list(words)
    kept: set[str] = set()
    for word in words:
        name = word.removeprefix("-")
        if name in GROUPS:
            named = {family for family, facts in MENU.items() if facts.group in GROUPS[name]}
        elif name in MENU:
            named = {name}
        else:
            near = difflib.get_close_matches(name, [*MENU, *GROUPS], n=1)
            known = f"known: {', '.join(MENU)}, and the groups {', '.join(GROUPS)}"
            raise ValueError(f"unknown token mixer {name!r}; {f'did you mean {near[0]!r}?' if near else known}")
        kept = kept - named if word != name else kept | named
    if not kept:
        raise ValueError(f"no token mixer is left of {', '.join(words) or 'an empty list'}; name some, or a group")
    return [family for family in MENU if family in kept]
