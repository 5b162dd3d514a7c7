"""Whole networks predicted from measurements of single blocks, and how well: what studies of several devices share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.provenance import write_result
from hw_models import Target
from hw_models.factors import FactorPrior
from hw_models.families import COLUMNS
from hw_models.measurements import Measurement
from hw_models.predictor import fit_predictor
from hw_models.samples import Samples
from nas.calibrate import record_units
from nas.correlation import spearman

Array = NDArray[np.float64]

Format = tuple[str, int]
"""(precision, batch)"""

MOST = 150
"""Block measurements that a fit may use."""


def samples_of(records: Sequence[Measurement], target: Target) -> Samples:
    return Samples.of([record_units(record, target) for record in records], [record.latency_s for record in records])


def judge(predicted_s: Array, low_s: Array, high_s: Array, records: Sequence[Measurement]) -> dict[str, float]:
    """Scores of predictions of networks."""
    measured = np.array([record.latency_s for record in records])
    spread = np.array([record.spread_s / record.latency_s for record in records])
    error = np.abs(predicted_s / measured - 1)
    return {
        "spearman": spearman(predicted_s, measured),
        "within 10 %": float((error <= 0.1).mean()),
        "within 10 % or spread": float((error <= np.maximum(0.1, spread)).mean()),
        "within 25 %": float((error <= 0.25).mean()),
        "mean error": float(error.mean()),
        "coverage": float(((low_s <= measured) & (measured <= high_s)).mean()),
        "interval factor": float(np.median(np.sqrt(high_s / low_s))),
    }


def study(
    target: Target,
    blocks: Sequence[Measurement],
    networks: Sequence[Measurement],
    formats: Sequence[Format],
    label: str,
    title: str = "",
    learned: Sequence[Measurement] = (),
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(scores per format and kind of network, one row per network) of one fit to blocks in all the formats.

    title: in the results, of the target and the set of networks; by default the target's. learned: networks that the
    fit learns from beside the blocks.
    """
    title = title or target.name
    own = [record for record in blocks if (record.precision, record.batch) in formats]
    # The same blocks in every format: the first of the pack, which lists them in the order of the design.
    subjects = list(dict.fromkeys(record.subject for record in own))[: MOST // len(formats)]
    others = [record for record in learned if (record.precision, record.batch) in formats]
    used = [record for record in own if record.subject in subjects and record.is_sharp]
    block_count = len(used)
    used += [record for record in others if record.is_sharp]
    start = time.perf_counter()
    training = samples_of(used, target)
    predictor = fit_predictor(training, FactorPrior.of_cost_model())
    print(f"{label}: {len(used)} measurements, {time.perf_counter() - start:.0f} s, {predictor.choice}", flush=True)
    scale = float(np.median(training.measured_s / training.prior_s))
    rows: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for precision, batch in formats:
        tested = [record for record in networks if (record.precision, record.batch) == (precision, batch)]
        if not tested:
            continue  # the minutes did not reach them
        samples = samples_of(tested, target)
        predicted, (low, high) = predictor.predict(samples), predictor.interval(samples)
        kinds = {"all": np.ones(len(tested), dtype=bool)}
        drawn = np.array([record.subject.startswith("arch:") for record in tested])
        kinds |= {"of the space": drawn, "timm": ~drawn}
        for kind, chosen in kinds.items():
            if not chosen.any():
                continue
            records = [record for record, is_chosen in zip(tested, chosen, strict=True) if is_chosen]
            head = {
                "target": title,
                "fit": label,
                "blocks": block_count,
                "precision": precision,
                "batch": batch,
                "networks": f"{kind} ({len(records)})",
            }
            found.append(head | judge(predicted[chosen], low[chosen], high[chosen], records))
            for name, factor in (("one scale", scale), ("uncalibrated", 1.0)):
                plain = factor * samples.prior_s[chosen]
                found.append(head | {"fit": f"{label}: {name}"} | judge(plain, plain, plain, records))
        rows += _rows(title, label, tested, samples, predicted, low, high)
    own_scores = judge(predictor.held_out_s, *predictor.interval(training), used)
    found.append(
        {"target": title, "fit": label, "blocks": block_count, "precision": "+".join(p for p, _ in formats)}
        | {"batch": "+".join(str(batch) for batch in dict.fromkeys(batch for _, batch in formats))}
        | {"networks": f"held-out blocks{' and networks' if others else ''} ({len(used)})"}
        | own_scores
    )
    for one in found:
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in one.items()}, flush=True)
    return found, rows


def write(
    out: Path, name: str, head: dict[str, Any], scores: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]
) -> None:
    """out/NAME.{json,md} with the scores, out/NAME_networks.{json,md} with a row per network."""
    write_result(out / name, head | {"networks": scores}, columns=list(scores[0]))
    write_result(out / f"{name}_networks", head | {"networks": rows}, columns=list(rows[0]))


def _rows(
    target: str,
    label: str,
    records: Sequence[Measurement],
    samples: Samples,
    predicted: Array,
    low: Array,
    high: Array,
) -> list[dict[str, Any]]:
    return [
        {
            "target": target,
            "fit": label,
            "networks": record.subject,
            "precision": record.precision,
            "batch": record.batch,
            "measured_ms": 1e3 * record.latency_s,
            "spread": record.spread_s / record.latency_s,
            "predicted_ms": 1e3 * float(predicted[index]),
            "low_ms": 1e3 * float(low[index]),
            "high_ms": 1e3 * float(high[index]),
            "most time in": COLUMNS[int(np.argmax(samples.columns_s[index]))],
        }
        for index, record in enumerate(records)
    ]
