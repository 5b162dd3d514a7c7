"""What factors leave over, as a function of a kernel's features that multiplies its time.

A sample's log error is modelled as the mean of g over its kernels, weighted by their shares of its time: to first
order the log of a sum in which every kernel's time is multiplied by exp(g). So g is learned from whole networks and
from blocks alike, and is applied kernel by kernel: what a block takes does not depend on the network around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hw_models.families import KERNEL_FEATURES
from hw_models.samples import Samples

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Array = NDArray[np.float64]
Positions = NDArray[np.intp]

LIMIT = 1.5
"""No kernel is corrected by more than exp(1.5), about 4.5 times: beyond that a residual extrapolates."""


class Residual(Protocol):
    """A fitted g: features [kernels, FEATURES] -> [kernels]."""

    def __call__(self, features: Array) -> Array: ...


@dataclass(frozen=True)
class ResidualKind:
    """Which family of functions g comes from: "ridge" (linear), "gp" (Gaussian process), "boosting" (trees).

    strength: the larger, the nearer g stays to 0; least: samples below which it is not tried.
    """

    name: str
    strength: float
    least: int


KINDS = (
    ResidualKind("ridge", 1.0, 10),
    ResidualKind("ridge", 10.0, 10),
    ResidualKind("gp", 0.1, 15),
    ResidualKind("gp", 0.03, 60),
    ResidualKind("boosting", 1.0, 60),
)


def fit_residual(kind: ResidualKind, samples: Samples, unit_s: Array) -> Residual:
    """g for samples whose units take unit_s [units] seconds so far."""
    log_error = np.clip(np.log(samples.measured_s / samples.sum_units(unit_s)), -LIMIT, LIMIT)
    share = unit_s / samples.sum_units(unit_s)[samples.owner]
    features = samples.units.features
    known = features.any(axis=1)
    # Features that only a library's kernels have are left out where no kernel has one.
    kept = np.arange(features.shape[1]) < len(KERNEL_FEATURES)
    kept |= features.any(axis=0)
    features = np.ascontiguousarray(features[:, kept])
    if kind.name == "gp":
        return _OfSome(kept, _fit_process(kind, samples, features, log_error, share * known))
    mean = _shares(samples.owner, np.arange(len(share)), share, (len(samples), len(share))) @ features
    return _OfSome(kept, _fit_means(kind, mean, log_error))


def _shares(owner: Positions, kernel: Positions, share: Array, shape: tuple[int, int]) -> csr_array:
    """[samples, kernels] what of a sample's time each kernel takes, as a sparse matrix."""
    from scipy.sparse import csr_array

    return csr_array((share, (owner, kernel)), shape)


@dataclass(frozen=True)
class _OfSome:
    """A residual that knows the kept features alone. kept: [FEATURES] bool."""

    kept: NDArray[np.bool_]
    residual: Residual

    def __call__(self, features: Array) -> Array:
        return self.residual(np.ascontiguousarray(features[:, self.kept]))


def apply_residual(residual: Residual | None, features: Array) -> Array:
    """exp(g) per unit; 1 for launches and starts, which have no features."""
    if residual is None or not len(features):
        return np.ones(len(features))
    known = features.any(axis=1)
    factor = np.ones(len(features))
    if known.any():
        factor[known] = np.exp(np.clip(residual(features[known]), -LIMIT, LIMIT))
    return factor


def _fit_means(kind: ResidualKind, mean: Array, log_error: Array) -> Residual:
    """A function of features, learned from share-weighted mean features [samples, FEATURES]."""
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.linear_model import Ridge

    if kind.name == "ridge":
        return _Linear(Ridge(alpha=kind.strength, fit_intercept=False).fit(mean, log_error).coef_)
    return _Trees(
        GradientBoostingRegressor(
            n_estimators=40, max_depth=3, learning_rate=0.12, min_samples_leaf=5, random_state=0
        ).fit(mean, log_error)
    )


@dataclass(frozen=True)
class _Linear:
    """weights: per feature."""

    weights: Array

    def __call__(self, features: Array) -> Array:
        return np.asarray(features @ self.weights)


@dataclass(frozen=True)
class _Trees:
    """A fitted regressor of scikit-learn."""

    model: Any

    def __call__(self, features: Array) -> Array:
        return np.asarray(self.model.predict(features))


@dataclass
class _Process:
    """Posterior mean of a Gaussian process over kernels that was seen through share-weighted sums."""

    known: Array
    weights: Array
    reach: float

    def __call__(self, features: Array) -> Array:
        return _kernel(features, self.known, self.reach) @ self.weights


def _kernel(left: Array, right: Array, reach: float) -> Array:
    from sklearn.metrics.pairwise import rbf_kernel

    return np.asarray(rbf_kernel(left, right, gamma=0.5 / reach**2))


AMPLITUDE, REACH = 0.25, 1.0
"""Standard deviation of g, and distance in features over which it changes: estimated. Cross-validation decides how far
measurements are believed (the strength)."""

INDUCING = 300
"""Kernels on which a process stands when there are more: hundreds of measurements hold thousands of kernels, and all
of them would take minutes."""


def _fit_process(kind: ResidualKind, samples: Samples, features: Array, log_error: Array, share: Array) -> Residual:
    """On a subset of the kernels, the subset of regressors (Quinonero-Candela and Rasmussen 2005, JMLR 6, section 4);
    with all of them it is the process itself.
    """
    timed = share > 0
    distinct, which = np.unique(features[timed], axis=0, return_inverse=True)  # a third as many in a search space
    shares = _shares(samples.owner[timed], which.ravel(), share[timed], (len(samples), len(distinct)))
    known = distinct
    if len(known) > INDUCING:
        known = known[np.sort(np.random.default_rng(0).choice(len(known), INDUCING, replace=False))]
    # seen[s, i]: covariance of a sample's error with g at an inducing kernel.
    seen = AMPLITUDE**2 * (shares @ _kernel(distinct, known, REACH))
    prior = AMPLITUDE**2 * _kernel(known, known, REACH)
    jitter = 1e-8 * AMPLITUDE**2 * np.eye(len(known))
    curvature = seen.T @ seen + kind.strength**2 * prior + jitter
    weights = np.asarray(np.linalg.solve(curvature, seen.T @ log_error), dtype=np.float64)
    return _Process(known, AMPLITUDE**2 * weights, REACH)
