"""The finalists of a study for people and programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas.latency import latency_claims
from nas.report import CALIBRATED, in_short
from nas.study import Study


def finalists_rows(study: Study) -> list[dict[str, Any]]:
    """JSON-able, one per finalist: accuracies as fractions, SI units; `one_shot_val` of the same validation images."""
    rows = []
    for number, record in study.finalists.items():
        trial = study.trial(number)
        costs = trial.costs[study.goal.targets[0]]
        rows.append(
            {
                "trial": number,
                "architecture": trial.architecture.to_dict(),
                "stand_alone": record["val"] or record["search"],
                "one_shot": study.validations.get(number) or dict(trial.accuracy or {}),
                "stopped": record["stopped"],
                **{key: record[key] for key in ("steps", "weights", "teacher", "train", "path")},
                **{key: costs[key] for key in ("latency_s", *CALIBRATED, "energy_j", "macs", "params") if key in costs},
            }
        )
    return sorted(rows, key=lambda row: row["latency_s"])


def finalists_table(study: Study) -> str:
    """In aligned columns, and beneath it what the figures are."""
    header = ["trial", "stand-alone %", "one-shot %", "latency us", "steps", "network"]
    rows, found = [], finalists_rows(study)
    for row in found:
        cells = [str(row["trial"]), _percent(row["stand_alone"]), _percent(row["one_shot"])]
        cells += [f"{1e6 * row['latency_s']:.4g}", f"{row['steps']}{' stopped' if row['stopped'] else ''}"]
        rows.append([*cells, in_short(study.trial(row["trial"]).architecture)])
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    lines = []
    for line in [header, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(line[:-1], widths, strict=False)]
        lines.append("  ".join([*cells, line[-1]]).rstrip())
    costs = [study.trial(row["trial"]).costs for row in found[:1]]
    return "\n".join([*lines, "", *_claims(found), *(line for cost in costs for line in latency_claims(cost))])


def _claims(rows: list[dict[str, Any]]) -> list[str]:
    ended = [row for row in rows if not row["stopped"]]
    lines = []
    if ended:
        first = ended[0]
        samples = f"{first['stand_alone']['samples']} {first['stand_alone']['images']} images"
        lines.append(f"stand-alone: quantized top-1 after training by itself, on {samples}, +- one standard error.")
    both = [row for row in ended if row["one_shot"].get("images") == row["stand_alone"]["images"]]
    if both:
        gain = sum(row["stand_alone"]["top1"] - row["one_shot"]["top1"] for row in both) / len(both)
        lines.append(
            f"one-shot: the same networks with shared weights; training added {100 * gain:+.1f} points on average."
        )
    if stopped := [row for row in rows if row["stopped"]]:
        images = stopped[0]["stand_alone"]["images"]
        lines.append(
            f"{len(stopped)} stopped early, a cheaper one being better already; figures of that step, {images} images."
        )
    return lines


def _percent(accuracy: Mapping[str, Any]) -> str:
    return f"{100 * accuracy['top1']:.1f} ±{100 * accuracy['stderr']:.1f}" if accuracy else "-"
