"""Cost of whole populations of a search space by table look-up: genes in, arrays of figures out.

Every place a sub-block can stand in has a table, indexed by the genes that decide its cost and filled when a
population first needs a row. The figures equal those of `nas.cost.cost_architecture` to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hw_models import PartCost, Target
from hw_models.calibration import CalibratedLatency
from hw_models.population import CHUNK, COLUMNS, Position, cost_population, join, part_row
from nas.cost import part_costs
from search_spaces.architecture import BlockBits
from search_spaces.parts import network_parts
from search_spaces.space import BLOCK_GENES, Genome, SearchSpace

Genes = NDArray[np.integer]
"""[networks, choices]: for every network and choice of the space, in its order, the index of the value."""


def genes_of(space: SearchSpace, genomes: Sequence[Genome]) -> Genes:
    """Gene array of genomes given as dicts, as `SearchSpace.sample` makes them."""
    index = [{value: number for number, value in enumerate(choice.values)} for choice in space.choices]
    names = [choice.name for choice in space.choices]
    rows = [[known[genome[name]] for name, known in zip(names, index, strict=True)] for genome in genomes]
    return np.array(rows, dtype=np.int32).reshape(len(genomes), len(space.choices))


@dataclass
class _Table:
    """Costs of what can stand at one place of the network: a part, or with one gene per stage a whole stage.

    genes: columns of the gene array that decide the cost, with their number of values. lookup: code of their
    values -> row of `rows`, -1 when not known yet. stage: number of the stage the place belongs to.
    """

    name: str
    stage: int
    genes: tuple[tuple[int, int], ...]
    lookup: NDArray[np.int32] = field(init=False)
    rows: NDArray[np.float64] = field(init=False)
    used: int = 0

    def __post_init__(self) -> None:
        size = int(np.prod([values for _, values in self.genes])) * 2  # the last digit: 8- or 16-bit input
        self.lookup = np.full(size, -1, dtype=np.int32)
        self.rows = np.zeros((16, len(COLUMNS)))

    def codes(self, genes: Genes, wide_input: NDArray[np.bool_] | None) -> NDArray[np.int32]:
        """genes: [choices, networks] here, so that a gene lies in one piece of memory."""
        code = np.zeros(genes.shape[1], dtype=np.int32)
        for column, values in self.genes:
            code *= values
            code += genes[column]
        code *= 2
        if wide_input is not None:
            code += wide_input
        return code

    def add(self, codes: NDArray[np.integer], rows: NDArray[np.float64]) -> None:
        while self.used + len(rows) > len(self.rows):
            self.rows = np.concatenate([self.rows, np.zeros_like(self.rows)])
        self.rows[self.used : self.used + len(rows)] = rows
        self.lookup[codes] = np.arange(self.used, self.used + len(rows))
        self.used += len(rows)


Standing = tuple[_Table, NDArray[np.int32], NDArray[np.float64] | None]
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
    ) -> None:
        """latency: a calibration of the target's; its expected latencies then take the cost model's place."""
        self.space, self.target, self.latency = space, target, latency
        self._global = target if latency is None else latency.started_target
        self.num_classes, self.in_chans = num_classes, in_chans
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
        self._stages = [self._stage_table(stage) for stage in range(space.stage_count)]

    def cost(self, genes: Genes) -> dict[str, NDArray[np.float64]]:
        """Figures (`hw_models.population.FIGURES`) of every network, arrays [networks].

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
        return join([self._cost_piece(piece) for piece in pieces])

    def _cost_piece(self, genes: Genes) -> Mapping[str, NDArray[np.float64]]:
        by_stage = self.space.granularity == "stage"
        positions = self._stage_positions(genes) if by_stage else self._part_positions(genes)
        return cost_population(positions, genes.shape[1], self._global)

    def _stage_positions(self, genes: Genes) -> list[Position]:
        """One look-up per stage: stem and head are counted to the first and the last."""
        positions: list[Position] = []
        wide: NDArray[np.bool_] | None = None
        for stage, table in enumerate(self._stages):
            codes = table.codes(genes, wide)
            rows = table.lookup[codes]
            if (missing := np.flatnonzero(rows < 0)).size:
                new, first = np.unique(codes[missing], return_index=True)
                table.add(new, self._stage_rows(genes[:, missing[first]], stage))
                rows = table.lookup[codes]
            positions.append((table.rows, rows, None))
            gene = f"stage{stage + 1}.bits"
            wide = self._wide[gene][genes[self._column[gene]]]
        return positions

    def _stage_rows(self, genes: Genes, stage: int) -> NDArray[np.float64]:
        """Sums (peak memory: maxima) over the parts of one stage."""
        total = np.zeros((genes.shape[1], len(COLUMNS)))
        standing = [item for item in self._standing(genes) if item[0].stage == stage]
        for rows, index, times in self._part_positions(genes, standing):
            taken = rows[index]
            count = np.ones(len(taken)) if times is None else times
            total[:, :-1] += taken[:, :-1] * count[:, None]
            np.maximum(total[:, -1], np.where(count > 0, taken[:, -1], 0.0), out=total[:, -1])
        return total

    def _part_positions(self, genes: Genes, standing: Sequence[Standing] | None = None) -> list[Position]:
        """One look-up per part."""
        standing = list(self._standing(genes)) if standing is None else standing
        for table, codes, times in standing:
            missing = table.lookup[codes] < 0
            if times is not None:
                missing &= times > 0
            if missing.any():
                self._fill(genes, standing, np.flatnonzero(missing), codes)
        return [(table.rows, np.maximum(table.lookup[codes], 0), times) for table, codes, times in standing]

    def _fill(
        self, genes: Genes, standing: Sequence[Standing], missing: NDArray[np.intp], codes: NDArray[np.int32]
    ) -> None:
        """Cost one network for every missing row, and keep all its parts that are new."""
        _, first = np.unique(codes[missing], return_index=True)
        for network in missing[first]:
            costs = self._parts_of(genes[:, network])
            for table, own, times in standing:
                present = times is None or times[network] > 0
                if present and table.lookup[own[network]] < 0:
                    ends = (table.name == "stem", table.name == "head")
                    table.add(own[network : network + 1], self._row(costs[table.name], ends)[None])

    def _row(self, part: PartCost, ends: tuple[bool, bool]) -> NDArray[np.float64]:
        if self.latency is None:
            return part_row(part, ends)
        resident_s, streamed_s = self.latency.part_s(part)[:, 0]
        return part_row(part, ends, (float(resident_s), float(streamed_s)))

    def _parts_of(self, genes: NDArray[np.integer]) -> dict[str, PartCost]:
        values = (choice.values[int(index)] for choice, index in zip(self.space.choices, genes, strict=True))
        arch = self.space.decode({choice.name: value for choice, value in zip(self.space.choices, values, strict=True)})
        network = list(network_parts(arch, self.num_classes, self.in_chans))
        costs = part_costs(network, arch, self.target)
        return {part.name: cost for part, cost in zip(network, costs, strict=True)}

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

    def _all_places(self) -> Iterator[_Table]:
        yield self._table("stem", 0, "resolution", "stem", "activation", "stage1.width")
        last = self.space.stage_count
        for stage in range(last):
            width = f"stage{stage + 1}.width"
            if stage:
                yield self._table(
                    f"stages.{stage}.downsample", stage, "resolution", "stem", f"stage{stage}.width", width
                )
            for block in range(self._distinct_blocks(stage)):
                prefix = self.space.block_prefix(stage, block)
                own = [f"{prefix}.{gene}" for gene in BLOCK_GENES]
                name = f"stages.{stage}.blocks.{block}"
                yield self._table(name, stage, "resolution", "stem", "norm", "activation", width, *own)
        yield self._table("head", last - 1, "resolution", "stem", "norm", f"stage{last}.width")

    def _stage_table(self, stage: int) -> _Table:
        prefix = f"stage{stage + 1}"
        genes = ["resolution", "stem", "norm", "activation", f"{prefix}.depth", f"{prefix}.width"]
        if stage:
            genes.append(f"stage{stage}.width")
        if self.space.granularity == "stage":
            genes += [f"{prefix}.{gene}" for gene in BLOCK_GENES]
        return self._table(prefix, stage, *genes)

    def _table(self, name: str, stage: int, *genes: str) -> _Table:
        return _Table(name, stage, tuple((self._column[gene], self._values[gene]) for gene in genes))
