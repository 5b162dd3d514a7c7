"""The common last step of every kind of data: from training images and a way to open val to a DataBundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nas.data.bundle import DataBundle, ImageSource, LabelledPixels, Pixels
from nas.data.decode import Progress
from nas.data.source import DataError
from nas.data.split import split_off

MEMORY_BYTES = 3 * 2**29  # 1.5 GiB
"""Splits up to this size are kept decoded in memory."""

_STATISTICS_IMAGES = 2000


@dataclass(frozen=True)
class Reading:
    """How images are to be read: the arguments of `load_data`, which explains them."""

    resolution: int
    seed: int = 0
    limit: int | None = None
    flip: bool = True
    cache: Path | None = None
    memory_bytes: int = MEMORY_BYTES
    progress: Progress | None = None


def build_bundle(
    name: str,
    reading: Reading,
    images: LabelledPixels,
    open_val: Callable[[], LabelledPixels],
    *,
    class_names: Sequence[str],
    in_chans: int,
    native_size: int,
    content: dict[str, Any],
    notes: Sequence[str] = (),
) -> DataBundle:
    """Split `images` into train and search, measure the channels on train, and name the whole by `content`.

    A sixth of the training images, at most 5,000, become search. content: JSON-able, what the images are; the
    split is added to it. Raises DataError when a class has fewer than two images.
    """
    require_per_class(images.labels, class_names, 2, "train and search", name)
    rest, search = split_off(images.labels, min(len(images.labels) // 6, 5000), reading.seed)
    mean, std = channel_statistics(images.pixels, rest)
    source = partial(
        ImageSource,
        class_names=tuple(class_names),
        in_chans=in_chans,
        native_size=native_size,
        mean=mean,
        std=std,
    )
    opened = partial(_already, images)
    whole = {
        **content,
        "classes": list(class_names),
        "size": native_size,
        "search": [len(search), reading.seed],
        **({} if reading.flip else {"flip": False}),
    }
    return DataBundle(
        name=name,
        identity=hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16],
        train=source(opened, rest),
        search=source(opened, search),
        val=source(open_val, None),
        flip=reading.flip,
        notes=list(notes),
    )


def require_per_class(labels: np.ndarray, class_names: Sequence[str], least: int, parts: str, where: str) -> None:
    """Raise DataError, naming the poorest class, unless every class has `least` images."""
    counts = np.bincount(labels, minlength=len(class_names))
    poorest = int(counts.argmin())
    if counts[poorest] < least:
        raise DataError(
            f"class {class_names[poorest]!r} of {where} has {counts[poorest]} usable training images, but "
            f"{least} are needed for {parts}: add images, raise the limit or remove the class"
        )


def channel_statistics(pixels: Pixels, rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel, white being 1, over up to 2,000 evenly spaced rows.

    A channel without variation has standard deviation 1, so that it can be divided by.
    """
    sampled = rows[:: -(-len(rows) // _STATISTICS_IMAGES)]
    total = squares = np.zeros(1)
    count = 0
    for start in range(0, len(sampled), 64):
        part = pixels.read(sampled[start : start + 64]).astype(np.uint32)
        total = total + part.sum(axis=(0, 2, 3), dtype=np.uint64)  # whole numbers: exact in any order
        squares = squares + (part * part).sum(axis=(0, 2, 3), dtype=np.uint64)
        count += part[:, 0].size
    mean = total / count / 255
    variance = squares / count / 255**2 - mean**2
    std = np.where(variance > 1e-8, np.sqrt(np.maximum(variance, 1e-8)), 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())


def _already(images: LabelledPixels) -> LabelledPixels:
    return images
