"""Agreement with timm's own inference benchmarks of a CPU and a GPU, all rows of them or an even sample.

    python -m benchmarks.timm_tables --data FOLDER [--rows N] [--cache FOLDER] [--out studies/results]

FOLDER holds `timm_i9_10940x_fp32_b1.csv` and `timm_rtx4090_amp.csv` (columns model, infer_img_size, infer_batch_size,
infer_samples_per_sec). Throughput is used as throughput: seconds per image at the row's batch. The networks run in
their training form. --rows N takes at most N rows of each table, evenly. Traces are kept in the cache folder; several
processes may fill it with --trace I/N first. --table FILE does one table and leaves the result of the other as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.agreement import (
    BENCHMARKS,
    PRECISIONS,
    Figures,
    Row,
    cross_validated,
    figures_of,
    read_benchmark,
    spearman,
)
from benchmarks.provenance import provenance
from benchmarks.traced import traced
from hw_models import Target, Workload, estimate, load_target
from hw_models.fit import TargetFit, fit_target
from nas.bits import put_precision
from nas.errors import UsageError
from nas.trace import TraceError

EVERY_ROW = 10**9
MEASURED = 100
"""Rows that `nas targets fit` is given; it is tested on all others."""


def workloads(rows: list[Row], precision: str, cache: Path, left_out: list[str]) -> Iterator[tuple[Row, Workload]]:
    """Each row's network at its batch, one at a time; what cannot be traced is said in `left_out`."""
    for row in rows:
        try:
            workload = traced(row.model.split(".")[0], row.input_size, cache)
        except (TraceError, UsageError) as error:
            left_out.append(f"{row.model} at {row.input_size}: {error}")
            continue
        yield row, put_precision(workload.with_batch(row.batch), precision)


def study(file: str, rows: list[Row], cache: Path) -> dict[str, Any]:
    """One table: its agreement untouched, with factors per kernel family, and with fitted values."""
    device, precision, runtime, name = BENCHMARKS[file]
    target = load_target(name)
    left_out: list[str] = []
    fitted = fit_rows(rows, PRECISIONS[precision], cache, target)
    figures: list[Figures] = []
    times = []
    for row, workload in workloads(rows, PRECISIONS[precision], cache, left_out):
        figures.append(figures_of(workload, target, row.batch))
        times.append((row.seconds, estimate(workload, fitted.target).latency_s / row.batch))
        if len(times) % 100 == 0:
            print(f"{file}: {len(times)} of {len(rows)}", flush=True)
    published, after = np.array(times).T
    columns = np.array([item.columns_s for item in figures])
    predicted = columns.sum(axis=1)
    names = ("rho", "within_10", "within_25")
    others = np.arange(len(published)) % max(1, len(rows) // MEASURED) != 0
    return {
        "device": device,
        "precision": precision,
        "runtime": runtime,
        "target": target.name,
        "rows": len(rows),
        "models": len(published),
        **_agreement(predicted, published),
        "rho_macs": spearman(np.array([item.macs for item in figures]), published),
        "rho_params": spearman(np.array([item.params for item in figures]), published),
        "rho_roofline": spearman(np.array([item.roofline_s for item in figures]), published),
        "ratio": float(np.median(predicted / published)),
        "families": dict(zip(names, cross_validated(columns, published), strict=True)),
        "fitted": _agreement(after[others], published[others]),
        "values": {item.parameter.key: (item.parameter.prior, item.value, item.verdict) for item in fitted.fitted},
        "sources": _guesses(target),
        "left_out": left_out,
    }


def fit_rows(rows: list[Row], precision: str, cache: Path, like: Target) -> TargetFit:
    """As `nas targets fit`, of an even sample of the rows. Its times are of whole batches."""
    chosen = list(workloads(rows[:: max(1, len(rows) // MEASURED)], precision, cache, []))
    return fit_target([workload for _, workload in chosen], [row.seconds * row.batch for row, _ in chosen], like)


def _agreement(predicted: np.ndarray, published: np.ndarray) -> dict[str, float]:
    error = np.abs(predicted / published - 1)
    within = {"within_10": float((error <= 0.10).mean()), "within_25": float((error <= 0.25).mean())}
    return {"rho": spearman(predicted, published), **within}


def _guesses(target: Target) -> str:
    guesses = sum(source.startswith("estimated") for source in target.sources.values())
    return f"{guesses} of {len(target.sources)} values of {target.name} are estimates"


def _provenance() -> dict[str, str]:
    """Without the folders of this run."""
    words = sys.argv[1:]
    rows = f" --rows {words[words.index('--rows') + 1]}" if "--rows" in words[:-1] else ""
    return provenance() | {"command": f"python -m benchmarks.timm_tables --data FOLDER{rows}"}


def markdown(results: list[dict[str, Any]]) -> str:
    lines = [
        "# Agreement with timm's own benchmarks",
        "",
        "Rows of timm's inference benchmarks of a CPU (fp32, batch 1, torch.compile) and a GPU (AMP, op by op, batches",
        "of 6 to 1024), in seconds per image. Spearman's rank correlation of the published time with this cost model",
        "(untouched; with a factor per kernel family, fitted on half of the rows and tested on the other; and with the",
        "values that `nas targets fit` finds from a hundred rows, tested on all others), with macs, parameters and a",
        "plain roofline of the same target; the share of rows within 10 and 25 percent.",
        "",
        "| device | rows | costed | ours | macs | params | roofline | predicted / published, median |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {item['device']} | {item['rows']} | {item['models']} | {item['rho']:.3f} | {item['rho_macs']:.3f} | "
        f"{item['rho_params']:.3f} | {item['rho_roofline']:.3f} | {item['ratio']:.2f} |"
        for item in results
    ]
    lines += ["", "| device | fitted on the other half | Spearman | in 10% | in 25% |", "|---|---|---|---|---|"]
    for item in results:
        families = item["families"]
        cells = (
            ("nothing", item["rho"], item["within_10"], item["within_25"]),
            ("factor per kernel family", families["rho"], families["within_10"], families["within_25"]),
            (
                f"`nas targets fit`, {MEASURED} rows",
                *(item["fitted"][key] for key in ("rho", "within_10", "within_25")),
            ),
        )
        lines += [
            f"| {item['device']} | {name} | {rho:.3f} | {near:.1%} | {wide:.1%} |" for name, rho, near, wide in cells
        ]
    lines += ["", *(f"- {item['sources']}." for item in results), "", "## Fitted values", ""]
    lines += ["| device | value | target | fitted | determined |", "|---|---|---|---|---|"]
    lines += [
        f"| {item['device']} | {key} | {prior:.4g} | {value:.4g} | {verdict} |"
        for item in results
        for key, (prior, value, verdict) in item["values"].items()
    ]
    lines += ["", "## Left out", ""]
    lines += sorted({f"- {reason}" for item in results for reason in item["left_out"]}) or ["- nothing"]
    lines += ["", "## Provenance", ""]
    lines += dict.fromkeys(f"- {key}: {item[key]}" for key in _provenance() for item in results)
    return "\n".join(lines) + "\n"


def _known(folder: Path) -> dict[str, dict[str, Any]]:
    """Results of an earlier run, by file."""
    path = folder / "timm_tables.json"
    results = json.loads(path.read_text(encoding="utf-8"))["tables"] if path.is_file() else []
    files = {name: file for file, (*_, name) in BENCHMARKS.items()}
    return {files[item["target"]]: item for item in results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of timm's two tables")
    parser.add_argument("--rows", type=int, default=EVERY_ROW, help="at most so many rows of each table, evenly")
    parser.add_argument("--cache", type=Path, default=Path(".traces"), help="folder of traced networks")
    parser.add_argument("--trace", default="", help="I/N: only trace every N-th network from the I-th on")
    parser.add_argument("--table", choices=list(BENCHMARKS), help="only this one; the other stays as --out has it")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    args = parser.parse_args()
    tables = {file: read_benchmark(args.data / file, args.rows) for file in BENCHMARKS}
    if args.trace:
        index, count = map(int, args.trace.split("/"))
        named = sorted({(row.model.split(".")[0], row.input_size or 0) for rows in tables.values() for row in rows})
        for name, size in named[index::count]:
            try:
                traced(name, size, args.cache)
            except (TraceError, UsageError) as error:
                print(f"{name} at {size}: {error}")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = {args.table: tables[args.table]} if args.table else tables
    new = {file: study(file, rows, args.cache) | _provenance() for file, rows in chosen.items()}
    results = list((_known(args.out) | new).values())
    record = {"tables": results}
    (args.out / "timm_tables.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (args.out / "timm_tables.md").write_text(markdown(results), encoding="utf-8")
    print(markdown(results))


if __name__ == "__main__":
    main()
