"""What a data set is to the rest of the search: three splits that give normalised batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F


class Pixels(Protocol):
    """Where the pixels of a set lie: in memory, or in files that are decoded when asked for."""

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray) -> np.ndarray:
        """uint8 [n, channels, size, size] of the rows, a copy."""
        ...


@dataclass(frozen=True)
class ArrayPixels:
    """Pixels in memory: uint8 [images, channels, size, size]."""

    array: np.ndarray

    def __len__(self) -> int:
        return len(self.array)

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.array[rows]


@dataclass(frozen=True)
class LabelledPixels:
    """A set of images in fixed order with their classes, int64 [images]."""

    pixels: Pixels
    labels: np.ndarray


@dataclass
class ImageSource:
    """One split of a data set, in fixed order.

    Nothing is read before it is needed: `open_images` is called at the first use of the labels, the length or
    a batch. `rows` picks the split's images from what it returns; None means all. `native_size` is the side
    of the stored square images in pixels; `mean` and `std` are per channel, in the unit where white is 1.
    """

    open_images: Callable[[], LabelledPixels]
    rows: np.ndarray | None
    class_names: tuple[str, ...]
    in_chans: int
    native_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def labels(self) -> np.ndarray:
        """Class of every image, int64 [images]."""
        labels = self._images.labels
        return labels if self.rows is None else labels[self.rows]

    def batch(
        self,
        indices: Sequence[int] | np.ndarray | torch.Tensor,
        resolution: int,
        device: torch.device | str = "cpu",
    ) -> torch.Tensor:
        """Float32 [n, channels, resolution, resolution] on `device`, normalised with `mean` and `std`.

        Another resolution than `native_size` is reached by antialiased bilinear interpolation. Bytes travel to the
        device, a quarter of what floats would be, and the rest is done there. Raises IndexError for an index outside
        the split.
        """
        rows = np.asarray(indices, dtype=np.int64)
        if rows.size and not (-len(self) <= rows.min() and rows.max() < len(self)):
            raise IndexError(f"indices must lie below {len(self)}, but got {rows.min()} to {rows.max()}")
        if self.rows is not None:
            rows = self.rows[rows]
        images = torch.from_numpy(self._images.pixels.read(rows)).to(device).float()
        if resolution != self.native_size:
            images = F.interpolate(images, size=(resolution, resolution), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(of, device=device).view(1, -1, 1, 1) for of in (self.mean, self.std))
        return images.sub_(mean * 255).div_(std * 255)

    @cached_property
    def _images(self) -> LabelledPixels:
        return self.open_images()


@dataclass
class DataBundle:
    """A data set in the three disjoint parts of a study.

    train: weights, BatchNorm statistics and ranges come from it. search: split from the training images,
    scores candidates. val: read only after selection, and not decoded before. identity: 16 hexadecimal digits
    of what the images are (paths and sizes, or the generator's parameters) and how they were split; the same
    with and without cache. notes: what a person should know about how the data were read. flip: a mirrored
    image has the same class.
    """

    name: str
    identity: str
    train: ImageSource
    search: ImageSource
    val: ImageSource
    flip: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    @property
    def num_classes(self) -> int:
        return self.train.num_classes

    @property
    def in_chans(self) -> int:
        return self.train.in_chans

    @property
    def mean(self) -> tuple[float, ...]:
        return self.train.mean

    @property
    def std(self) -> tuple[float, ...]:
        return self.train.std
