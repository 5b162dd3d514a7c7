"""Which blocks to measure: those that together tell most about the networks of a space.

The log latency of anything is modelled as the residual models it (`hw_models.residual`): the mean over its kernels,
weighted by their shares of the predicted time, of a function of a kernel: a common speed, a step of each column, and a
Gaussian process over the features. Each next block is the one whose measurement takes most off the summed variance of
the networks' latencies (V-optimal design; Fedorov, "Theory of Optimal Experiments", 1972). Only the cost model is
asked. Every beginning of the list is a design too. Compared with other designs in benchmarks/designs.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hw_models import Target, estimate_part
from hw_models.factors import COLUMN_SPREAD, SCALE_SPREAD
from hw_models.families import COLUMNS, FEATURES, Units, join_units, part_units
from hw_models.residual import AMPLITUDE, REACH
from nas.bits import costed_precision, put_precision
from nas.cost import part_workload
from search_spaces.architecture import Architecture
from search_spaces.parts import NetworkPart, network_parts
from search_spaces.space import SearchSpace

Array = NDArray[np.float64]

NUM_CLASSES, IN_CHANS = 1000, 3
"""Of the networks whose blocks are measured."""

POOL = 600
"""Distinct parts among which is chosen."""

GOALS = 60
"""Random networks of the space that are to be predicted."""

WAVES = 256
"""Random cosines that stand for the process (Rahimi and Recht, NeurIPS 2007)."""

NOISE = 0.04
"""Relative scatter of a measured block: estimated from the measurements of a CPU core."""

CPU_CLOCK_S, CLOCK_S = 2e-6, 0.2e-6
"""Scatter that does not shrink with the time: of a CPU core, estimated likewise, and of a GPU, believed of boards."""


def log_latency_vector(units: Units) -> Array:
    """[1 + COLUMNS + WAVES] what multiplies the unknowns, each of variance 1, in the log latency of something."""
    share = units.seconds / units.seconds.sum()
    kernels = units.features.any(axis=1)
    rng = np.random.default_rng(0)
    frequencies = rng.standard_normal((len(FEATURES), WAVES)) / REACH
    phases = rng.uniform(0, 2 * np.pi, WAVES)
    waves = np.sqrt(2 / WAVES) * np.cos(units.features[kernels] @ frequencies + phases)
    columns = np.bincount(units.column, share, len(COLUMNS))
    return np.concatenate([[SCALE_SPREAD], COLUMN_SPREAD * columns, AMPLITUDE * (share[kernels] @ waves)])


def clock_s(target: Target) -> float:
    """Scatter of a time measured on it that does not shrink with the time."""
    return CPU_CLOCK_S if target.kind == "cpu" else CLOCK_S


def scatter(seconds: float, clock_s: float) -> float:
    """Standard deviation of the log of a measured time. clock_s: the part that does not shrink with it."""
    return float(np.hypot(NOISE, clock_s / seconds))


@dataclass(frozen=True)
class Points:
    """Blocks in one number format. vectors: [blocks, width] of `log_latency_vector`; scatters: [blocks]."""

    vectors: Array
    scatters: Array

    @classmethod
    def of(cls, blocks: Sequence[Units], clock_s: float) -> Points:
        width = 1 + len(COLUMNS) + WAVES
        vectors = np.array([log_latency_vector(units) for units in blocks]).reshape(len(blocks), width)
        return cls(vectors, np.array([scatter(float(units.seconds.sum()), clock_s) for units in blocks]))


def most_telling(
    candidates: Sequence[Points], goals: Sequence[Array], count: int, seen: Sequence[Points] = ()
) -> list[tuple[int, float]]:
    """(row of the candidates, standard deviation of its log latency before it is measured), the one worth most first.

    candidates: the same blocks in each number format that is measured; goals: [networks, width] of each, all to be
    predicted equally well; seen: of each, what is measured already. Ties go to the earlier row.
    """
    covariances = [np.eye(own.vectors.shape[1]) for own in candidates]
    for known, covariance in zip(seen, covariances, strict=bool(seen)):
        for vector, noise in zip(known.vectors, known.scatters, strict=True):
            _learn(covariance, vector, noise)
    free = np.ones(len(candidates[0].scatters), dtype=bool)
    chosen: list[tuple[int, float]] = []
    for _ in range(min(count, len(free))):
        gain, variances = np.zeros(len(free)), np.zeros(len(free))
        for own, goal, covariance in zip(candidates, goals, covariances, strict=True):
            spread = own.vectors @ covariance
            variance = np.einsum("ij,ij->i", spread, own.vectors)
            gain += ((spread @ goal.T) ** 2).sum(axis=1) / (variance + own.scatters**2)
            variances += variance / len(candidates)
        gain[~free] = -1.0
        best = int(np.argmax(gain))
        free[best] = False
        chosen.append((best, float(np.sqrt(max(variances[best], 0.0)))))
        for own, covariance in zip(candidates, covariances, strict=True):
            _learn(covariance, own.vectors[best], own.scatters[best])
    return chosen


def _learn(covariance: Array, vector: Array, noise: float) -> None:
    """Take off, in place, what a measurement tells."""
    seen = covariance @ vector
    covariance -= np.outer(seen, seen) / (vector @ seen + noise**2)


def choose_parts(
    space: SearchSpace,
    target: Target,
    count: int,
    precisions: Sequence[str],
    seed: int,
    num_classes: int,
    in_chans: int,
    batch: int = 1,
) -> list[NetworkPart]:
    """`count` distinct parts of networks of the space (all of a smaller pool), the most telling first.

    batch: images at once that they are to be timed with.
    """
    pool = part_pool(space, max(POOL, 2 * count), seed, num_classes, in_chans)
    candidates = [
        Points.of([costed_units(part, target, own, batch) for part in pool], clock_s(target)) for own in precisions
    ]
    goals = [goal_vectors(space, target, own, seed, num_classes, in_chans, batch) for own in precisions]
    return [pool[index] for index, _ in most_telling(candidates, goals, count)]


def costed_units(part: NetworkPart, target: Target, precision: str, batch: int = 1) -> Units:
    """Pieces of the time that is predicted of a part."""
    workload = put_precision(part_workload(part, batch), costed_precision(precision))
    return part_units(estimate_part(workload, target, (False, False)), 1.0)


def goal_vectors(
    space: SearchSpace, target: Target, precision: str, seed: int, num_classes: int, in_chans: int, batch: int = 1
) -> Array:
    """[networks, width] of random networks of the space."""
    known: dict[tuple[object, ...], Units] = {}
    found = []
    for arch in draw_networks(space, GOALS, seed):
        parts = list(network_parts(arch, num_classes, in_chans))
        for part in parts:
            if part.spec not in known:
                known[part.spec] = costed_units(part, target, precision, batch)
        found.append(log_latency_vector(join_units([known[part.spec] for part in parts])))
    return np.array(found)


def part_pool(space: SearchSpace, count: int, seed: int, num_classes: int, in_chans: int) -> list[NetworkPart]:
    """Distinct parts of random networks of the space, at most about `count`, in the order in which they occur."""
    rng = np.random.default_rng(seed)
    found: dict[tuple[object, ...], NetworkPart] = {}
    for _ in range(count):  # a network brings a part or more while there are new ones
        for part in network_parts(space.decode(space.sample(rng)), num_classes, in_chans):
            found.setdefault(part.spec, part)
        if len(found) >= count:
            break
    return list(found.values())


def draw_networks(space: SearchSpace, count: int, seed: int) -> list[Architecture]:
    """Distinct random networks of the space."""
    rng = np.random.default_rng(seed)
    found: dict[str, Architecture] = {}
    for _ in range(100 * count):
        if len(found) == count:
            break
        arch = space.decode(space.sample(rng))
        found.setdefault(arch.key, arch)
    return list(found.values())
