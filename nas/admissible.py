"""Which token mixers of a space a device can run at all: asked before a supernet is trained with the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

from hw_models import Target
from nas.bits import FIXED_BITS
from nas.cost import part_costs
from nas.errors import NothingFeasible, UsageError
from search_spaces.architecture import Architecture
from search_spaces.parts import network_parts
from search_spaces.space import Choice, Genome, SearchSpace


def admissible_space(
    space: SearchSpace, targets: Mapping[str, Target], named: Sequence[str] = ()
) -> tuple[SearchSpace, list[str]]:
    """(the space without the mixers that a target cannot run, a sentence for each target that bars some).

    A mixer is barred where its block is illegal with every norm, activation and bit policy, at the narrowest width and
    at the widest. named: mixers that the user asked for by name, which are refused rather than left out.
    Raises UsageError when one of these is barred with all its kernels or a target has no `FIXED_BITS`, NothingFeasible
    when a stage has no mixer left.
    """
    for name, target in targets.items():
        if str(FIXED_BITS) not in target.matrix.rates:
            known = ", ".join(target.matrix.rates)
            raise UsageError(
                f"target {name} has {known}, and no {FIXED_BITS}, in which stem and head of every network run: choose "
                "another target; `nas cost` shows what a network takes on it"
            )
    barred: dict[str, str] = {}
    notes = []
    for name, target in targets.items():
        reasons = {word: reason for word in _words(space) if (reason := _objection(space, word, target)) is not None}
        barred |= {word: f"{name} cannot run it: {reason}" for word, reason in reasons.items()}
        if reasons:
            listed = "; ".join(f"{', '.join(words)} ({reason})" for reason, words in _by_reason(reasons).items())
            notes.append(f"left out, as {name} cannot run them: {listed}")
    if not barred:
        return space, []
    for family in named:
        words = [word for word in _words(space) if space.mixer_kernels[word][0] == family]
        if words and all(word in barred for word in words):
            raise UsageError(f"token mixer {family}: {barred[words[0]]}; leave it out of --mixers")
    allowed = {}
    for choice in _mixer_genes(space):
        allowed[choice.name] = [word for word in choice.values if word not in barred]
        if not allowed[choice.name]:
            reason = barred[str(choice.values[0])]
            raise NothingFeasible(f"no mixer is left for {choice.name}: {reason}; widen --mixers")
    return space.restrict(allowed), notes


def _words(space: SearchSpace) -> list[str]:
    return list(dict.fromkeys(str(word) for choice in _mixer_genes(space) for word in choice.values))


def _mixer_genes(space: SearchSpace) -> list[Choice]:
    return [choice for choice in space.choices if choice.name.split(".")[-1] == "mixer"]


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for word, reason in reasons.items():
        out.setdefault(reason, []).append(word)
    return out


def _objection(space: SearchSpace, word: str, target: Target) -> str | None:
    """Why no block with this mixer can run on the target; None when one can."""
    first = ""
    for arch, block in _tries(space, word):
        network = list(network_parts(arch, 10))
        costs = dict(zip((part.name for part in network), part_costs(network, arch, target), strict=True))
        if not costs[block].violations:
            return None
        first = first or str(costs[block].violations[0]).replace(f" at {block}.", " at ")
    return first


def _tries(space: SearchSpace, word: str) -> Iterator[tuple[Architecture, str]]:
    """(architecture, path of a block in it with this mixer), the likely ones first."""
    gene = next(choice.name for choice in _mixer_genes(space) if word in choice.values)
    prefix = gene.rpartition(".")[0]
    stage = int(prefix.partition(".")[0].removeprefix("stage"))
    block = int(prefix.rpartition("block")[2]) - 1 if "block" in prefix else 0
    genome: Genome = {choice.name: choice.values[0] for choice in space.choices} | {gene: word}
    genome[f"stage{stage}.depth"] = space[f"stage{stage}.depth"].values[-1]

    def ends(name: str) -> Iterable[str | int | float]:
        return dict.fromkeys((space[name].values[-1], space[name].values[0]))

    width = f"stage{stage}.width"
    names = (f"{prefix}.bits", "norm", "activation")
    for values in product(*(reversed(space[name].values) for name in names), ends(width)):
        tried = genome | dict(zip((*names, width), values, strict=True))
        yield space.decode(tried), f"stages.{stage - 1}.blocks.{block}"
