"""Cost of whole populations of a search space by table look-up: genes in, arrays of figures out.

Every kind of place a sub-block can stand in has a table, indexed by the genes that decide its cost, filled when a
population first needs a row and kept on disk. The figures equal those of `nas.cost.cost_architecture` to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw_models import Target
from hw_models.calibration import CalibratedLatency
from hw_models.population import CHUNK, COLUMNS, MAXIMA, cost_population, join
from nas.part_rows import PartRows, Wanted
from nas.place_tables import Codes, Genes, Place, Table
from nas.table_files import TableFile
from search_spaces.architecture import BlockBits
from search_spaces.space import BLOCK_GENES, Genome, SearchSpace


def genes_of(space: SearchSpace, genomes: Sequence[Genome]) -> Genes:
    """Gene array of genomes given as dicts, as `SearchSpace.sample` makes them."""
    index = [{value: number for number, value in enumerate(choice.values)} for choice in space.choices]
    names = [choice.name for choice in space.choices]
    rows = [[known[genome[name]] for name, known in zip(names, index, strict=True)] for genome in genomes]
    return np.array(rows, dtype=np.int32).reshape(len(genomes), len(space.choices))


SAVE_EVERY = 1000
"""New rows between two writes of the file: the time of some seconds."""

Standing = tuple[Place, NDArray[np.int32], NDArray[np.float64] | None]
"""A place, the code of every network there, and how often its part occurs (None: once)."""


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
        self._global = target if latency is None else latency.started_target
        self._workers, self._threads = workers, threads
        self._column = {choice.name: index for index, choice in enumerate(space.choices)}
        self._values = {choice.name: len(choice.values) for choice in space.choices}
        self._wide = {
            choice.name: np.array([BlockBits.parse(str(value)).activations == 16 for value in choice.values])
            for choice in space.choices
            if choice.name.endswith("bits")
        }
        self._depths = [
            np.array([int(value) for value in space[f"stage{stage + 1}.depth"].values])
            for stage in range(space.stage_count)
        ]
        self._places = {place.name: place for place in self._all_places()}
        self._firsts = {place.table.name: place for place in reversed(self._places.values())}
        self._stages = [self._stage_place(stage) for stage in range(space.stage_count)]
        bits = ((place.name, self._bits_column(place)) for place in self._firsts.values())
        columns = tuple((name, column) for name, column in bits if column is not None)
        self._maker = PartRows(space, target, num_classes, in_chans, columns, latency)
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
        self._make([(place, self._possible(place)) for place in self._firsts.values()])
        self.save()

    @property
    def is_full(self) -> bool:
        """Whether every row of the space is there."""
        return all((place.table.lookup[self._possible(place)] >= 0).all() for place in self._firsts.values())

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
        limits = np.array([len(choice.values) for choice in self.space.choices])
        if genes.ndim != 2 or genes.shape[1] != len(limits):
            raise ValueError(f"genes must have shape [networks, {len(limits)}], but got {list(genes.shape)}")
        columns = np.ascontiguousarray(genes.T, dtype=np.int32)
        if len(genes) and ((columns.min(axis=1) < 0).any() or (columns.max(axis=1) >= limits).any()):
            raise ValueError("a gene lies outside its choice: indices must be >= 0 and below the number of values")
        pieces = [columns[:, start : start + CHUNK] for start in range(0, max(1, len(genes)), CHUNK)]
        costed = self._cost_pieces(pieces)
        if lacking := [number for number, figures in enumerate(costed) if figures is None]:
            self._prepare(np.concatenate([pieces[number] for number in lacking], axis=1))
            for number, figures in zip(lacking, self._cost_pieces([pieces[n] for n in lacking]), strict=True):
                costed[number] = figures
        return join([figures for figures in costed if figures is not None])

    def _cost_pieces(self, pieces: Sequence[Genes]) -> list[Mapping[str, NDArray[Any]] | None]:
        if self._threads < 2 or len(pieces) < 2:
            return [self._cost_piece(piece) for piece in pieces]
        with ThreadPoolExecutor(self._threads) as pool:  # numpy lets go of the interpreter while it looks up
            return list(pool.map(self._cost_piece, pieces))

    def _cost_piece(self, genes: Genes) -> Mapping[str, NDArray[Any]] | None:
        """None when a row is missing."""
        positions = []
        for place, codes, times in self._stages_standing(genes) if self._by_stage else self._standing(genes):
            rows = place.table.lookup[codes]
            if (rows < 0 if times is None else (rows < 0) & (times > 0)).any():
                return None
            positions.append((place.table.rows, rows if times is None else np.maximum(rows, 0), times))
        return cost_population(positions, genes.shape[1], self._global)

    def _prepare(self, genes: Genes) -> None:
        """Make what these networks lack. genes: [choices, networks]."""
        if not self._by_stage:
            self._make(list(self._missing(self._standing(genes))))
            return
        lacking = []
        for place, codes, _ in self._stages_standing(genes):
            new, first = np.unique(codes[place.table.lookup[codes] < 0], return_index=True)
            examples = np.flatnonzero(place.table.lookup[codes] < 0)[first]
            lacking.append(
                (place, new, [one for one in self._standing(genes[:, examples]) if one[0].stage == place.stage])
            )
        self._make([missing for _, _, standing in lacking for missing in self._missing(standing)])
        for place, new, standing in lacking:
            place.table.add(new, _stage_rows(standing, len(new)))

    def _missing(self, standing: Iterator[Standing] | Sequence[Standing]) -> Iterator[tuple[Place, Codes]]:
        for place, codes, times in standing:
            present = codes if times is None else codes[times > 0]
            yield place, np.unique(present[place.table.lookup[present] < 0])

    def _make(self, missing: Sequence[tuple[Place, Codes]]) -> None:
        """Make the rows of some codes of some places, and keep them."""
        per_table: dict[str, Codes] = {}
        for place, codes in missing:
            name = place.table.name
            per_table[name] = np.union1d(per_table.get(name, codes[:0]), codes)
        wanted = [
            Wanted(place.name, place.network(int(code), self._deepest), bool(code % 2))
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

    @property
    def _by_stage(self) -> bool:
        return self.space.granularity == "stage"

    @property
    def _deepest(self) -> tuple[int, ...]:
        """The network of all first values, but with all its blocks."""
        depths = {f"stage{stage + 1}.depth": int(known.argmax()) for stage, known in enumerate(self._depths)}
        return tuple(depths.get(choice.name, 0) for choice in self.space.choices)

    def _stages_standing(self, genes: Genes) -> Iterator[Standing]:
        """Every stage, in order of execution; stem and head are counted to the first and the last."""
        wide: NDArray[np.bool_] | None = None
        for stage, place in enumerate(self._stages):
            yield place, place.codes(genes, wide), None
            gene = f"stage{stage + 1}.bits"
            wide = self._wide[gene][genes[self._column[gene]]]

    def _standing(self, genes: Genes) -> Iterator[Standing]:
        """Every part's place, in order of execution."""
        places = self._places
        yield places["stem"], places["stem"].codes(genes, None), None
        wide: NDArray[np.bool_] | None = None  # whether what comes in has 16 bits
        for stage in range(self.space.stage_count):
            if stage:
                place = places[f"stages.{stage}.downsample"]
                yield place, place.codes(genes, wide), None
            depth = self._depths[stage][genes[self._column[f"stage{stage + 1}.depth"]]]
            wide = None
            for block in range(self._distinct_blocks(stage)):
                place = places[f"stages.{stage}.blocks.{block}"]
                times = self._times(block, depth)
                yield place, place.codes(genes, wide), times
                gene = f"{self.space.block_prefix(stage, block)}.bits"
                own = self._wide[gene][genes[self._column[gene]]]
                wide = own if wide is None or times is None else np.where(times > 0, own, wide)
        yield places["head"], places["head"].codes(genes, wide), None

    def _distinct_blocks(self, stage: int) -> int:
        """Blocks of a stage that can differ: all of them, or with one gene per stage the first and the
        others.
        """
        depth = self.space.max_depth(stage)
        return depth if self.space.granularity == "block" else min(depth, 2)

    def _times(self, block: int, depth: NDArray[np.int64]) -> NDArray[np.float64] | None:
        if block == 0:
            return None
        times = depth > block if self.space.granularity == "block" else depth - 1
        return times.astype(np.float64)

    def _possible(self, place: Place) -> Codes:
        """Codes that some network has at a place of this kind."""
        codes = np.arange(len(place.table.lookup), dtype=np.int64)
        wide = codes % 2 == 1
        bits = self._bits_column(place)
        if place.name == "stem" or not any(known.any() for known in self._wide.values()):
            return codes[~wide]
        if bits is not None and self._by_stage:  # only blocks with the same bits follow each other
            own = self._wide[self.space.choices[bits].name][place.table.digit(codes, place.columns.index(bits))]
            return codes[~wide | own]
        return codes

    def _bits_column(self, place: Place) -> int | None:
        """Column of the gene that holds the bits of a block, None for other parts."""
        return next((column for column in place.columns if self.space.choices[column].name.endswith("bits")), None)

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
            for block in range(self._distinct_blocks(stage)):
                prefix = self.space.block_prefix(stage, block)
                own = [f"{prefix}.{gene}" for gene in BLOCK_GENES]
                name = f"stages.{stage}.blocks.{block}"
                place = self._place(name, stage, table, "resolution", "stem", "norm", "activation", width, *own)
                table = place.table
                yield place
        yield self._place("head", last - 1, None, "resolution", "stem", "norm", f"stage{last}.width")

    def _stage_place(self, stage: int) -> Place:
        prefix = f"stage{stage + 1}"
        genes = ["resolution", "stem", "norm", "activation", f"{prefix}.depth", f"{prefix}.width"]
        if stage:
            genes.append(f"stage{stage}.width")
        if self._by_stage:
            genes += [f"{prefix}.{gene}" for gene in BLOCK_GENES]
        return self._place(prefix, stage, None, *genes)

    def _place(self, name: str, stage: int, table: Table | None, *genes: str) -> Place:
        values = tuple(self._values[gene] for gene in genes)
        if table is None or table.values != values:
            table = Table(name, values)
        return Place(name, stage, tuple(self._column[gene] for gene in genes), table)


def _stage_rows(standing: Sequence[Standing], count: int) -> NDArray[np.float64]:
    """Sums over the parts of one stage, of the last columns the largest."""
    total = np.zeros((count, len(COLUMNS)))
    for place, codes, times in standing:
        taken = place.table.rows[np.maximum(place.table.lookup[codes], 0)]
        often = np.ones(count) if times is None else times
        total[:, :-MAXIMA] += taken[:, :-MAXIMA] * often[:, None]
        largest = np.where(often[:, None] > 0, taken[:, -MAXIMA:], 0.0)
        np.maximum(total[:, -MAXIMA:], largest, out=total[:, -MAXIMA:])
    return total
