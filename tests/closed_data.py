"""A data set of which some parts must not be read."""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn

from nas.data.bundle import DataBundle


class ReadTooEarlyOrLate(AssertionError):
    """A part of the data was read by a step that must not see it."""


def closed(bundle: DataBundle, *parts: str) -> DataBundle:
    """`bundle`, whose `parts` ("train", "search", "val") raise when their images, labels or length are asked for."""

    def refuse() -> NoReturn:
        raise ReadTooEarlyOrLate(f"one of {', '.join(parts)} was read")

    return replace(bundle, **{part: replace(getattr(bundle, part), open_images=refuse) for part in parts})
