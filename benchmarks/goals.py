"""Which blocks to measure so that whole networks of named kinds are predicted best.

The log latency of anything is modelled as the residual models it (`hw_models.residual`): the mean over its kernels,
weighted by their shares of the predicted time, of a function of a kernel: a common speed, a step of each column, and a
Gaussian process over the features. Each next block is the one whose measurement takes most off the summed variance of
the networks' latencies (V-optimal design; Fedorov, "Theory of Optimal Experiments", 1972). Only the cost model is
asked, no measurement.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hw_models.factors import COLUMN_SPREAD, SCALE_SPREAD
from hw_models.families import COLUMNS, FEATURES, Units
from hw_models.residual import AMPLITUDE, REACH

Array = NDArray[np.float64]

WAVES = 256
"""Random cosines that stand for the process (Rahimi and Recht, NeurIPS 2007)."""

NOISE, CLOCK_S = 0.04, 2e-6
"""Relative and absolute scatter of a measured block: estimated from the measurements of a CPU core."""


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


def scatter(seconds: float, clock_s: float = CLOCK_S) -> float:
    """Standard deviation of the log of a measured time. clock_s: the part that does not shrink with it."""
    return float(np.hypot(NOISE, clock_s / seconds))


def least_variance(
    candidates: Sequence[Array], scatters: Sequence[Array], goals: Sequence[Array], count: int
) -> list[int]:
    """Rows of the candidates to measure, the one worth most first; ties go to the earlier row.

    candidates: for each number format that is measured, [candidates, width]; scatters: [candidates] of each; goals:
    [networks, width] of each, all to be predicted equally well.
    """
    free = np.ones(len(scatters[0]), dtype=bool)
    covariances = [np.eye(own.shape[1]) for own in candidates]
    chosen: list[int] = []
    for _ in range(min(count, len(free))):
        gain = np.zeros(len(free))
        for own, noise, goal, covariance in zip(candidates, scatters, goals, covariances, strict=True):
            spread = own @ covariance
            variance = np.einsum("ij,ij->i", spread, own) + noise**2
            gain += ((spread @ goal.T) ** 2).sum(axis=1) / variance
        gain[~free] = -1.0
        best = int(np.argmax(gain))
        free[best] = False
        chosen.append(best)
        for own, noise, covariance in zip(candidates, scatters, covariances, strict=True):
            seen = covariance @ own[best]
            covariance -= np.outer(seen, seen) / (own[best] @ seen + noise[best] ** 2)
    return chosen
