"""Which image belongs to which part: stratified, and the same on every machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np


def split_off(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (rest, part), both ascending: about `count` images drawn at random, every class by its share.

    Each class with two images or more has at least one in each of the two. labels: int64 [images].
    """
    share = count / len(labels)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, 0x5EA7C4))))
    part = []
    for label in range(int(labels.max()) + 1):
        rows = rng.permutation(np.flatnonzero(labels == label))
        part.append(rows[: min(max(1, round(len(rows) * share)), len(rows) - 1)])
    chosen = np.sort(np.concatenate(part))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def split_by_path(paths: Sequence[str], labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows (rest, part), both ascending: in every class, the share whose paths have the lowest SHA-256.

    At least one image of a class goes to each of the two. No seed: the same files are always kept apart.
    """
    order = np.array([hashlib.sha256(os.fsencode(path)).hexdigest() for path in paths])
    part = []
    for label in range(int(labels.max()) + 1):
        rows = np.flatnonzero(labels == label)
        rows = rows[np.argsort(order[rows], kind="stable")]
        part.append(rows[: min(max(1, round(len(rows) * share)), len(rows) - 1)])
    chosen = np.sort(np.concatenate(part))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def first_of_each_class(labels: np.ndarray, limit: int) -> np.ndarray:
    """Rows, ascending, of at most `limit` images, taken from the classes in turn, each in its order."""
    turn = np.empty(len(labels), np.int64)
    for label in range(int(labels.max()) + 1):
        rows = np.flatnonzero(labels == label)
        turn[rows] = np.arange(len(rows))
    return np.sort(np.lexsort((labels, turn))[:limit])
