"""A latency predictor calibrated by measurements, with an interval: the cost model is its prior.

Members are fitted on the cost model's times (`hw_models.families`): positive factors with shared steps, non-negative
mixtures, and either of them with a residual over kernel features that takes over as measurements grow. Where the same
things were measured on other devices, mixtures may use those latencies as columns, and a power law of them is one more
member. Cross-validation chooses members and their weights. All but the power law are sums over kernels, so a block's
time does not depend on the network around it and can be tabulated.

Intervals are CV+ intervals (Barber, Candes, Ramdas, Tibshirani 2021, "Predictive inference with the jackknife+",
sections 1.3 and 3) on the log error; with up to twenty samples every fold is one sample: the jackknife+.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

from hw_models.factors import NOISES, FactorPrior, fit_factors, folds, robust_error
from hw_models.families import COLUMNS, Units
from hw_models.mixture import fit_mixture, fit_powers
from hw_models.residual import KINDS, Residual, ResidualKind, apply_residual, fit_residual
from hw_models.samples import Samples

Array = NDArray[np.float64]
Positions = NDArray[np.intp]

LEAST_SAMPLES = 10
"""Measurements needed: a 90 percent interval of the jackknife+ needs nine, and cross-validation one to spare."""

LEVEL = 0.9
"""Share of latencies that an interval is to hold."""

MIXTURE_STRENGTHS = (0.03, 0.1, 0.3)
POWER_STRENGTHS = (1.0, 4.0)
LOG_SIZE = 0.4
"""Typical spread of log latencies of one space's networks, which makes the strengths of power laws comparable."""

CHOICE_FOLDS = 5
"""Folds on which members are compared, with more than twenty samples."""

QUARTERS = 4
EVENNESS = 0.15
"""Weights of members are multiples of a quarter; all weight on one costs up to this share of the held-out error."""


class TooFewSamples(ValueError):
    """Fewer measurements than a calibration needs; `needed` says how many."""

    def __init__(self, count: int, needed: int = LEAST_SAMPLES) -> None:
        super().__init__(f"a calibration needs at least {needed} measurements, but there are {count}")
        self.count, self.needed = count, needed


@dataclass(frozen=True)
class Recipe:
    """How a member is fitted. base: "scale" (the prior's factors at the device's common speed), "factors", "mixture"
    or "powers"; strength: how near it stays to its prior.
    """

    base: str
    strength: float
    residual: ResidualKind | None = None

    def __str__(self) -> str:
        rest = f" and {self.residual.name} residual ({self.residual.strength:g})" if self.residual else ""
        return f"{self.base} ({self.strength:g}){rest}"


@dataclass(frozen=True)
class Additive:
    """weights: per column of the cost model; extras: per column of variants, then references, of a sample."""

    weights: Array
    extras: Array
    residual: Residual | None = None

    def unit_s(self, units: Units) -> Array:
        """[units] seconds of every piece."""
        return units.seconds * self.weights[units.column] * apply_residual(self.residual, units.features)

    def predict(self, samples: Samples) -> Array:
        """[samples] seconds."""
        total = samples.sum_units(self.unit_s(samples.units))
        if len(self.extras):
            total = total + _extras(samples) @ self.extras
        return np.maximum(total, 1e-12)


@dataclass(frozen=True)
class PowerLaw:
    """exp(scale + exponents . log references): not a sum over kernels."""

    exponents: Array
    scale: float

    def predict(self, samples: Samples) -> Array:
        return np.exp(self.scale + _logs(samples) @ self.exponents)


Member = Additive | PowerLaw


@dataclass(frozen=True)
class Choice:
    """Which members make up a predictor, and their weights, which sum to 1. Plain data: it can be stored."""

    recipes: tuple[Recipe, ...]
    weights: tuple[float, ...]

    def __str__(self) -> str:
        return " + ".join(f"{weight:g} x {recipe}" for weight, recipe in zip(self.weights, self.recipes, strict=True))

    def to_dict(self) -> list[dict[str, object]]:
        return [
            {
                "weight": weight,
                "base": recipe.base,
                "strength": recipe.strength,
                "residual": recipe.residual and [recipe.residual.name, recipe.residual.strength, recipe.residual.least],
            }
            for weight, recipe in zip(self.weights, self.recipes, strict=True)
        ]

    @classmethod
    def from_dict(cls, data: Sequence[dict[str, object]]) -> Choice:
        """Inverse of `to_dict`."""
        recipes = []
        for entry in data:
            residual = entry["residual"]
            kind = ResidualKind(*residual) if isinstance(residual, list) else None
            recipes.append(Recipe(str(entry["base"]), float(str(entry["strength"])), kind))
        return cls(tuple(recipes), tuple(float(str(entry["weight"])) for entry in data))


@dataclass(frozen=True)
class Blend:
    """Members with their weights."""

    members: tuple[Member, ...]
    weights: tuple[float, ...]

    def predict(self, samples: Samples) -> Array:
        """[samples] seconds."""
        return np.sum(
            [w * member.predict(samples) for w, member in zip(self.weights, self.members, strict=True)], axis=0
        )

    def unit_s(self, units: Units) -> Array:
        """[units] seconds. Raises ValueError when a member is no sum over kernels."""
        total = np.zeros(len(units))
        for weight, member in zip(self.weights, self.members, strict=True):
            if not isinstance(member, Additive) or len(member.extras):
                raise ValueError("a predictor that uses other devices' latencies cannot be tabulated")
            total += weight * member.unit_s(units)
        return total


@dataclass(frozen=True)
class Predictor:
    """A calibrated predictor. held_out_s: [samples] predictions of its own samples, each made without it."""

    choice: Choice
    fold_choices: tuple[Choice, ...]
    blend: Blend
    fold_blends: tuple[Blend, ...]
    fold_of: Positions
    held_out_s: Array
    measured_s: Array

    def predict(self, samples: Samples) -> Array:
        """[samples] seconds."""
        return self.blend.predict(samples)

    def interval(self, samples: Samples, level: float = LEVEL) -> tuple[Array, Array]:
        """(low, high) seconds, [samples] each, between which a share `level` of latencies lies."""
        return self.interval_of(np.stack([blend.predict(samples) for blend in self.fold_blends]), level)

    def interval_of(self, fold_s: Array, level: float = LEVEL) -> tuple[Array, Array]:
        """The same from the predictions of every fold's blend, [folds, things].

        Raises TooFewSamples when the level cannot be had from so few.
        """
        self._check(level)
        logs, errors, alpha = np.log(fold_s), np.abs(self.log_errors), 1 - level
        count = len(errors)
        low = _ranked(logs, self.fold_of, -errors, floor(alpha * (count + 1) + 1e-9))
        high = _ranked(logs, self.fold_of, errors, ceil(level * (count + 1) - 1e-9))
        return np.exp(low), np.exp(high)

    def upper_of(self, fold_s: Array, risk: float) -> Array:
        """[things] seconds that a latency exceeds in a share 1 - risk of cases."""
        self._check(risk)
        rank = ceil(risk * (len(self.log_errors) + 1) - 1e-9)
        return np.exp(_ranked(np.log(fold_s), self.fold_of, self.log_errors, rank))

    def _check(self, level: float) -> None:
        needed = ceil(level / (1 - level) - 1e-9)
        if len(self.measured_s) < needed:
            raise TooFewSamples(len(self.measured_s), needed)

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
    return _fit_blend(choose(samples, prior), samples, prior)


def refit_predictor(
    samples: Samples, choice: Choice, fold_choices: Sequence[Choice], prior: FactorPrior | None = None
) -> Predictor:
    """The predictor of choices that were made before: the same samples give the same numbers."""
    prior = prior or FactorPrior.of_cost_model()
    fold_of, held_out = np.empty(len(samples), dtype=np.intp), np.empty(len(samples))
    blends = []
    for number, (train, test) in enumerate(folds(len(samples))):
        blends.append(_fit_blend(fold_choices[number], samples.take(train), prior))
        fold_of[test], held_out[test] = number, blends[-1].predict(samples.take(test))
    whole = _fit_blend(choice, samples, prior)
    return Predictor(choice, tuple(fold_choices), whole, tuple(blends), fold_of, held_out, samples.measured_s)


def choose(samples: Samples, prior: FactorPrior | None = None) -> Choice:
    """Members and weights with the smallest held-out error."""
    prior = prior or FactorPrior.of_cost_model()
    trial = _Trial(samples, prior)
    bases = [
        Recipe("scale", 0.0),
        trial.best([Recipe("factors", noise) for noise in NOISES]),
        trial.best([Recipe("mixture", strength) for strength in MIXTURE_STRENGTHS]),
    ]
    if samples.references_s.shape[1]:
        bases.append(trial.best([Recipe("powers", strength) for strength in POWER_STRENGTHS]))
    finalists = list(bases)
    if samples.units.features.any():
        kinds = [kind for kind in KINDS if kind.least <= len(samples)]
        for name in dict.fromkeys(kind.name for kind in kinds):
            own = [replace(base, residual=kind) for base in bases[1:2] for kind in kinds if kind.name == name]
            finalists.append(trial.best(own))
    return trial.blend(finalists)


class _Trial:
    """Held-out predictions of recipes on the same folds."""

    def __init__(self, samples: Samples, prior: FactorPrior) -> None:
        self.samples, self.prior = samples, prior
        self.pieces = [
            (test, samples.take(train), samples.take(test)) for train, test in folds(len(samples), CHOICE_FOLDS)
        ]
        self.found: dict[Recipe, Array] = {}

    def held_out(self, recipe: Recipe) -> Array:
        if recipe not in self.found:
            predicted = np.empty(len(self.samples))
            for test, training, left_out in self.pieces:
                predicted[test] = fit_member(recipe, training, self.prior).predict(left_out)
            self.found[recipe] = predicted
        return self.found[recipe]

    def error(self, predicted: Array) -> float:
        return robust_error(np.log(predicted / self.samples.measured_s))

    def best(self, recipes: Sequence[Recipe]) -> Recipe:
        return min(recipes, key=lambda recipe: self.error(self.held_out(recipe)))

    def blend(self, recipes: Sequence[Recipe]) -> Choice:
        """The weights, in quarters, that predict best together. Even weights are preferred a little: an average of
        members errs less on what is new than the one that was luckiest on few samples.
        """
        held_out = np.stack([self.held_out(recipe) for recipe in recipes])
        weights = [np.array(parts) / QUARTERS for parts in _partitions(QUARTERS, len(recipes))]
        penalty = [1 + EVENNESS * (own.max() - 1 / len(recipes)) for own in weights]
        errors = [self.error(own @ held_out) * factor for own, factor in zip(weights, penalty, strict=True)]
        best = weights[int(np.argmin(errors))]
        kept = [index for index in range(len(recipes)) if best[index]]
        return Choice(tuple(recipes[index] for index in kept), tuple(float(best[index]) for index in kept))


def _partitions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write `total` as a sum of `parts` whole numbers >= 0, the first part largest first."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total, -1, -1):
        for rest in _partitions(total - first, parts - 1):
            yield (first, *rest)


def _fit_blend(choice: Choice, samples: Samples, prior: FactorPrior) -> Blend:
    return Blend(tuple(fit_member(recipe, samples, prior) for recipe in choice.recipes), choice.weights)


def fit_member(recipe: Recipe, samples: Samples, prior: FactorPrior) -> Member:
    """One member, fitted on all of `samples`."""
    if recipe.base == "powers":
        return PowerLaw(*fit_powers(_logs(samples), samples.measured_s, recipe.strength))
    extras = np.zeros(0)
    if recipe.base == "scale":
        weights = _scaled(samples, prior)
    elif recipe.base == "factors":
        weights, _ = fit_factors(samples.columns_s, samples.measured_s, prior, recipe.strength)
    else:
        weights, extras = _mixture(recipe.strength, samples, prior)
    member = Additive(weights, extras)
    if recipe.residual is None:
        return member
    residual = fit_residual(recipe.residual, samples, member.unit_s(samples.units))
    return replace(member, residual=residual)


def _mixture(strength: float, samples: Samples, prior: FactorPrior) -> tuple[Array, Array]:
    """Pulled towards the prior's factors at the device's common scale; towards nothing when other columns may take
    their place.
    """
    extras = _extras(samples)
    columns = np.column_stack([samples.columns_s, extras])
    centre = np.zeros(columns.shape[1])
    if not extras.shape[1]:
        centre = _scaled(samples, prior)
    weights = fit_mixture(columns, samples.measured_s, strength, centre)
    return weights[: len(COLUMNS)], weights[len(COLUMNS) :]


def _scaled(samples: Samples, prior: FactorPrior) -> Array:
    """The prior's factors times the median of what is measured over what they predict."""
    expected = np.exp(prior.mean)
    return expected * np.exp(np.median(np.log(samples.measured_s / (samples.columns_s @ expected))))


def _extras(samples: Samples) -> Array:
    return np.column_stack([samples.variants_s, samples.references_s])


def _logs(samples: Samples) -> Array:
    return np.log(samples.references_s) / LOG_SIZE
