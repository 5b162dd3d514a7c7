"""Measured networks and blocks as a predictor learns from them: pieces of predicted time, and a measured sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hw_models.families import COLUMNS, FEATURES, NETWORK, Units, join_units

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """Things with a measured latency, or to be predicted.

    units: the pieces of all samples; owner: [units] the sample each belongs to. measured_s: [samples], nan where
    unknown. references_s: [samples, devices] latencies of the same things on other devices, if known.
    variants_s: [samples, any] more columns of seconds that may add to the latency, such as the same network's times
    were dead code kept.
    """

    units: Units
    owner: NDArray[np.intp]
    measured_s: Array
    references_s: Array
    variants_s: Array

    @classmethod
    def of(
        cls,
        things: Sequence[Units],
        measured_s: Sequence[float] | Array | None = None,
        references_s: Array | None = None,
        variants_s: Array | None = None,
    ) -> Samples:
        """One sample for each of `things`."""
        count = len(things)
        owner = np.repeat(np.arange(count), [len(units) for units in things])
        measured = np.full(count, np.nan) if measured_s is None else np.asarray(measured_s, dtype=float)
        none = np.zeros((count, 0))
        units = join_units(things) if count else EMPTY
        references, variants = (none if extra is None else extra for extra in (references_s, variants_s))
        return cls(units, owner, measured, references, variants)

    def __len__(self) -> int:
        return len(self.measured_s)

    def take(self, chosen: NDArray[np.intp]) -> Samples:
        """The chosen samples, in that order; none may be named twice."""
        place = np.full(len(self), -1)
        place[chosen] = np.arange(len(chosen))
        kept = place[self.owner] >= 0
        positions = np.flatnonzero(kept)
        units = Units(
            self.units.column[kept],
            self.units.seconds[kept],
            self.units.features[kept],
            tuple(self.units.names[position] for position in positions),
        )
        return Samples(
            units,
            place[self.owner[kept]],
            self.measured_s[chosen],
            self.references_s[chosen],
            self.variants_s[chosen],
        )

    def measured(self, measured_s: Array) -> Samples:
        """The same things with other latencies."""
        return replace(self, measured_s=measured_s)

    @cached_property
    def columns_s(self) -> Array:
        """[samples, COLUMNS] seconds under the cost model."""
        width = len(COLUMNS)
        flat = np.bincount(self.owner * width + self.units.column, self.units.seconds, len(self) * width)
        return flat.reshape(len(self), width).astype(np.float64)

    @property
    def prior_s(self) -> Array:
        """[samples] what the cost model says."""
        return self.columns_s.sum(axis=1)

    @cached_property
    def is_network(self) -> NDArray[np.bool_]:
        """[samples] which have a network's start among their pieces; blocks are timed without."""
        found = np.zeros(len(self), dtype=bool)
        found[self.owner[self.units.column == NETWORK]] = True
        return found

    def sum_units(self, seconds: Array) -> Array:
        """[samples] sums of [units] values."""
        return np.bincount(self.owner, seconds, len(self)).astype(np.float64)


EMPTY = Units(np.zeros(0, dtype=np.intp), np.zeros(0), np.zeros((0, len(FEATURES))), ())
