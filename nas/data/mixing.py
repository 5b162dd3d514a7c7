"""timm's data augmentation on tensors: RandAugment, mixup, cutmix; each draw by an explicit seed.

timm draws from the global generators of `random` and numpy. Here they are set before and put back after, so that an
interrupted training draws the same again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas.errors import UsageError


def mixed(
    images: Tensor, labels: Tensor, classes: int, mixup: float, cutmix: float, smoothing: float, seed: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """(images, probabilities [n, classes]) after mixup (arXiv:1710.09412) or cutmix (arXiv:1905.04899), one draw for
    the batch; image i is mixed with image n - 1 - i. With both alphas above 0 each is used half of the time.

    images: [n, channels, height, width], n even. labels: classes [n]. smoothing: of the labels.
    """
    from timm.data.mixup import Mixup

    mix = Mixup(
        mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=smoothing, num_classes=classes, mode="batch", prob=1.0
    )
    with _seeded(seed):
        out, probabilities = mix(images.clone(), labels)
    return out, probabilities.float()


def rand_augmented(
    images: Tensor, config: str, seeds: Sequence[Sequence[int]], mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Normalised images [n, 1 or 3, height, width] after timm's RandAugment (arXiv:1909.13719), image by image.

    config: timm's text, such as "rand-m7-n2-mstd0.5". seeds: one per image, so that a result does not depend on what
    else is in the batch. What an operation uncovers gets the mean colour. Raises UsageError for another text.
    """
    from PIL import Image

    scale = torch.tensor(std).view(-1, 1, 1)
    shift = torch.tensor(mean).view(-1, 1, 1)
    transform = _rand_augment(config, tuple(round(255 * value) for value in mean))
    out = torch.empty_like(images)
    for row, (image, seed) in enumerate(zip(images, seeds, strict=True)):
        bytes_ = ((image * scale + shift) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        picture = Image.fromarray(bytes_ if bytes_.shape[2] == 3 else np.repeat(bytes_, 3, axis=2))
        with _seeded(seed):
            changed = torch.from_numpy(np.array(transform(picture))).permute(2, 0, 1)[: len(image)]
        out[row] = (changed.float() / 255 - shift) / scale
    return out


def check_rand_augment(config: str) -> None:
    """Raises UsageError when timm does not understand `config`."""
    _rand_augment(config, (128, 128, 128))


@lru_cache(maxsize=8)
def _rand_augment(config: str, fill: tuple[int, ...]) -> Any:
    from timm.data.auto_augment import rand_augment_transform

    colour = fill if len(fill) == 3 else fill * 3
    try:
        if not config.startswith("rand-"):
            raise ValueError("it begins with 'rand-'")
        return rand_augment_transform(config, {"img_mean": colour})
    except (AssertionError, ValueError, KeyError) as error:
        raise UsageError(
            f"train.rand_augment {config!r} is not one of timm's texts ({error or 'unknown part'}); write it like "
            "'rand-m7-n2-mstd0.5'"
        ) from error


@contextmanager
def _seeded(seed: Sequence[int]) -> Iterator[None]:
    """Inside, `random` and numpy's global generator draw by `seed`; afterwards they go on as if nothing had been."""
    words = np.random.SeedSequence(list(seed)).generate_state(2)
    before, numpy_before = random.getstate(), np.random.get_state()  # noqa: NPY002 (timm draws from it)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)  # noqa: NPY002
