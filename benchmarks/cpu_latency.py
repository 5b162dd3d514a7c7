"""Whole networks on a CPU core predicted from measurements of single blocks.

    python -m benchmarks.cpu_latency --out studies/results

For each core, blocks and networks are those of its measurement packs: NAME (150 blocks, see benchmarks/cpu_pack.py, in
fp32 and int8) and NAME_networks (timm networks and networks of the space). The predictor is fitted to the blocks of one
precision at a time, and, as a stricter reading of "at most 150 measurements", to 75 of them in both precisions. A
prediction counts as near when it lies within 10 percent of the measured latency, or within the spread of its repeats
where that is wider. What was looked at before which figure is in LIMITS.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.provenance import provenance, write_result
from hw_models import Target, load_target
from hw_models.factors import FactorPrior
from hw_models.families import COLUMNS
from hw_models.measurements import Measurement, load_pack
from hw_models.predictor import fit_predictor
from hw_models.samples import Samples
from nas.calibrate import record_units
from nas.correlation import spearman

Array = NDArray[np.float64]

LIMITS = {
    "epyc_zen5_core": "development data: its networks were looked at often, and what ONNX Runtime makes of SiLU and "
    "of means between integers was put into the cost model because of their errors; blocks of the space and single "
    "convolutions alone, so that timm networks come out an eighth too fast in int8",
    "epyc_zen3_core": "blind: target, blocks and networks were fixed before anything was measured "
    "(benchmarks/cpu_pack.py), and this is the first fit; a virtual core of a host with other guests, all else of ours "
    "stopped; nine minutes for blocks, in the order of the design, so that not all were reached; what the tool refused "
    "as measured under load is left out; four networks of a search, not among these, were measured before",
}
"""Target -> what was looked at."""

MOST = 150
"""Block measurements that a fit may use."""

WIDEST = 0.2
"""Blocks whose median is known less well than this, either way, are measured but not learned from."""


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
    precisions: Sequence[str],
    label: str,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(scores per precision and kind of network, one row per network) of one fit."""
    own = [record for record in blocks if record.precision in precisions]
    # The same blocks in every precision: the first of the pack, which lists them in the order of the design.
    subjects = list(dict.fromkeys(record.subject for record in own))[: MOST // len(precisions)]
    used = [record for record in own if record.subject in subjects and _is_known(record)]
    start = time.perf_counter()
    training = samples_of(used, target)
    predictor = fit_predictor(training, FactorPrior.of_cost_model())
    print(f"{label}: {len(used)} blocks, {time.perf_counter() - start:.0f} s, {predictor.choice}", flush=True)
    scale = float(np.median(training.measured_s / training.prior_s))
    rows: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for precision in precisions:
        tested = [record for record in networks if record.precision == precision]
        samples = samples_of(tested, target)
        predicted, (low, high) = predictor.predict(samples), predictor.interval(samples)
        kinds = {"all": np.ones(len(tested), dtype=bool)}
        drawn = np.array([record.subject.startswith("arch:") for record in tested])
        kinds |= {"of the space": drawn, "timm": ~drawn}
        for kind, chosen in kinds.items():
            records = [record for record, is_chosen in zip(tested, chosen, strict=True) if is_chosen]
            head = {
                "target": target.name,
                "fit": label,
                "blocks": len(used),
                "precision": precision,
                "networks": f"{kind} ({len(records)})",
            }
            found.append(head | judge(predicted[chosen], low[chosen], high[chosen], records))
            plain = scale * samples.prior_s[chosen]
            found.append(head | {"fit": f"{label}: one scale"} | judge(plain, plain, plain, records))
        rows += _rows(target.name, label, tested, samples, predicted, low, high)
    own_scores = judge(predictor.held_out_s, *predictor.interval(training), used)
    found.append(
        {"target": target.name, "fit": label, "blocks": len(used), "precision": "+".join(precisions)}
        | {"networks": "held-out blocks"}
        | own_scores
    )
    return found, rows


def _is_known(record: Measurement) -> bool:
    """Whether the 95 percent interval of a block's time is narrow enough to learn from."""
    return record.high_s - record.low_s <= 2 * WIDEST * record.latency_s


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
            "measured_ms": 1e3 * record.latency_s,
            "spread": record.spread_s / record.latency_s,
            "predicted_ms": 1e3 * float(predicted[index]),
            "low_ms": 1e3 * float(low[index]),
            "high_ms": 1e3 * float(high[index]),
            "most time in": COLUMNS[int(np.argmax(samples.columns_s[index]))],
        }
        for index, record in enumerate(records)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    parser.add_argument("--target", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--name", default="cpu_latency", help="of the files of results")
    args = parser.parse_args()
    scores, rows, runtimes = [], [], {}
    for name in args.target:
        target, blocks, networks = load_target(name), load_pack(name), load_pack(f"{name}_networks")
        runtimes[name] = f"{networks[0].runtime} {networks[0].runtime_version}, one thread"
        for label, precisions in (("fp32", ["fp32"]), ("int8", ["w8a8"]), ("both", ["fp32", "w8a8"])):
            found, detail = study(target, blocks, networks, precisions, label)
            scores += found
            rows += detail
            for one in found:
                print(
                    {key: round(value, 3) if isinstance(value, float) else value for key, value in one.items()},
                    flush=True,
                )
    result = {
        "what": "whole networks on one CPU core, predicted from measured blocks alone",
        **provenance(),
        "runtime": "; ".join(f"{name}: {runtime}" for name, runtime in runtimes.items()),
        "limits": "; ".join(f"{name}: {LIMITS[name]}" for name in args.target),
        "networks": scores,
    }
    write_result(args.out / args.name, result, columns=list(scores[0]))
    write_result(args.out / f"{args.name}_networks", result | {"networks": rows}, columns=list(rows[0]))


if __name__ == "__main__":
    main()
