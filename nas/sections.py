"""Sections of a network, several parts each, so that a whole network is a few look-ups.

A code is a number whose digits are genes: a product of the gene array with a matrix gives those of all sections at
once. Tables stay small enough for the processor's cache: blocks are not put together with what stands between stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from hw_models.population import aligned
from nas.place_tables import Genes
from nas.space_places import SpacePlaces

MOST_CODES = 1 << 16
"""Stem, downsamplings and head share a section up to so many codes."""

ABREAST = 64
"""Networks whose genes are checked at a time."""


@dataclass
class SectionTable:
    """Figures of what can stand in some sections of the same kind. Code and row 0 are nothing at all, of no cost.

    values: numbers of values of the digits of a code. lookup: code -> row, -1 when not known yet.
    """

    values: tuple[int, ...]
    width: int
    lookup: NDArray[np.int32] = field(init=False)
    rows: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.lookup = np.full(1 + prod(self.values), -1, dtype=np.int32)
        self.lookup[0] = 0
        self.rows = np.zeros((1, self.width))

    def add(self, codes: NDArray[np.integer], rows: NDArray[np.float64], numbers: NDArray[np.integer]) -> None:
        """Rows, and for every code the number of its own among them."""
        self.lookup[codes] = len(self.rows) + numbers
        self.rows = aligned(np.concatenate([self.rows, rows]))


@dataclass(frozen=True)
class Section:
    """parts: names of the places that it sums. columns: digits of its code, columns of `Sections.extended`.

    present: stage and number of the block where networks may lack it.
    """

    parts: tuple[str, ...]
    columns: tuple[int, ...]
    table: SectionTable
    present: tuple[int, int] | None = None


class Sections:
    """The sections of a space's networks."""

    def __init__(self, places: SpacePlaces, width: int) -> None:
        """width: columns of a table."""
        self.places, self.space, self._width = places, places.space, width
        self._choices = len(self.space.choices)
        self.all = (*self._between_stages(), *self._blocks())
        codes = max(len(section.table.lookup) for section in self.all)
        self._digits = np.float32 if codes < 1 << 24 else np.float64  # whole numbers up to this are exact
        self._weights = np.zeros((len(self.all), self._extended_width), dtype=self._digits)
        for row, section in enumerate(self.all):
            for digit, column in enumerate(section.columns):
                self._weights[row, column] = prod(section.table.values[digit + 1 :])
        self._limits = np.array([len(choice.values) for choice in self.space.choices], dtype=np.uint32)

    def codes(self, genes: Genes) -> NDArray[np.int32]:
        """[sections, networks]. genes: [networks, choices]. Raises ValueError when one lies outside its choice."""
        genes = np.ascontiguousarray(genes, dtype=np.int32)
        if not self._inside(genes.view(np.uint32)):  # what is below 0 is large then
            raise ValueError("a gene lies outside its choice: indices must be >= 0 and below the number of values")
        codes = (self._weights @ self.extended(genes).T).astype(np.int32)
        codes += 1
        for row, section in enumerate(self.all):
            if section.present is not None:
                stage, block = section.present
                exists = self.places.depths[stage] > block
                if not exists.all():
                    codes[row] *= exists.take(genes[:, self._column(f"stage{stage + 1}.depth")])
        return codes

    def _inside(self, genes: NDArray[np.uint32]) -> bool:
        """Whether every gene is one of its choice's values. Many networks at a time are one long row: faster."""
        whole = len(genes) // ABREAST * ABREAST
        pieces = genes[:whole].reshape(-1, ABREAST * genes.shape[1]), genes[whole:]
        limits = np.tile(self._limits, ABREAST), self._limits
        return not any((piece >= limit).any() for piece, limit in zip(pieces, limits, strict=True))

    def extended(self, genes: Genes) -> NDArray[np.floating]:
        """[networks, columns]: the genes, then for every stage the bits of its last block, where every block has its
        own.
        """
        out = np.empty((len(genes), self._extended_width), dtype=self._digits)
        out[:, : self._choices] = genes
        if not self.places.by_stage:
            starts = np.arange(len(genes)) * genes.shape[1]
            for stage, depths in enumerate(self.places.depths):
                columns = np.array([self._bits(stage, int(depth) - 1) for depth in depths])
                last = columns.take(genes[:, self._column(f"stage{stage + 1}.depth")])
                out[:, self._choices + stage] = genes.reshape(-1).take(starts + last)
        return out

    @property
    def _extended_width(self) -> int:
        return self._choices + (0 if self.places.by_stage else self.space.stage_count)

    def _column(self, gene: str) -> int:
        return self.places.columns[gene]

    def _bits(self, stage: int, block: int) -> int:
        return self._column(f"{self.space.block_prefix(stage, block)}.bits")

    def _last_bits(self, stage: int) -> int:
        return self._bits(stage, 0) if self.places.by_stage else self._choices + stage

    def _values(self, column: int) -> int:
        """Numbers of values of a column of `extended`."""
        if column < self._choices:
            return len(self.space.choices[column].values)
        depth = self.space.max_depth(column - self._choices)
        return max(self._values(self._bits(column - self._choices, block)) for block in range(depth))

    def _between_stages(self) -> Iterator[Section]:
        """Stem, downsamplings and head, as many together as `MOST_CODES` lets."""
        parts: list[str] = []
        columns: list[int] = []
        for name, place in self.places.all.items():
            if ".blocks." in name:
                continue
            own = list(place.columns)
            if name != "stem":
                own.append(self._last_bits(place.stage if name == "head" else place.stage - 1))
            together = list(dict.fromkeys([*columns, *own]))
            if parts and prod(map(self._values, together)) > MOST_CODES:
                yield self._section(parts, columns)
                parts, together = [], own
            parts, columns = [*parts, name], together
        yield self._section(parts, columns)

    def _blocks(self) -> Iterator[Section]:
        """The blocks of every stage together, or one by one where every block has its own genes."""
        for stage in range(self.space.stage_count):
            names = [f"stages.{stage}.blocks.{block}" for block in range(self.places.distinct_blocks(stage))]
            columns = [self.places.all[name].columns for name in names]
            if self.places.by_stage:
                yield self._section(names, [*columns[0], self._column(f"stage{stage + 1}.depth")])
                continue
            table: SectionTable | None = None
            for block, name in enumerate(names[1:], start=1):
                section = self._section([name], [*columns[block], self._bits(stage, block - 1)], table, (stage, block))
                table = section.table
                yield section
            yield self._section(names[:1], columns[0])

    def _section(
        self,
        parts: Sequence[str],
        columns: Sequence[int],
        table: SectionTable | None = None,
        present: tuple[int, int] | None = None,
    ) -> Section:
        values = tuple(map(self._values, columns))
        if table is None or table.values != values:
            table = SectionTable(values, self._width)
        return Section(tuple(parts), tuple(columns), table, present)
