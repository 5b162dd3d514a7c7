"""The trade-off as a picture: a file drawn with matplotlib, and a card for the dashboard."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from nas.errors import UsageError
from nas.files import write_whole
from nas.latency import latency_claims
from nas.objectives import Axis
from nas.report import in_short
from nas.study import Study
from nas.trial import Trial
from nas.units import UNITS, shown_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def trade_off_picture(study: Study, form: str = "png") -> bytes:
    """Accuracy against each minimised objective, one panel each, in `form` (png, svg, pdf)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    vertical = next((axis for axis in study.goal.axes if axis.objective.needs_images), study.goal.axes[0])
    across = [axis for axis in study.goal.axes if axis is not vertical] or [vertical]
    figure = Figure(figsize=(6.4 * len(across), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, axis in zip(figure.subplots(1, len(across), squeeze=False)[0], across, strict=True):
        _draw_panel(axes, study, axis, vertical)
    accuracy = next((trial.accuracy for trial in study.trials if trial.accuracy is not None), None)
    sample = (
        f"{accuracy['kind']} top-1 on {accuracy['samples']} {accuracy['images']} images" if accuracy else "no scores"
    )
    figure.suptitle(f"{study.name}: {sample}, costs predicted", fontsize=10)
    if shown := [*study.front, *study.trials][:1]:
        lines = [line for claim in latency_claims(shown[0].costs) for line in wrap(claim, 130 * len(across))]
        figure.supxlabel("\n".join(lines), fontsize=6.5)
    stream = io.BytesIO()
    figure.savefig(stream, format=form, dpi=130)
    return stream.getvalue()


def write_picture(study: Study, path: Path) -> None:
    """Draw the trade-off into `path`; its ending says the form. Raises UsageError for another ending."""
    write_whole(path, trade_off_picture(study, picture_form(path)))


def picture_form(path: Path) -> str:
    """What the ending of `path` says it is to be. Raises UsageError for another ending."""
    form = path.suffix.lstrip(".").lower()
    if form not in ("png", "svg", "pdf"):
        raise UsageError(f"a picture ends in .png, .svg or .pdf, but got {str(path)!r}")
    return form


def _draw_panel(axes: Axes, study: Study, across: Axis, vertical: Axis) -> None:
    scored = [trial for trial in study.trials if trial.accuracy is not None]
    feasible = [trial for trial in scored if trial.is_feasible(study.goal)]
    unit_of = {
        axis.name: shown_unit(max((axis.value(t.costs, t.top1) for t in scored), default=0.0), axis.objective.quantity)
        for axis in (across, vertical)
    }

    def points(trials: Sequence[Trial]) -> tuple[list[float], list[float]]:
        return tuple(  # type: ignore[return-value]
            [axis.value(t.costs, t.top1) / UNITS[axis.objective.quantity][unit_of[axis.name]] for t in trials]
            for axis in (across, vertical)
        )

    missed = [trial for trial in scored if trial not in feasible]
    if missed:
        axes.plot(*points(missed), "x", color="0.75", label=f"infeasible ({len(missed)})", markersize=4)
    beaten = [trial for trial in feasible if trial not in study.front]
    axes.plot(*points(beaten), "o", color="0.7", label=f"dominated ({len(beaten)})", markersize=3.5)
    x, y = points(study.front)
    errors = None
    if vertical.objective.needs_images:
        errors = [100 * float((trial.accuracy or {}).get("stderr", 0.0)) for trial in study.front]
    label = f"front ({len(x)}), bars: one standard error" if errors else f"front ({len(x)})"
    joined = "o-" if len(study.goal.axes) == 2 else "o"  # with more it is the shadow of a front
    axes.errorbar(
        x, y, yerr=errors, fmt=joined, drawstyle="steps-post", color="C0", capsize=2, markersize=5, label=label
    )
    if vertical.objective.needs_images and (checked := [t for t in study.front if t.number in study.validations]):
        heights = [100 * float(study.validations[trial.number]["top1"]) for trial in checked]
        axes.plot(points(checked)[0], heights, "s", color="C1", mfc="none", label="the same on validation images")
    for axis, put in ((across, axes.set_xlabel), (vertical, axes.set_ylabel)):
        put(f"{axis.title} [{unit_of[axis.name]}]".replace(" []", ""))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def trade_off_plotly(study: Study) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The front with error bars as Plotly traces and layout, for the dashboard."""
    vertical = next((axis for axis in study.goal.axes if axis.objective.needs_images), study.goal.axes[0])
    across = next((axis for axis in study.goal.axes if axis is not vertical), vertical)
    feasible = [trial for trial in study.trials if trial.is_feasible(study.goal)]
    traces = []
    for title, trials in (("feasible", feasible), ("front", study.front)):
        trace: dict[str, Any] = {
            "type": "scatter",
            "mode": "markers" if title == "feasible" else "lines+markers",
            "name": title,
            "x": [across.value(trial.costs, trial.top1) for trial in trials],
            "y": [vertical.value(trial.costs, trial.top1) for trial in trials],
            "text": [f"trial {trial.number}: {in_short(trial.architecture)}" for trial in trials],
        }
        if title == "front" and vertical.objective.needs_images:
            trace["error_y"] = {
                "type": "data",
                "array": [(trial.accuracy or {}).get("stderr") for trial in trials],
            }
        traces.append(trace)
    return traces, {
        "title": {"text": "Pareto front: feasible trials only"},
        "xaxis": {"title": {"text": across.metric_name}},
        "yaxis": {"title": {"text": vertical.metric_name}},
    }
