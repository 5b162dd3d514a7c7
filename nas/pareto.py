"""Pareto front and hypervolume of plain numbers: exact, and whatever the order of the points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def as_minimisation(values: ArrayLike, directions: Sequence[str]) -> NDArray[np.float64]:
    """Copy of `values` [points, objectives] in which smaller is better everywhere."""
    signs = np.array([1.0 if direction == "minimize" else -1.0 for direction in directions])
    return np.asarray(values, dtype=np.float64).reshape(-1, len(signs)) * signs


def front_mask(points: ArrayLike) -> NDArray[np.bool_]:
    """Which points [n, objectives], all minimised, no other point dominates. Equal points are kept together.

    A point dominates another when it is nowhere worse and somewhere better.
    """
    values = np.asarray(points, dtype=np.float64)
    mask = np.ones(len(values), dtype=bool)
    for index, point in enumerate(values):
        no_worse = (values <= point).all(axis=1)
        mask[index] = not (no_worse & (values < point).any(axis=1)).any()
    return mask


def hypervolume(points: ArrayLike, reference: Sequence[float]) -> float:
    """Volume that `points` [n, objectives], all minimised, dominate below `reference` [objectives].

    Slices along the last objective and recurses (HSO: While et al., "A faster algorithm for calculating
    hypervolume", IEEE TEC 2006); quick for the few objectives and few hundred points of a front.
    """
    values = np.asarray(points, dtype=np.float64).reshape(-1, len(reference))
    bound = np.asarray(reference, dtype=np.float64)
    values = values[(values < bound).all(axis=1)]
    return _sliced_volume(np.unique(values[front_mask(values)], axis=0), bound)


def _sliced_volume(values: NDArray[np.float64], bound: NDArray[np.float64]) -> float:
    if len(values) == 0:
        return 0.0
    if len(bound) == 1:
        return float(bound[0] - values[:, 0].min())
    values = values[np.argsort(values[:, -1], kind="stable")]
    tops = np.append(values[1:, -1], bound[-1])
    total = 0.0
    for index, (bottom, top) in enumerate(zip(values[:, -1], tops, strict=True)):
        if top > bottom:
            slab = values[: index + 1, :-1]
            total += float(top - bottom) * _sliced_volume(slab[front_mask(slab)], bound[:-1])
    return total
