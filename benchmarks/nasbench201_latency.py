"""Latency of NAS-Bench-201 cells on new devices from 10 and 50 measurements of each.

    python -m benchmarks.nasbench201_latency --data FOLDER --out studies/results

FOLDER holds nasbench201_27_devices.csv (HayeonLee/HELP, MIT): arch_str and a latency in ms per device. Six devices are
new, nine others are known for all cells; 3,000 cells are tested, five seeds. Beside the predictor: plain ridge
regression of the log latency on op one-hots and the known devices, and as a ceiling boosted trees on the same features
trained with all 12,625 cells that are not tested.
"""

from __future__ import annotations

import argparse
import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.agreement import spearman
from benchmarks.provenance import provenance, write_result
from hw_models import Target, estimate_part, load_target
from hw_models.families import COLUMNS, FEATURES, Units, part_units
from hw_models.predictor import fit_blend, fit_predictor
from hw_models.samples import Samples
from nas.bits import put_precision
from nas.errors import UsageError
from nas.trace import trace_module

Array = NDArray[np.float64]

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""(from, to) of a cell's six edges, in the order of arch_str; 0 is its input, 3 its output."""

NEW = ("eyeriss", "fpga", "raspi4", "gold_6226", "titan_rtx_256", "pixel2")
KNOWN = (
    *("1080ti_1", "1080ti_32", "1080ti_256", "silver_4114", "silver_4210r"),
    *("samsung_a50", "pixel3", "essential_ph_1", "samsung_s7"),
)
TEST, SEEDS = 3000, 5
INTERVAL_SEEDS, CEILING_SEEDS = 1, 1
"""Seeds with which intervals, and trees on all cells, are fitted too: that takes ten times as long."""

STAGES = ((16, 32), (32, 16), (64, 8))
"""(channels, side of the map) of the three stages, five cells each."""

LEAST_QUANTILE = 0.001
"""Latencies of known devices below this quantile are set to it: some are hundredths of a millisecond."""


@dataclass(frozen=True)
class Table:
    """ops: [cells, edges] indices into OPS. latency_ms: device -> [cells]."""

    ops: NDArray[np.intp]
    latency_ms: dict[str, Array]


def read_table(path: Path) -> Table:
    """Raises UsageError when the file is not there or not that table."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        ops = [[OPS.index(name) for name in re.findall(r"([a-z0-9_]+)~\d", row["arch_str"])] for row in rows]
        latency_ms = {device: np.array([float(row[device]) for row in rows]) for device in (*NEW, *KNOWN)}
        return Table(np.array(ops).reshape(len(rows), len(EDGES)), latency_ms)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; give its folder by --data") from error
    except (KeyError, ValueError) as error:
        raise UsageError(f"{path} is not the table of NAS-Bench-201 latencies ({error})") from error


def _edge(op: str, channels: int) -> nn.Module | None:
    """Module of an edge as the benchmark defines it: ReLU, convolution, BatchNorm; None where nothing is computed."""
    if op == "avg_pool_3x3":
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    if op.startswith("nor_conv"):
        kernel = int(op[-1])
        convolution = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
        return nn.Sequential(nn.ReLU(), convolution, nn.BatchNorm2d(channels))
    return nn.Hardtanh() if op == "none" else None  # a product with zero is one pointwise op


def edge_columns(target: Target) -> tuple[Array, Array]:
    """([OPS, COLUMNS] seconds of one edge of each kind in all fifteen cells, [COLUMNS] of the rest of a network)."""
    edges = np.zeros((len(OPS), len(COLUMNS)))
    for channels, side in STAGES:
        for number, op in enumerate(OPS):
            module = _edge(op, channels)
            if module is not None:
                edges[number] += 5 * _columns(module, channels, side, target)
    rest = _columns(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)), 3, 32, target)
    for channels, side in STAGES[:2]:  # the residual block between two stages
        wide = 2 * channels
        block = nn.Sequential(nn.Conv2d(channels, wide, 3, 2, 1), nn.ReLU(), nn.Conv2d(wide, wide, 3, 1, 1))
        rest = rest + _columns(block, channels, side, target)
    return edges, rest


def _columns(module: nn.Module, channels: int, side: int, target: Target) -> Array:
    with torch.device("meta"):
        workload = trace_module(module.to("meta").eval(), [(1, channels, side, side)], "edge")
    return part_units(estimate_part(put_precision(workload, "fp16"), target, (False, False)), 0.0).by_column()


def live_edges(ops: NDArray[np.intp]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """([cells, edges] that reach the output, [cells, edges] that lie on a way from input to output)."""
    something = ops != OPS.index("none")
    before, after = np.zeros((2, len(ops), 4), dtype=bool)
    before[:, 0] = after[:, 3] = True
    for edge, (start, end) in enumerate(EDGES):
        before[:, end] |= before[:, start] & something[:, edge]
    for edge, (start, end) in reversed(list(enumerate(EDGES))):
        after[:, start] |= after[:, end] & something[:, edge]
    reaches = np.stack([something[:, edge] & after[:, end] for edge, (_, end) in enumerate(EDGES)], axis=1)
    between = np.stack([reaches[:, edge] & before[:, start] for edge, (start, _) in enumerate(EDGES)], axis=1)
    return reaches, between


def samples_of(table: Table, target: Target) -> Samples:
    """All cells: columns as if every edge were computed; as variants, those of the edges that reach the output, and of
    those between input and output, since some runtimes leave dead code out; other devices' latencies as references.
    """
    edges, rest = edge_columns(target)
    used = np.flatnonzero(edges.any(axis=0))
    one_hot = np.eye(len(OPS))[table.ops]
    columns = one_hot.sum(axis=1) @ edges + rest
    variants = [((one_hot * live[:, :, None]).sum(axis=1) @ edges)[:, used] for live in live_edges(table.ops)]
    references = [table.latency_ms[device] / 1e3 for device in KNOWN]
    references = [np.maximum(seconds, np.quantile(seconds, LEAST_QUANTILE)) for seconds in references]
    count, width = columns.shape
    units = Units(
        np.tile(np.arange(width), count),
        columns.ravel(),
        np.zeros((count * width, len(FEATURES))),
        ("",) * columns.size,
    )
    owner = np.repeat(np.arange(count), width)
    return Samples(units, owner, np.full(count, np.nan), np.stack(references, axis=1), np.hstack(variants))


def baseline(features: Array, seconds: Array, train: NDArray[np.intp], test: NDArray[np.intp]) -> Array:
    """Ridge on one-hots and standardised log latencies of the known devices, strength by leave-one-out among five."""
    from sklearn.linear_model import RidgeCV

    model = RidgeCV(alphas=(0.1, 0.3, 1, 3, 10)).fit(features[train], np.log(seconds[train]))
    return np.exp(model.predict(features[test]))


def ceiling(features: Array, seconds: Array, train: NDArray[np.intp], test: NDArray[np.intp]) -> Array:
    from sklearn.ensemble import HistGradientBoostingRegressor

    model = HistGradientBoostingRegressor(max_iter=400, random_state=0).fit(features[train], np.log(seconds[train]))
    return np.exp(model.predict(features[test]))


def baseline_features(table: Table, samples: Samples) -> Array:
    one_hot = np.eye(len(OPS))[table.ops].reshape(len(table.ops), -1)
    logs = np.log(samples.references_s)
    # One-hots at 0.3 and without centring: of the scalings tried, the best for this baseline.
    return np.hstack([0.3 * one_hot, (logs - logs.mean(axis=0)) / logs.std(axis=0)])


def score(predicted_s: Array, measured_s: Array) -> tuple[float, float]:
    """(Spearman, percent of cells within 10 percent)."""
    return spearman(predicted_s, measured_s), 100 * float((np.abs(predicted_s / measured_s - 1) <= 0.1).mean())


def study(
    table: Table, target: Target, counts: tuple[int, ...], seeds: int, with_ceiling: bool
) -> list[dict[str, Any]]:
    """One row per method, count and new device: means over seeds."""
    samples = samples_of(table, target)
    features = baseline_features(table, samples)
    rows = []
    for device in NEW:
        true = table.latency_ms[device] / 1e3
        learned = np.maximum(true, np.quantile(true, LEAST_QUANTILE))
        found: dict[tuple[str, int], list[tuple[float, ...]]] = {}
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(true))
            test = order[-TEST:]
            for count in counts:
                train = order[:count]
                training, tested = samples.take(train).measured(learned[train]), samples.take(test)
                predicted = fit_blend(training).predict(tested)
                coverage = np.nan
                if seed < INTERVAL_SEEDS:
                    low, high = fit_predictor(training).interval(tested)
                    coverage = 100 * float(((low <= true[test]) & (true[test] <= high)).mean())
                found.setdefault(("predictor", count), []).append((*score(predicted, true[test]), coverage))
                plain = baseline(features, learned, train, test)
                found.setdefault(("ridge", count), []).append((*score(plain, true[test]), np.nan))
            if with_ceiling and seed < CEILING_SEEDS:
                best = ceiling(features, learned, order[:-TEST], test)
                found.setdefault(("ceiling", len(true) - TEST), []).append((*score(best, true[test]), np.nan))
        for (method, count), scores in found.items():
            rho, within, _ = np.mean(scores, axis=0)
            known = [covered for _, _, covered in scores if not np.isnan(covered)]
            covered = float(np.mean(known)) if known else np.nan
            spread = np.std(scores, axis=0)
            rows.append(
                {
                    "device": device,
                    "method": method,
                    "samples": count,
                    "spearman": float(rho),
                    "within_10_percent": float(within),
                    "interval_coverage_percent": None if np.isnan(covered) else float(covered),
                    "spearman_std": float(spread[0]),
                    "within_10_std": float(spread[1]),
                }
            )
            print(f"{device:14s} {method:10s} {count:6d} {rho:.4f} {within:.1f} {covered:.1f}", flush=True)
    return rows


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over devices, per method and count."""
    keys = dict.fromkeys((row["method"], row["samples"]) for row in rows)
    found = []
    for method, count in keys:
        own = [row for row in rows if (row["method"], row["samples"]) == (method, count)]
        mean: dict[str, Any] = {"device": "mean of all", "method": method, "samples": count}
        for name in ("spearman", "within_10_percent", "interval_coverage_percent", "spearman_std", "within_10_std"):
            values = [row[name] for row in own if row[name] is not None]
            mean[name] = float(np.mean(values)) if values else None
        found.append(mean)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of nasbench201_27_devices.csv")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--no-ceiling", action="store_true", help="leave out the trees trained on all cells")
    args = parser.parse_args()
    table = read_table(args.data / "nasbench201_27_devices.csv")
    rows = study(table, load_target("npu_40tops"), (10, 50), args.seeds, not args.no_ceiling)
    result = {
        "what": "predictions of 3,000 unmeasured cells on six new devices; nine other devices are known for all cells",
        **provenance(),
        "seeds": f"{args.seeds}; of intervals {INTERVAL_SEEDS}, of the ceiling {CEILING_SEEDS}",
        "networks": [*means(rows), *rows],
    }
    columns = ("device", "method", "samples", "spearman", "within_10_percent", "interval_coverage_percent")
    write_result(args.out / "nasbench201_latency", result, columns=columns)
    for row in means(rows):
        print({key: row[key] for key in columns})


if __name__ == "__main__":
    main()
