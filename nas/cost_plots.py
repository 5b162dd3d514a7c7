"""Pictures of a cost report: roofline, waterline, efficiency gap, each with a sentence on how to read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hw_models import CostReport, Target
from hw_models.waterline import LOSSES, Bar, balance_macs_per_byte, efficiency_gap, peak_macs_per_s, waterline
from nas.errors import UsageError

COLORS = {
    "matrix": "#4c78a8",
    "vector": "#f58518",
    "on-chip memory": "#72b7b2",
    "dram": "#e45756",
    "overhead": "#9d9d9d",
}
GAP_COLORS = dict(zip(LOSSES, ("#4c78a8", "#9ecae9", "#f58518", "#72b7b2", "#e45756", "#9d9d9d"), strict=True))
LARGEST_DOT = 150.0
"""Area of the slowest group's dot, in square points."""

TALLEST = 30.0
"""Bars stop at this multiple of the balance: beyond it, intensity makes no difference."""


def plot_cost(report: CostReport, target: Target, path: str | Path) -> None:
    """Write the three pictures into one file (PNG, SVG or PDF by its suffix).

    Raises UsageError when the network has no matrix work or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = waterline(report)
    if not bars:
        raise UsageError(f"{report.model} has no matrix work, so there is nothing to plot")
    figure = Figure(figsize=(11, 14), layout="constrained")
    FigureCanvasAgg(figure)
    size = " x ".join(map(str, report.input_shape))
    figure.suptitle(
        f"{report.model} on {target.title}\n{report.precision}, input {size}: "
        f"{report.latency_s * 1e3:.3g} ms predicted",
        fontsize=13,
    )
    axes = figure.subplots(3, 1)
    peak, water = peak_macs_per_s(report, target), balance_macs_per_byte(report, target)
    _plot_roofline(axes[0], bars, peak, water)
    _plot_waterline(axes[1], bars, water)
    _plot_gap(axes[2], report)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {path}: {error}; name a .png, .svg or .pdf file") from error


def _plot_roofline(axes: Any, bars: list[Bar], peak: float, water: float) -> None:
    shown = [min(bar.intensity_macs_per_byte, water * TALLEST) for bar in bars]
    left, right = min(*shown, water) / 3, max(*shown, water) * 3
    roof = [peak * left / water, peak, peak]
    axes.plot([left, water, right], roof, color="black", linewidth=1.5)
    slowest = max(bar.taken_s for bar in bars)
    for bound, color in COLORS.items():
        points = [(x, bar) for x, bar in zip(shown, bars, strict=True) if bar.bound == bound]
        if points:
            reached = [bar.reached_macs_per_s for _, bar in points]
            area = [LARGEST_DOT * max(bar.taken_s / slowest, 0.03) for _, bar in points]
            axes.scatter([x for x, _ in points], reached, s=area, color=color, alpha=0.6, zorder=3)
            axes.scatter([], [], s=28, color=color, label=f"bound by {bound}")  # dots of one size in the legend
    axes.set(xscale="log", yscale="log", xlabel="macs per byte of DRAM traffic", ylabel="macs per second")
    axes.set_title(
        "Roofline: a dot is a fused group, the larger the more of the time it takes. The line is the most that the\n"
        "device can do at that intensity: the further below it, the more is lost. Right: hardly any DRAM needed.",
        fontsize=10,
        loc="left",
    )
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.3, which="both")


def _plot_waterline(axes: Any, bars: list[Bar], water: float) -> None:
    heights = [min(bar.intensity_macs_per_byte, water * TALLEST) for bar in bars]
    axes.bar(
        [bar.start_s * 1e3 for bar in bars],
        heights,
        width=[bar.width_s * 1e3 for bar in bars],
        align="edge",
        color=[COLORS[bar.bound] for bar in bars],
        edgecolor="white",
        linewidth=0.4,
    )
    end = (bars[-1].start_s + bars[-1].width_s) * 1e3
    axes.axhspan(min(heights) / 2, water, color="#4c78a8", alpha=0.15)
    axes.axhline(water, color="#1f3d66", linewidth=1.5)
    axes.annotate(f"water: {water:.0f} macs per byte", (end, water), ha="right", va="bottom", fontsize=9)
    axes.set(yscale="log", xlim=(0, end), ylim=(min(heights) / 2, water * TALLEST * 1.2))
    axes.set(xlabel="ideal compute time, ms, in order of execution", ylabel="macs per byte of DRAM traffic")
    axes.set_title(
        "Waterline: a bar is a fused group, as wide as its ideal compute time. Bars that stay under water wait for\n"
        "memory. Colours as above; bars are cut off where intensity no longer matters.",
        fontsize=10,
        loc="left",
    )


def _plot_gap(axes: Any, report: CostReport) -> None:
    gaps = efficiency_gap(report)
    left = [0.0] * len(gaps)
    for loss in LOSSES:
        widths = [gap.seconds[loss] * 1e3 for gap in gaps]
        axes.barh([gap.kind for gap in gaps], widths, left=left, color=GAP_COLORS[loss], label=loss)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="predicted time, ms")
    axes.set_title(
        "Efficiency gap: time by kind of op. Dark blue is what the array would need if it were always full;\n"
        "every other colour is time lost to that cause.",
        fontsize=10,
        loc="left",
    )
    axes.legend(fontsize=8, loc="lower right")
