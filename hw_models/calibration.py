"""A calibration as plain data, and what it makes of the cost model: the latency of parts and networks, with bounds.

What is stored are the samples and the choices that were made of them, never a model: the same numbers come back by
fitting again, and a check says whether they did.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw_models.choice import Choice
from hw_models.estimate import COST_MODEL_VERSION, network_overhead_s, streamed_share
from hw_models.factors import FactorPrior
from hw_models.families import COLUMNS, FEATURES, NETWORK, Units, join_units, part_units
from hw_models.members import Additive, Blend
from hw_models.part_cost import PartCost
from hw_models.predictor import LEVEL, Predictor, fit_predictor, refit_predictor
from hw_models.samples import Samples
from hw_models.target import Overhead, Target, numbers_of
from hw_models.target_file import target_argument
from hw_models.transfer import Transfer, UnseenErrors

Array = NDArray[np.float64]

REPRODUCED = 1e-4
"""Relative difference at which a calibration that was fitted again counts as the same."""


@dataclass(frozen=True)
class Latency:
    """Seconds: the best guess, and the ends of the interval that holds 90 percent."""

    seconds: float
    low_s: float
    high_s: float


@dataclass(frozen=True)
class Calibration:
    """How predictions of one target are made. JSON both ways.

    kind: "measured", or "transferred" from other devices when it was measured too little. content: what it is made
    of; for "measured" samples, choices and held-out predictions, for both the prior. about: one line for people.
    batch: images at once that its latencies are of.
    """

    target: str
    kind: str
    about: str
    content: Mapping[str, Any] = field(repr=False)
    batch: int = 1

    @property
    def identity(self) -> str:
        """Twelve hexadecimal digits of everything that decides a figure."""
        batch = [self.batch] if self.batch != 1 else []  # those of one image are called as before there were others
        text = json.dumps([self.target, self.kind, self.content, *batch], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        target, kind, about = (str(data[name]) for name in ("target", "kind", "about"))
        return cls(target, kind, about, dict(data["content"]), int(data.get("batch", 1)))

    def model(self, target: Target) -> CalibratedLatency:
        """What computes with it. Raises ValueError when it was fitted to another cost model of the target, or when
        fitting again gives other numbers than were stored.
        """
        again = f"`nas calibrate --target {target_argument(self.target)}{batch_option(self.batch)}`"
        if self.kind == "measured" and self.content.get("cost_model") != _cost_model(target):
            raise ValueError(
                f"the calibration of {self.target} was fitted to other figures of the target, or by another version of "
                f"the cost model, and would mislead: make a new one of the same measurements with {again}"
            )
        prior = _prior(self.content["prior"])
        if self.kind == "transferred":
            seen = np.array(self.content["log_errors"])
            # Calibrations of earlier versions counted every latency alike.
            errors = UnseenErrors(
                seen, np.array(self.content.get("weights", np.full(len(seen), 1 / max(len(seen), 1))))
            )
            return CalibratedLatency(target, Blend((Additive(np.exp(prior.mean), np.zeros(0)),), (1.0,)), errors=errors)
        samples = _samples(self.content["samples"])
        choices = [Choice.from_dict(choice) for choice in self.content["choices"]]
        predictor = refit_predictor(samples, choices[0], choices[1:], prior)
        if not self.content.get("errors_by_kind"):  # calibrations of earlier versions took all errors together
            predictor = replace(predictor, is_network=np.ones(len(samples), dtype=bool))
        stored = np.array(self.content["held_out_s"])
        if not np.allclose(predictor.held_out_s, stored, rtol=REPRODUCED):
            off = float(np.abs(predictor.held_out_s / stored - 1).max())
            raise ValueError(
                f"the calibration of {self.target} cannot be reproduced by this version ({off:.1%} off): make a new "
                f"one with {again}"
            )
        return CalibratedLatency(target, predictor.blend, predictor=predictor)

    def held_out_s(self, name: str) -> float | None:
        """Seconds of one of its samples as predicted by a fit without it; None where it has not learned from it."""
        names = self.content.get("names", [])
        return float(self.content["held_out_s"][names.index(name)]) if name in names else None


def batch_option(batch: int) -> str:
    """What a command says of a batch."""
    return f" --batch {batch}" if batch != 1 else ""


def _cost_model(target: Target) -> str:
    """Identity of what predicts the pieces of time that a calibration scales."""
    parts = [
        numbers_of(part) for part in (target.matrix, target.vector, target.memory, target.overhead, target.runtime)
    ]
    text = json.dumps([COST_MODEL_VERSION, target.name, parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def measured_calibration(
    target: Target,
    about: str,
    samples: Samples,
    prior: FactorPrior,
    batch: int = 1,
    names: Sequence[str] = (),
) -> tuple[Calibration, Predictor]:
    """Fit the samples of a target, all of one batch. names: of the samples, for `held_out_s`. Raises as
    `fit_predictor`.
    """
    predictor = fit_predictor(samples, prior)
    content = {
        "cost_model": _cost_model(target),
        "prior": _prior_data(prior),
        "samples": _samples_data(samples),
        "choices": [choice.to_dict() for choice in (predictor.choice, *predictor.fold_choices)],
        "held_out_s": predictor.held_out_s.tolist(),
        "names": list(names),
        "errors_by_kind": True,
    }
    return Calibration(target.name, "measured", about, content, batch), predictor


def transferred_calibration(target: str, known: Transfer, batch: int = 1) -> Calibration:
    """Factors of other devices alone. Those of other batches are used too, and `about` says so."""
    devices = ", ".join(known.devices[:3])
    more = len(known.devices) - 3
    measured_at = ", ".join(map(str, known.batches))
    about = (
        f"no measurement of {target} is used: family factors at batch {measured_at} transferred from {devices}"
        + (f" and {more} more" if more > 0 else "")
        + f"; 90 percent interval a factor {np.exp(known.log_spread):.2g} either way"
        + ("" if batch in known.batches else f"; nothing was measured at batch {batch}, where neither may hold")
    )
    content = {
        "prior": _prior_data(known.prior),
        "log_errors": [round(float(error), 4) for error in known.errors.log_errors],
        "weights": [round(float(weight), 9) for weight in known.errors.weights],
    }
    return Calibration(target, "transferred", about, content, batch)


class CalibratedLatency:
    """Latencies of networks as sums over parts, each distinct part evaluated once."""

    def __init__(
        self, target: Target, blend: Blend, predictor: Predictor | None = None, errors: UnseenErrors | None = None
    ) -> None:
        """predictor: of a measured target; errors: those seen on other devices, of a transferred one."""
        self.target, self._blend, self._predictor = target, blend, predictor
        self._errors = errors or UnseenErrors(np.zeros(0), np.zeros(0))
        self._parts: dict[int, tuple[PartCost, Array]] = {}
        self._expected: dict[int, tuple[PartCost, Array]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what is remembered of parts: another process knows them by other ids, and this one may be adding to
        it while a thread sends copies.
        """
        return dict(self.__dict__) | {"_parts": {}, "_expected": {}}

    @property
    def _blends(self) -> tuple[Blend, ...]:
        return (self._blend, *(self._predictor.fold_blends if self._predictor else ()))

    def part_s(self, part: PartCost) -> Array:
        """[2, 1 + folds] seconds with resident and with streamed weights, of the whole fit and of every fold's."""
        return _remembered(self._parts, part, self._blends)

    def expected_part_s(self, part: PartCost) -> Array:
        """[2] seconds with resident and with streamed weights, of the whole fit alone: in a tenth of the time."""
        return _remembered(self._expected, part, self._blends[:1])[:, 0]

    @cached_property
    def start_factors(self) -> Array:
        """[1 + folds] factors on what a network pays besides its parts."""
        start = Units(np.array([NETWORK]), np.ones(1), np.zeros((1, len(FEATURES))), ("",))
        return np.array([float(blend.unit_s(start)[0]) for blend in self._blends])

    @cached_property
    def start(self) -> Overhead:
        """What a network pays besides its parts, as it is calibrated, for tables that add it themselves."""
        factor, overhead = float(self.start_factors[0]), self.target.overhead
        return replace(
            overhead,
            network_s=overhead.network_s * factor,
            link_bytes_per_s=overhead.link_bytes_per_s / factor if factor else 0.0,
        )

    def network_s(self, parts: Sequence[PartCost]) -> Array:
        """[1 + folds] seconds of a whole network."""
        share = streamed_share(sum(part.weight_bytes for part in parts), self.target)
        ends = np.sum([self.part_s(part) for part in parts], axis=0)
        start_s = network_overhead_s(parts[0].input_bytes + parts[-1].output_bytes, self.target)
        return (1 - share) * ends[0] + share * ends[1] + start_s * self.start_factors

    def latency(self, parts: Sequence[PartCost]) -> Latency:
        """Of a whole network."""
        seconds = self.network_s(parts)
        low, high = self.interval(seconds)
        return Latency(float(seconds[0]), low, high)

    def interval(self, seconds: Array, level: float = LEVEL) -> tuple[float, float]:
        """Ends for a thing that the fits give `seconds` [1 + folds]."""
        if self._predictor is not None:
            low, high = self._predictor.interval_of(seconds[1:, None], level)
            return min(float(low[0]), float(seconds[0])), max(float(high[0]), float(seconds[0]))
        factor = float(np.exp(self._errors.either_way(level)))
        return float(seconds[0]) / factor, float(seconds[0]) * factor

    @property
    def most_risk(self) -> float:
        """The largest `risk` that the measurements can tell of."""
        if self._predictor is None:
            return 1.0
        count = len(self._predictor.measured_s)
        return count / (count + 1)

    def upper(self, seconds: Array, risk: float) -> float:
        """Seconds that a share `risk` of such networks stays below."""
        if self._predictor is not None:
            return float(self._predictor.upper_of(seconds[1:, None], risk)[0])
        return float(seconds[0] * np.exp(self._errors.above(risk)))


def _remembered(known: dict[int, tuple[PartCost, Array]], part: PartCost, blends: Sequence[Blend]) -> Array:
    """[2, blends] seconds of a part with resident and with streamed weights."""
    found = known.get(id(part))
    # Keeping the part keeps its id from being given to another; a copy in another process knows foreign ids.
    if found is None or found[0] is not part:
        ends = [part_units(part, share) for share in (0.0, 1.0)]
        units, first = join_units(ends), len(ends[0])  # one question to every blend
        seconds = np.array([blend.unit_s(units) for blend in blends])
        found = known[id(part)] = (part, np.stack([seconds[:, :first].sum(axis=1), seconds[:, first:].sum(axis=1)]))
    return found[1]


def _prior_data(prior: FactorPrior) -> dict[str, Any]:
    return {
        "columns": list(COLUMNS),
        "mean": prior.mean.tolist(),
        "spread": prior.spread.tolist(),
        "scale_spread": prior.scale_spread,
        "format_spread": prior.format_spread,
    }


def _prior(data: Mapping[str, Any]) -> FactorPrior:
    if tuple(data["columns"]) != COLUMNS:
        raise ValueError("this calibration knows other kernel families than this version: make a new one")
    return FactorPrior(np.array(data["mean"]), np.array(data["spread"]), data["scale_spread"], data["format_spread"])


def _samples_data(samples: Samples) -> dict[str, Any]:
    units = samples.units
    return {
        "features_are": list(FEATURES),
        "column": units.column.tolist(),
        "seconds": units.seconds.tolist(),
        "features": units.features.tolist(),
        "owner": samples.owner.tolist(),
        "measured_s": samples.measured_s.tolist(),
    }


def _samples(data: Mapping[str, Any]) -> Samples:
    if tuple(data["features_are"]) != FEATURES:
        raise ValueError("this calibration knows other kernel features than this version: make a new one")
    count = len(data["seconds"])
    features = np.array(data["features"]).reshape(count, len(FEATURES))
    units = Units(np.array(data["column"], dtype=np.intp), np.array(data["seconds"]), features, ("",) * count)
    none = np.zeros((len(data["measured_s"]), 0))
    return Samples(units, np.array(data["owner"], dtype=np.intp), np.array(data["measured_s"]), none, none)
