"""Which blocks to measure: those that together tell most about a space.

Farthest-point design (Gonzalez 1985, Theoretical Computer Science 38): each next block is the one farthest from all
chosen before, in a space of features: where the cost model sees its time go, kernel family by kernel family, and how
long it takes. Every beginning of the list is a design too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hw_models import Target, estimate_part
from hw_models.families import part_units
from nas.bits import costed_precision, put_precision
from nas.cost import part_workload
from search_spaces.architecture import Architecture
from search_spaces.parts import NetworkPart, network_parts
from search_spaces.space import SearchSpace

POOL = 600
"""Distinct parts among which is chosen."""

_TIME_WEIGHT = 0.25
"""Doubling the time of a block moves it as far as moving a quarter of its time to another kernel family."""


def choose_parts(
    space: SearchSpace,
    target: Target,
    count: int,
    precisions: tuple[str, ...],
    seed: int,
    num_classes: int,
    in_chans: int,
    batch: int = 1,
) -> list[NetworkPart]:
    """`count` distinct parts of networks of the space (all of a smaller pool), the most telling first.

    batch: images at once that they are to be timed with.
    """
    pool = part_pool(space, max(POOL, 2 * count), seed, num_classes, in_chans)
    features = np.array([part_features(part, target, precisions, batch) for part in pool])
    return [pool[index] for index in farthest_points(features, count)]


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


def part_features(
    part: NetworkPart, target: Target, precisions: tuple[str, ...], batch: int = 1
) -> NDArray[np.float64]:
    """Shares of the predicted time by kernel family and log2 of that time, at each precision."""
    features = []
    for precision in precisions:
        workload = put_precision(part_workload(part, batch), costed_precision(precision))
        seconds = part_units(estimate_part(workload, target, (False, False)), 1.0).by_column()
        total = max(seconds.sum(), 1e-9)
        features += [*(seconds / total), _TIME_WEIGHT * np.log2(total)]
    return np.array(features)


def farthest_points(points: NDArray[np.float64], count: int) -> list[int]:
    """Rows of points [rows, features], the one nearest to the mean first, then each time the farthest from all before.

    Ties go to the earlier row.
    """
    if not len(points) or count < 1:
        return []
    chosen = [int(np.argmin(((points - points.mean(axis=0)) ** 2).sum(axis=1)))]
    distance = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    distance[chosen[0]] = -1.0
    while len(chosen) < min(count, len(points)):
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
        distance[chosen[-1]] = -1.0
    return chosen


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
