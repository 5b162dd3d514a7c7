"""Agreement with timm's own inference benchmarks of a CPU and a GPU, all rows of them or an even sample.

    python -m benchmarks.timm_tables --data FOLDER [--rows N] [--cache FOLDER] [--out studies/results]

FOLDER holds `timm_i9_10940x_fp32_b1.csv` and `timm_rtx4090_amp.csv` (columns model, infer_img_size, infer_batch_size,
infer_samples_per_sec). Throughput is used as throughput: seconds per image at the row's batch. The networks run in
their training form. --rows N takes at most N rows of each table, evenly. Traces are kept in the cache folder; several
processes may fill it with --trace I/N first. So are the costs of every row, in `costed_*`: delete them when the cost
model has changed. --table FILE does one table and leaves the result of the other as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.agreement import (
    BENCHMARKS,
    PRECISIONS,
    Row,
    cross_validated,
    figures_of,
    read_benchmark,
    spearman,
)
from benchmarks.provenance import provenance
from benchmarks.traced import traced
from hw_models import Target, Workload, estimate, load_target
from hw_models.fit import TargetFit, fit_target, with_values
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


def study(file: str, rows: list[Row], cache: Path, seconds: float = float("inf")) -> dict[str, Any]:
    """One table: its agreement untouched, with factors per kernel family, and with fitted values.

    What is known of a row is kept in the cache, so that the next run goes on where this one stopped, at the latest
    after some seconds.
    """
    device, precision, runtime, name = BENCHMARKS[file]
    target = load_target(name)
    path = cache / f"costed_{len(rows)}_{file}.jsonl"
    known = _lines(path)
    if not known:
        fitted = fit_rows(rows, PRECISIONS[precision], cache, target).fitted
        known = [{item.parameter.key: (item.parameter.prior, item.value, item.verdict) for item in fitted}]
        _append(path, known[0])
    values, costed = known[0], {tuple(item["row"]): item for item in known[1:]}
    changed = with_values(target, {key: value for key, (_, value, _) in values.items()})
    missing = [row for row in rows if _key(row) not in costed]
    np.random.default_rng(0).shuffle(missing)  # what is known when time is up is a fair sample
    end = time.monotonic() + seconds
    for row, workload in workloads(missing, PRECISIONS[precision], cache, left_out := []):
        figures = figures_of(workload, target, row.batch)
        after_s = estimate(workload, changed).latency_s / row.batch
        costed[_key(row)] = {
            "row": _key(row),
            "columns_s": figures.columns_s.tolist(),
            "macs": figures.macs,
            "params": figures.params,
            "roofline_s": figures.roofline_s,
            "after_s": after_s,
        }
        _append(path, costed[_key(row)])
        if time.monotonic() > end:
            break
    found = [(row, costed[_key(row)]) for row in rows if _key(row) in costed]
    published = np.array([row.seconds for row, _ in found])
    columns = np.array([item["columns_s"] for _, item in found])
    macs, params, roofline_s, after_s = (
        np.array([item[key] for _, item in found]) for key in ("macs", "params", "roofline_s", "after_s")
    )
    predicted = columns.sum(axis=1)
    names = ("rho", "within_10", "within_25")
    given = set(map(_key, _sample(rows)))
    others = np.array([_key(row) not in given for row, _ in found])
    return {
        "device": device,
        "precision": precision,
        "runtime": runtime,
        "target": target.name,
        "rows": len(rows),
        "models": len(published),
        **_agreement(predicted, published),
        "rho_macs": spearman(macs, published),
        "rho_params": spearman(params, published),
        "rho_roofline": spearman(roofline_s, published),
        "ratio": float(np.median(predicted / published)),
        "families": dict(zip(names, cross_validated(columns, published), strict=True)),
        "fitted": _agreement(after_s[others], published[others]),
        "values": values,
        "sources": _guesses(target),
        "left_out": left_out,
    }


def _sample(rows: list[Row]) -> list[Row]:
    return rows[:: max(1, len(rows) // MEASURED)]


def _key(row: Row) -> tuple[str, int | None, int]:
    return row.model, row.input_size, row.batch


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of an earlier run; the last may have been cut off."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _append(path: Path, item: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(item) + "\n")


def fit_rows(rows: list[Row], precision: str, cache: Path, like: Target) -> TargetFit:
    """As `nas targets fit`, of an even sample of the rows. Its times are of whole batches."""
    chosen = list(workloads(_sample(rows), precision, cache, []))
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
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many, with what is known")
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
    new = {file: study(file, rows, args.cache, args.seconds) | _provenance() for file, rows in chosen.items()}
    results = list((_known(args.out) | new).values())
    record = {"tables": results}
    (args.out / "timm_tables.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (args.out / "timm_tables.md").write_text(markdown(results), encoding="utf-8")
    print(markdown(results))


if __name__ == "__main__":
    main()
