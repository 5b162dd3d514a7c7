"""From the word a person types after --data to a DataBundle."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import get_type_hints

from nas.data.build import MEMORY_BYTES, Reading, build_bundle
from nas.data.bundle import ArrayPixels, DataBundle, LabelledPixels
from nas.data.decode import Progress
from nas.data.folder import load_folder
from nas.data.named import load_named
from nas.data.procedural import Drawing, class_pairs, draw
from nas.data.source import DataError, folder_of, is_embedded


def load_data(
    source: str,
    *,
    resolution: int,
    seed: int = 0,
    limit: int | None = None,
    flip: bool = True,
    cache: Path | None = None,
    memory_bytes: int = MEMORY_BYTES,
    progress: Progress | None = None,
) -> DataBundle:
    """The data set that `source` names, in three disjoint parts.

    source: "procedural" or "procedural:classes=12,size=48" (drawn here, fields of `procedural.Drawing`), an
    image folder (DIR/{train,val}/CLASS/* or DIR/CLASS/*), or a name that timm knows ("torch/cifar10",
    "hfds/...", "tfds/..."). A folder of that name goes before timm's.
    resolution: side in pixels at which images are kept, the largest that will be asked for.
    seed: draws the procedural images, and the search images from the training images.
    limit: at most that many training images (search included), and as many of val, the classes taken in turn.
    flip: whether a mirrored image has the same class, so that training may mirror half of them.
    cache: folder for decoded images and downloads; None keeps no decoded images.
    memory_bytes: folders with larger splits are decoded when used, by threads.
    progress: called with (images done, images in all) while training images are decoded.

    Raises DataError: one line that names the cure.
    """
    if resolution < 1:
        raise DataError(f"resolution must be positive, but got {resolution}")
    if limit is not None and limit < 1:
        raise DataError(f"limit must be positive, but got {limit}")
    reading = Reading(resolution, seed, limit, flip, cache, memory_bytes, progress)
    if is_embedded(source):
        return _load_procedural(source, source.partition(":")[2], reading)
    folder = folder_of(source)
    return load_named(source, reading) if folder is None else load_folder(folder, reading)


def _load_procedural(source: str, options: str, reading: Reading) -> DataBundle:
    try:
        drawing = _drawing(options, reading)
        images, labels = draw(drawing, "train", reading.seed)
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error
    pairs = class_pairs(drawing.classes)
    return build_bundle(
        source,
        reading,
        LabelledPixels(ArrayPixels(images), labels),
        partial(_draw_val, drawing, reading.seed),
        class_names=[f"{texture} in a {layout}" for texture, layout in pairs],
        in_chans=3,
        native_size=drawing.size,
        content={"drawing": dataclasses.asdict(drawing), "seed": reading.seed},
    )


def _draw_val(drawing: Drawing, seed: int) -> LabelledPixels:
    images, labels = draw(drawing, "val", seed)
    return LabelledPixels(ArrayPixels(images), labels)


def _drawing(options: str, reading: Reading) -> Drawing:
    """Read "classes=12,size=48"; the rest is default, the size the resolution. Raises ValueError."""
    kinds = get_type_hints(Drawing)
    values: dict[str, int | float] = {"size": reading.resolution}
    for option in filter(None, options.split(",")):
        name, equals, text = option.partition("=")
        if name not in kinds or not equals:
            raise ValueError(f"unknown option {option!r}; options are {', '.join(f'{name}=...' for name in kinds)}")
        try:
            values[name] = kinds[name](text)
        except ValueError:
            raise ValueError(f"{name} must be {kinds[name].__name__}, but got {text!r}") from None
    drawing = Drawing(**values)  # type: ignore[arg-type]  # each value was made by its field's type
    if reading.limit is None:
        return drawing
    return dataclasses.replace(drawing, train=min(reading.limit, drawing.train), val=min(reading.limit, drawing.val))
