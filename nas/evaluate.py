"""Scoring a candidate: extract, re-estimate BatchNorm, fold, calibrate, quantize, count right answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from nas.accuracy import Accuracy, ImageSet, Kind, image_batches, measure, spread_rows
from nas.data.bundle import DataBundle
from nas.quantize import Prepared, prepare
from nas.spec import EvaluateSpec
from search_spaces.architecture import Architecture
from search_spaces.network import MetaFormerNet
from search_spaces.supernet import Supernet


@dataclass(frozen=True)
class Evaluation:
    """One-shot quantized accuracy of one architecture."""

    architecture: Architecture
    accuracy: Accuracy


class Scoring:
    """Calibrates networks on training images and measures their quantized accuracy, each network in the same way.

    All see the same training images for BatchNorm statistics and ranges (the first of one shuffled order) and the same
    search images: differences between candidates are differences between networks. Nothing is random and nothing is
    kept between candidates.
    """

    def __init__(self, bundle: DataBundle, spec: EvaluateSpec) -> None:
        self.bundle, self.spec = bundle, spec

    def prepare_network(
        self, network: MetaFormerNet, arch: Architecture, weights: str, in_place: bool = False
    ) -> Prepared:
        """`network` as it is scored and exported: calibrated, folded, quantized. weights: identity of its weights.
        in_place: it is not needed otherwise."""
        return prepare(
            network,
            arch,
            self._training_batches(self.spec.bn_images, arch.resolution),
            self._training_batches(self.spec.calibration_images, arch.resolution),
            data=self.bundle.identity,
            weights=weights,
            in_place=in_place,
        )

    def score(
        self,
        prepared: Prepared,
        arch: Architecture,
        images: ImageSet,
        kind: Kind = "one-shot",
        count: int | None = None,
        streams: int = 1,
    ) -> Accuracy:
        """Top-1 of a prepared network. count: images, evenly spread; None: all of val, `search_images` of search.
        streams: batches at a time, which changes no figure."""
        source = self.bundle.search if images == "search" else self.bundle.val
        if count is None:
            count = self.spec.search_images if images == "search" else len(source)
        batches = image_batches(source, spread_rows(len(source), count), arch.resolution, self.spec.batch_size)
        return measure(prepared.quantized, batches, kind, images, streams)

    def _training_batches(self, count: int, resolution: int) -> Iterator[Tensor]:
        rows = self._training_order[:count]
        for images, _ in image_batches(self.bundle.train, rows, resolution, self.spec.batch_size):
            yield images

    @cached_property
    def _training_order(self) -> np.ndarray:
        """A fixed shuffled order of the training images."""
        return np.random.default_rng(0).permutation(len(self.bundle.train))


class Evaluator(Scoring):
    """Scores architectures with the weights of one supernet on one data set. weights: their identity, which
    calibrations carry."""

    def __init__(self, bundle: DataBundle, spec: EvaluateSpec, supernet: Supernet, weights: str = "") -> None:
        super().__init__(bundle, spec)
        self.supernet, self.weights = supernet, weights

    def evaluate(self, arch: Architecture, images: ImageSet = "search", streams: int = 1) -> Evaluation:
        """Quantized one-shot top-1 on the search images, or on the validation images once the selection is over;
        `streams` as in `score`."""
        return Evaluation(arch, self.score(self.prepare(arch), arch, images, streams=streams))

    def prepare(self, arch: Architecture) -> Prepared:
        """The network of `arch` with the shared weights, as it is scored and exported."""
        return self.prepare_network(self.supernet.subnet(arch), arch, self.weights, in_place=True)
