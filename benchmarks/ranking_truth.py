"""The networks of an earlier ranking and what they reach alone, for the shared weights of other supernets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas.accuracy import Accuracy
from nas.problem import pose
from nas.progress import Narrator
from nas.rank import Ranked, Ranking, agree
from nas.search import train_for
from nas.spec import StudySpec, TrainSpec
from nas.workers import one_thread
from search_spaces.architecture import Architecture


def read_ranking(path: Path) -> Ranking:
    """The first variant's ranking in a result of `benchmarks.ranking`."""
    first = json.loads(path.read_text(encoding="utf-8"))["first"]
    networks = [_network(entry) for entry in first["networks"]]
    return Ranking(
        networks,
        agree(networks),
        first["target"],
        first["data"],
        TrainSpec(**first["train"]),
        TrainSpec(**first["supernet"]["train"]),
        first["supernet"]["identity"],
        path.parent,
    )


def rescored(known: Ranking, spec: StudySpec, folder: Path, narrator: Narrator) -> Ranking:
    """The networks of `known`, scored with the supernet of `spec`; their accuracies alone stay.

    Raises ValueError when `spec` has other images, or its space lacks one of the networks.
    """
    problem = pose(spec, folder, narrator)
    if problem.data.name != known.data:
        raise ValueError(f"the networks were trained on {known.data}, but the images are {problem.data.name}")
    for network in known.networks:
        problem.space.encode(network.architecture)
    trained = train_for(problem, folder, narrator)
    evaluator = problem.evaluator(trained.supernet, trained.identity)
    with one_thread() as streams:
        networks = [
            replace(network, one_shot=evaluator.evaluate(network.architecture, streams=streams).accuracy)
            for network in known.networks
        ]
    return replace(
        known,
        networks=networks,
        agreement=agree(networks),
        supernet=problem.spec.train,
        supernet_identity=trained.identity,
    )


def _network(entry: Mapping[str, Any]) -> Ranked:
    plain = {key: entry[key] for key in ("number", "band", "params", "macs", "latency_s")}
    accuracies = {key: Accuracy.from_dict(entry[key]) for key in ("one_shot", "alone", "alone_search")}
    return Ranked(architecture=Architecture.from_dict(entry["architecture"]), **plain, **accuracies)
