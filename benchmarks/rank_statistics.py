"""Statistics of a comparison: rank correlation, its spread over models, and held-out fits of kernel families."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw_models.factors import FactorPrior, fit_factors, fit_folds, folds, robust_error
from hw_models.families import COLUMNS

FOLDS, REPEATS = 2, 20
SPREADS = (0.02, 0.15, 0.5)
"""How far, in natural logarithms, the factor of a kernel family may depart from that of the whole device: hardly (one
scale, the order of the cost model), a little, as far as devices differ. The training half chooses."""
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
    fitted on one half of the models and applied to the other, how freely being chosen by the error of models held out
    within the first half.
    """
    rng = np.random.default_rng(0)
    results = []
    for _ in range(REPEATS):
        order = rng.permutation(len(columns))
        fitted = np.empty(len(columns))
        for fold in range(FOLDS):
            test = order[fold::FOLDS]
            train = np.setdiff1d(order, test)
            factors, _ = fit_factors(columns[train], published[train], _chosen(columns[train], published[train]), NOISE)
            fitted[test] = columns[test] @ factors
        error = np.abs(fitted / published - 1)
        results.append((spearman(fitted, published), (error <= 0.10).mean(), (error <= 0.25).mean()))
    mean = np.mean(results, axis=0)
    return float(mean[0]), float(mean[1]), float(mean[2])


def _chosen(columns: NDArray[Any], published: NDArray[Any]) -> FactorPrior:
    """The prior with the smallest error of models held out one by one; of equal ones the narrowest."""

    pieces = list(folds(len(published)))

    def error(prior: FactorPrior) -> float:
        predicted = np.empty(len(published))
        for factors, (_, test) in zip(fit_folds(columns, published, prior, [NOISE], pieces)[0], pieces, strict=True):
            predicted[test] = columns[test] @ factors
        return robust_error(np.log(predicted / published))

    return min((FactorPrior(np.zeros(len(COLUMNS)), np.full(len(COLUMNS), spread)) for spread in SPREADS), key=error)
