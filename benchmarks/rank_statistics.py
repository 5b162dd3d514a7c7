"""Statistics of a comparison: rank correlation, its spread over models, and held-out fits of kernel families."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw_models.factors import fit_factors

FOLDS, REPEATS = 2, 20
BOOTSTRAPS = 400
NOISE = 0.2
"""Relative noise at which published rows are believed when factors are fitted: estimated, as two sources of a device
differ."""


def spearman(left: NDArray[Any], right: NDArray[Any]) -> float:
    """Pearson correlation of ranks; ties share their mean rank."""
    return float(np.corrcoef(_ranks(left), _ranks(right))[0, 1])


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((2 * ends - counts - 1) / 2)[inverse]


def bootstrapped(predicted: NDArray[Any], published: NDArray[Any]) -> tuple[float, float]:
    """Fifth and 95th percentile of Spearman over resampled models: what the choice of models alone moves."""
    rng = np.random.default_rng(0)
    picks = (rng.integers(0, len(predicted), len(predicted)) for _ in range(BOOTSTRAPS))
    found = [spearman(predicted[pick], published[pick]) for pick in picks if len(set(pick)) > 2]
    low, high = np.percentile(found, [5, 95])
    return float(low), float(high)


def cross_validated(columns: NDArray[Any], published: NDArray[Any]) -> tuple[float, float, float]:
    """(Spearman, share within 10 percent, share within 25 percent) of held-out models, mean over repeated halvings.

    columns: [models, hw_models.families.COLUMNS] predicted seconds by kernel family; each family's positive factor is
    fitted on one half of the models and applied to the other.
    """
    rng = np.random.default_rng(0)
    results = []
    for _ in range(REPEATS):
        order = rng.permutation(len(columns))
        fitted = np.empty(len(columns))
        for fold in range(FOLDS):
            test = order[fold::FOLDS]
            train = np.setdiff1d(order, test)
            factors, _ = fit_factors(columns[train], published[train], noise=NOISE)
            fitted[test] = columns[test] @ factors
        error = np.abs(fitted / published - 1)
        results.append((spearman(fitted, published), (error <= 0.10).mean(), (error <= 0.25).mean()))
    mean = np.mean(results, axis=0)
    return float(mean[0]), float(mean[1]), float(mean[2])
