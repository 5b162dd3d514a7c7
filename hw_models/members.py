"""Members of a latency predictor: how one is fitted, and what it predicts; and blends of several."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hw_models.factors import FactorPrior, fit_factors
from hw_models.families import COLUMNS, Units
from hw_models.mixture import fit_mixture, fit_powers
from hw_models.residual import Residual, ResidualKind, apply_residual, fit_residual
from hw_models.samples import Samples

Array = NDArray[np.float64]

LOG_SIZE = 0.4
"""Typical spread of log latencies of one space's networks, which makes the strengths of power laws comparable."""


@dataclass(frozen=True)
class Recipe:
    """How a member is fitted. base: "plain" (the cost model at the device's common speed), "scale" (the prior's factors
    at that speed), "factors", "mixture" or "powers"; strength: how near it stays to its prior.
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


def fit_member(recipe: Recipe, samples: Samples, prior: FactorPrior, factors: Array | None = None) -> Member:
    """One member, fitted on all of `samples`. factors: those of a recipe with the base "factors", if known."""
    if recipe.base == "powers":
        return PowerLaw(*fit_powers(_logs(samples), samples.measured_s, recipe.strength))
    extras = np.zeros(0)
    if recipe.base == "plain":
        weights = _scaled(samples, FactorPrior.of_cost_model())
    elif recipe.base == "scale":
        weights = _scaled(samples, prior)
    elif recipe.base == "factors":
        if factors is None:
            factors, _ = fit_factors(samples.columns_s, samples.measured_s, prior, recipe.strength)
        weights = factors
    elif recipe.base == "mixture":
        weights, extras = _mixture(recipe.strength, samples, prior)
    else:
        raise ValueError(f"unknown base {recipe.base!r} of a recipe")
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
