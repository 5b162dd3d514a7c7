"""A search space: a fixed-length genome of named choices and the architectures they decode to. numpy only."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from search_spaces.architecture import Architecture, Block, BlockBits, Stage
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


@dataclass(frozen=True)
class SearchSpace:
    """Hierarchical networks described by genes `resolution`, `norm`, `activation` and, per stage,
    `stageN.{depth,width}` and `{mixer,expansion,bits}` of the stage or of each of its blocks.

    granularity: "stage" (all blocks of a stage alike: few, readable genes) or "block" (`stageN.blockM.mixer`, ...).
    stem: fixed by the preset. role_widths: narrowest width of each stage before any restriction.
    mixer_kernels: mixer word (`dwconv5`) -> (family, kernel). plugin: where mixers of the user's own come from.
    """

    name: str
    preset: str
    granularity: str
    stem: str
    role_widths: tuple[int, ...]
    mixer_kernels: Mapping[str, tuple[str, int]]
    choices: tuple[Choice, ...]
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
        words = (word for choice in self.choices if choice.name.endswith("mixer") for word in choice.values)
        return tuple(dict.fromkeys(self.mixer_kernels[str(word)][0] for word in words))

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
        total = math.prod(len(self[gene].values) for gene in ("resolution", "norm", "activation"))
        for stage in range(self.stage_count):
            blocks = 0
            for depth in map(int, self[f"stage{stage + 1}.depth"].values):
                prefixes = dict.fromkeys(self.block_prefix(stage, block) for block in range(depth))
                blocks += math.prod(
                    len(self[f"{prefix}.{gene}"].values)
                    for prefix in prefixes
                    for gene in ("mixer", "expansion", "bits")
                )
            total *= blocks * len(self[f"stage{stage + 1}.width"].values)
        return total

    def sample(self, rng: np.random.Generator) -> Genome:
        """A genome drawn uniformly, gene by gene."""
        return {choice.name: choice.values[int(rng.integers(len(choice.values)))] for choice in self.choices}

    def mutate(self, genome: Mapping[str, Value], rng: np.random.Generator) -> Genome:
        """A copy with one gene changed for certain and each other gene with probability 1/length."""
        out = dict(genome)
        free = [choice for choice in self.choices if len(choice.values) > 1]
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
                family, kernel = self.mixer_kernels[str(genome[f"{prefix}.mixer"])]
                blocks.append(
                    Block(
                        mixer=family,
                        kernel=kernel,
                        expansion=float(genome[f"{prefix}.expansion"]),
                        bits=BlockBits.parse(str(genome[f"{prefix}.bits"])),
                    )
                )
            stages.append(
                Stage(
                    width=int(genome[f"stage{stage + 1}.width"]),
                    role_width=self.role_widths[stage],
                    norm=str(genome["norm"]),
                    activation=str(genome["activation"]),
                    blocks=tuple(blocks),
                )
            )
        return Architecture(resolution=int(genome["resolution"]), stem=self.stem, stages=tuple(stages))

    def encode(self, arch: Architecture) -> Genome:
        """The canonical genome of an architecture: genes without effect take their first value.

        Raises ValueError when the architecture does not lie in this space.
        """
        genome: Genome = {choice.name: choice.values[0] for choice in self.choices}
        first = arch.stages[0]
        genome |= {"resolution": arch.resolution, "norm": first.norm, "activation": first.activation}
        for stage, description in enumerate(arch.stages):
            genome[f"stage{stage + 1}.depth"] = len(description.blocks)
            genome[f"stage{stage + 1}.width"] = description.width
            for number, block in enumerate(description.blocks):
                prefix = self.block_prefix(stage, number)
                genome |= {
                    f"{prefix}.mixer": block.mixer_token,
                    f"{prefix}.expansion": block.expansion,
                    f"{prefix}.bits": str(block.bits),
                }
        if self.decode(genome) != arch:
            raise ValueError(f"architecture {arch} does not lie in space {self.name}/{self.preset}/{self.granularity}")
        return genome

    def canonical(self, genome: Mapping[str, Value]) -> Genome:
        """The genome all equal networks share."""
        return self.encode(self.decode(genome))

    def restrict(self, allowed: Mapping[str, list[Value] | tuple[Value, ...]]) -> SearchSpace:
        """The space with fewer values for some genes; a gene may be given by its last word for all stages at once
        (`bits`, `mixer`, `expansion`, `depth`).

        Raises ValueError naming the gene, the value and what is on offer.
        """
        choices = {choice.name: choice for choice in self.choices}
        for gene, values in allowed.items():
            names = [name for name in choices if name == gene or name.split(".")[-1] == gene]
            if not names:
                last_words = sorted({name.split(".")[-1] for name in choices} | set(choices))
                near = difflib.get_close_matches(gene, last_words, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(last_words)}"
                raise ValueError(f"space {self.name}/{self.preset} has no choice {gene!r}; {hint}")
            wanted = list(values) if isinstance(values, list | tuple) else [values]
            offered = {value for name in names for value in choices[name].values}
            if unknown := [value for value in wanted if value not in offered]:
                shown = sorted(offered, key=lambda value: (str(type(value)), value))
                raise ValueError(f"{gene} offers {shown}, but got {unknown}")
            for name in names:
                kept = tuple(value for value in choices[name].values if value in wanted)
                if not kept:
                    raise ValueError(
                        f"nothing is left for {name}: it offers {choices[name].values}, but only {wanted} are allowed"
                    )
                choices[name] = Choice(name, kept)
        return replace(self, choices=tuple(choices.values()))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able description; two spaces are the same space when these are equal."""
        return {
            "name": self.name,
            "preset": self.preset,
            "granularity": self.granularity,
            "stem": self.stem,
            "role_widths": list(self.role_widths),
            "choices": {choice.name: list(choice.values) for choice in self.choices},
        } | ({"plugin": self.plugin.identity} if self.plugin else {})
