"""What a study optimises and what it demands: objectives, constraints, and how far one misses them.

Everything here reads a candidate's plain figures: `costs` ({target name: cost summary}) and `top1` (a
fraction, or None when the candidate was never shown an image). Add an objective by adding a row to
OBJECTIVES.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nas import units
from nas.errors import UsageError

Direction = Literal["minimize", "maximize"]
Costs = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Objective:
    """One thing that can be measured of a candidate.

    key: its name in a cost summary, unit included; `top1` is read from the accuracy instead.
    per_target: differs between targets, so that several targets give one objective each.
    """

    key: str
    direction: Direction
    quantity: str
    label: str
    per_target: bool = True

    @property
    def needs_images(self) -> bool:
        return self.key == "top1"


OBJECTIVES: dict[str, Objective] = {
    "top1": Objective("top1", "maximize", units.FRACTION, "quantized top-1", per_target=False),
    "latency": Objective("latency_s", "minimize", units.SECONDS, "latency"),
    "energy": Objective("energy_j", "minimize", units.JOULES, "energy"),
    "peak_memory": Objective("peak_onchip_bytes", "minimize", units.BYTES, "peak memory"),
    "weight_size": Objective("weight_bytes", "minimize", units.BYTES, "weights", per_target=False),
    "dram_traffic": Objective("dram_bytes", "minimize", units.BYTES, "DRAM traffic"),
    "macs": Objective("macs", "minimize", units.COUNT, "macs", per_target=False),
    "params": Objective("params", "minimize", units.COUNT, "parameters", per_target=False),
}
"""Name as a person writes it -> what it reads: an entry of `hw_models.CostReport.summary`, or the accuracy."""

COSTS = tuple(objective.key for objective in OBJECTIVES.values() if not objective.needs_images)
"""Entries of a cost summary that are shown of every candidate."""


@dataclass(frozen=True, slots=True)
class Axis:
    """An objective on a target: what one number of a trial means. `name`: as written,
    `latency@npu_40tops`.
    """

    name: str
    objective: Objective
    target: str

    def value(self, costs: Costs, top1: float | None) -> float:
        """In the base unit. A candidate that was never shown an image has top-1 0, and is infeasible."""
        if self.objective.needs_images:
            return 0.0 if top1 is None else float(top1)
        return float(costs[self.target][self.objective.key])

    @property
    def title(self) -> str:
        """For people: `latency`, `latency @npu_40tops`."""
        _, at, target = self.name.partition("@")
        return f"{self.objective.label} {at}{target}".rstrip()

    @property
    def metric_name(self) -> str:
        """Name with unit, as Optuna shows it: `latency_s`, `latency_s@npu_40tops`."""
        _, at, target = self.name.partition("@")
        return self.objective.key + at + target


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A demand that a candidate misses: a value, not an exception. `gap` is relative to the bound."""

    demand: str
    gap: float
    reason: str


@dataclass(frozen=True, slots=True)
class Constraint:
    """`axis <= bound` or `axis >= bound`, in the base unit of the axis. `text` is what the person wrote."""

    text: str
    axis: Axis
    sense: str
    bound: float

    def gap(self, costs: Costs, top1: float | None) -> float:
        """How far beyond the bound, relative to it: at most 0 when it holds."""
        excess = self.axis.value(costs, top1) - self.bound
        return (excess if self.sense == "<=" else -excess) / (abs(self.bound) or 1.0)

    def shortfall(self, costs: Costs, top1: float | None) -> Shortfall | None:
        gap = self.gap(costs, top1)
        if gap <= 0:
            return None
        value = units.format_quantity(self.axis.value(costs, top1), self.axis.objective.quantity)
        bound = units.format_quantity(self.bound, self.axis.objective.quantity)
        side = "above" if self.sense == "<=" else "below"
        off = f"{gap:.1%} {side}" if gap < MANY else f"{gap + 1:.3g} times"
        return Shortfall(self.text, gap, f"{self.axis.name} {value} is {off} {bound}")


LEGALITY = "legal on target"
"""The demand that no person writes: each target can run the network at all."""


@dataclass(frozen=True, slots=True)
class Goal:
    """All a study wants of a candidate."""

    axes: tuple[Axis, ...]
    constraints: tuple[Constraint, ...]
    targets: tuple[str, ...]

    @property
    def directions(self) -> tuple[Direction, ...]:
        return tuple(axis.objective.direction for axis in self.axes)

    def values(self, costs: Costs, top1: float | None) -> tuple[float, ...]:
        return tuple(axis.value(costs, top1) for axis in self.axes)

    def gaps(self, costs: Costs, top1: float | None) -> dict[str, float]:
        """Demand -> relative gap, at most 0 where it holds; the keys are the same for every candidate."""
        gaps = {constraint.text: constraint.gap(costs, top1) for constraint in self.constraints}
        return {**gaps, LEGALITY: sum(_legality_gaps(costs))}

    def shortfalls(self, costs: Costs, top1: float | None, *, images: bool = True) -> tuple[Shortfall, ...]:
        """The demands that are missed. `images=False` leaves out those that only images can answer."""
        asked = [c for c in self.constraints if images or not c.axis.objective.needs_images]
        missed = [shortfall for c in asked if (shortfall := c.shortfall(costs, top1)) is not None]
        for target, summary in costs.items():
            for violation in summary.get("violations", ()):
                missed.append(Shortfall(LEGALITY, _legality_gap(violation), f"{target}: {_reason(violation)}"))
        return tuple(missed)


def _legality_gaps(costs: Costs) -> list[float]:
    return [_legality_gap(violation) for summary in costs.values() for violation in summary.get("violations", ())]


def _legality_gap(violation: Mapping[str, Any]) -> float:
    """Excess over the bound; 1 for a use of something that the target does not have at all (its bound is
    0).
    """
    return float(violation["excess"]) / (abs(float(violation["bound"])) or 1.0)


def _reason(violation: Mapping[str, Any]) -> str:
    if violation["unit"] == "uses":
        return str(violation["what"])
    return f"{violation['what']}: {violation['value']:g} {violation['unit']} > {violation['bound']:g}"


def resolve_axes(name: str, targets: Sequence[str]) -> tuple[Axis, ...]:
    """Axes of an objective as a person writes it: `energy`, or `latency@npu_40tops`.

    Without `@`, an objective that differs between targets gives one axis per target. Raises UsageError.
    """
    plain, _, wanted = name.strip().partition("@")
    if plain not in OBJECTIVES:
        raise UsageError(f"unknown objective {plain!r}; {suggestion(plain, OBJECTIVES)}")
    objective = OBJECTIVES[plain]
    if wanted and wanted not in targets:
        raise UsageError(
            f"objective {name!r} names a target that this study does not have; {suggestion(wanted, targets)}"
        )
    if not objective.per_target:
        return (Axis(plain, objective, targets[0]),)
    chosen = [wanted] if wanted else list(targets)
    return tuple(Axis(plain if len(targets) == 1 else f"{plain}@{t}", objective, t) for t in chosen)


def parse_constraints(text: str, targets: Sequence[str]) -> tuple[Constraint, ...]:
    """Read `latency<=2ms`, `peak_memory <= 4MiB`, `top1>=80%`: one constraint per target it concerns.

    Raises UsageError that names what cannot be read.
    """
    match = re.fullmatch(r"\s*([A-Za-z0-9_]+(?:@[^<>=]+?)?)\s*(<=|>=)\s*(.+?)\s*", text)
    if match is None:
        raise UsageError(f"cannot read the constraint {text!r}; write it like 'latency<=2ms' or 'top1>=80%'")
    axes = resolve_axes(match[1], targets)
    try:
        bound = units.parse_quantity(match[3], axes[0].objective.quantity)
    except ValueError as error:
        raise UsageError(f"cannot read the constraint {text!r}: {error}") from error
    return tuple(Constraint(f"{axis.name}{match[2]}{match[3]}", axis, match[2], bound) for axis in axes)


def resolve_goal(objectives: Sequence[str], constraints: Sequence[str], targets: Sequence[str]) -> Goal:
    """Names to a Goal, order kept, repeated axes once. Raises UsageError."""
    axes = {axis.name: axis for name in objectives for axis in resolve_axes(name, targets)}
    demands = {c.text: c for text in constraints for c in parse_constraints(text, targets)}
    return Goal(tuple(axes.values()), tuple(demands.values()), tuple(targets))


MANY = 5.0
"""Beyond this gap times of a bound read better than percent above it."""

MOST_SHOWN = 40
"""Names in one line: a thousand would hide what is wrong."""


def suggestion(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """'did you mean ...?' for a near miss, else what is known, the first MOST_SHOWN of it."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names[:MOST_SHOWN])}{more}"
