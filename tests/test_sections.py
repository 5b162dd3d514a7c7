"""Sections: every part in one of them, and codes that tell apart what the parts' own codes tell apart."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given

from nas.sections import Sections
from nas.space_places import SpacePlaces
from search_spaces.space import SearchSpace
from tests.strategies import OPEN, OPEN_BLOCKWISE, SMALL, SMALL_BLOCKWISE, seeds

SPACES = [SMALL, SMALL_BLOCKWISE, OPEN, OPEN_BLOCKWISE]
IDS = ["stage", "block", "stage, all open", "block, all open"]
KNOWN = [(space, SpacePlaces(space)) for space in SPACES]
SECTIONS = [Sections(places, 8) for _, places in KNOWN]


@pytest.mark.parametrize("sections", SECTIONS, ids=IDS)
def test_every_part_is_in_one_section(sections: Sections) -> None:
    found = Counter(name for section in sections.all for name in section.parts)
    assert found == Counter(sections.places.all.keys())


@pytest.mark.parametrize("sections", SECTIONS, ids=IDS)
@given(seed=seeds)
def test_codes_decide_what_stands_there(sections: Sections, seed: int) -> None:
    """Networks with the same code of a section have the same parts there, equally often; code 0 has none."""
    genes = _genes(sections.space, seed, 40)
    codes = sections.codes(genes)
    standing = {place.name: (own, times) for place, own, times in sections.places.standing(genes.T)}
    for section, row in zip(sections.all, codes, strict=True):
        assert (row >= 0).all()
        assert (row < len(section.table.lookup)).all()
        parts = {}
        for network, code in enumerate(row):
            own = [
                (int(standing[name][0][network]), 1.0 if times is None else float(times[network]))
                for name in section.parts
                for times in [standing[name][1]]
            ]
            present = [(part, often) for part, often in own if often > 0]
            assert parts.setdefault(int(code), present) == present
            assert (code == 0) == (not present)


def _genes(space: SearchSpace, seed: int, count: int) -> np.ndarray:
    """Of few kinds, so that codes meet again."""
    rng = np.random.default_rng(seed)
    columns = [rng.integers(0, min(2, len(choice.values)), count) for choice in space.choices]
    return np.stack(columns, axis=1).astype(np.int32)
