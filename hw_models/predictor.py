"""A latency predictor calibrated by measurements, with an interval: the cost model is its prior.

Members are fitted on the cost model's times (`hw_models.families`): positive factors with shared steps, non-negative
mixtures, and either of them with a residual over kernel features that takes over as measurements grow. Where the same
things were measured on other devices, mixtures may use those latencies as columns, and a power law of them is one more
member. Cross-validation chooses members and their weights. All but the power law are sums over kernels, so a block's
time does not depend on the network around it and can be tabulated.

Intervals are CV+ intervals (Barber, Candes, Ramdas, Tibshirani 2021, "Predictive inference with the jackknife+",
sections 1.3 and 3) on the log error; with up to twenty samples every fold is one sample: the jackknife+. Errors of
blocks average out in networks, so each kind has intervals of its own errors once enough of it were measured (Mondrian
conformal prediction: Vovk, Gammerman, Shafer 2005, "Algorithmic Learning in a Random World", section 4.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

from hw_models.choice import Choice, choose, fit_choice
from hw_models.factors import FactorPrior, folds
from hw_models.members import Blend
from hw_models.samples import Samples

Array = NDArray[np.float64]
Positions = NDArray[np.intp]

LEAST_SAMPLES = 10
"""Measurements needed: a 90 percent interval of the jackknife+ needs nine, and cross-validation one to spare."""

LEAST_OF_A_KIND = 19
"""Measured networks, or blocks, from which on their intervals are made of their own errors alone: with fewer, the one
largest error would decide a 90 percent interval."""

LEVEL = 0.9
"""Share of latencies that an interval is to hold."""


class TooFewSamples(ValueError):
    """Fewer measurements than a calibration needs; `needed` says how many."""

    def __init__(self, count: int, needed: int = LEAST_SAMPLES) -> None:
        super().__init__(f"a calibration needs at least {needed} measurements, but there are {count}")
        self.count, self.needed = count, needed


@dataclass(frozen=True)
class Predictor:
    """A calibrated predictor. held_out_s: [samples] predictions of its own samples, each made without it; is_network:
    [samples] which of them are networks, not blocks.
    """

    choice: Choice
    fold_choices: tuple[Choice, ...]
    blend: Blend
    fold_blends: tuple[Blend, ...]
    fold_of: Positions
    held_out_s: Array
    measured_s: Array
    is_network: NDArray[np.bool_]

    def predict(self, samples: Samples) -> Array:
        """[samples] seconds."""
        return self.blend.predict(samples)

    def interval(self, samples: Samples, level: float = LEVEL) -> tuple[Array, Array]:
        """(low, high) seconds, [samples] each, between which a share `level` of latencies lies."""
        fold_s = np.stack([blend.predict(samples) for blend in self.fold_blends])
        low, high = np.empty(len(samples)), np.empty(len(samples))
        for networks in (False, True):
            own = samples.is_network == networks
            low[own], high[own] = self.interval_of(fold_s[:, own], level, networks)
        return low, high

    def interval_of(self, fold_s: Array, level: float = LEVEL, networks: bool = True) -> tuple[Array, Array]:
        """The same from the predictions of every fold's blend, [folds, things]. networks: or blocks.

        Raises TooFewSamples when the level cannot be had from so few.
        """
        like = self.like(networks, level)
        logs, errors, alpha = np.log(fold_s), np.abs(self.log_errors[like]), 1 - level
        count = len(errors)
        low = _ranked(logs, self.fold_of[like], -errors, floor(alpha * (count + 1) + 1e-9))
        high = _ranked(logs, self.fold_of[like], errors, ceil(level * (count + 1) - 1e-9))
        return np.exp(low), np.exp(high)

    def upper_of(self, fold_s: Array, risk: float) -> Array:
        """[networks] seconds that a latency exceeds in a share 1 - risk of cases. Raises as `interval_of`."""
        like = self.like(True, risk)
        rank = ceil(risk * (len(like) + 1) - 1e-9)
        return np.exp(_ranked(np.log(fold_s), self.fold_of[like], self.log_errors[like], rank))

    def like(self, networks: bool, level: float = LEVEL) -> Positions:
        """Samples whose errors tell of networks, or of blocks: their own kind where it suffices for the level.

        Raises TooFewSamples when not even both kinds do.
        """
        needed = ceil(level / (1 - level) - 1e-9)
        own = np.flatnonzero(self.is_network == networks)
        if len(own) >= max(needed, LEAST_OF_A_KIND):
            return own
        if len(self.measured_s) < needed:
            raise TooFewSamples(len(self.measured_s), needed)
        return np.arange(len(self.measured_s))

    @cached_property
    def log_errors(self) -> Array:
        """[samples] log of measured over held-out prediction."""
        return np.log(self.measured_s / self.held_out_s)


def _ranked(logs: Array, fold_of: Positions, errors: Array, rank: int) -> Array:
    """The rank-th smallest (from 1) of log prediction of a sample's fold + its error, for every thing [things]."""
    found = np.empty(logs.shape[1])
    for start in range(0, logs.shape[1], 4096):  # bounds the memory of [samples, things]
        piece = logs[:, start : start + 4096][fold_of] + errors[:, None]
        found[start : start + 4096] = np.partition(piece, rank - 1, axis=0)[rank - 1]
    return found


def fit_predictor(samples: Samples, prior: FactorPrior | None = None) -> Predictor:
    """Calibrate on measured samples. prior: of the factors; the cost model itself by default.

    Raises TooFewSamples under `LEAST_SAMPLES`, ValueError when a measured time is not positive.
    """
    if len(samples) < LEAST_SAMPLES:
        raise TooFewSamples(len(samples))
    if not (np.isfinite(samples.measured_s) & (samples.measured_s > 0)).all():
        raise ValueError("measured times must be positive")
    prior = prior or FactorPrior.of_cost_model()
    # Every fold chooses for itself: an interval that did not count the choice would be too narrow.
    fold_choices = tuple(choose(samples.take(train), prior) for train, _ in folds(len(samples)))
    return refit_predictor(samples, choose(samples, prior), fold_choices, prior)


def fit_blend(samples: Samples, prior: FactorPrior | None = None) -> Blend:
    """As `fit_predictor`, but predictions alone, without intervals: in a tenth of the time."""
    prior = prior or FactorPrior.of_cost_model()
    return fit_choice(choose(samples, prior), samples, prior)


def refit_predictor(
    samples: Samples, choice: Choice, fold_choices: Sequence[Choice], prior: FactorPrior | None = None
) -> Predictor:
    """The predictor of choices that were made before: the same samples give the same numbers."""
    prior = prior or FactorPrior.of_cost_model()
    fold_of, held_out = np.empty(len(samples), dtype=np.intp), np.empty(len(samples))
    blends = []
    for number, (train, test) in enumerate(folds(len(samples))):
        blends.append(fit_choice(fold_choices[number], samples.take(train), prior))
        fold_of[test], held_out[test] = number, blends[-1].predict(samples.take(test))
    whole = fit_choice(choice, samples, prior)
    measured_s, is_network = samples.measured_s, samples.is_network
    return Predictor(choice, tuple(fold_choices), whole, tuple(blends), fold_of, held_out, measured_s, is_network)
