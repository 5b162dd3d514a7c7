"""Single published facts about accelerators beside what the cost model predicts for them.

A check of magnitudes, not of ranks: ratios such as a capacity cliff, milliseconds, effective speed. The facts are rows
of `benchmarks.fact_table`; where a prediction is off, the row says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

AGREES = 0.25
"""A prediction agrees when it lies within this share of the published value, or of the nearer end of a range."""


@dataclass(frozen=True)
class Fact:
    """A published value, or the two ends of a range, with its unit and source, and the function that predicts it.

    why: the reason when the prediction is off, as the model's own report of the network shows it; else what to know.
    """

    what: str
    published: float | tuple[float, float]
    unit: str
    source: str
    predict: Callable[[], float]
    why: str = ""


@dataclass(frozen=True)
class Finding:
    """A fact with its prediction. agrees: within AGREES of the published value."""

    what: str
    published: float | tuple[float, float]
    predicted: float
    unit: str
    source: str
    agrees: bool
    why: str


def findings(facts: Sequence[Fact]) -> list[Finding]:
    """Every fact with its prediction. Raises ValueError for one that is off and says no reason."""
    out = []
    for fact in facts:
        predicted = fact.predict()
        low, high = fact.published if isinstance(fact.published, tuple) else (fact.published, fact.published)
        agrees = low * (1 - AGREES) <= predicted <= high * (1 + AGREES)
        if not (agrees or fact.why):
            raise ValueError(f"{fact.what}: {predicted:.4g} {fact.unit} is off and the table gives no reason")
        out.append(Finding(fact.what, fact.published, predicted, fact.unit, fact.source, agrees, fact.why))
    return out


def markdown(found: Sequence[Finding], beyond: Sequence[tuple[str, str]] = ()) -> str:
    """The findings as a table. beyond: (fact, why) of those that the model cannot speak to."""
    agreeing = sum(finding.agrees for finding in found)
    lines = [
        "## Facts",
        "",
        f"{agreeing} of {len(found)} predictions lie within {AGREES:.0%} of the published value.",
        "",
        "| fact | published | predicted | unit | agrees | source | why not, or what to know |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {finding.what} | {_published(finding.published)} | {finding.predicted:.4g} | {finding.unit} | "
        f"{'yes' if finding.agrees else 'no'} | {finding.source} | {finding.why} |"
        for finding in found
    ]
    if beyond:
        lines += ["", "Facts of the same sources that the cost model does not speak to:", ""]
        lines += [f"- {what}: {why}" for what, why in beyond]
    return "\n".join(lines) + "\n"


def _published(value: float | tuple[float, float]) -> str:
    return f"{value[0]:g} to {value[1]:g}" if isinstance(value, tuple) else f"{value:g}"
