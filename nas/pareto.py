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

    Sum of the volumes that each point adds to those before it (WFG: While, Bradstreet, Barone, "A fast way of
    calculating exact hypervolumes", IEEE TEVC 2012). Sixty points take 10 ms with three objectives and 0.2 s with
    six, where slicing along the last objective took 35 s.
    """
    values = np.asarray(points, dtype=np.float64).reshape(-1, len(reference))
    bound = np.asarray(reference, dtype=np.float64)
    values = values[(values < bound).all(axis=1)]
    return _volume(np.unique(values[front_mask(values)], axis=0), bound)


def _volume(values: NDArray[np.float64], bound: NDArray[np.float64]) -> float:
    """values: a front without equal points, in ascending order of the first objective."""
    if len(values) == 0:
        return 0.0
    if len(bound) == 1:
        return float(bound[0] - values[0, 0])
    if len(bound) == 2:  # steps of a staircase, from left to right
        heights = np.append(bound[1], values[:-1, 1]) - values[:, 1]
        return float(((bound[0] - values[:, 0]) * heights).sum())
    total = float((bound - values[0]).prod())
    for index in range(1, len(values)):
        point, width = values[index], float(bound[0] - values[index, 0])
        # Earlier points are no worse in the first objective: what they share with this one is as wide as it is.
        shared = _volume(_small_front(np.maximum(values[:index, 1:], point[1:])), bound[1:])
        total += width * (float((bound[1:] - point[1:]).prod()) - shared)
    return total


def _small_front(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """As `front_mask` selects, equal points once, in ascending order; in one step, for hundreds of points."""
    values = np.unique(values, axis=0)
    dominated = (values[None, :, :] <= values[:, None, :]).all(axis=2).sum(axis=1) > 1  # by more than itself
    return values[~dominated]
