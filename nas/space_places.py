"""Where parts stand in the networks of a space, and which genes decide what a part costs there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from nas.place_tables import Codes, Genes, Place, Table
from search_spaces.architecture import BlockBits
from search_spaces.space import BLOCK_GENES, SearchSpace

Standing = tuple[Place, NDArray[np.int32], NDArray[np.float64] | None]
"""A place, the code of every network there, and how often its part occurs (None: once)."""


class SpacePlaces:
    """Places of one space with their tables, empty at first.

    all: place name -> place, in order of execution. firsts: table name -> the first of the places that share it.
    columns: gene -> its column in a gene array.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.columns = {choice.name: index for index, choice in enumerate(space.choices)}
        self._values = {choice.name: len(choice.values) for choice in space.choices}
        self._wide = {
            choice.name: np.array([BlockBits.parse(str(value)).activations == 16 for value in choice.values])
            for choice in space.choices
            if choice.name.endswith("bits")
        }
        self.depths = [
            np.array([int(value) for value in space[f"stage{stage + 1}.depth"].values])
            for stage in range(space.stage_count)
        ]
        self.all = {place.name: place for place in self._all_places()}
        self.firsts = {place.table.name: place for place in reversed(self.all.values())}

    @property
    def by_stage(self) -> bool:
        """Whether all blocks of a stage have the same genes."""
        return self.space.granularity == "stage"

    @property
    def deepest(self) -> tuple[int, ...]:
        """The network of all first values, but with all its blocks."""
        depths = {f"stage{stage + 1}.depth": int(known.argmax()) for stage, known in enumerate(self.depths)}
        return tuple(depths.get(choice.name, 0) for choice in self.space.choices)

    def standing(self, genes: Genes) -> Iterator[Standing]:
        """Every part's place, in order of execution. genes: [choices, networks]."""
        places = self.all
        yield places["stem"], places["stem"].codes(genes, None), None
        wide: NDArray[np.bool_] | None = None  # whether what comes in has 16 bits
        for stage in range(self.space.stage_count):
            if stage:
                place = places[f"stages.{stage}.downsample"]
                yield place, place.codes(genes, wide), None
            depth = self.depths[stage][genes[self.columns[f"stage{stage + 1}.depth"]]]
            wide = None
            for block in range(self.distinct_blocks(stage)):
                place = places[f"stages.{stage}.blocks.{block}"]
                times = self._times(block, depth)
                yield place, place.codes(genes, wide), times
                gene = f"{self.space.block_prefix(stage, block)}.bits"
                own = self._wide[gene][genes[self.columns[gene]]]
                wide = own if wide is None or times is None else np.where(times > 0, own, wide)
        yield places["head"], places["head"].codes(genes, wide), None

    def distinct_blocks(self, stage: int) -> int:
        """Blocks of a stage that can differ: all of them, or with one gene per stage the first and the
        others.
        """
        depth = self.space.max_depth(stage)
        return depth if self.space.granularity == "block" else min(depth, 2)

    def possible(self, place: Place) -> Codes:
        """Codes that some network has at a place of this kind."""
        codes = np.arange(len(place.table.lookup), dtype=np.int64)
        wide = codes % 2 == 1
        bits = self.bits_column(place)
        if place.name == "stem" or not any(known.any() for known in self._wide.values()):
            return codes[~wide]
        if bits is not None and self.by_stage:  # only blocks with the same bits follow each other
            own = self._wide[self.space.choices[bits].name][place.table.digit(codes, place.columns.index(bits))]
            return codes[~wide | own]
        return codes

    def bits_column(self, place: Place) -> int | None:
        """Column of the gene that holds the bits of a block, None for other parts."""
        return next((column for column in place.columns if self.space.choices[column].name.endswith("bits")), None)

    def _times(self, block: int, depth: NDArray[np.int64]) -> NDArray[np.float64] | None:
        if block == 0:
            return None
        times = depth > block if self.space.granularity == "block" else depth - 1
        return times.astype(np.float64)

    def _all_places(self) -> Iterator[Place]:
        """Blocks of a stage share a table: their genes have the same values."""
        yield self._place("stem", 0, None, "resolution", "stem", "activation", "stage1.width")
        last = self.space.stage_count
        for stage in range(last):
            width = f"stage{stage + 1}.width"
            if stage:
                name = f"stages.{stage}.downsample"
                yield self._place(name, stage, None, "resolution", "stem", f"stage{stage}.width", width)
            table: Table | None = None
            for block in range(self.distinct_blocks(stage)):
                prefix = self.space.block_prefix(stage, block)
                own = [f"{prefix}.{gene}" for gene in BLOCK_GENES]
                name = f"stages.{stage}.blocks.{block}"
                place = self._place(name, stage, table, "resolution", "stem", "norm", "activation", width, *own)
                table = place.table
                yield place
        yield self._place("head", last - 1, None, "resolution", "stem", "norm", f"stage{last}.width")

    def _place(self, name: str, stage: int, table: Table | None, *genes: str) -> Place:
        values = tuple(self._values[gene] for gene in genes)
        if table is None or table.values != values:
            table = Table(name, values)
        return Place(name, stage, tuple(self.columns[gene] for gene in genes), table)
