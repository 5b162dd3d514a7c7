"""Data sets by the names that `timm.data.create_dataset` knows: torch/cifar10, hfds/OWNER/NAME, tfds/NAME."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nas.data.build import Reading, build_bundle
from nas.data.bundle import ArrayPixels, DataBundle, LabelledPixels
from nas.data.decode import decode, to_channels
from nas.data.source import PACKAGES, DataError
from nas.data.split import first_of_each_class


def load_named(source: str, reading: Reading) -> DataBundle:
    """The bundle of a named data set, see `nas.data.load.load_data`. Raises DataError.

    Images are decoded into memory with three channels. What timm downloads goes to CACHE/downloads.
    """
    images, class_names = _read(source, ("train",), reading)
    if len(class_names) < 2:
        raise DataError(f"{source} has one class: at least two are needed")
    return build_bundle(
        source,
        reading,
        images,
        partial(_read_val, source, replace(reading, progress=None)),
        class_names=class_names,
        in_chans=3,
        native_size=reading.resolution,
        content={"named": source, "labels": images.labels.tolist(), "limit": reading.limit},
    )


def _read_val(source: str, reading: Reading) -> LabelledPixels:
    return _read(source, ("validation", "val", "test"), reading)[0]


def _read(source: str, splits: tuple[str, ...], reading: Reading) -> tuple[LabelledPixels, tuple[str, ...]]:
    dataset = _create(source, splits, reading.cache)
    rows = _rows(dataset, reading.limit)
    size = reading.resolution
    need_bytes = len(rows) * 3 * size**2
    if need_bytes > reading.memory_bytes:
        raise DataError(
            f"{len(rows)} images of {source} at {size} px take {need_bytes / 2**30:.1f} GiB of memory: set a "
            "limit, or save them as an image folder and give that"
        )
    pixels = np.empty((len(rows), 3, size, size), np.uint8)
    labels = np.empty(len(rows), np.int64)
    for place, (image, label) in enumerate(_items(dataset, rows)):
        if reading.progress is not None and place % 256 == 0:
            reading.progress(place, len(rows))
        pixels[place] = to_channels(decode(image, size), 3)
        labels[place] = int(label)
    return LabelledPixels(ArrayPixels(pixels), labels), _class_names(dataset, int(labels.max()) + 1)


def _rows(dataset: Any, limit: int | None) -> np.ndarray:
    """Which images are read: all, a balanced part where labels are known beforehand, else the first ones."""
    targets = getattr(dataset, "targets", None)
    if limit is None or limit >= len(dataset):
        return np.arange(len(dataset))
    return np.arange(limit) if targets is None else first_of_each_class(np.asarray(targets, np.int64), limit)


def _items(dataset: Any, rows: np.ndarray) -> Iterator[tuple[Image.Image, int]]:
    if hasattr(dataset, "__getitem__"):
        return (dataset[int(row)] for row in rows)
    return (item for item, _ in zip(dataset, rows, strict=False))  # a stream


def _create(source: str, splits: tuple[str, ...], cache: Path | None) -> Any:
    """timm's data set for the first split that exists. Raises DataError: no package, network or such name."""
    from timm.data import create_dataset

    root = (cache or Path.cwd()) / "downloads"
    failures: list[Exception] = []
    for split in splits:
        try:
            root.mkdir(parents=True, exist_ok=True)
            with redirect_stdout(StringIO()):  # readers print advice, and stdout is for data
                return create_dataset(source, root=str(root), split=split, download=True)
        except ImportError as error:
            package = PACKAGES[source.split("/")[0].lower()]
            raise DataError(f"{source} needs the package {package!r}: pip install {package}") from error
        except Exception as error:  # timm asserts, readers and hubs raise their own: the next split may exist
            failures.append(error)
    reason = (str(failures[0]).splitlines() or [type(failures[0]).__name__])[0]
    raise DataError(
        f"{source} cannot be read ({reason}): check the name and the network, or give an image folder"
    ) from failures[0]


def _class_names(dataset: Any, at_least: int) -> tuple[str, ...]:
    reader = getattr(dataset, "reader", None)
    table = getattr(dataset, "class_to_idx", None) or getattr(reader, "class_to_idx", None)
    names = {index: str(name) for name, index in table.items()} if isinstance(table, dict) else {}
    return tuple(names.get(index, str(index)) for index in range(max(at_least, len(names))))
