"""How well one-shot accuracy orders networks: against training each of them alone, and against what size tells."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nas.accuracy import Accuracy
from nas.correlation import Agreement, agreement
from nas.errors import Interrupted, UsageError
from nas.evaluate import Evaluator
from nas.files import write_whole
from nas.problem import Problem, pose
from nas.progress import Narrator
from nas.search import train_for
from nas.spec import StudySpec, TrainSpec
from nas.trainings import Outcome, Training, Workshop, check_place, train_all_shown
from nas.workers import one_thread
from search_spaces.architecture import Architecture

DRAWS = 16
"""Networks drawn uniformly, gene by gene, for each that is ranked."""

BANDS = 4
"""Bands of macs, equally wide in log macs between percentiles 2.5 and 97.5 of the draws."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """One network. one_shot: with shared weights on search images. alone: trained by itself, on validation images.
    Costs are predicted, those of the first target."""

    number: int
    architecture: Architecture
    band: int
    params: int
    macs: int
    latency_s: float
    one_shot: Accuracy
    alone: Accuracy
    alone_search: Accuracy

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        shown: dict[str, Any] = {"network": str(self.architecture)}
        for key in ("one_shot", "alone", "alone_search"):
            shown[key] = getattr(self, key).to_dict()
        plain = {key: getattr(self, key) for key in ("number", "band", "params", "macs", "latency_s")}
        return plain | shown | {"architecture": self.architecture.to_dict()}


@dataclass(frozen=True)
class Ranking:
    """The result of a ranking study. train: how the networks were trained alone. supernet: how the supernet was, and
    its identity. folder: where rank.json and rank.png lie."""

    networks: Sequence[Ranked]
    agreement: Agreement
    target: str
    data: str
    train: TrainSpec
    supernet: TrainSpec
    supernet_identity: str
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "agreement": self.agreement.to_dict(),
            "target": self.target,
            "data": self.data,
            "train": asdict(self.train),
            "supernet": {"identity": self.supernet_identity, "train": asdict(self.supernet)},
            "folder": str(self.folder),
            "networks": [network.to_dict() for network in self.networks],
        }


@dataclass(frozen=True, slots=True)
class Drawn:
    """A network that is to be ranked, with its cost summary on the first target."""

    number: int
    architecture: Architecture
    band: int
    cost: dict[str, Any]


def workshop_of(problem: Problem, folder: Path, steps: int | None = None, val_images: int | None = None) -> Workshop:
    """What trains the networks of `problem` alone, from fresh weights, here or in another process."""
    budget = replace(problem.spec.train, steps=steps or problem.spec.train.steps)
    return Workshop(
        folder, problem.data, budget, problem.spec.evaluate, val_images=val_images, plugin=problem.space.plugin
    )


def run_rank(
    spec: StudySpec,
    folder: Path,
    *,
    count: int = 32,
    seed: int = 0,
    steps: int | None = None,
    val_images: int | None = None,
    workers: int = 0,
    address: str | None = None,
    narrator: Narrator | None = None,
) -> Ranking:
    """Rank `count` networks of the space by shared weights and by training each alone for `steps` steps.

    The same call again goes on where it was interrupted. steps: default those of the supernet. val_images: validation
    images that score a network; None: all. workers, address: as in `nas.trainings.train_all`.
    Raises UsageError, NasError, Interrupted (finished trainings and the last checkpoint of others are kept).
    """
    narrator = narrator or Narrator(quiet=True)
    if count < 4:
        raise UsageError(f"--count must be at least 4 for a correlation to mean anything, but got {count}")
    check_place(address)
    problem = pose(spec, folder, narrator)
    drawn = draw(problem, count, seed)
    folder = folder.resolve()
    workshop = workshop_of(problem, folder, steps, val_images)
    try:
        trained = train_for(problem, folder, narrator)
        one_shot = _one_shot(problem.evaluator(trained.supernet, trained.identity), drawn, narrator)
        trainings = [Training(each.number, each.architecture) for each in drawn]
        ended = train_all_shown(workshop, trainings, "training each alone", narrator, workers=workers, address=address)
        alone = {outcome.number: outcome for outcome in ended}
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"interrupted: finished trainings and the state of those under way are in {folder / 'trainings'}; run the "
            "same command again to go on"
        ) from error
    networks = [_ranked(each, one_shot[each.number], alone[each.number]) for each in drawn]
    home = folder / "ranks" / _name(problem, workshop, trained.identity, count, seed)
    ranking = Ranking(
        networks,
        agree(networks),
        next(iter(problem.targets)),
        problem.data.name,
        workshop.spec,
        problem.spec.train,
        trained.identity,
        home,
    )
    publish(ranking)
    return ranking


def draw(problem: Problem, count: int, seed: int) -> list[Drawn]:
    """`count` different networks that meet every demand that needs no image, from each band of macs in turn: as many of
    each, until one has no more.

    Raises UsageError when the space, or what the demands leave of it, has too few.
    """
    rng = np.random.default_rng((seed, 7))
    target = next(iter(problem.targets))
    found: dict[str, tuple[Architecture, dict[str, Any]]] = {}
    for _ in range(DRAWS * count):
        arch = problem.space.decode(problem.space.sample(rng))
        if arch.key not in found:
            costs = problem.cost(arch)
            if not problem.goal.shortfalls(costs, None, images=False):
                found[arch.key] = (arch, costs[target])
    if len(found) < count:
        raise UsageError(
            f"only {len(found)} of {DRAWS * count} networks drawn meet the target's limits and the constraints, but "
            f"--count wants {count}; lower it, or loosen a constraint"
        )
    pool = list(found.values())
    bands = bands_of(np.array([cost["macs"] for _, cost in pool], float))
    waiting = [[index for index in range(len(pool)) if bands[index] == band] for band in range(BANDS)]
    chosen: list[int] = []
    while len(chosen) < count:  # one of each band in turn, as long as it has any
        for band in waiting:
            if band and len(chosen) < count:
                chosen.append(band.pop(0))
    return [Drawn(number, *pool[index][:1], int(bands[index]), pool[index][1]) for number, index in enumerate(chosen)]


def bands_of(macs: np.ndarray) -> np.ndarray:
    """Band number 0..BANDS-1 of every network, int64."""
    logs = np.log(macs)
    low, high = np.percentile(logs, [2.5, 97.5])
    edges = np.linspace(low, high, BANDS + 1)[1:-1]
    return np.searchsorted(edges, logs, side="right").astype(np.int64)


def agree(networks: Sequence[Ranked]) -> Agreement:
    """Of one-shot accuracy, and of size alone, with the accuracy of the networks trained alone."""

    def of(figure: Callable[[Ranked], float]) -> np.ndarray:
        return np.array([figure(network) for network in networks], float)

    scores = {
        "one-shot": of(lambda n: n.one_shot.top1),
        "params": of(lambda n: n.params),
        "macs": of(lambda n: n.macs),
        "latency": of(lambda n: n.latency_s),
    }
    return agreement(of(lambda n: n.alone.top1), scores, np.array([network.band for network in networks]))


def publish(ranking: Ranking) -> None:
    """Write rank.json, rank.md and rank.png into the ranking's folder."""
    from nas.rank_report import rank_picture, rank_table

    write_whole(ranking.folder / "rank.json", json.dumps(ranking.to_dict(), indent=1) + "\n")
    write_whole(ranking.folder / "rank.md", rank_table(ranking) + "\n")
    write_whole(ranking.folder / "rank.png", rank_picture(ranking))


def _one_shot(evaluator: Evaluator, drawn: Sequence[Drawn], narrator: Narrator) -> dict[int, Accuracy]:
    found = {}
    with one_thread() as streams, narrator.bar("scoring with shared weights") as update:
        for done, each in enumerate(drawn, start=1):
            found[each.number] = evaluator.evaluate(each.architecture, streams=streams).accuracy
            update(done, len(drawn), "")
    return found


def _ranked(drawn: Drawn, one_shot: Accuracy, alone: Outcome) -> Ranked:
    assert alone.val is not None, "without halving every training ends"
    return Ranked(
        number=drawn.number,
        architecture=drawn.architecture,
        band=drawn.band,
        params=int(drawn.cost["params"]),
        macs=int(drawn.cost["macs"]),
        latency_s=float(drawn.cost["latency_s"]),
        one_shot=one_shot,
        alone=alone.val,
        alone_search=alone.search,
    )


def _name(problem: Problem, workshop: Workshop, supernet: str, count: int, seed: int) -> str:
    content = [
        problem.identity,
        supernet,
        asdict(workshop.spec),
        asdict(workshop.evaluate),
        workshop.val_images,
        count,
        seed,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
