"""Tables of what can stand at the places of a network: code of the genes that decide the cost -> figures."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hw_models.population import COLUMNS

Genes = NDArray[np.integer]
"""[networks, choices]: for every network and choice of the space, in its order, the index of the value."""

Codes = NDArray[np.integer]
Rows = tuple[NDArray[np.int64], NDArray[np.float64]]
"""(codes [rows], figures [rows, len(COLUMNS)])."""


@dataclass
class Table:
    """Figures of the parts that can stand at some places of the same kind.

    values: numbers of values of the genes that decide, the digits of a code; its last digit says whether what comes in
    has 16 bits. lookup: code -> row of `rows`, -1 when not known yet.
    """

    name: str
    values: tuple[int, ...]
    lookup: NDArray[np.int32] = field(init=False)
    rows: NDArray[np.float64] = field(init=False)
    used: int = 0

    def __post_init__(self) -> None:
        self.lookup = np.full(int(np.prod(self.values)) * 2, -1, dtype=np.int32)
        self.rows = np.zeros((16, len(COLUMNS)))

    def digit(self, codes: Codes, position: int) -> Codes:
        """Index of the value of one deciding gene."""
        return codes // 2 // int(np.prod(self.values[position + 1 :])) % self.values[position]

    def add(self, codes: Codes, rows: NDArray[np.float64]) -> None:
        """Rows of codes; those that are there already are left."""
        fresh = self.lookup[codes] < 0
        codes, rows = codes[fresh], rows[fresh]
        if self.used + len(rows) > len(self.rows):
            more = max(len(self.rows), self.used + len(rows) - len(self.rows))
            self.rows = np.concatenate([self.rows, np.zeros((more, len(COLUMNS)))])
        self.rows[self.used : self.used + len(rows)] = rows
        self.lookup[codes] = np.arange(self.used, self.used + len(rows), dtype=np.int32)
        self.used += len(rows)

    def known(self) -> Rows:
        """All codes with a row, and the rows."""
        codes = np.flatnonzero(self.lookup >= 0)
        return codes, self.rows[self.lookup[codes]]


@dataclass(frozen=True)
class Place:
    """Where a part stands in a network. columns: its deciding genes in the gene array, as digits of the table's codes.

    stage: number of the stage it belongs to.
    """

    name: str
    stage: int
    columns: tuple[int, ...]
    table: Table

    def codes(self, genes: Genes, wide_input: NDArray[np.bool_] | None) -> NDArray[np.int32]:
        """genes: [choices, networks] here, so that a gene lies in one piece of memory."""
        code = np.zeros(genes.shape[1], dtype=np.int32)
        for column, values in zip(self.columns, self.table.values, strict=True):
            if values > 1:
                code *= values
                code += genes[column]
        code *= 2
        if wide_input is not None:
            code += wide_input
        return code

    def network(self, code: int, like: tuple[int, ...]) -> tuple[int, ...]:
        """Genes of a network in which `code` stands here and that is otherwise `like`."""
        genes = list(like)
        rest = code // 2
        for column, values in zip(reversed(self.columns), reversed(self.table.values), strict=True):
            rest, genes[column] = divmod(rest, values)
        return tuple(genes)
