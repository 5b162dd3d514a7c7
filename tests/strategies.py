"""Hypothesis strategies for what the project searches over."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from search_spaces.architecture import Architecture
from search_spaces.metaformer import OPENABLE, PRESETS, load_space
from search_spaces.space import Genome, SearchSpace

SMALL = load_space("metaformer", choices={"resolution": [24, 32]})
SMALL_BLOCKWISE = load_space("metaformer", granularity="block", choices={"resolution": [24, 32]})

_EVERYTHING = {"resolution": [24, 32], **{gene: list(values) for gene, values in OPENABLE.items()}}
OPEN = load_space("metaformer", choices=_EVERYTHING)
OPEN_BLOCKWISE = load_space("metaformer", granularity="block", choices=_EVERYTHING)
"""With all that can be opened."""

spaces: st.SearchStrategy[SearchSpace] = st.sampled_from(
    [SMALL, SMALL_BLOCKWISE, OPEN, OPEN_BLOCKWISE, *(load_space("metaformer", preset) for preset in PRESETS)]
)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def genomes(draw: st.DrawFn, space: SearchSpace) -> Genome:
    """Any genome of `space`."""
    return space.sample(np.random.default_rng(draw(seeds)))


@st.composite
def architectures(draw: st.DrawFn, space: SearchSpace) -> Architecture:
    """Any architecture of `space`."""
    return space.decode(draw(genomes(space)))
