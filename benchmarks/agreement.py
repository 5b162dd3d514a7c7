"""How well predicted latencies agree with published ones: the study behind every target's claim.

Run: python -m benchmarks.agreement --data FOLDER [--out studies/results]
FOLDER holds `npu_published.csv` (columns device, precision, batch, timm_name, input_res, latency_ms, fps,
metric_kind, runtime). A group is one device, precision and runtime with at least eight distinct timm models
at batch 1.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.facts import Finding, findings
from benchmarks.facts import markdown as facts_table
from benchmarks.provenance import provenance
from hw_models import Target, Workload, estimate_part, load_target
from hw_models.estimate import dram_seconds
from hw_models.factors import fit_factors
from hw_models.families import network_units
from nas.bits import put_precision
from nas.cost import timm_workload
from nas.errors import UsageError
from nas.trace import TraceError

DEVICE_TARGETS = {
    "AXERA AX630C": "ax630c",
    "AXERA AX650N": "ax650n",
    "Apple iPhone 12": "apple_a14",
    "Coral Dev Board": "coral_dev_board",
    "Coral USB Accelerator": "coral_usb",
    "Hailo-8L": "hailo8l",
    "Hailo-8": "hailo8",
    "Hailo-15H": "hailo10h",
    "NVIDIA Jetson AGX Orin": "jetson_agx_orin",
    "Qualcomm QCS8275": "qcs8275",
    "Qualcomm QCS8550": "qcs8550",
    "Qualcomm Samsung Galaxy S24": "galaxy_s24",
    "Qualcomm Samsung Galaxy S25": "galaxy_s25",
    "Qualcomm Snapdragon X Elite": "snapdragon_x_elite",
    "Synaptics VS680": "sl1680",
}
"""First words of a device label -> target; the first that fits wins."""

PRECISIONS = {"fp32": "fp32", "int8": "w8a8", "int8/uint8": "w8a8", "w8a8": "w8a8", "w8a16": "w8a16", "fp16": "fp16"}
SMALLEST_GROUP = 8
FOLDS, REPEATS = 2, 20
BOOTSTRAPS = 400
NOISE = 0.2
"""Relative noise at which published rows are believed when factors are fitted: estimated, as two sources of a device
differ."""

BENCHMARKS = {
    "timm_i9_10940x_fp32_b1.csv": ("Intel i9-10940X", "fp32", "torch.compile", "i9_10940x"),
    "timm_rtx4090_amp.csv": ("NVIDIA RTX 4090, large batches", "fp16", "AMP", "rtx_4090"),
}
"""timm's own benchmark files -> device, precision, runtime, target. They run the training form of every network."""


@dataclass(frozen=True)
class Row:
    """A published latency of a timm model, in seconds per image; of throughput rows the inverse."""

    model: str
    input_size: int | None
    seconds: float
    batch: int = 1


@dataclass(frozen=True)
class Agreement:
    """One group. rho: Spearman's rank correlation with the published latencies; within: share of models whose
    prediction lies within 10 or 25 percent; calibrated: after fitting one positive factor per kernel family on half of
    the models, tested on the other half (mean over repeated splits). ratio: median of predicted over published.
    rho_low, rho_high: 5 to 95 percent of rho over resampled models.
    """

    device: str
    precision: str
    runtime: str
    target: str
    models: int
    rho: float
    rho_low: float
    rho_high: float
    rho_macs: float
    rho_params: float
    rho_roofline: float
    ratio: float
    within_10: float
    within_25: float
    calibrated_rho: float
    calibrated_within_10: float
    calibrated_within_25: float
    left_out: list[str]


def read_groups(path: Path, smallest: int = SMALLEST_GROUP) -> dict[tuple[str, str, str], list[Row]]:
    """(device, precision, runtime) -> rows, for groups that are large enough and whose precision is known."""
    found: dict[tuple[str, str, str], dict[tuple[str, int | None], list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                words = row["precision"].split()
                if not (row["latency_ms"] or row["fps"]):
                    continue
                if row["timm_name"] and row["batch"].split()[:1] == ["1"] and words and words[0] in PRECISIONS:
                    size = int(row["input_res"]) if row["input_res"] else None
                    group = (row["device"], row["precision"], row["runtime"])
                    found[group][row["timm_name"], size].append(_seconds(row))
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; give the folder of npu_published.csv by --data"
        ) from error
    except (KeyError, ValueError) as error:
        raise UsageError(f"{path} does not have the columns of npu_published.csv ({error})") from error
    groups = {
        group: [Row(model, size, float(np.median(seconds))) for (model, size), seconds in rows.items()]
        for group, rows in found.items()
    }
    return {group: rows for group, rows in groups.items() if len({row.model for row in rows}) >= smallest}


def _seconds(row: dict[str, str]) -> float:
    """Throughput rows are used as throughput, and rows that give only images per second as those."""
    if row["fps"] and ("throughput" in row["metric_kind"] or not row["latency_ms"]):
        return 1.0 / float(row["fps"])
    return float(row["latency_ms"]) / 1e3


def read_benchmark(path: Path, sample: int) -> list[Row]:
    """At most `sample` rows of one of timm's benchmark files, evenly over the file sorted by model and size."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [
                Row(
                    row["model"],
                    int(row["infer_img_size"]),
                    1 / float(row["infer_samples_per_sec"]),
                    int(row["infer_batch_size"]),
                )
                for row in csv.DictReader(file)
            ]
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"{path} is not one of timm's inference benchmarks ({error})") from error
    rows.sort(key=lambda row: (row.model, row.input_size or 0))
    step = max(1, -(-len(rows) // max(1, sample)))
    return rows[::step]


def target_of(device: str) -> str | None:
    return next((target for words, target in DEVICE_TARGETS.items() if device.startswith(words)), None)


def agree(group: tuple[str, str, str], rows: Sequence[Row], target: Target, reparameterize: bool = True) -> Agreement:
    """Compare one group with the target's predictions. reparameterize: as in `nas.cost.cost_model`."""
    device, precision, runtime = group
    kept, workloads, left_out = [], [], []
    for row in rows:
        try:
            workload = timm_workload(row.model, row.input_size, row.batch, reparameterize)
        except (TraceError, UsageError) as error:
            left_out.append(f"{row.model} at {row.input_size}: {error}")
            continue
        kept.append(row)
        workloads.append(put_precision(workload, PRECISIONS[precision.split()[0]]))
    published = np.array([row.seconds for row in kept])
    batch = np.array([row.batch for row in kept])
    units = [network_units([estimate_part(workload, target)], target) for workload in workloads]
    columns = np.array([unit.by_column() for unit in units]) / batch[:, None]
    predicted = columns.sum(axis=1)
    calibrated = cross_validated(columns, published)
    low, high = bootstrapped(predicted, published)
    deviation = np.abs(predicted / published - 1)
    return Agreement(
        device=device,
        precision=precision,
        runtime=runtime,
        target=target.name,
        models=len(kept),
        rho=spearman(predicted, published),
        rho_low=low,
        rho_high=high,
        rho_macs=spearman(np.array([workload.macs for workload in workloads]) / batch, published),
        rho_params=spearman(np.array([workload.params for workload in workloads]), published),
        rho_roofline=spearman(np.array([roofline_s(workload, target) for workload in workloads]) / batch, published),
        ratio=float(np.median(predicted / published)),
        within_10=float((deviation <= 0.10).mean()),
        within_25=float((deviation <= 0.25).mean()),
        calibrated_rho=calibrated[0],
        calibrated_within_10=calibrated[1],
        calibrated_within_25=calibrated[2],
        left_out=left_out,
    )


def roofline_s(workload: Workload, target: Target) -> float:
    """The plain roofline: every op takes the longer of its macs at peak and its bytes at the memory's
    speed.
    """
    total = 0.0
    for op in workload.ops:
        touched = sum(workload.tensors[index].size_bytes for index in (*op.inputs, *op.outputs, *op.weights))
        total += max(op.macs / target.matrix.peak_macs_per_s, dram_seconds(touched, target))
    return total


def spearman(left: NDArray[Any], right: NDArray[Any]) -> float:
    """Pearson correlation of ranks; ties share their mean rank."""
    return float(np.corrcoef(_ranks(left), _ranks(right))[0, 1])


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((2 * ends - counts - 1) / 2)[inverse]


def bootstrapped(predicted: NDArray[Any], published: NDArray[Any]) -> tuple[float, float]:
    """Fifth and 95th percentile of Spearman over resampled models: what the choice of models alone moves."""
    rng = np.random.default_rng(0)
    picks = (rng.integers(0, len(predicted), len(predicted)) for _ in range(BOOTSTRAPS))
    found = [spearman(predicted[pick], published[pick]) for pick in picks if len(set(pick)) > 2]
    low, high = np.percentile(found, [5, 95])
    return float(low), float(high)


def cross_validated(columns: NDArray[Any], published: NDArray[Any]) -> tuple[float, float, float]:
    """(Spearman, share within 10 percent, share within 25 percent) of held-out models, mean over repeated halvings.

    columns: [models, hw_models.families.COLUMNS] predicted seconds by kernel family; each family's positive factor is
    fitted on one half of the models and applied to the other.
    """
    rng = np.random.default_rng(0)
    results = []
    for _ in range(REPEATS):
        order = rng.permutation(len(columns))
        fitted = np.empty(len(columns))
        for fold in range(FOLDS):
            test = order[fold::FOLDS]
            train = np.setdiff1d(order, test)
            factors, _ = fit_factors(columns[train], published[train], noise=NOISE)
            fitted[test] = columns[test] @ factors
        error = np.abs(fitted / published - 1)
        results.append((spearman(fitted, published), (error <= 0.10).mean(), (error <= 0.25).mean()))
    mean = np.mean(results, axis=0)
    return float(mean[0]), float(mean[1]), float(mean[2])


def markdown(
    results: Sequence[Agreement],
    benchmarks: Sequence[Agreement],
    meta: dict[str, str],
    found: Sequence[Finding] = (),
    sources: Sequence[dict[str, Any]] = (),
) -> str:
    """The study as a table, with its medians, timm's own benchmarks, and the table of facts."""
    lines = [
        "# Agreement of predicted with published latencies",
        "",
        "One line per group: a device, precision and runtime with at least eight distinct timm models at batch 1.",
        "Spearman's rank correlation of the published latency with this cost model (ours), macs, parameters and",
        "a plain roofline of the same target; the median of predicted over published; the share of models within",
        "25 percent untouched, and for held-out models after one positive factor per kernel family was fitted on the",
        "other half. In brackets: 5 to 95 percent of ours over resampled models.",
        "Values in the target files that no document gives are estimates; those marked 'Hexagon set' or 'Hailo set'",
        "were chosen with these very groups in view, so the Qualcomm and Hailo lines are a fit of one shared set to",
        "several devices, not a blind test.",
        "",
        *_table(sorted(results, key=lambda item: (item.device, item.precision, item.runtime))),
    ]
    medians = summary(results)
    lines += ["", "## Medians over the groups", ""] + [f"- {name}: {value:.3f}" for name, value in medians.items()]
    if sources:
        lines += _ceiling(sources)
    if benchmarks:
        lines += ["", "## timm's own benchmarks of a CPU and a GPU, an even sample", "", *_table(benchmarks)]
    if found:
        lines += ["", facts_table(found).rstrip()]
    lines += ["", "## Left out", ""]
    lines += sorted({f"- {reason}" for item in (*results, *benchmarks) for reason in item.left_out}) or ["- nothing"]
    lines += ["", "## Provenance", ""] + [f"- {name}: {value}" for name, value in meta.items()]
    return "\n".join(lines) + "\n"


def compare_sources(groups: dict[tuple[str, str, str], list[Row]]) -> list[dict[str, Any]]:
    """Two published groups of one kind of device and one precision on the models they share: how well silicon agrees
    with itself. From four models on.
    """
    out = []
    for one, other in itertools.combinations(sorted(groups), 2):
        targets = {target_of(one[0]), target_of(other[0])}
        if len(targets) > 1 or None in targets or one[1].split()[0] != other[1].split()[0]:
            continue
        left, right = ({(row.model, row.input_size): row.seconds for row in groups[key]} for key in (one, other))
        shared = sorted(left.keys() & right.keys(), key=str)
        if len(shared) < 4:
            continue
        ratio = np.array([left[key] / right[key] for key in shared])
        out.append(
            {
                "one": " ".join((one[0], one[2])),
                "other": " ".join((other[0], other[2])),
                "models": len(shared),
                "rho": spearman(np.array([left[key] for key in shared]), np.array([right[key] for key in shared])),
                "within_10": float((np.abs(ratio - 1) <= 0.10).mean()),
                "within_25": float((np.abs(ratio - 1) <= 0.25).mean()),
            }
        )
    return out


def _ceiling(sources: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "",
        "## How well published figures agree with each other",
        "",
        "Two sources of one kind of device and precision on the models both publish. No model of the device can be",
        "asked to do better than this. Besides, with a dozen models one exchanged pair of neighbours costs 0.007 of",
        "Spearman, with nine 0.017; the brackets above say what the choice of models alone moves.",
        "",
        "| one | other | models | Spearman | in 10% | in 25% |",
        "|---|---|---|---|---|---|",
    ]
    return lines + [
        f"| {item['one']} | {item['other']} | {item['models']} | {item['rho']:.3f} | {item['within_10']:.0%} | "
        f"{item['within_25']:.0%} |"
        for item in sources
    ]


def _table(results: Sequence[Agreement]) -> list[str]:
    """Lines of a Markdown table, one per group."""
    header = (
        "| device | precision | target | models | ours | macs | params | roofline | ratio | in 25% | fitted | in 25% |"
    )
    return [header, "|---|---|---|---|---|---|---|---|---|---|---|---|"] + [
        f"| {item.device} | {item.precision.split()[0]} | {item.target} | {item.models} | "
        f"{item.rho:.3f} ({item.rho_low:.2f}-{item.rho_high:.2f}) | "
        f"{item.rho_macs:.3f} | {item.rho_params:.3f} | {item.rho_roofline:.3f} | {item.ratio:.2f} | "
        f"{item.within_25:.0%} | {item.calibrated_rho:.3f} | {item.calibrated_within_25:.0%} |"
        for item in results
    ]


def summary(results: Sequence[Agreement]) -> dict[str, float]:
    names = ("rho", "rho_macs", "rho_params", "rho_roofline", "within_10", "within_25", "calibrated_rho")
    values = {name: [getattr(item, name) for item in results] for name in (*names, "calibrated_within_25")}
    medians = {f"median {name}": float(np.median(column)) for name, column in values.items()}
    behind = sum(item.rho < item.rho_macs - 0.02 for item in results)
    return {"groups": float(len(results)), **medians, "groups more than 0.02 behind macs": float(behind)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.agreement", description="Compare predicted with published latencies"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of npu_published.csv")
    parser.add_argument("--out", type=Path, default=Path("studies/results"), help="where agreement.json and .md go")
    parser.add_argument(
        "--benchmarks", type=int, default=100, help="rows to take of each of timm's benchmark files there; 0 for none"
    )
    parser.add_argument("--no-facts", action="store_true", help="leave out the table of single published facts")
    options = parser.parse_args(arguments)
    results: list[Agreement] = []
    benchmarks: list[Agreement] = []
    groups = read_groups(options.data / "npu_published.csv")
    sources = compare_sources(groups)
    for group, rows in sorted(groups.items()):
        name = target_of(group[0])
        if name is None:
            print(f"no target for {group[0]}", file=sys.stderr)
            continue
        results.append(agree(group, rows, load_target(name)))
        item = results[-1]
        print(f"{item.rho:.3f} (macs {item.rho_macs:.3f})  {item.device} {item.precision}", file=sys.stderr)
    for file, (device, precision, runtime, name) in BENCHMARKS.items():
        if options.benchmarks and (options.data / file).is_file():
            rows = read_benchmark(options.data / file, options.benchmarks)
            item = agree((device, precision, runtime), rows, load_target(name), reparameterize=False)
            benchmarks.append(item)
            print(f"{item.rho:.3f} (macs {item.rho_macs:.3f})  {item.device}", file=sys.stderr)
    found = [] if options.no_facts else findings()
    meta = provenance() | {"command": "python -m benchmarks.agreement --data FOLDER"}
    options.out.mkdir(parents=True, exist_ok=True)
    record = {"_meta": meta, "summary": summary(results), "groups": [asdict(item) for item in results]}
    record["sources"] = sources
    record["benchmarks"] = [asdict(item) for item in benchmarks]
    record["facts"] = [asdict(finding) for finding in found]
    (options.out / "agreement.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (options.out / "agreement.md").write_text(markdown(results, benchmarks, meta, found, sources), encoding="utf-8")
    print(json.dumps(record["summary"], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
