"""Which members make up a latency predictor: cross-validation chooses them and their weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hw_models.factors import LARGE, NOISES, FactorPrior, fit_folds, folds, robust_error
from hw_models.members import Blend, Recipe, fit_member
from hw_models.residual import KINDS, ResidualKind
from hw_models.samples import Samples

Array = NDArray[np.float64]

MIXTURE_STRENGTHS = (0.03, 0.1, 0.3)
POWER_STRENGTHS = (1.0, 4.0)

CHOICE_FOLDS = 5
"""Folds on which members are compared, with more than twenty samples."""

QUARTERS = 4
EVENNESS = 0.15
"""Weights of members are multiples of a quarter; all weight on one costs up to this share of the held-out error."""

OPTIMISM = 1.0
"""Members with factors or residuals of their own were chosen among several on the same samples: their held-out error is
counted this share over the number of samples higher (a tenth with ten samples, a hundredth with a hundred): estimated.
So what is hardly better than the cost model leaves it as it is."""

UNFITTED = ("plain", "scale", "powers")
"""Bases that learn a common speed, and of references their exponents."""

CAP = 2.0
"""Errors count up to this many times the median error of the prior, where that is more than LARGE: on a device that the
prior misses by more than LARGE on most networks, all members would else be equally bad."""


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
    if prior.mean.any():
        finalists.append(Recipe("plain", 0.0))
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
        pieces = list(folds(len(samples), CHOICE_FOLDS))
        self.pieces = [(test, samples.take(train), samples.take(test)) for train, test in pieces]
        self.found: dict[Recipe, Array] = {}
        self.factors = fit_folds(samples.columns_s, samples.measured_s, prior, NOISES, pieces)
        unfitted = np.log(self.held_out(Recipe("scale", 0.0)) / samples.measured_s)
        self.most = max(LARGE, CAP * float(np.median(np.abs(unfitted))))

    def held_out(self, recipe: Recipe) -> Array:
        if recipe not in self.found:
            predicted = np.empty(len(self.samples))
            for number, (test, training, left_out) in enumerate(self.pieces):
                known = self.factors[NOISES.index(recipe.strength), number] if recipe.base == "factors" else None
                predicted[test] = fit_member(recipe, training, self.prior, known).predict(left_out)
            self.found[recipe] = predicted
        return self.found[recipe]

    def error(self, predicted: Array) -> float:
        return robust_error(np.log(predicted / self.samples.measured_s), self.most)

    def best(self, recipes: Sequence[Recipe]) -> Recipe:
        return min(recipes, key=lambda recipe: self.error(self.held_out(recipe)))

    def blend(self, recipes: Sequence[Recipe]) -> Choice:
        """The weights, in quarters, that predict best together. Even weights are preferred a little: an average of
        members errs less on what is new than the one that was luckiest on few samples.
        """
        held_out = np.stack([self.held_out(recipe) for recipe in recipes])
        weights = [np.array(parts) / QUARTERS for parts in _partitions(QUARTERS, len(recipes))]
        fitted = np.array([recipe.base not in UNFITTED or recipe.residual is not None for recipe in recipes])
        penalty = [
            (1 + EVENNESS * (own.max() - 1 / len(recipes))) * (1 + OPTIMISM * own[fitted].sum() / len(self.samples))
            for own in weights
        ]
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


def fit_choice(choice: Choice, samples: Samples, prior: FactorPrior) -> Blend:
    """The chosen members, fitted on all of `samples`."""
    return Blend(tuple(fit_member(recipe, samples, prior) for recipe in choice.recipes), choice.weights)
