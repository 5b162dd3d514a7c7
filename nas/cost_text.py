"""Cost reports for people and programs: one network layer by layer, or many in a table."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from nas.latency import TargetLatency, describe, target_latency, uncalibrated
from nas.problem import find_target
from nas.units import BYTES, COUNT, JOULES, SECONDS, format_quantity

if TYPE_CHECKING:
    from hw_models import CostReport, Target

_FIGURES = {
    "latency_s": SECONDS,
    "energy_j": JOULES,
    "macs": COUNT,
    "params": COUNT,
    "dram_bytes": BYTES,
    "peak_onchip_bytes": BYTES,
    "weight_bytes": BYTES,
}


@dataclass(frozen=True)
class Costing:
    """A device, and what predicts its latency: a calibration where there is one, else the cost model."""

    target: Target
    latency: TargetLatency | None

    @property
    def about(self) -> str:
        """What a latency is, for a person."""
        return self.latency.about if self.latency is not None else uncalibrated(self.target.name)

    def one(self, model: str, input_size: int | None, precision: str | None) -> CostReport:
        """The report of a timm model, an exported folder or an ONNX file. Raises UsageError."""
        from nas.cost import cost_model

        report = cost_model(model, self.target, input_size, precision)
        return describe(report, {} if self.latency is None else self.latency.summary(report.parts))

    def many(self, models: Path, out: Path | None) -> list[dict[str, Any]]:
        """One row per line of a CSV with columns model, input_size, precision. Raises UsageError."""
        from nas.cost import cost_csv

        return cost_csv(models, self.target, out, self.latency)


def costing(target: str, folder: Path, url: str | None, calibration: str | None = None) -> Costing:
    """Of a target by its name or file, with the calibration of that name ("none": without), by default the newest of
    the database. Raises UsageError.
    """
    device = find_target(target)  # before anything heavy is loaded
    return Costing(device, target_latency(device, folder, url, calibration))


def plot_one(report: CostReport, target: Target, path: Path) -> None:
    """Roofline, waterline and efficiency gap of a report as one picture. Raises UsageError."""
    from nas.cost_plots import plot_cost

    plot_cost(report, target, path)


def report_text(report: CostReport) -> str:
    """The tables of one network, as plain text."""
    from nas.cost_report import cost_table

    return printed(cost_table(report, width=text_width()))


def comparison_text(reports: Sequence[CostReport]) -> str:
    """Several networks side by side, with the ratio to the first, as plain text."""
    from nas.cost_report import comparison_table

    return printed(comparison_table(list(reports)))


def cost_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Many networks, a line each; what could not be costed says why."""
    header = ["model", "input", "precision", *(key.rsplit("_", 1)[0] for key in _FIGURES), "remark"]
    table = [
        [str(row["model"]), str(row["input_size"]), str(row["precision"])]
        + [format_quantity(row[key], kind) if row[key] != "" else "-" for key, kind in _FIGURES.items()]
        + [str(row["error"] or row["violations"])]
        for row in rows
    ]
    return "\n".join(_aligned([header, *table]))


def ops_csv(report: CostReport) -> str:
    """The groups of ops, a line each, SI units; ops that were fused are joined by '+'."""
    rows = [{**op, "fused": "+".join(op["fused"])} for op in report.rows]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else ["name"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def text_width() -> int:
    """Columns of the terminal (or of $COLUMNS), 120 where there is none; never less than what is readable."""
    return max(72, shutil.get_terminal_size((120, 24)).columns)


def printed(content: Any) -> str:
    stream = io.StringIO()
    Console(file=stream, width=text_width()).print(content)
    return stream.getvalue().rstrip()


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """First column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = []
    for row in table:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines
