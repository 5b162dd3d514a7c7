"""Rows of the population's tables: what a part costs at its place, for the genes that decide it.

Rows of one module at several resolutions and bit policies are made together: it is built once, traced once per
input shape (several resolutions leave the last stages the same), and costed once per policy. Many rows are made in
several processes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hw_models import PartCost, PartEstimator, Target, Workload
from hw_models.calibration import CalibratedLatency
from hw_models.known_groups import KnownGroups
from hw_models.population import COLUMNS, part_row
from nas.bits import FIXED_BITS, put_precision
from nas.trace import trace_module
from search_spaces.architecture import BlockBits
from search_spaces.parts import NetworkPart, network_parts
from search_spaces.plugin import install
from search_spaces.space import SearchSpace, Value

ALONE = 1500
"""Up to so many rows are made in this process: others take some seconds to start."""

BATCH = 800
"""Rows another process makes at a time."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A row to be made: the part at `place` of the network with these indices of gene values, and whether what it
    reads has 16 bits. Networks whose part is the same should be the same network: rows are shared by comparing them.
    """

    place: str
    genes: tuple[int, ...]
    wide_input: bool


@dataclass(frozen=True)
class PartRows:
    """Makes rows for one space on one target. bits_genes: place -> column of the gene that holds its bits.

    latency: as in `nas.population.PopulationCost`.
    """

    space: SearchSpace
    target: Target
    num_classes: int
    in_chans: int
    bits_genes: tuple[tuple[str, int], ...]
    latency: CalibratedLatency | None = None

    def make(self, wanted: Sequence[Wanted], workers: int) -> NDArray[np.float64]:
        """[rows, len(COLUMNS)], in the order they were asked for. workers: processes for many, this one included."""
        order = sorted(range(len(wanted)), key=lambda number: self._likeness(wanted[number]))
        rows = np.empty((len(wanted), len(COLUMNS)))
        if workers < 2 or len(wanted) <= ALONE:
            for number, row in zip(order, self._rows(wanted[number] for number in order), strict=True):
                rows[number] = row
            return rows
        batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        context = multiprocessing.get_context("spawn")  # a fork would inherit threads and open databases
        with ProcessPoolExecutor(workers - 1, context, initializer=_start_worker) as pool:
            asked = [[wanted[number] for number in batch] for batch in batches]
            made = [pool.submit(self._batch, some) for some in asked]
            try:
                for batch, some, others in zip(batches[::-1], asked[::-1], made[::-1], strict=True):
                    if others.cancel():  # another process has neither begun it nor fetched it to begin next
                        rows[batch] = list(self._rows(some))
                for batch, others in zip(batches, made, strict=True):
                    if not others.cancelled():
                        rows[batch] = others.result()
            finally:
                for others in made:
                    others.cancel()
        return rows

    def _batch(self, wanted: list[Wanted]) -> NDArray[np.float64]:
        if self.space.plugin is not None:
            install(self.space.plugin)  # this process has not met it
        return np.array(list(self._rows(wanted)))

    def _rows(self, wanted: Iterable[Wanted]) -> Iterator[NDArray[np.float64]]:
        """Rows in the order of `_likeness`; what the next one may share is kept."""
        known = KnownGroups(self.target)
        kind: object = None
        module: nn.Module | None = None
        shapes: dict[tuple[int, ...], _Traced] = {}
        for (place, _), alike in groupby(wanted, key=lambda one: (one.place, self._without_bits(one))):
            first = next(alike)
            part = self._part(first)
            if module is None or kind != (place, part.module):
                with torch.device("meta"):
                    kind, module, shapes = (place, part.module), part.build(), {}
            if part.input_shape not in shapes:
                workload = trace_module(module, [part.input_shape], part.name)
                shapes[part.input_shape] = _Traced(workload, self.target, (place == "stem", place == "head"), known)
            traced = shapes[part.input_shape]
            for one in (first, *alike):
                bits = self._bits(one), 16 if one.wide_input else 8
                if bits not in traced.rows:
                    traced.rows[bits] = self._row(traced.cost(*bits), traced.ends)
                yield traced.rows[bits]

    def _bits(self, one: Wanted) -> BlockBits:
        gene = self._bits_gene.get(one.place)
        return FIXED_BITS if gene is None else BlockBits.parse(str(self.space.choices[gene].values[one.genes[gene]]))

    def _row(self, part: PartCost, ends: tuple[bool, bool]) -> NDArray[np.float64]:
        if self.latency is None:
            return part_row(part, ends)
        resident_s, streamed_s = self.latency.expected_part_s(part)
        return part_row(part, ends, (float(resident_s), float(streamed_s)))

    def _part(self, one: Wanted) -> NetworkPart:
        genome: dict[str, Value] = {
            choice.name: choice.values[index] for choice, index in zip(self.space.choices, one.genes, strict=True)
        }
        arch = self.space.decode(genome)
        return next(p for p in network_parts(arch, self.num_classes, self.in_chans) if p.name == one.place)

    def _without_bits(self, one: Wanted) -> tuple[int, ...]:
        bits = self._bits_gene.get(one.place)
        return tuple(0 if column == bits else index for column, index in enumerate(one.genes))

    def _likeness(self, one: Wanted) -> tuple[object, ...]:
        """Sorts rows of one module together, and of one of its traces. Norm and activation change fastest between
        modules: such neighbours have most groups in common.
        """
        bare, at = self._without_bits(one), self._resolution
        return one.place, bare[:at:-1], bare[:at][::-1], bare[at], one.genes, one.wide_input

    @cached_property
    def _bits_gene(self) -> dict[str, int]:
        return dict(self.bits_genes)

    @cached_property
    def _resolution(self) -> int:
        return [choice.name for choice in self.space.choices].index("resolution")


def _start_worker() -> None:
    """A worker leaves Ctrl-C to the process that asked, and ends with it, kill -9 included."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    asking = multiprocessing.parent_process()
    assert asking is not None
    asking.join()
    os._exit(1)


class _Traced:
    """A module at one input shape. rows: those made, by the bits of its own and of what it reads."""

    def __init__(self, workload: Workload, target: Target, ends: tuple[bool, bool], known: KnownGroups) -> None:
        self.ends = ends
        self.rows: dict[tuple[BlockBits, int], NDArray[np.float64]] = {}
        self._workload, self._estimator = workload, PartEstimator(target, ends, known)

    def cost(self, own: BlockBits, incoming_bits: int) -> PartCost:
        return self._estimator.cost(put_precision(self._workload, str(own), incoming_bits))
