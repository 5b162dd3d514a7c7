"""Positive factors on the cost model's times, one per column of `hw_models.families`, from few measurements.

A latency is modelled as sum_c exp(theta_c) * seconds_c, so every factor is positive. theta is the prior's mean plus
steps that are shared: by all columns (how fast the device is altogether), by a number format, and a column's own.
Shared steps cost less than single ones, so that a handful of measurements first says how fast the device is, and many
say how fast each kind of kernel is. Steps are fitted by Gauss-Newton on log errors with Student weights, so that a
few measurements that are wrong do not bend the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    return np.exp(_fit(columns_s, measured_s, prior, noise)), noise


def folds(count: int, most: int = 10) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """(training, test) positions: every sample by itself up to twenty of them, then `most` folds. Fixed order."""
    order = np.random.default_rng(0).permutation(count)
    parts = count if count <= 20 else most
    for part in range(parts):
        test = order[part::parts]
        yield np.setdiff1d(order, test), test


def held_out(count: int, predict: Callable[[NDArray[np.intp], NDArray[np.intp]], Array]) -> Array:
    """[count] predictions, each made without the sample: predict(training, test) -> [test]."""
    predicted = np.empty(count)
    for train, test in folds(count):
        predicted[test] = predict(train, test)
    return predicted


def _choose_noise(columns_s: Array, measured_s: Array, prior: FactorPrior) -> float:
    """The level with the smallest error of held-out samples; the largest when there are under three."""
    if len(measured_s) < 3:
        return NOISES[2]
    errors = []
    for noise in NOISES:

        def predict(train: NDArray[np.intp], test: NDArray[np.intp], noise: float = noise) -> Array:
            return columns_s[test] @ np.exp(_fit(columns_s[train], measured_s[train], prior, noise))

        errors.append(robust_error(np.log(held_out(len(measured_s), predict) / measured_s)))
    return NOISES[int(np.argmin(errors))]


def robust_error(log_errors: Array) -> float:
    """Root mean square with no error counted as more than 0.5: degenerate measurements cannot dominate it."""
    return float(np.sqrt(np.minimum(log_errors**2, 0.25).mean()))


def _fit(columns_s: Array, measured_s: Array, prior: FactorPrior, noise: float) -> Array:
    """Log factors [COLUMNS]."""
    steps, spreads = _steps(prior)
    log_measured = np.log(measured_s)
    # Start where the common scale alone fits best.
    u = np.zeros(steps.shape[1])
    shift = np.median(log_measured - np.log(columns_s @ np.exp(prior.mean)))
    u[0] = shift / (1 + (noise / prior.scale_spread) ** 2 / len(measured_s))
    for _ in range(ITERATIONS):
        parts = columns_s * np.exp(prior.mean + steps @ u)
        total = parts.sum(axis=1)
        residual = log_measured - np.log(total)
        weight = (STUDENT_FREEDOM + 1) / (STUDENT_FREEDOM + (residual / noise) ** 2) / noise**2
        slope = (parts / total[:, None]) @ steps
        curvature = slope.T @ (weight[:, None] * slope) + np.diag(spreads**-2.0)
        move = np.linalg.solve(curvature, slope.T @ (weight * residual) - u / spreads**2)
        move *= min(1.0, 1.0 / max(np.abs(move).max(), 1e-12))  # no factor changes by more than e at once
        u += move
        if np.abs(move).max() < 1e-6:
            break
    return prior.mean + steps @ u


def _steps(prior: FactorPrior) -> tuple[Array, Array]:
    """How shared and single steps add up to log factors [COLUMNS, steps], and the spread of each step [steps]."""
    count = len(COLUMNS)
    by_format = [np.array([name.endswith(f"/{kind}") for name in COLUMNS], dtype=float) for kind in FORMATS]
    shared: Sequence[Array] = [np.ones(count), *by_format]
    spreads = [prior.scale_spread, *[prior.format_spread] * len(FORMATS), *prior.spread]
    return np.column_stack([*shared, np.eye(count)]), np.array(spreads)
