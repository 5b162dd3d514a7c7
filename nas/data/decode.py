"""Image files to uint8 pixels of one size: on all cores, and without stopping at a damaged file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from nas.data.source import DataError

MAX_BAD_SHARE = 0.10
"""A set of which more than this share cannot be decoded is refused."""

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L"})
_CHUNK = 256  # images handed to a thread at a time

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


def decode(image: Image.Image, size: int) -> np.ndarray:
    """uint8 [1 or 3, size, size]: turned upright, the shorter side resized to `size`, cut from the middle.

    A grey file (modes 1, L, LA, I) gives one channel, any other three; transparency is dropped.
    Raises what Pillow raises on a damaged file.
    """
    image.draft("RGB", (2 * size, 2 * size))  # JPEG only: decode at a fraction of the size, still twice what is asked
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion would clip at 255
        image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
    image = image.convert("L" if image.mode in _GREY_MODES else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


@dataclass(frozen=True)
class ImageFiles:
    """Files in fixed order; `names` are their paths relative to `root`."""

    root: Path
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def decode(self, index: int, size: int) -> np.ndarray:
        with Image.open(self.root / self.names[index]) as image:
            return decode(image, size)


@dataclass(frozen=True)
class Decoded:
    """What came of decoding a set.

    images: uint8 [good, channels, size, size], or None where only the check was wanted. good: rows of the
    files that could be read, ascending. bad: (row, reason) of the others. in_chans: 1 if every file read was
    grey, else 3.
    """

    images: np.ndarray | None
    good: np.ndarray
    bad: tuple[tuple[int, str], ...]
    in_chans: int


def decode_all(
    files: ImageFiles,
    size: int,
    *,
    in_chans: int | None = None,
    keep: bool = True,
    progress: Progress | None = None,
) -> Decoded:
    """Decode every file. in_chans: 1 or 3 converts to it; None takes 1 if all files are grey.

    keep: False only finds out which files are sound. Raises DataError when more than MAX_BAD_SHARE of them
    are not.
    """
    images: np.ndarray | None = None
    good: list[int] = []
    bad: list[tuple[int, str]] = []
    colour = False
    for index, pixels in enumerate(_decoded(files, size)):
        if progress is not None and index % _CHUNK == 0:
            progress(index, len(files))
        if isinstance(pixels, str):
            bad.append((index, pixels))
            continue
        colour = colour or len(pixels) == 3
        if keep:
            channels = in_chans or (3 if colour else 1)
            if images is None:
                images = np.empty((len(files), channels, size, size), np.uint8)
            elif images.shape[1] < channels:  # the first colour image after grey ones
                images = np.repeat(images, channels, axis=1)
            images[len(good)] = to_channels(pixels, channels)
        good.append(index)
    if progress is not None:
        progress(len(files), len(files))
    if len(bad) > MAX_BAD_SHARE * len(files):
        first, reason = bad[0]
        raise DataError(
            f"{len(bad)} of {len(files)} images in {files.root} cannot be read, more than "
            f"{MAX_BAD_SHARE:.0%}; the first is {files.names[first]} ({reason}): repair or remove them"
        )
    kept = images[: len(good)] if images is not None else None
    return Decoded(kept, np.array(good, np.int64), tuple(bad), in_chans or (3 if colour else 1))


@dataclass(frozen=True)
class FilePixels:
    """Pixels that stay in their files and are decoded by threads when asked for. Same bytes as in memory."""

    files: ImageFiles
    rows: np.ndarray
    size: int
    in_chans: int

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: np.ndarray) -> np.ndarray:
        def one(row: int) -> np.ndarray:
            return to_channels(self.files.decode(int(self.rows[row]), self.size), self.in_chans)

        return np.stack(list(self._threads.map(one, rows)))

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_cores(), thread_name_prefix="decode")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_threads"}


def to_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """[1 or 3, size, size] to the wanted number of channels; colour to grey as Pillow does (ITU-R 601-2)."""
    if len(pixels) == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=0)
    return np.asarray(Image.fromarray(pixels.transpose(1, 2, 0)).convert("L"))[None]


def _decoded(files: ImageFiles, size: int) -> Iterator[np.ndarray | str]:
    """The pixels of every file in order, or the reason why it has none."""

    def one(index: int) -> np.ndarray | str:
        try:
            return files.decode(index, size)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
            return str(error).splitlines()[0] if str(error) else type(error).__name__

    def some(indices: Sequence[int]) -> list[np.ndarray | str]:
        return [one(index) for index in indices]

    spans = [range(start, min(start + _CHUNK, len(files))) for start in range(0, len(files), _CHUNK)]
    # Pillow warns of odd but readable files (palettes, EXIF); thousands of such lines help nobody.
    with warnings.catch_warnings(), ThreadPoolExecutor(_cores(), thread_name_prefix="decode") as threads:
        warnings.simplefilter("ignore")
        ahead = 2 * _cores()  # bounds what lies decoded and unread
        waiting = [threads.submit(some, span) for span in spans[:ahead]]
        for position in range(len(spans)):
            done = waiting.pop(0).result()
            if position + ahead < len(spans):
                waiting.append(threads.submit(some, spans[position + ahead]))
            yield from done


def _cores() -> int:
    return max(1, min(16, len(os.sched_getaffinity(0))))
