"""A latency as a sum of columns with weights that are not negative, and as a product of powers of other latencies.

Both learn from other devices: a device is like a mixture of devices, or between them. Columns are the cost model's
families, variants of them, and the latencies of the same things on other devices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ROBUST_ERROR = 0.1
ROUNDS = 8


def fit_mixture(columns_s: Array, measured_s: Array, strength: float, centre: Array | None = None) -> Array:
    """Weights >= 0, [columns], by non-negative least squares on the relative error, pulled towards `centre`.

    strength: of the pull, relative to what a column contributes to a latency on average. centre: weights [columns],
    0 by default. Samples more than 10 percent off count less (Cauchy weights).
    """
    from scipy.optimize import nnls

    relative = columns_s / measured_s[:, None]
    size = np.maximum(np.abs(relative).mean(axis=0), 1e-12)
    scaled = relative / size
    goal = (np.zeros(len(size)) if centre is None else centre) * size
    trust = np.ones(len(measured_s))
    weights = np.zeros(len(size))
    for _ in range(ROUNDS):
        rows = np.vstack([scaled * trust[:, None], strength * np.eye(len(size))])
        weights, _ = nnls(rows, np.concatenate([trust, strength * goal]))
        log_error = np.log(np.maximum(scaled @ weights, 1e-6))
        trust = 1 / np.sqrt(1 + (log_error / ROBUST_ERROR) ** 2)
    return weights / size


def fit_powers(logs: Array, measured_s: Array, strength: float) -> tuple[Array, float]:
    """(exponents [columns], log of the scale): ridge regression of log latency on `logs`, unpenalised scale."""
    from sklearn.linear_model import Ridge

    target = np.log(measured_s)
    model = Ridge(alpha=strength).fit(logs, np.maximum(target, np.median(target) - 4))
    return np.asarray(model.coef_), float(model.intercept_)
