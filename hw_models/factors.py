"""Positive factors on the cost model's times, one per column of `hw_models.families`, from few measurements.

A latency is modelled as sum_c exp(theta_c) * seconds_c, so every factor is positive. theta is the prior's mean plus
steps that are shared: by all columns (how fast the device is altogether), by a number format, and a column's own.
Shared steps cost less than single ones, so that a handful of measurements first says how fast the device is, and many
say how fast each kind of kernel is. Steps are fitted by Gauss-Newton on log errors with Student weights, so that a
few measurements that are wrong do not bend the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hw_models.families import COLUMNS, FORMATS

Array = NDArray[np.float64]

SCALE_SPREAD, FORMAT_SPREAD, COLUMN_SPREAD = 2.0, 0.5, 0.5
"""Standard deviations, in natural logarithms, of how far a device departs from its data sheet altogether, between
number formats, and in one column: estimated, as wide as the published NPU tables scatter around our targets."""

NOISES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Levels of relative noise among which cross-validation chooses: the larger, the nearer to the prior."""

Fold = tuple[NDArray[np.intp], NDArray[np.intp]]
"""(training, test) positions."""

STUDENT_FREEDOM = 4.0
ITERATIONS = 30


@dataclass(frozen=True)
class FactorPrior:
    """What is believed before measuring: mean and spread of log factors, [COLUMNS] each, and of their common scale."""

    mean: Array
    spread: Array
    scale_spread: float = SCALE_SPREAD
    format_spread: float = FORMAT_SPREAD

    @classmethod
    def of_cost_model(cls) -> FactorPrior:
        """Factors of 1."""
        return cls(np.zeros(len(COLUMNS)), np.full(len(COLUMNS), COLUMN_SPREAD))


def fit_factors(
    columns_s: Array, measured_s: Array, prior: FactorPrior | None = None, noise: float | None = None
) -> tuple[Array, float]:
    """(factors [COLUMNS], noise) for columns_s [samples, COLUMNS] and measured_s [samples], all in seconds.

    noise: relative level at which measurements are believed; None chooses it by cross-validation. A column in which
    no sample spends time moves with the common steps only. Raises ValueError when a time is not positive.
    """
    columns_s, measured_s = np.asarray(columns_s, dtype=float), np.asarray(measured_s, dtype=float)
    if not len(measured_s) or not (np.isfinite(measured_s) & (measured_s > 0)).all():
        raise ValueError("measured times must be positive, and there must be at least one")
    if not (columns_s >= 0).all() or not (columns_s.sum(axis=1) > 0).all():
        raise ValueError("every sample must take some time under the cost model, and none in no column")
    prior = prior or FactorPrior.of_cost_model()
    if noise is None:
        noise = _choose_noise(columns_s, measured_s, prior)
    everything = np.ones((1, len(measured_s)), dtype=bool)
    return np.exp(_fit_many(columns_s, measured_s, prior, np.array([noise]), everything)[0]), noise


def fit_folds(
    columns_s: Array, measured_s: Array, prior: FactorPrior, noises: Sequence[float], pieces: Sequence[Fold]
) -> Array:
    """[noises, folds, COLUMNS] what `fit_factors` finds on the training samples of each fold, all at once."""
    kept = np.zeros((len(pieces), len(measured_s)), dtype=bool)
    for number, (train, _) in enumerate(pieces):
        kept[number, train] = True
    many = np.tile(kept, (len(noises), 1))
    logs = _fit_many(columns_s, measured_s, prior, np.repeat(noises, len(pieces)), many)
    return np.exp(logs).reshape(len(noises), len(pieces), len(COLUMNS))


def folds(count: int, most: int = 10) -> Iterator[Fold]:
    """(training, test) positions: every sample by itself up to twenty of them, then `most` folds. Fixed order."""
    order = np.random.default_rng(0).permutation(count)
    parts = count if count <= 20 else most
    for part in range(parts):
        test = order[part::parts]
        yield np.setdiff1d(order, test), test


def _choose_noise(columns_s: Array, measured_s: Array, prior: FactorPrior) -> float:
    """The level with the smallest error of held-out samples; the largest when there are under three."""
    if len(measured_s) < 3:
        return max(NOISES)
    pieces = list(folds(len(measured_s)))
    fitted = fit_folds(columns_s, measured_s, prior, NOISES, pieces)
    predicted = np.empty((len(NOISES), len(measured_s)))
    for number, (_, test) in enumerate(pieces):
        predicted[:, test] = fitted[:, number] @ columns_s[test].T
    return NOISES[int(np.argmin([robust_error(np.log(own / measured_s)) for own in predicted]))]


LARGE = 0.5
"""A log error beyond this is large: two thirds more, or two fifths less."""


def robust_error(log_errors: Array, most: float = LARGE) -> float:
    """Root mean square with no error counted as more than `most`: degenerate measurements cannot dominate it."""
    return float(np.sqrt(np.minimum(log_errors**2, most**2).mean()))


def _fit_many(columns_s: Array, measured_s: Array, prior: FactorPrior, noises: Array, kept: NDArray[np.bool_]) -> Array:
    """[fits, COLUMNS] log factors of fits that each have a noise [fits] and know some of the samples, kept [fits,
    samples].
    """
    all_steps, all_spreads = _steps(prior)
    # A column in which nobody spends time has no step of its own: it would stay at 0.
    used = columns_s.any(axis=0)
    shared = all_steps.shape[1] - len(COLUMNS)
    chosen = np.concatenate([np.ones(shared, dtype=bool), used])
    steps, spreads = all_steps[np.ix_(used, chosen)], all_spreads[chosen]
    seconds, mean = columns_s[:, used], prior.mean[used]
    log_measured, noises = np.log(measured_s), noises[:, None]
    # Start where the common scale alone fits best.
    u = np.zeros((len(kept), steps.shape[1]))
    off = np.where(kept, log_measured - np.log(seconds @ np.exp(mean)), np.nan)
    u[:, 0] = np.nanmedian(off, axis=1) / (1 + (noises[:, 0] / prior.scale_spread) ** 2 / kept.sum(axis=1))
    for _ in range(ITERATIONS):
        parts = seconds * np.exp(mean + u @ steps.T)[:, None, :]
        total = parts.sum(axis=2)
        residual = log_measured - np.log(total)
        weight = kept * (STUDENT_FREEDOM + 1) / (STUDENT_FREEDOM + (residual / noises) ** 2) / noises**2
        slope = (parts / total[:, :, None]) @ steps
        transposed = slope.transpose(0, 2, 1)
        curvature = transposed @ (weight[:, :, None] * slope) + np.diag(spreads**-2.0)
        downhill = (transposed @ (weight * residual)[:, :, None])[:, :, 0] - u / spreads**2
        move = np.linalg.solve(curvature, downhill[:, :, None])[:, :, 0]
        farthest = np.abs(move).max(axis=1, keepdims=True)
        u += move * np.minimum(1.0, 1.0 / np.maximum(farthest, 1e-12))  # no factor changes by more than e at once
        if farthest.max() < 1e-6:
            break
    return prior.mean + u @ all_steps[:, chosen].T


def _steps(prior: FactorPrior) -> tuple[Array, Array]:
    """How shared and single steps add up to log factors [COLUMNS, steps], and the spread of each step [steps]."""
    count = len(COLUMNS)
    by_format = [np.array([name.endswith(f"/{kind}") for name in COLUMNS], dtype=float) for kind in FORMATS]
    shared: Sequence[Array] = [np.ones(count), *by_format]
    spreads = [prior.scale_spread, *[prior.format_spread] * len(FORMATS), *prior.spread]
    return np.column_stack([*shared, np.eye(count)]), np.array(spreads)
