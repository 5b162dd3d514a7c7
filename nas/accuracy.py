"""Accuracy of a network on labelled images, and the BatchNorm statistics it is measured with."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.data.bundle import ImageSource

Kind = Literal["one-shot", "stand-alone"]
ImageSet = Literal["search", "val"]


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy with what it was measured on.

    top1: fraction 0..1. stderr: its binomial standard error. samples: number of images.
    kind: with the supernet's weights ("one-shot") or the network's own training ("stand-alone").
    images: "search" (candidates are selected on these) or "val" (read only after selection).
    """

    top1: float
    stderr: float
    samples: int
    kind: Kind
    images: ImageSet

    @classmethod
    def of(cls, correct: int, samples: int, kind: Kind, images: ImageSet) -> Accuracy:
        """From counts. Raises ValueError without images."""
        if samples < 1:
            raise ValueError(f"accuracy needs at least one image, but got {samples}")
        top1 = correct / samples
        rate = (correct + 1) / (samples + 2)  # Laplace: none of 96 right does not make the rate known exactly
        return cls(top1, math.sqrt(rate * (1 - rate) / samples), samples, kind, images)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Accuracy:
        """Inverse of `to_dict`. Raises ValueError when a field is missing or unknown."""
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"not an accuracy: {error}") from error

    def __str__(self) -> str:
        return f"{self.top1:.1%} ± {self.stderr:.1%} ({self.kind}, {self.samples} {self.images} images)"


def spread_rows(total: int, count: int) -> np.ndarray:
    """At most `count` of `total` rows at even distances: images lie class by class in many data sets."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))


def image_batches(
    source: ImageSource, rows: np.ndarray, resolution: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images [n, channels, resolution, resolution] in channels-last memory, labels [n]) of the rows, in order."""
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        images = source.batch(part, resolution).contiguous(memory_format=torch.channels_last)
        yield images, torch.from_numpy(source.labels[part])


@torch.inference_mode()
def predict(network: nn.Module, images: Iterable[Tensor], streams: int = 1) -> Tensor:
    """Logits [n, num_classes] of batches of images, in evaluation mode, the mode restored.

    streams: batches at a time, each by a thread of its own that computes as this one does: the logits are the same.
    `network` must keep nothing of a batch.
    """
    was_training = network.training
    network.eval()
    try:
        return torch.cat(list(_outputs(network, images, streams) if streams > 1 else map(network, images)))
    finally:
        network.train(was_training)


def _outputs(network: nn.Module, images: Iterable[Tensor], streams: int) -> Iterator[Tensor]:
    """Of the batches, in their order; at most one more than there are streams is in memory."""
    threads = torch.get_num_threads()

    @torch.inference_mode()
    def run(batch: Tensor) -> Tensor:
        out: Tensor = network(batch)
        return out

    running: deque[Future[Tensor]] = deque()
    with ThreadPoolExecutor(streams, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        try:
            for batch in images:
                running.append(pool.submit(run, batch))
                if len(running) > streams:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for one in running:
                one.cancel()


def measure(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], kind: Kind, images: ImageSet, streams: int = 1
) -> Accuracy:
    """Top-1 of `network` on (images, labels) batches. streams: as in `predict`.

    Let the batches have one fixed size: how a convolution rounds depends on it. Raises ValueError without images.
    """
    labels: list[Tensor] = []

    def pixels() -> Iterator[Tensor]:
        for x, y in batches:
            labels.append(y)
            yield x

    stream = pixels()
    first = next(stream, None)
    if first is None:
        raise ValueError("accuracy needs at least one image, but got none")
    logits = predict(network, _chain(first, stream), streams)
    correct = int((logits.argmax(1).cpu() == torch.cat(labels).cpu()).sum())
    return Accuracy.of(correct, len(logits), kind, images)


def _chain(first: Tensor, rest: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from rest


@torch.inference_mode()
def recalibrate_batchnorm(network: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace, in place, the running statistics of every BatchNorm by those of `batches`; the number of images.

    Layers normalise with batch statistics, as in training; all else is in evaluation mode. Per layer the mean and
    variance of all its inputs are exact: moments of the batches, pooled by size in float64, nothing of the old
    statistics left. Raises ValueError for fewer than two images.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return sum(len(batch) for batch in batches)
    pooled = {norm: _Moments() for norm in norms}
    momenta = [norm.momentum for norm in norms]
    was_training = network.training
    handles = [norm.register_forward_hook(_pool_into(pooled[norm])) for norm in norms]
    images = 0
    try:
        network.eval()
        for norm in norms:
            norm.train()
            norm.momentum = 1.0  # the running statistics after a batch are those of the batch
        for batch in _no_small_rest(batches):
            if len(batch) < 2:
                raise ValueError("BatchNorm statistics need at least two images, but got one")
            images += len(batch)
            network(batch)
    finally:
        for handle in handles:
            handle.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.train(was_training)
    if not images:
        raise ValueError("BatchNorm statistics need at least one image, but got none")
    for norm, moments in pooled.items():
        if moments.count:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(moments.mean)
            norm.running_var.copy_(moments.variance)
    return images


def _no_small_rest(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches, each that is less than half of the one before joined to it: statistics of a few images would
    distort what the layers behind see."""
    held: Tensor | None = None
    for batch in batches:
        if held is None:
            held = batch
        elif 2 * len(batch) < len(held):
            held = torch.cat((held, batch))
        else:
            yield held
            held = batch
    if held is not None:
        yield held


class _Moments:
    """Count, mean and sum of squared deviations of batches (Chan, Golub, LeVeque 1979, Eq. 2.1)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros(())
        self.squares: Tensor = torch.zeros(())

    def add(self, count: int, mean: Tensor, squares: Tensor) -> None:
        total = self.count + count
        shift = mean - self.mean.to(mean)
        self.squares = self.squares.to(mean) + squares + shift.square() * (self.count * count / total)
        self.mean = self.mean.to(mean) + shift * (count / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """Unbiased, as torch keeps its running variance."""
        return self.squares / (self.count - 1)


def _pool_into(moments: _Moments) -> Any:
    def hook(norm: _BatchNorm, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        count = inputs[0].numel() // norm.num_features
        moments.add(count, norm.running_mean.double(), norm.running_var.double() * (count - 1))

    return hook
