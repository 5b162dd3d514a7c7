"""Augmentation against a plain loop, and its promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nas.data.augment import augment


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shape_type_and_values_stay():
    batch = torch.randn(5, 3, 16, 24, generator=_generator())
    before = batch.clone()
    out = augment(batch, _generator())
    assert out.shape == batch.shape
    assert out.dtype == batch.dtype
    assert torch.equal(batch, before)
    assert torch.isin(out, batch).all()


def test_equal_generators_give_equal_images():
    batch = torch.randn(8, 3, 16, 16, generator=_generator())
    assert torch.equal(augment(batch, _generator(5)), augment(batch, _generator(5)))
    assert not torch.equal(augment(batch, _generator(5)), augment(batch, _generator(6)))


@pytest.mark.parametrize("flip", [False, True])
def test_every_image_is_a_reflected_shift_and_perhaps_a_mirror_image(flip):
    """The second implementation: numpy's reflecting pad, then every possible crop of it."""
    side, reach = 16, 2
    batch = torch.randn(40, 2, side, side, generator=_generator())
    mirrored = 0
    for image, out in zip(batch.numpy(), augment(batch, _generator(1), flip=flip).numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
        crops = [padded[:, y : y + side, x : x + side] for y in range(2 * reach + 1) for x in range(2 * reach + 1)]
        plain = any(np.array_equal(crop, out) for crop in crops)
        turned = any(np.array_equal(crop[:, :, ::-1], out) for crop in crops)
        assert plain or turned
        mirrored += turned
    assert 10 <= mirrored <= 30 if flip else mirrored == 0


def test_tiny_images_are_only_mirrored():
    batch = torch.randn(4, 1, 4, 4, generator=_generator())
    assert torch.equal(augment(batch, _generator(), flip=False), batch)
