"""Cost of whole populations of a search space by table look-up: genes in, arrays of figures out.

Every kind of place a sub-block can stand in has a table, indexed by the genes that decide its cost, filled when a
population first needs a row and kept on disk. Networks are looked up by sections, whose rows are sums of those. The
figures equal those of `nas.cost.cost_architecture` to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from hw_models import Target
from hw_models.calibration import CalibratedLatency
from hw_models.population import CHUNK, cost_population, empty_figures, packed, packed_width, sum_rows
from nas.part_rows import PartRows, Wanted
from nas.place_tables import Codes, Genes, Place
from nas.sections import Section, Sections
from nas.space_places import SpacePlaces, Standing
from nas.table_files import TableFile
from search_spaces.space import Genome, SearchSpace


def genes_of(space: SearchSpace, genomes: Sequence[Genome]) -> Genes:
    """Gene array of genomes given as dicts, as `SearchSpace.sample` makes them."""
    index = [{value: number for number, value in enumerate(choice.values)} for choice in space.choices]
    names = [choice.name for choice in space.choices]
    rows = [[known[genome[name]] for name, known in zip(names, index, strict=True)] for genome in genomes]
    return np.array(rows, dtype=np.int32).reshape(len(genomes), len(space.choices))


SAVE_EVERY = 1000
"""New rows between two writes of the file: the time of some seconds."""


class PopulationCost:
    """Costs of populations of one space on one target.

    Rows are made when first needed (milliseconds each, tracing included); afterwards a network costs a few
    look-ups.
    """

    def __init__(
        self,
        space: SearchSpace,
        target: Target,
        num_classes: int,
        in_chans: int = 3,
        latency: CalibratedLatency | None = None,
        *,
        folder: Path | None = None,
        workers: int = 1,
        threads: int = 1,
    ) -> None:
        """latency: a calibration of the target's; its expected latencies then take the cost model's place.
        folder: where tables are kept from one run to the next (None, or with a calibration: nowhere). workers:
        processes that make rows when many are missing. threads: that look up.
        """
        self.space, self.target = space, target
        self._start = None if latency is None else latency.start
        self._workers, self._threads = workers, threads
        self._places = SpacePlaces(space)
        self._firsts = self._places.firsts
        bits = ((place.name, self._places.bits_column(place)) for place in self._firsts.values())
        columns = tuple((name, column) for name, column in bits if column is not None)
        self._maker = PartRows(space, target, num_classes, in_chans, columns, latency)
        self._sections = Sections(self._places, packed_width(self.target))
        folder = folder if latency is None else None
        self._unsaved: set[str] = set()
        self._new = 0
        self._file = TableFile(folder, space, target, num_classes, in_chans) if folder is not None else None
        for name, (codes, rows) in (self._file.read() if self._file is not None else {}).items():
            self._firsts[name].table.add(codes, rows)

    @property
    def rows_known(self) -> int:
        """Parts whose cost is known."""
        return sum(place.table.used for place in self._firsts.values())

    def fill(self) -> None:
        """Make every row that a network of the space can need."""
        self._make([(place, self._places.possible(place)) for place in self._firsts.values()])
        self.save()

    @property
    def is_full(self) -> bool:
        """Whether every row of the space is there."""
        return all((place.table.lookup[self._places.possible(place)] >= 0).all() for place in self._firsts.values())

    def save(self) -> None:
        """Write rows that are new to disk. Done by itself whenever many are."""
        if self._file is not None and self._unsaved:
            self._file.add({name: self._firsts[name].table.known() for name in self._unsaved})
        self._unsaved, self._new = set(), 0

    def cost(self, genes: Genes) -> dict[str, NDArray[Any]]:
        """Figures (`hw_models.population.FIGURES`) of every network and whether the target can run it ("legal"),
        arrays [networks].

        Raises ValueError when `genes` has the wrong number of columns or an index outside its choice.
        """
        genes = np.asarray(genes)
        if genes.ndim != 2 or genes.shape[1] != len(self.space.choices):
            raise ValueError(
                f"genes must have shape [networks, {len(self.space.choices)}], but got {list(genes.shape)}"
            )
        figures = empty_figures(len(genes))

        def cost(piece: slice) -> bool:
            return self._cost_piece(genes[piece], {name: column[piece] for name, column in figures.items()})

        pieces = [slice(start, start + CHUNK) for start in range(0, len(genes), CHUNK)]
        lacking = [piece for piece, done in zip(pieces, self._each(cost, pieces), strict=True) if not done]
        if lacking:
            self._prepare(np.concatenate([genes[piece] for piece in lacking]))
            self._each(cost, lacking)
        return figures

    def _each(self, run: Callable[[slice], bool], pieces: Sequence[slice]) -> list[bool]:
        if self._threads < 2 or len(pieces) < 2:
            return [run(piece) for piece in pieces]
        # numpy lets go of the interpreter while it looks up; products with more threads of their own would only queue
        with _products().limit(limits=1), ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(run, pieces))

    def _cost_piece(self, genes: Genes, out: dict[str, NDArray[Any]]) -> bool:
        """False when a row is missing."""
        positions = []
        for section, codes in zip(self._sections.all, self._sections.codes(genes), strict=True):
            rows = section.table.lookup.take(codes, mode="clip")
            if rows.min() < 0:
                return False
            positions.append((section.table.rows, rows))
        cost_population(positions, self.target, out, self._start)
        return True

    def _prepare(self, genes: Genes) -> None:
        """Make what these networks lack."""
        lacking: list[tuple[Section, Codes, list[Standing]]] = []
        for section, codes in zip(self._sections.all, self._sections.codes(genes), strict=True):
            unknown = np.flatnonzero(section.table.lookup[codes] < 0)
            new, first = np.unique(codes[unknown], return_index=True)
            examples = np.ascontiguousarray(genes[unknown[first]].T, dtype=np.int32)
            standing = [one for one in self._places.standing(examples) if one[0].name in section.parts]
            lacking.append((section, new, standing))
        self._make([missing for _, _, standing in lacking for missing in _missing(standing)])
        for section, new, standing in lacking:
            self._add(section, new, standing)

    def _add(self, section: Section, codes: Codes, standing: Sequence[Standing]) -> None:
        """Rows of a section from those of its parts; codes whose parts are the same share one."""
        fresh = section.table.lookup[codes] < 0  # another section with the same table may have been first
        if not fresh.any():
            return
        parts = [
            (place.table.rows, place.table.lookup[own[fresh]], np.ones(fresh.sum()) if often is None else often[fresh])
            for place, own, often in standing
        ]
        kinds = np.stack([column for _, own, often in parts for column in (own, often)])
        _, first, numbers = np.unique(kinds, axis=1, return_index=True, return_inverse=True)
        rows = sum_rows((known[own[first]], often[first]) for known, own, often in parts)
        section.table.add(codes[fresh], packed(rows, self.target), numbers)

    def _make(self, missing: Sequence[tuple[Place, Codes]]) -> None:
        """Make the rows of some codes of some places, and keep them."""
        per_table: dict[str, Codes] = {}
        for place, codes in missing:
            name = place.table.name
            per_table[name] = np.union1d(per_table.get(name, codes[:0]), codes)
        wanted = [
            Wanted(place.name, place.network(int(code), self._places.deepest), bool(code % 2))
            for name, codes in per_table.items()
            for place in [self._firsts[name]]
            for code in codes
            if place.table.lookup[code] < 0
        ]
        if not wanted:
            return
        rows = self._maker.make(wanted, self._workers)
        start = 0
        for name, codes in per_table.items():
            table = self._firsts[name].table
            codes = codes[table.lookup[codes] < 0]
            table.add(codes, rows[start : start + len(codes)])
            start += len(codes)
        self._unsaved |= per_table.keys()
        self._new += len(wanted)
        if self._new >= SAVE_EVERY:
            self.save()


@cache
def _products() -> ThreadpoolController:
    """The libraries that multiply matrices in this process."""
    return ThreadpoolController().select(user_api="blas")


def _missing(standing: Iterable[Standing]) -> Iterable[tuple[Place, Codes]]:
    """Codes of parts that no table has yet."""
    for place, codes, times in standing:
        present = codes if times is None else codes[times > 0]
        yield place, np.unique(present[place.table.lookup[present] < 0])
