"""What a space holds on its targets before any network is trained: how figures spread, and what share meets a demand.

Networks are drawn uniformly, gene by gene, and costed through the population's tables.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw_models.population import FIGURES
from nas.errors import UsageError
from nas.latency import calibrated
from nas.objectives import LEGALITY, OBJECTIVES, Goal, resolve_goal
from nas.population import PopulationCost
from nas.problem import TABLES, load_targets, space_of
from nas.progress import Narrator
from nas.spec import StudySpec
from nas.units import format_quantity

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


@dataclass(frozen=True)
class Share:
    """Fraction of a space that meets a demand, estimated from `samples` networks drawn at random."""

    demand: str
    fraction: float
    samples: int

    @property
    def stderr(self) -> float:
        """Of a binomial share; with no hit or only hits, that of one network the other way."""
        p = min(max(self.fraction, 1 / self.samples), 1 - 1 / self.samples)
        return sqrt(p * (1 - p) / self.samples)

    def __str__(self) -> str:
        if self.fraction == 0:
            return f"none of {self.samples:,} networks drawn at random (less than {3 / self.samples:.2g} of the space)"
        return f"{self.fraction:.2%} (standard error {self.stderr:.2%}, {self.samples:,} networks drawn at random)"


@dataclass(frozen=True)
class Survey:
    """spread: target -> figure -> its QUANTILES in base units. shares: of each demand; `together`: of all of them."""

    spread: Mapping[str, Mapping[str, Sequence[float]]]
    shares: tuple[Share, ...]
    together: Share

    def to_dict(self) -> dict[str, Any]:
        shares = [*self.shares, self.together]
        return {
            "quantiles": list(QUANTILES),
            "spread": {target: {key: list(row) for key, row in rows.items()} for target, rows in self.spread.items()},
            "shares": [asdict(share) | {"stderr": share.stderr} for share in shares],
        }


def survey(populations: Mapping[str, PopulationCost], goal: Goal, samples: int, seed: int = 0) -> Survey:
    """Draw and cost `samples` networks. populations: target name -> its costs; all of one space.

    Demands that only images can answer are left out. Raises ValueError when `samples` is not positive.
    """
    if samples < 1:
        raise ValueError(f"a survey needs at least one network, but got {samples}")
    space = next(iter(populations.values())).space
    rng = np.random.default_rng(seed)
    genes = np.stack([rng.integers(0, len(choice.values), samples) for choice in space.choices], axis=1)
    figures = {name: population.cost(genes.astype(np.int32)) for name, population in populations.items()}
    met: dict[str, NDArray[np.bool_]] = {}
    for constraint in goal.constraints:
        if not constraint.axis.objective.needs_images:
            values = figures[constraint.axis.target][constraint.axis.objective.key]
            met[constraint.text] = (
                values <= constraint.bound if constraint.sense == "<=" else values >= constraint.bound
            )
    met[LEGALITY] = np.all([figures[name]["legal"] for name in figures], axis=0)
    together = np.all(list(met.values()), axis=0)
    return Survey(
        spread={
            name: {key: [float(value) for value in np.quantile(columns[key], QUANTILES)] for key in FIGURES}
            for name, columns in figures.items()
        },
        shares=tuple(Share(demand, float(mask.mean()), samples) for demand, mask in met.items()),
        together=Share("all of them", float(together.mean()), samples),
    )


def run_survey(
    spec: StudySpec,
    folder: Path,
    samples: int,
    num_classes: int,
    *,
    url: str | None = None,
    narrator: Narrator | None = None,
) -> Survey:
    """Survey the space of `spec` on its targets, with the latencies that a search of it would begin with; the cost
    model's tables are kept under `folder`. Raises UsageError.
    """
    if samples < 1:
        raise UsageError(f"a survey needs at least one network, but got --samples {samples}")
    if num_classes < 1:
        raise UsageError(f"a network needs at least one class, but got --classes {num_classes}")
    narrator = narrator or Narrator(quiet=True)
    space, targets = space_of(spec.space), load_targets(spec)
    if spec.search.risk is not None:
        raise UsageError("a survey is of expected latencies: leave search.risk out")
    _, latencies = calibrated(spec, targets, folder, url, narrator)
    goal = resolve_goal(spec.search.objectives, spec.search.constraints, list(targets))
    processes = min(4, os.cpu_count() or 1)
    populations = {
        name: PopulationCost(
            space,
            target,
            num_classes,
            latency=latencies[name].model if name in latencies else None,
            folder=folder / TABLES,
            workers=processes,
            threads=processes,
        )
        for name, target in targets.items()
    }
    narrator.say(f"costing {samples:,} networks of {space.name}/{space.preset} on {', '.join(targets)}")
    found = survey(populations, goal, samples, spec.search.seed)
    for population in populations.values():
        population.save()
    return found


def survey_text(found: Survey) -> str:
    """Tables for people."""
    head = ["", "smallest", "5% below", "median", "95% below", "largest"]
    shown = {objective.key: objective for objective in OBJECTIVES.values()}
    lines = []
    for target, rows in found.spread.items():
        table = [[f"on {target}", *head[1:]]]
        table += [
            [shown[key].label, *(format_quantity(value, shown[key].quantity) for value in row)]
            for key, row in rows.items()
        ]
        widths = [max(len(row[column]) for row in table) for column in range(len(head))]
        for row in table:
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
            lines.append("  ".join(cells))
        lines.append("")
    shares = [*found.shares, found.together] if len(found.shares) > 1 else list(found.shares)
    width = max(len(share.demand) for share in shares)
    lines += [f"{share.demand.ljust(width)}  {share}" for share in shares]
    return "\n".join(lines)
