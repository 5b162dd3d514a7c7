"""A search space: a fixed-length genome of named choices and the architectures they decode to. numpy only."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from search_spaces.architecture import USUAL, Architecture, Block, BlockBits, Stage
from search_spaces.menu import MENU
from search_spaces.plugin import Plugin

Value = str | int | float
Genome = dict[str, Value]


@dataclass(frozen=True)
class Choice:
    """One gene: a name and the values it may take, ordered from small to large where that means something."""

    name: str
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if not self.values or len(set(self.values)) != len(self.values):
            raise ValueError(f"choice {self.name} needs distinct values, at least one, but got {self.values}")

    @property
    def word(self) -> str:
        """Last word of the name: what the gene is about, wherever it stands."""
        return self.name.rpartition(".")[2]

    @property
    def is_size(self) -> bool:
        """Whether values go from small to large in what a network can learn; kinds and bit widths do not."""
        return self.word not in UNORDERED and self.word != "bits"


BLOCK_GENES = ("mixer", "expansion", "bits", "channel_mixer", "gate")
"""Genes of a block, or of all blocks of a stage."""

UNORDERED = frozenset({"mixer", "norm", "activation", "stem", "channel_mixer", "gate"})
"""Last words of genes whose values are kinds: none of them is larger than another."""


@dataclass(frozen=True)
class SearchSpace:
    """Hierarchical networks described by genes `resolution`, `norm`, `activation`, `stem` and, per stage,
    `stageN.{depth,width}` and `{mixer,expansion,bits,channel_mixer,gate}` of the stage or of each of its blocks.

    granularity: "stage" (all blocks of a stage alike: few, readable genes) or "block" (`stageN.blockM.mixer`, ...).
    role_widths: narrowest width of each stage before any restriction.
    mixer_kernels: mixer word (`dwconv5`) -> (family, kernel). plugin: where mixers of the user's own come from.
    openable: last word of a gene -> every value it could be opened to (`restrict`); other genes only shrink.
    multiplex: so many consecutive blocks of a stage share the matrices of their mixers (1: none do).
    """

    name: str
    preset: str
    granularity: str
    role_widths: tuple[int, ...]
    mixer_kernels: Mapping[str, tuple[str, int]]
    choices: tuple[Choice, ...]
    openable: Mapping[str, tuple[Value, ...]]
    multiplex: int = 1
    plugin: Plugin | None = None

    def __getitem__(self, gene: str) -> Choice:
        for choice in self.choices:
            if choice.name == gene:
                return choice
        raise KeyError(gene)

    @property
    def stage_count(self) -> int:
        return len(self.role_widths)

    @property
    def mixers(self) -> tuple[str, ...]:
        """Mixer families on offer in any stage, in order of first appearance."""
        words = (word for choice in self.choices if choice.name.endswith(".mixer") for word in choice.values)
        return tuple(dict.fromkeys(self.mixer_kernels[str(word)][0] for word in words))

    @property
    def free(self) -> tuple[Choice, ...]:
        """Choices with more than one value: the parameters of a search."""
        return tuple(choice for choice in self.choices if len(choice.values) > 1)

    @property
    def closed(self) -> dict[str, tuple[Value, ...]]:
        """Last word of a gene -> values on the menu that no gene of that name offers yet."""
        offered = {(choice.word, value) for choice in self.choices for value in choice.values}
        missing = {gene: tuple(v for v in values if (gene, v) not in offered) for gene, values in self.openable.items()}
        return {gene: values for gene, values in missing.items() if values}

    def complete(self, genome: Mapping[str, Value]) -> Genome:
        """`genome` with the genes that have only one value."""
        return {c.name: c.values[0] if len(c.values) == 1 else genome[c.name] for c in self.choices}

    @property
    def max_resolution(self) -> int:
        return max(int(value) for value in self["resolution"].values)

    def max_depth(self, stage: int) -> int:
        """Largest depth of stage 0, 1, ..."""
        return max(int(value) for value in self[f"stage{stage + 1}.depth"].values)

    def block_prefix(self, stage: int, block: int) -> str:
        """Prefix of the genes that describe block `block` of stage `stage`, both counted from 0."""
        if self.granularity == "stage":
            return f"stage{stage + 1}"
        return f"stage{stage + 1}.block{block + 1}"

    @property
    def size(self) -> int:
        """Number of distinct architectures."""
        total = math.prod(len(self[gene].values) for gene in ("resolution", "norm", "activation", "stem"))
        for stage in range(self.stage_count):
            blocks = 0
            for depth in map(int, self[f"stage{stage + 1}.depth"].values):
                prefixes = dict.fromkeys(self.block_prefix(stage, block) for block in range(depth))
                blocks += math.prod(self._distinct_blocks(prefix) for prefix in prefixes)
            total *= blocks * len(self[f"stage{stage + 1}.width"].values)
        return total

    def _distinct_blocks(self, prefix: str) -> int:
        """Number of distinct blocks that the genes of `prefix` describe; bits and expansions merely multiply."""
        per_kind = product(*(self[f"{prefix}.{gene}"].values for gene in ("mixer", "channel_mixer", "gate")))
        bits, expansions = self[f"{prefix}.bits"].values, self[f"{prefix}.expansion"].values
        kinds = {self._block(mixer, channel, gate, expansions[0], bits[0]) for mixer, channel, gate in per_kind}
        return sum(len(bits) * (len(expansions) if kind.expansion else 1) for kind in kinds)

    def sample(self, rng: np.random.Generator) -> Genome:
        """A genome drawn uniformly, gene by gene."""
        return {choice.name: choice.values[int(rng.integers(len(choice.values)))] for choice in self.choices}

    def mutate(self, genome: Mapping[str, Value], rng: np.random.Generator) -> Genome:
        """A copy with one gene changed for certain and each other gene with probability 1/length."""
        out = dict(genome)
        free = self.free
        if not free:
            return out
        certain = int(rng.integers(len(free)))
        for index, choice in enumerate(free):
            if index == certain or rng.random() < 1 / len(free):
                others = [value for value in choice.values if value != out[choice.name]]
                out[choice.name] = others[int(rng.integers(len(others)))]
        return out

    def decode(self, genome: Mapping[str, Value]) -> Architecture:
        """The architecture of a genome. Genes of blocks beyond the depth have no effect.

        Raises ValueError when a gene is missing, unknown, or holds a value outside its choice.
        """
        names = [choice.name for choice in self.choices]
        if unknown := sorted(set(genome) - set(names)):
            raise ValueError(f"genes {unknown} are not in space {self.name}/{self.preset}")
        for choice in self.choices:
            if choice.name not in genome:
                raise ValueError(f"gene {choice.name} is missing")
            if genome[choice.name] not in choice.values:
                raise ValueError(f"{choice.name} must be one of {choice.values}, but got {genome[choice.name]!r}")
        stages = []
        for stage in range(self.stage_count):
            blocks = []
            for block in range(int(genome[f"stage{stage + 1}.depth"])):
                prefix = self.block_prefix(stage, block)
                mixer, expansion, bits, channel_mixer, gate = (genome[f"{prefix}.{gene}"] for gene in BLOCK_GENES)
                blocks.append(self._block(mixer, channel_mixer, gate, expansion, bits))
            stages.append(
                Stage(
                    width=int(genome[f"stage{stage + 1}.width"]),
                    role_width=self.role_widths[stage],
                    norm=str(genome["norm"]),
                    activation=str(genome["activation"]),
                    blocks=tuple(blocks),
                )
            )
        return Architecture(resolution=int(genome["resolution"]), stem=str(genome["stem"]), stages=tuple(stages))

    def _block(self, mixer: Value, channel_mixer: Value, gate: Value, expansion: Value, bits: Value) -> Block:
        """The block of these genes. What has no effect takes its usual value, so that equal blocks are equal:

        mixers that are the whole block, and `identity` (which would leave an empty block), keep "mlp"; without a hidden
        layer there is no expansion and no gate.
        """
        family, kernel = self.mixer_kernels[str(mixer)]
        facts = MENU[family]
        must_keep = facts.replaces_block or (family == "identity" and channel_mixer == "none")
        kept = USUAL["channel_mixer"] if must_keep else channel_mixer
        gated = facts.gated if facts.replaces_block else kept != "none"
        return Block(
            mixer=family,
            kernel=kernel,
            expansion=0.0 if kept == "none" else float(expansion),
            bits=BlockBits.parse(str(bits)),
            channel_mixer=str(kept),
            gate=str(gate) if gated else USUAL["gate"],
        )

    def encode(self, arch: Architecture) -> Genome:
        """The canonical genome of an architecture: genes without effect take their first value.

        Raises ValueError when the architecture does not lie in this space.
        """
        genome: Genome = {choice.name: choice.values[0] for choice in self.choices}
        first = arch.stages[0]
        genome |= {"resolution": arch.resolution, "norm": first.norm, "activation": first.activation, "stem": arch.stem}
        for stage, description in enumerate(arch.stages):
            genome[f"stage{stage + 1}.depth"] = len(description.blocks)
            genome[f"stage{stage + 1}.width"] = description.width
            for number, block in enumerate(description.blocks):
                prefix = self.block_prefix(stage, number)
                genome |= {f"{prefix}.mixer": block.mixer_token, f"{prefix}.bits": str(block.bits)}
                if block.expansion:
                    genome[f"{prefix}.expansion"] = block.expansion
                genome |= self._modifiers(prefix, block)
        if self.decode(genome) != arch:
            raise ValueError(f"architecture {arch} does not lie in space {self.name}/{self.preset}/{self.granularity}")
        return genome

    def _modifiers(self, prefix: str, block: Block) -> Genome:
        """The first values of channel mixer and gate, in the order of their choices, that give `block`."""
        words = [word for word, known in self.mixer_kernels.items() if known == (block.mixer, block.kernel)]
        for channel_mixer in self[f"{prefix}.channel_mixer"].values if words else ():
            for gate in self[f"{prefix}.gate"].values:
                made = self._block(words[0], channel_mixer, gate, block.expansion, str(block.bits))
                if (made.channel_mixer, made.gate) == (block.channel_mixer, block.gate):
                    return {f"{prefix}.channel_mixer": channel_mixer, f"{prefix}.gate": gate}
        return {}

    def canonical(self, genome: Mapping[str, Value]) -> Genome:
        """The genome all equal networks share."""
        return self.encode(self.decode(genome))

    def restrict(self, allowed: Mapping[str, list[Value] | tuple[Value, ...]]) -> SearchSpace:
        """The space with other values for some genes; a gene may be given by its last word for all stages at once
        (`bits`, `mixer`, `expansion`, `depth`), or by stage and last word for all blocks of the stage. What is said of
        a stage holds against what is said of all, and of a block against its stage, whatever the order of `allowed`.
        Genes that are `openable` may have more than they had, others only lose values. Values keep their order.

        Raises ValueError naming the gene, the value and what is on offer.
        """
        choices = {choice.name: choice for choice in self.choices}
        for gene, values in sorted(allowed.items(), key=lambda entry: entry[0].count(".")):  # general ones first
            names = [name for name in choices if gene in _names_of(name)]
            if not names:
                last_words = sorted({choice.word for choice in self.choices} | set(choices))
                near = difflib.get_close_matches(gene, last_words, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(last_words)}"
                raise ValueError(f"space {self.name}/{self.preset} has no choice {gene!r}; {hint}")
            wanted = list(values) if isinstance(values, list | tuple) else [values]
            on_menu = {name: self.openable.get(choices[name].word, choices[name].values) for name in names}
            offered = {value for values in on_menu.values() for value in values}
            if unknown := [value for value in wanted if value not in offered]:
                shown = sorted(offered, key=lambda value: (str(type(value)), value))
                raise ValueError(f"{gene} offers {shown}, but got {unknown}")
            for name in names:
                kept = tuple(value for value in on_menu[name] if value in wanted)
                if not kept:
                    raise ValueError(
                        f"nothing is left for {name}: it offers {on_menu[name]}, but only {wanted} are allowed"
                    )
                choices[name] = Choice(name, kept)
        return replace(self, choices=tuple(choices.values()))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able description; two spaces are the same space when these are equal."""
        shown = {choice.name: list(choice.values) for choice in self.choices if not self._is_usual(choice)}
        return {
            "name": self.name,
            "preset": self.preset,
            "granularity": self.granularity,
            "stem": self["stem"].values[0],
            "role_widths": list(self.role_widths),
            "choices": shown,
            **({"multiplex": self.multiplex} if self.multiplex > 1 else {}),
            **({"plugin": self.plugin.identity} if self.plugin else {}),
        }

    @staticmethod
    def _is_usual(choice: Choice) -> bool:
        """Whether a description says nothing by naming this choice: its one value is the usual, or named elsewhere."""
        return len(choice.values) == 1 and (choice.word == "stem" or USUAL.get(choice.word) == choice.values[0])


def _names_of(gene: str) -> set[str]:
    """What `restrict` calls `stage3.block1.gate`: so, `stage3.gate` or `gate`."""
    words = gene.split(".")
    return {gene, f"{words[0]}.{words[-1]}", words[-1]}
