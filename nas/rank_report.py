"""A ranking study for people: table and scatter plot."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from nas.correlation import BOOTSTRAP, Agreement, Estimate
from nas.rank import BANDS, Ranked, Ranking

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLES = {"one-shot": "one-shot top-1", "params": "parameters", "macs": "macs", "latency": "predicted latency"}


def rank_rows(found: Agreement) -> tuple[list[str], list[list[str]]]:
    """Header and rows: score, Kendall tau, Spearman, tau within a band, each with its interval."""
    header = ["score", "Kendall tau", "Spearman", "tau within a macs band"]
    rows = [
        [_TITLES.get(name, name), str(found.tau[name]), str(found.spearman[name]), str(found.tau_in_band[name])]
        for name in found.tau
    ]
    return header, rows


def rank_table(ranking: Ranking) -> str:
    """The table in Markdown, and beneath it what its figures are."""
    header, rows = rank_rows(ranking.agreement)
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"- {claim}" for claim in claims(ranking))])


def rank_text(ranking: Ranking) -> str:
    """The table in aligned columns, for a terminal."""
    header, rows = rank_rows(ranking.agreement)
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
    return "\n".join([*lines, "", *claims(ranking)])


def claims(ranking: Ranking) -> list[str]:
    """What the figures are: of how many networks, on how many images, after how much training."""
    found, first = ranking.agreement, ranking.networks[0]
    alone, shared = ranking.train, ranking.supernet
    counts = ", ".join(str(sum(n.band == band for n in ranking.networks)) for band in range(BANDS))
    spread = sorted(network.alone.top1 for network in ranking.networks)
    return [
        f"{found.networks} networks of the space, {counts} in the {BANDS} bands of macs; intervals hold 90 percent of "
        f"{BOOTSTRAP} resamples of the networks.",
        f"Truth: each trained alone from fresh weights for {alone.steps} steps of {alone.batch_size} images, "
        f"quantized, top-1 on {first.alone.samples} validation images: {spread[0]:.1%} to {spread[-1]:.1%}.",
        f"One-shot: supernet of {shared.steps} steps of {shared.batch_size} images, quantized, top-1 on "
        f"{first.one_shot.samples} search images.",
        f"One-shot tau minus that of {_TITLES[found.rival]}, the best that needs no training: {found.lead}; within a "
        f"macs band, against {_TITLES[found.rival_in_band]}: {found.lead_in_band}.",
        f"Latency is predicted for {ranking.target}.",
    ]


def rank_picture(ranking: Ranking, form: str = "png") -> bytes:
    """Stand-alone accuracy against one-shot accuracy and against macs, one point per network."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    tau = ranking.agreement.tau
    _scatter(left, ranking, lambda n: 100 * n.one_shot.top1, lambda n: 100 * n.one_shot.stderr)
    left.set_xlabel(f"one-shot top-1 [%], {ranking.networks[0].one_shot.samples} search images")
    left.set_title(_shown("one-shot", tau["one-shot"]), fontsize=10)
    _scatter(right, ranking, lambda n: n.macs / 1e6, None)
    right.set_xlabel("macs [M]")
    right.set_xscale("log")
    right.set_title(_shown("macs", tau["macs"]), fontsize=10)
    left.set_ylabel(f"trained alone, top-1 [%], {ranking.networks[0].alone.samples} val images")
    right.legend(fontsize=8, title="macs band", title_fontsize=8)
    figure.suptitle(
        f"{len(ranking.networks)} networks on {ranking.data}, quantized; bars: one standard error", fontsize=10
    )
    stream = io.BytesIO()
    figure.savefig(stream, format=form, dpi=130)
    return stream.getvalue()


def _shown(name: str, tau: Estimate) -> str:
    return f"Kendall tau of {_TITLES[name]}: {tau}"


def _scatter(axes: Axes, ranking: Ranking, across: Any, across_error: Any) -> None:
    for band in range(BANDS):
        members: list[Ranked] = [network for network in ranking.networks if network.band == band]
        if not members:
            continue
        axes.errorbar(
            [across(network) for network in members],
            [100 * network.alone.top1 for network in members],
            xerr=None if across_error is None else [across_error(network) for network in members],
            yerr=[100 * network.alone.stderr for network in members],
            fmt="o",
            markersize=5,
            elinewidth=0.7,
            color=f"C{band}",
            label=f"{min(n.macs for n in members) / 1e6:.1f} to {max(n.macs for n in members) / 1e6:.1f} M",
        )
    axes.grid(alpha=0.3)
