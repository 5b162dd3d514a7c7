"""What measured devices say about one that was not measured, or hardly: family factors, their spread, their errors.

Devices of the same vendor's stack count most, others of the same kind less, and other kinds not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw_models.factors import COLUMN_SPREAD, SCALE_SPREAD, FactorPrior, fit_factors
from hw_models.families import COLUMNS
from hw_models.samples import Samples
from hw_models.target import Target
from hw_models.target_file import load_target

Array = NDArray[np.float64]

SAME_STACK_WEIGHT = 4.0
"""A device of the same stack counts as much as this many others: estimated."""

INFORMATIVE_SHARE = 0.02
"""A column tells of a device when it takes at least this share of the predicted time on average."""

PUBLISHED = Path(__file__).parent / "packs" / "published_factors.json"


@dataclass(frozen=True)
class DeviceFactors:
    """Factors of one measured device, precision and runtime.

    log_factors: column -> natural logarithm, of the informative columns only. log_errors: measured over predicted, of
    every sample, when the prediction came from the other devices of its kind alone; empty when there are none. batch:
    images at once that all its samples are of.
    """

    device: str
    target: str
    precision: str
    runtime: str
    samples: int
    log_factors: Mapping[str, float]
    log_errors: tuple[float, ...] = ()
    batch: int = 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DeviceFactors:
        return cls(**{**data, "log_errors": tuple(data["log_errors"])})


@lru_cache(maxsize=64)
def stack_of(target: str) -> tuple[str, str]:
    """(kind, stack) of a target that ships, by name."""
    known = load_target(target)
    return known.kind, known.stack


@lru_cache(maxsize=1)
def published_factors() -> tuple[DeviceFactors, ...]:
    """Factors of the devices of published tables, as the package ships them; see benchmarks/published_latency.py."""
    data = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return tuple(DeviceFactors.from_dict(entry) for entry in data["devices"])


def measured_factors(
    samples: Samples, *, device: str, target: str, precision: str = "", runtime: str = ""
) -> DeviceFactors:
    """The factors of a device that was measured."""
    factors, _ = fit_factors(samples.columns_s, samples.measured_s)
    share = (samples.columns_s / samples.prior_s[:, None]).mean(axis=0)
    known = {COLUMNS[index]: float(np.log(factors[index])) for index in np.flatnonzero(share >= INFORMATIVE_SHARE)}
    return DeviceFactors(device, target, precision, runtime, len(samples), known)


@dataclass(frozen=True)
class UnseenErrors:
    """How far off the latencies of a device are that was not measured: what was seen of others, each predicted from
    the rest.

    log_errors: measured over predicted; weights: [errors] shares, which add up to less than 1: the rest is the new
    device's own, of which nothing is known. So its interval is a conformal one whose scores count more the nearer the
    device they are from (Barber, Candes, Ramdas, Tibshirani 2023, "Conformal prediction beyond exchangeability",
    section 3), and a device counts once however many latencies it has (Dunn, Wasserman, Ramdas 2023, "Distribution-free
    prediction sets for two-layer hierarchical models").
    """

    log_errors: Array
    weights: Array

    def either_way(self, level: float) -> float:
        """Half-width, in natural logarithms, of the interval that holds a share `level`."""
        return self._quantile(np.abs(self.log_errors), level)

    def above(self, risk: float) -> float:
        """Logarithm of the factor on a prediction that a share `risk` of latencies stays below."""
        return self._quantile(self.log_errors, risk)

    def _quantile(self, values: Array, level: float) -> float:
        order = np.argsort(values, kind="stable")
        place = int(np.searchsorted(np.cumsum(self.weights[order]), level - 1e-12))
        # Beyond what was seen stands a device as far off as any is believed to be.
        return float(values[order][place]) if place < len(values) else max(SCALE_SPREAD, *values, 0.0)


@dataclass(frozen=True)
class Transfer:
    """What is believed of a target before it is measured, from whom, and how far off that may be."""

    prior: FactorPrior
    sources: tuple[DeviceFactors, ...]
    errors: UnseenErrors
    stack: str

    @property
    def devices(self) -> list[str]:
        """From whom, in words: those of the same stack first."""
        ordered = sorted(self.sources, key=lambda one: (stack_of(one.target)[1] != self.stack, one.device))
        return list(dict.fromkeys(one.device for one in ordered))

    @property
    def batches(self) -> list[int]:
        """Images at once that the devices were measured at."""
        return sorted({one.batch for one in self.sources})

    @property
    def log_spread(self) -> float:
        """Half-width, in natural logarithms, of the interval that is to hold 90 percent of latencies."""
        return self.errors.either_way(0.9)


def transfer(target: Target, devices: Sequence[DeviceFactors]) -> Transfer | None:
    """From measured devices of the target's kind, its own measurements left out; None when there are none."""
    sources = [one for one in devices if stack_of(one.target)[0] == target.kind and one.target != target.name]
    if not sources:
        return None
    # Rows of one device (precisions, runtimes) share its weight.
    rows = np.array([sum(other.target == one.target for other in sources) for one in sources])
    kinship = np.array([SAME_STACK_WEIGHT if stack_of(one.target)[1] == target.stack else 1.0 for one in sources])
    weights = kinship / rows
    scales = np.array([np.mean(list(one.log_factors.values())) for one in sources])
    scale, scale_spread = _mean_and_spread(scales, weights, SCALE_SPREAD / 2)
    means, spreads = np.full(len(COLUMNS), scale), np.full(len(COLUMNS), COLUMN_SPREAD)
    for index, column in enumerate(COLUMNS):
        has = [position for position, one in enumerate(sources) if column in one.log_factors]
        if has:
            off = np.array([sources[position].log_factors[column] - scales[position] for position in has])
            step, spreads[index] = _mean_and_spread(off, weights[has], COLUMN_SPREAD)
            means[index] = scale + step
    return Transfer(FactorPrior(means, spreads, scale_spread), tuple(sources), _errors(sources, kinship), target.stack)


def _errors(sources: Sequence[DeviceFactors], kinship: Array) -> UnseenErrors:
    """Weight of each device [sources], divided among its errors; the new device weighs as one of another stack."""
    weight_of = {one.target: weight for one, weight in zip(sources, kinship, strict=True) if one.log_errors}
    count_of = {target: sum(len(one.log_errors) for one in sources if one.target == target) for target in weight_of}
    pairs = [(error, weight_of[one.target] / count_of[one.target]) for one in sources for error in one.log_errors]
    errors, weights = np.array(pairs).reshape(-1, 2).T
    return UnseenErrors(errors, weights / (1 + sum(weight_of.values())))


def _mean_and_spread(values: Array, weights: Array, believed: float) -> tuple[float, float]:
    """Weighted mean pulled towards 0, and standard deviation of the next value: `believed` counts as one device."""
    total = weights.sum()
    mean = float(weights @ values / (total + 1))
    variance = (weights @ (values - mean) ** 2 + believed**2) / (total + 1)
    return mean, float(np.sqrt(variance))
