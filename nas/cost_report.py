"""Tables of a cost report for people: totals, what bounds the time, and the groups that take most of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hw_models import CostReport
from nas.units import BYTES, COUNT, JOULES, SECONDS, format_quantity, shown_unit


def cost_table(report: CostReport, rows: int | None = 30, width: int = 120) -> Group:
    """Everything `nas cost` shows of one network. rows: how many of the slowest groups; None for all. width: columns
    of text; in a narrow one the groups keep their names and lose figures.
    """
    parts: list[Table | Text] = []
    for violation in report.violations:
        parts.append(Text(f"not feasible on {report.target}: {violation}; {violation.cure}", "bold red"))
    for table in (_totals(report), _bounds(report), _groups(report, rows, width), *_chains(report)):
        parts.append(Text(str(table.title), "italic", overflow="fold"))  # a title of the table's own wraps at its width
        table.title = None
        parts.append(table)
    parts += [Text(f"note: {warning}", "yellow") for warning in report.warnings]
    parts.append(Text(f"agreement with silicon: {report.accuracy}", "dim"))
    return Group(*parts)


def comparison_table(reports: list[CostReport]) -> Table:
    """Networks side by side, one column each, with the ratio to the first."""
    table = Table(title="Comparison", title_justify="left")
    table.add_column("figure")
    for report in reports:
        table.add_column(f"{report.model} on {report.target}, {report.precision}", justify="right")
    for label, key, quantity in _figures(reports[0]):
        values = [getattr(report, key) for report in reports]
        unit = shown_unit(max(values), quantity)
        cells = [format_quantity(values[0], quantity, unit)]
        cells += [
            f"{format_quantity(value, quantity, unit)} (x{value / values[0]:.2f})" if values[0] else "-"
            for value in values[1:]
        ]
        table.add_row(label, *cells)
        if key == "latency_s" and reports[0].calibration:
            table.add_row(*_interval_row(reports))
    return table


_FIGURES = (
    ("energy (predicted)", "energy_j", JOULES),
    ("multiply-accumulates", "macs", COUNT),
    ("parameters", "params", COUNT),
    ("DRAM traffic", "dram_bytes", BYTES),
    ("peak on-chip memory", "peak_onchip_bytes", BYTES),
    ("weights", "weight_bytes", BYTES),
)


def _figures(report: CostReport) -> list[tuple[str, str, str]]:
    """(label, attribute, quantity) of what is shown; a calibrated latency stands before the cost model's."""
    if not report.calibration:
        return [("latency (predicted)", "latency_s", SECONDS), *_FIGURES]
    calibrated = ("latency (calibrated)", "latency_s", SECONDS)
    return [calibrated, ("latency (cost model alone)", "model_latency_s", SECONDS), *_FIGURES]


def _interval_row(reports: Sequence[CostReport]) -> list[str]:
    ends = [(report.latency_low_s or 0.0, report.latency_high_s or 0.0) for report in reports]
    return [
        "90 percent interval",
        *(f"{format_quantity(low, SECONDS)} to {format_quantity(high, SECONDS)}" for low, high in ends),
    ]


def _totals(report: CostReport) -> Table:
    size = " x ".join(map(str, report.input_shape))
    title = f"{report.model} on {report.target}, {report.precision}, input {size}"
    table = Table(title=title, title_justify="left", show_header=False)
    for label, key, quantity in _figures(report):
        table.add_row(label, format_quantity(getattr(report, key), quantity))
        if key == "latency_s" and report.calibration:
            table.add_row(*_interval_row([report]))
    effective = 2 * report.macs / report.latency_s / 1e12 if report.latency_s else 0.0
    table.add_row("effective speed", f"{effective:.3g} TOPS (2 operations per multiply-accumulate)")
    return table


def _of_the_model(report: CostReport) -> str:
    """Behind a title, where the latency itself is not the cost model's."""
    return " (by the cost model alone)" if report.calibration else ""


def _bounds(report: CostReport) -> Table:
    """Share of the time by what bounds it."""
    seconds: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    for row in report.rows:
        seconds[row["bound"]] += row["latency_s"]
        count[row["bound"]] += 1
    seconds["network overhead"] = report.overhead_s
    table = Table(title=f"What bounds the time{_of_the_model(report)}", title_justify="left")
    for column, justify in (("bound", "left"), ("groups", "right"), ("time", "right"), ("share", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for bound, value in sorted(seconds.items(), key=lambda item: -item[1]):
        share = value / report.model_latency_s if report.model_latency_s else 0.0
        table.add_row(bound, str(count[bound] or "-"), format_quantity(value, SECONDS), f"{share:.1%}")
    return table


def _chains(report: CostReport) -> list[Table]:
    """Chains of groups that run stripe by stripe; nothing where there are none."""
    chains = {row["chain"]: [one for one in report.rows if one["chain"] == row["chain"]] for row in report.rows}
    chains.pop("", None)
    if not chains:
        return []
    table = Table(
        title="Block-fused: kept on chip, stripe by stripe (rows made at a time, share of the macs repeated)",
        title_justify="left",
    )
    table.add_column("from", overflow="fold")
    table.add_column("to", overflow="fold")
    for column in ("groups", "stripes", "rows", "repeated"):
        table.add_column(column, justify="right")
    for rows in chains.values():
        macs = sum(row["macs"] for row in rows)
        again = sum(row["halo_macs"] for row in rows)
        table.add_row(
            rows[0]["name"],
            rows[-1]["name"],
            str(len(rows)),
            str(rows[0]["stripes"]),
            str(rows[0]["stripe_rows"]),
            f"{again / macs:.1%}" if macs else "-",
        )
    return [table]


def _groups(report: CostReport, rows: int | None, width: int) -> Table:
    """The slowest groups in order of execution."""
    limit = len(report.rows) if rows is None else rows
    slowest = sorted(range(len(report.rows)), key=lambda index: -report.rows[index]["latency_s"])[:limit]
    shown = [report.rows[index] for index in sorted(slowest)]
    title = f"Fused groups, in order of execution{_of_the_model(report)}"
    if len(shown) < len(report.rows):
        title = f"The {len(shown)} slowest of {len(report.rows)} {title[0].lower()}{title[1:]}"
    columns = {
        "group": [row["name"] for row in shown],
        "time": [format_quantity(row["latency_s"], SECONDS, "us") for row in shown],
        "bound": [row["bound"] for row in shown],
        "share": [f"{row['latency_s'] / report.model_latency_s:.1%}" for row in shown],
        "used": [f"{row['utilization']:.0%}" if row["macs"] else "-" for row in shown],
        "DRAM": [format_quantity(row["dram_bytes"], BYTES) for row in shown],
        "macs": [format_quantity(row["macs"], COUNT) if row["macs"] else "-" for row in shown],
        "energy": [format_quantity(row["energy_j"], JOULES, "uJ") for row in shown],
        "kind": [row["kind"] for row in shown],
        "fused": [str(len(row["fused"])) for row in shown],
    }
    # Figures that find room, the most telling first; a name too long even so is broken, never cut.
    room = width - 1
    kept: list[str] = []
    for name, cells in columns.items():
        room -= max(len(name), *(len(cell) for cell in cells), 1) + 3
        if room >= 0 or len(kept) < 3:
            kept.append(name)
    table = Table(title=title, title_justify="left")
    for name in kept:
        right = name not in ("group", "bound", "kind")
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=name != "group")
    for row_cells in zip(*(columns[name] for name in kept), strict=True):
        table.add_row(*row_cells)
    return table
