"""A study for people and programs: table, JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from nas.latency import latency_claims
from nas.objectives import COSTS, OBJECTIVES, Axis
from nas.study import Study
from nas.trial import Trial
from nas.units import UNITS, shown_unit
from search_spaces.architecture import Architecture

CALIBRATED = ("latency_expected_s", "latency_low_s", "latency_high_s", "calibration")
"""Entries of a cost summary that a calibration adds."""


def networks(study: Study) -> list[dict[str, Any]]:
    """The front as plain data, SI units. With several targets the costs are the first one's; `costs` has them
    all.
    """
    return [network(study, trial) for trial in study.front]


def network(study: Study, trial: Trial) -> dict[str, Any]:
    """One scored trial. `top1` is a fraction; `val_top1` stands beside it once it was validated."""
    accuracy, first = trial.accuracy or {}, trial.costs[study.goal.targets[0]]
    row: dict[str, Any] = {"trial": trial.number, "architecture": trial.architecture.to_dict()}
    row |= {"top1": trial.top1} | {f"top1_{key}": accuracy.get(key) for key in ("stderr", "samples", "kind")}
    row |= {key: first[key] for key in (*COSTS, *CALIBRATED) if key in first}
    if (validation := study.validations.get(trial.number)) is not None:
        row["val_top1"] = validation["top1"]
        row |= {f"val_top1_{key}": validation[key] for key in ("stderr", "samples")}
    if (trained := _trained(study, trial)) is not None:
        row["alone_top1"] = trained["top1"]
        row |= {f"alone_top1_{key}": trained[key] for key in ("stderr", "samples")}
    row["targets"] = {
        target: {key: costs[key] for key in (*COSTS, *CALIBRATED) if key in costs}
        for target, costs in trial.costs.items()
    }
    return row


def study_summary(study: Study) -> dict[str, Any]:
    """What `nas search --json` prints: where the study is, and its front."""
    return {
        "study": study.name,
        "storage": study.url,
        "folder": str(study.folder),
        "supernet": str(study.supernet) if study.supernet else None,
        "trials": len(study.trials),
        "scored": sum(trial.accuracy is not None for trial in study.trials),
        "hypervolume": study.hypervolume,
        "front": networks(study),
    }


def front_csv(study: Study) -> str:
    """One line per network of the front; the architecture as JSON."""
    rows = []
    for trial, row in zip(study.front, networks(study), strict=True):
        del row["targets"]
        rows.append({**row, "architecture": trial.architecture.to_json()})
    stream = io.StringIO()
    writer = csv.DictWriter(
        stream, fieldnames=list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def front_cells(study: Study) -> tuple[list[str], list[list[str]]]:
    """Header, with units, and rows of the front's table, as text."""
    axes = [axis for axis in _table_axes(study) if not axis.objective.needs_images]
    header = ["trial", "top-1 %"]
    if study.validations:
        header.append("val top-1 %")
    trained = any(_trained(study, trial) for trial in study.front)
    if trained:
        header.append("alone top-1 %")
    units = {axis.name: _unit(axis, study.front) for axis in axes}
    header += [f"{axis.title} {units[axis.name]}".rstrip() for axis in axes] + ["network"]
    rows = []
    for trial in study.front:
        cells = [str(trial.number), _percent(trial.accuracy)]
        if study.validations:
            cells.append(_percent(study.validations.get(trial.number)))
        if trained:
            cells.append(_percent(_trained(study, trial)))
        for axis in axes:
            factor = UNITS[axis.objective.quantity][units[axis.name]]
            cells.append(f"{axis.value(trial.costs, trial.top1) / factor:.4g}")
        rows.append([*cells, in_short(trial.architecture)])
    return header, rows


def front_table(study: Study) -> str:
    """The front in aligned columns, and beneath it what its figures are."""
    header, rows = front_cells(study)
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join([*lines, "", *claims(study)])


def front_markdown(study: Study) -> str:
    """The same for the dashboard's note."""
    header, rows = front_cells(study)
    lines = [f"# Front of {study.name}", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"- {claim}" for claim in claims(study))])


def claims(study: Study) -> list[str]:
    """What the figures are: predicted or measured, on how many images, how far selection flatters them."""
    scored = sum(trial.accuracy is not None for trial in study.trials)
    infeasible = sum(not trial.is_feasible(study.goal) for trial in study.trials)
    lines = [
        f"{len(study.trials)} trials, {scored} scored on images, {infeasible} infeasible; the front has "
        f"{len(study.front)} and covers {study.hypervolume:.1%} of the trade-off box.",
        "Energy and memory are predicted by the cost model, not measured.",
    ]
    if study.trials:
        shown = study.front[0] if study.front else study.trials[0]
        lines += latency_claims(shown.costs)
    if study.front and (accuracy := study.front[0].accuracy) is not None:
        lines.append(
            f"top-1: quantized, {accuracy['kind']}, on {accuracy['samples']} {accuracy['images']} images, "
            "± one standard error."
        )
    pairs = [(t.top1 or 0.0, study.validations[t.number]) for t in study.front if t.number in study.validations]
    if pairs:
        optimism = sum(top1 - validation["top1"] for top1, validation in pairs) / len(pairs)
        lines.append(
            f"val top-1: the same networks on {pairs[0][1]['samples']} validation images "
            f"that the search never saw; selection flatters top-1 by {100 * optimism:+.1f} points on average."
        )
    if done := [accuracy for trial in study.front if (accuracy := _trained(study, trial)) is not None]:
        lines.append(
            f"alone top-1: after `nas finalists`, quantized, on {done[0]['samples']} validation images; `nas export` "
            "ships those weights."
        )
    return lines


def _trained(study: Study, trial: Trial) -> Any:
    """Validation accuracy by the network's own training; None without one, or when it was stopped as hopeless."""
    return study.finalists.get(trial.number, {}).get("val")


def in_short(architecture: Architecture) -> str:
    """Resolution, then mixer, width and bits of each stage: `r32 2xdwconv5:32:w8a8 mhsa:64:w4a8`."""
    words = [f"r{architecture.resolution}"]
    for stage in architecture.stages:
        tokens = list(
            dict.fromkeys(
                ":".join([block.mixer_token, *block.modifiers, str(stage.width), str(block.bits)])
                for block in stage.blocks
            )
        )
        count = f"{len(stage.blocks)}x" if len(tokens) == 1 and len(stage.blocks) > 1 else ""
        words.append(count + "+".join(tokens))
    return " ".join(words)


def _table_axes(study: Study) -> list[Axis]:
    """The study's own objectives first, then what a person compares networks by."""
    axes = {axis.name: axis for axis in study.goal.axes}
    target = study.goal.targets[0]
    for name in ("energy", "peak_memory", "weight_size", "macs"):
        if not any(known.split("@")[0] == name for known in axes):
            shown = name if len(study.goal.targets) == 1 or not OBJECTIVES[name].per_target else f"{name}@{target}"
            axes[shown] = Axis(shown, OBJECTIVES[name], target)
    return list(axes.values())


def _unit(axis: Axis, trials: Sequence[Trial]) -> str:
    largest = max((axis.value(trial.costs, trial.top1) for trial in trials), default=0.0)
    return shown_unit(largest, axis.objective.quantity)


def _percent(accuracy: Any) -> str:
    return "-" if accuracy is None else f"{100 * accuracy['top1']:.1f} ±{100 * accuracy['stderr']:.1f}"
