"""Rank correlations with their uncertainty. Arrays are [networks]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

BOOTSTRAP = 2000
"""Resamples of the networks behind an interval."""

CONFIDENCE = 0.9


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic of the networks drawn, and its interval: percentiles 5 and 95 over networks drawn again with
    replacement. NaN where the networks do not differ."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """JSON-able: NaN is null."""
        return {key: value if np.isfinite(value) else None for key, value in asdict(self).items()}

    def __str__(self) -> str:
        if not np.isfinite(self.value):
            return "- (no two to compare)"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def kendall(x: Values, y: Values, band: NDArray[np.int64] | None = None) -> float:
    """Kendall's tau-b: (concordant - discordant pairs) / sqrt(pairs untied in x * pairs untied in y) (Kendall, "The
    treatment of ties in ranking problems", 1945). band: only pairs of networks in the same band count. NaN when all
    are tied.
    """
    above = np.triu_indices(len(x), 1)
    dx, dy = (np.sign(v[:, None] - v[None, :])[above] for v in (x, y))
    if band is not None:
        together = (band[:, None] == band[None, :])[above]
        dx, dy = dx[together], dy[together]
    untied = float(np.abs(dx).sum() * np.abs(dy).sum())
    return float((dx * dy).sum() / np.sqrt(untied)) if untied else float("nan")


def spearman(x: Values, y: Values) -> float:
    """Pearson's correlation of the ranks, ties sharing their mean rank. NaN when all are tied."""
    a, b = (_ranks(v) for v in (x, y))
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else float("nan")


def _ranks(values: Values) -> Values:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[group]


def bootstrap(count: int, statistic: Callable[[NDArray[np.int64]], float], seed: int = 0) -> Estimate:
    """Value and interval of a statistic of networks; it is called with the indices that were drawn."""
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(count, size=count)) for _ in range(BOOTSTRAP)]
    tail = 100 * (1 - CONFIDENCE) / 2
    known = np.array([value for value in drawn if np.isfinite(value)])
    low, high = np.percentile(known, [tail, 100 - tail]) if len(known) else (np.nan, np.nan)
    return Estimate(statistic(np.arange(count)), float(low), float(high))


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well several scores order networks that `truth` orders.

    tau, spearman: score -> estimate. tau_in_band: of the pairs within a band of macs. lead, lead_in_band: tau of the
    first score minus that of the best other, named `rival` and `rival_in_band`; with the interval of the difference.
    """

    networks: int
    tau: Mapping[str, Estimate]
    spearman: Mapping[str, Estimate]
    tau_in_band: Mapping[str, Estimate]
    rival: str
    lead: Estimate
    rival_in_band: str
    lead_in_band: Estimate

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        out: dict[str, Any] = {"networks": self.networks, "rival": self.rival, "rival_in_band": self.rival_in_band}
        for key in ("tau", "spearman", "tau_in_band"):
            out[key] = {name: estimate.to_dict() for name, estimate in getattr(self, key).items()}
        return out | {"lead": self.lead.to_dict(), "lead_in_band": self.lead_in_band.to_dict()}


def agreement(truth: Values, scores: Mapping[str, Values], band: NDArray[np.int64], seed: int = 0) -> Agreement:
    """Of scores [networks] by name, the first being the one in question, with `truth` [networks].

    band: number of the macs band of every network. The rival is chosen on the networks drawn, once.
    """
    count = len(truth)
    own, *others = scores

    def tau(name: str, pick: NDArray[np.int64]) -> float:
        return kendall(scores[name][pick], truth[pick])

    def tau_in_band(name: str, pick: NDArray[np.int64]) -> float:
        return kendall(scores[name][pick], truth[pick], band[pick])

    def estimate(measure: Callable[[str, NDArray[np.int64]], float], name: str) -> Estimate:
        return bootstrap(count, lambda pick: measure(name, pick), seed)

    def lead(measure: Callable[[str, NDArray[np.int64]], float]) -> tuple[str, Estimate]:
        everyone = np.arange(count)
        rival = max(others, key=lambda name: np.nan_to_num(measure(name, everyone), nan=-2.0))
        return rival, bootstrap(count, lambda pick: measure(own, pick) - measure(rival, pick), seed)

    overall, within = lead(tau), lead(tau_in_band)
    return Agreement(
        networks=count,
        tau={name: estimate(tau, name) for name in scores},
        spearman={
            name: bootstrap(count, lambda pick, name=name: spearman(scores[name][pick], truth[pick]), seed)  # type: ignore[misc]
            for name in scores
        },
        tau_in_band={name: estimate(tau_in_band, name) for name in scores},
        rival=overall[0],
        lead=overall[1],
        rival_in_band=within[0],
        lead_in_band=within[1],
    )
