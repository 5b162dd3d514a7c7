"""The embedded data set: drawn images whose class is a pair (texture, layout): neither alone tells it.

Every image shows three textured parts in one of four layouts on a shaded background, beside one or two
distractor parts of another texture. A network must see fine local structure (which texture) and the whole
image (which layout), while position, size, tilt, shape, colour, contrast and noise vary. Layouts and textures
are their own mirror images, so a horizontal flip never changes the class.

All lengths are in 1/32 of the image's side: a picture of any size shows the same scene. Only operations that
IEEE 754 rounds exactly are used (no sine, no exponential, no reduction), so that equal seeds give equal bytes
on every platform.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence

TEXTURES = ("rows", "columns", "checks", "slants")
LAYOUTS = ("row", "column", "diagonal", "corner")

# Centres of the three parts relative to the middle, in units of the spacing; one layout has several forms, so
# that a flip maps each form to one of the same layout.
_FORMS: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "row": (((-1.0, 0.0), (0.0, 0.0), (1.0, 0.0)),),
    "column": (((0.0, -1.0), (0.0, 0.0), (0.0, 1.0)),),
    "diagonal": (
        ((-0.75, -0.75), (0.0, 0.0), (0.75, 0.75)),
        ((-0.75, 0.75), (0.0, 0.0), (0.75, -0.75)),
    ),
    "corner": (
        ((-0.6, -0.6), (0.6, -0.6), (-0.6, 0.6)),
        ((-0.6, -0.6), (0.6, -0.6), (0.6, 0.6)),
        ((0.6, 0.6), (-0.6, 0.6), (-0.6, -0.6)),
        ((0.6, 0.6), (-0.6, 0.6), (0.6, -0.6)),
    ),
}
_CHUNK = 256  # images drawn at a time; a part of the definition, since every chunk has its own random stream


@dataclass(frozen=True, slots=True)
class Drawing:
    """What defines the set.

    classes: 10 to 16, how many (texture, layout) pairs are used. size: side of the square images in pixels.
    train, val: numbers of images. contrast: strength of the textures, in grey levels of 255; in an image it is
    multiplied by a number between `faintest` and 1.2. noise: half range of the noise of each of 32 x 32 cells, in
    grey levels.
    """

    classes: int = 12
    size: int = 32
    train: int = 6000
    val: int = 2000
    contrast: float = 48.0
    faintest: float = 0.1
    noise: float = 24.0

    def __post_init__(self) -> None:
        pairs = len(TEXTURES) * len(LAYOUTS)
        if not 10 <= self.classes <= pairs:
            raise ValueError(f"10 <= classes <= {pairs} must hold, but got classes={self.classes}")
        if not 8 <= self.size <= 512:
            raise ValueError(f"8 <= size <= 512 must hold, but got size={self.size}")
        if min(self.train, self.val) < 3 * self.classes:
            raise ValueError(
                f"train and val must hold three images a class, here {3 * self.classes}, "
                f"but got train={self.train}, val={self.val}"
            )
        if not 0 <= self.faintest <= 1.2:
            raise ValueError(f"0 <= faintest <= 1.2 must hold, but got faintest={self.faintest}")
        if not (self.contrast > 0 and self.noise >= 0):
            raise ValueError(f"contrast > 0 and noise >= 0 must hold, but got {self.contrast}, {self.noise}")


def class_pairs(classes: int) -> list[tuple[str, str]]:
    """(texture, layout) of every class; each texture has several layouts, each layout several textures."""
    pairs = []
    for index in range(classes):
        turn, texture = divmod(index, len(TEXTURES))
        pairs.append((TEXTURES[texture], LAYOUTS[(turn + texture) % len(LAYOUTS)]))
    return pairs


def draw(drawing: Drawing, split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 3, size, size] and labels int64 [n] of the split "train" or "val".

    Classes differ by at most one image in number. Equal arguments give equal bytes.
    """
    stream = {"train": 0, "val": 1}[split]
    count = drawing.train if split == "train" else drawing.val
    labels = np.arange(count, dtype=np.int64) % drawing.classes
    Generator(PCG64(SeedSequence((seed, stream, 0)))).shuffle(labels)
    images = np.empty((count, 3, drawing.size, drawing.size), np.uint8)
    for chunk, start in enumerate(range(0, count, _CHUNK)):
        rng = Generator(PCG64(SeedSequence((seed, stream, 1 + chunk))))
        images[start : start + _CHUNK] = _draw_chunk(drawing, labels[start : start + _CHUNK], rng)
    return images, labels


def _draw_chunk(drawing: Drawing, labels: np.ndarray, rng: Generator) -> np.ndarray:
    n = len(labels)
    pairs = class_pairs(drawing.classes)
    texture = np.array([TEXTURES.index(pair[0]) for pair in pairs])[labels]
    centres = _part_centres(labels, pairs, rng)  # [n, 3, 2]
    radius = _uniform(rng, 3.6, 4.8, (n, 3))
    square = rng.integers(0, 2, n).astype(np.float32)  # parts are squares in one image, discs in the next

    # One or two distractors: parts of one other texture, anywhere.
    other = (texture + rng.integers(1, len(TEXTURES), n)) % len(TEXTURES)
    stray = _uniform(rng, 3.0, 29.0, (n, 2, 2))
    stray_radius = _uniform(rng, 3.0, 4.4, (n, 2))
    stray_radius[:, 1] *= rng.integers(0, 2, n).astype(np.float32)

    x, y = _pixel_grid(drawing.size)
    image = _background(x, y, n, rng)
    # Parts are lighter than what is behind them, their lines darker than they are. With signs drawn
    # at random, small networks stayed at chance for all of 300 steps.
    base = _uniform(rng, 20.0, 45.0, (n, 1, 1, 1)) + _uniform(rng, -14.0, 14.0, (n, 3, 1, 1))
    tone = _uniform(rng, -1.3, -0.7, (n, 3, 1, 1))
    strength = _uniform(rng, drawing.faintest, 1.2, (n, 1, 1, 1)) * np.float32(drawing.contrast)
    period = _uniform(rng, 3.2, 4.6, (n, 1, 1))
    phase = _uniform(rng, 0.0, 1.0, (n, 2, 1, 1))
    slant = np.where(rng.integers(0, 2, n) == 0, np.float32(-1), np.float32(1))
    for family, positions, radii in ((other, stray, stray_radius), (texture, centres, radius)):
        inside = np.zeros((n, drawing.size, drawing.size), bool)
        for part in range(positions.shape[1]):
            inside |= _inside(x, y, positions[:, part], radii[:, part], square)
        wave = _texture(family, x, y, period, phase, slant)
        painted = image + base + (strength * tone) * wave[:, None]
        image = np.where(inside[:, None], painted, image)
    image += _noise(rng, n, drawing)
    return np.clip(np.floor(image + np.float32(0.5)), 0, 255).astype(np.uint8)


def _part_centres(labels: np.ndarray, pairs: list[tuple[str, str]], rng: Generator) -> np.ndarray:
    """Centres [n, 3, 2] (x, y) of the parts, by layout, moved, scaled and tilted."""
    n = len(labels)
    pick = rng.integers(0, 4, n)
    forms = np.empty((n, 3, 2), np.float32)
    for index, label in enumerate(labels):
        options = _FORMS[pairs[label][1]]
        forms[index] = options[pick[index] % len(options)]
    forms *= _uniform(rng, 8.0, 10.0, (n, 1, 1))
    # Rotation by up to about 11 degrees, rational: ((1 - t^2) / (1 + t^2), 2 t / (1 + t^2)).
    t = _uniform(rng, -0.1, 0.1, (n, 1))
    cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    turned = np.stack(
        (forms[..., 0] * cosine - forms[..., 1] * sine, forms[..., 0] * sine + forms[..., 1] * cosine),
        axis=-1,
    )
    middle = _uniform(rng, 12.5, 19.5, (n, 1, 2))
    return turned + middle + _uniform(rng, -2.0, 2.0, (n, 3, 2))


def _pixel_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x [1, 1, size] and y [1, size, 1] of the pixel centres, in 1/32 of the side."""
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(32) / np.float32(size)
    return centres[None, None, :], centres[None, :, None]


def _background(x: np.ndarray, y: np.ndarray, n: int, rng: Generator) -> np.ndarray:
    """Float [n, 3, size, size]: a colour that changes linearly over the image, other in every image."""
    level = _uniform(rng, 95.0, 150.0, (n, 3, 1, 1))
    slope = _uniform(rng, -0.8, 0.8, (n, 3, 2, 1, 1))
    return level + slope[:, :, 0] * (x - 16)[:, None] + slope[:, :, 1] * (y - 16)[:, None]


def _inside(x: np.ndarray, y: np.ndarray, centre: np.ndarray, radius: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Bool [n, size, size]: which pixels lie in a disc or a square of equal area (half side 0.886 radius)."""
    across = np.abs(x - centre[:, 0, None, None])
    down = np.abs(y - centre[:, 1, None, None])
    reach = radius[:, None, None]
    disc = across * across + down * down <= reach * reach
    box = np.maximum(across, down) <= np.float32(0.886) * reach
    return np.where(square[:, None, None] > 0, box, disc) & (reach > 0)


def _texture(
    family: np.ndarray, x: np.ndarray, y: np.ndarray, period: np.ndarray, phase: np.ndarray, slant: np.ndarray
) -> np.ndarray:
    """Float [n, size, size] in [-1, 1]: the texture of every image, over the whole image."""
    across = x / period + phase[:, 0]
    down = y / period + phase[:, 1]
    along = np.float32(0.7071) * (x + slant[:, None, None] * y) / period + phase[:, 0]
    stripes_x, stripes_y = _triangle(across), _triangle(down)
    kind = family[:, None, None]
    wave = np.where(kind == 0, stripes_y, stripes_x)  # rows, columns
    wave = np.where(kind == 2, np.float32(1.6) * stripes_x * stripes_y, wave)  # checks
    wave = np.where(kind == 3, _triangle(along), wave)  # slants
    return np.clip(np.float32(2) * wave, -1, 1)


def _triangle(z: np.ndarray) -> np.ndarray:
    """A wave of period 1 between -1 and 1 made of straight lines."""
    return np.float32(4) * np.abs(z - np.floor(z) - np.float32(0.5)) - np.float32(1)


def _noise(rng: Generator, n: int, drawing: Drawing) -> np.ndarray:
    """Float [n, 3, size, size] within +-noise: the mean of two uniform draws for each of 32 x 32 cells.

    Cells, not pixels: noise of single pixels would average out in large pictures and make them easy.
    """
    draws = rng.integers(0, 256, (2, n, 3, 32, 32), dtype=np.uint8).astype(np.float32)
    cells = (draws[0] + draws[1] - np.float32(255)) * np.float32(drawing.noise / 255)
    cell = np.arange(drawing.size) * 32 // drawing.size
    return cells[:, :, cell[:, None], cell]


def _uniform(rng: Generator, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
    return rng.random(shape, np.float32) * np.float32(high - low) + np.float32(low)
