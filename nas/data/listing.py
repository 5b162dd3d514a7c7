"""An image folder's files and classes, without opening a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nas.data.source import DataError


@dataclass(frozen=True)
class Listing:
    """Image files in the order of class and path. `names` are relative to `root`, with forward slashes."""

    root: Path
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    labels: np.ndarray  # int64 [images]
    sizes_bytes: np.ndarray  # int64 [images]
    mtimes_ns: np.ndarray  # int64 [images]
    ignored: int = 0  # files that are not images by their ending

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: np.ndarray) -> Listing:
        """The files of these rows, with all class names."""
        return Listing(
            self.root,
            self.class_names,
            tuple(self.names[row] for row in rows),
            self.labels[rows],
            self.sizes_bytes[rows],
            self.mtimes_ns[rows],
            self.ignored,
        )

    def content(self) -> list[tuple[str, int]]:
        """(path, size) of every file: what the identity of the data is made of."""
        return list(zip(self.names, self.sizes_bytes.tolist(), strict=True))


def list_images(root: Path) -> Listing:
    """All image files of the class folders of `root`, by ending; names that begin with a dot are skipped.

    Raises DataError when there are no images, one class, an empty class, or fewer images than classes.
    """
    endings = _image_endings()
    try:
        classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
        found = [list(_files(root / name, name)) for name in classes]
    except OSError as error:
        raise DataError(f"{error.filename or root} cannot be read ({error.strerror}): check its permissions") from error
    images = [sorted(f for f in files if os.path.splitext(f[0])[1].lower() in endings) for files in found]
    total = sum(map(len, images))
    if total == 0:
        raise DataError(f"no images in the class folders of {root}: expected {root}/CLASS/*.png or .jpg or the like")
    if len(classes) < 2:
        raise DataError(f"{root} has one class, {classes[0]!r}: at least two class folders are needed")
    if total < len(classes):
        raise DataError(f"{root} has {total} images for {len(classes)} classes: add images or remove class folders")
    for name, files in zip(classes, images, strict=True):
        if not files:
            raise DataError(f"class folder {root / name} has no images: add some or remove the folder")
    flat = [file for files in images for file in files]
    return Listing(
        root,
        tuple(classes),
        tuple(name for name, _, _ in flat),
        np.repeat(np.arange(len(classes)), [len(files) for files in images]).astype(np.int64),
        np.array([size for _, size, _ in flat], np.int64),
        np.array([mtime for _, _, mtime in flat], np.int64),
        sum(map(len, found)) - total,
    )


def align_classes(listing: Listing, class_names: tuple[str, ...]) -> Listing:
    """The listing with labels counted in `class_names`. Raises DataError for a class that is not there."""
    unknown = [name for name in listing.class_names if name not in class_names]
    if unknown:
        raise DataError(
            f"{listing.root} has {_some(unknown)} that the training images do not have: rename or remove the folders"
        )
    place = np.array([class_names.index(name) for name in listing.class_names], np.int64)
    return Listing(
        listing.root,
        class_names,
        listing.names,
        place[listing.labels],
        listing.sizes_bytes,
        listing.mtimes_ns,
        listing.ignored,
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ("class " if len(names) == 1 else "classes ") + shown + more


def _files(folder: Path, relative: str) -> Iterator[tuple[str, int, int]]:
    """(path relative to the root, bytes, mtime in ns) of every file in a folder, linked folders left out."""
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        name = f"{relative}/{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            yield from _files(folder / entry.name, name)
        elif entry.is_file():
            status = entry.stat()
            yield name, status.st_size, status.st_mtime_ns


def _image_endings() -> frozenset[str]:
    """File endings of the formats that Pillow can open (".png", ".jpg", ...)."""
    from PIL import Image

    known = Image.registered_extensions()  # loads all of Pillow's formats
    return frozenset(ending for ending, kind in known.items() if kind in Image.OPEN)
