"""Cycles of ONNX Runtime's convolution kernels on one core, which the targets of processors hold ([runtime]):
python -m benchmarks.library_kernels [--rounds 5] [--target epyc_zen3_core] [--out studies/results/library_kernels]

Single convolutions are run with ONNX Runtime's own profile. A kernel's time is the 10th percentile of a session's runs,
the least of several sessions, which take turns: a neighbour on the host makes some of them half as long again, and
nothing makes one shorter. What the profile itself takes is fitted with the cycles.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from benchmarks.provenance import provenance, write_result
from hw_models import Target, load_target
from hw_models.library import window_on_map
from nas.measure.device import cpu_target, pinned
from nas.measure.graphs import INPUT_NAME, session_options
from nas.measure.jobs import Graph, write_missing
from nas.subjects import Subject, canonical, described_part, part_subject

RUNS = 150
MEAN = {"in_chans": 672, "model": "ghostnet_100", "module": "blocks.6.4.se", "out_chans": 672, "stride": 1}
"""A gate of timm with a mean over 14x14 positions."""


@dataclass(frozen=True)
class Case:
    """A convolution on a square map, padded to its size."""

    inputs: int
    outputs: int
    size: int
    kernel: int
    stride: int
    groups: int
    precision: str

    @property
    def positions(self) -> int:
        return ceil(self.size / self.stride) ** 2

    @property
    def taps(self) -> int:
        return self.kernel**2

    @property
    def subject(self) -> Subject:
        words = {"in_chans": self.inputs, "out_chans": self.outputs, "kernel": self.kernel, "stride": self.stride}
        description = {"part": "ConvNorm", "channels": self.inputs, "size": self.size}
        return part_subject(described_part(canonical({**description, "arguments": {**words, "groups": self.groups}})))

    def touched(self) -> tuple[float, float]:
        """(share of positions whose window reaches over the left or right edge, of kernel rows on the map)."""
        return window_on_map(self.size, ceil(self.size / self.stride), self.kernel, self.stride)


def cases(precision: str, lanes: int) -> dict[str, list[Case]]:
    """By what they tell."""
    maps = ((56, 1), (28, 1), (14, 1), (7, 1), (56, 2))
    single = [(size, kernel, stride) for kernel in (3, 5, 7, 9) for size, stride in maps]
    whole = [Case(64, 64, *form, 64, precision) for form in single]
    ragged = [Case(c, c, s, k, 1, c, precision) for c, s, k in product((30, 42, 62), (28, 14), (3, 7))]
    narrow = [Case(64, 64, s, 3, r, 64 // width, precision) for width, s, r in product((2, 4), (28, 14), (1, 2))]
    narrow += [Case(c, 2 * c, s, k, r, c, precision) for c, (s, k, r) in product((48, 96), ((28, 3, 1), (28, 7, 2)))]
    dense = [(64, 64, 28), (64, 256, 14), (96, 16, 56), (160, 160, 14), (256, 64, 14), (640, 160, 14)]
    pointwise = [Case(i, o, s, 1, 1, 1, precision) for i, o, s in dense]
    return {"depthwise": whole, "ragged": [c for c in ragged if c.groups % lanes], "narrow": narrow, "dense": pointwise}


def kernel_times_s(path: Path) -> dict[str, float]:
    """Operator -> 10th percentile of its first node's seconds, of one session."""
    import onnxruntime

    options = session_options(1)
    options.enable_profiling, options.profile_file_prefix = True, str(path.with_suffix(""))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    feed = {INPUT_NAME: np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
    for _ in range(RUNS):
        session.run(None, feed)
    profile = Path(session.end_profiling())
    events: list[dict[str, Any]] = json.loads(profile.read_text())
    profile.unlink()
    spent: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"], event["name"]].append(event["dur"] * 1e-6)
    found: dict[str, float] = {}
    for (operator, _), seconds in spent.items():
        found.setdefault(operator, float(np.percentile(seconds, 10)))
    return found


def least_times_s(graphs: Iterable[Graph], rounds: int) -> dict[Graph, dict[str, float]]:
    """Of each graph the least of every operator's seconds over sessions, which take turns."""
    best: dict[Graph, dict[str, float]] = {graph: {} for graph in graphs}
    with tempfile.TemporaryDirectory() as folder, pinned(1):
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", flush=True)
            for graph, known in best.items():
                write_missing(graph, Path(folder))
                for operator, seconds in kernel_times_s(Path(folder) / graph.file_name).items():
                    known[operator] = min(known.get(operator, seconds), seconds)
    return best


def fit(columns: NDArray[np.float64], cycles: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(positive factors [columns] whose product with [kernels, columns] is nearest in logarithms, and its ratio to
    the measured cycles [kernels]); kernels far off count less.
    """

    def off(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.log(columns @ np.exp(logs) / cycles))

    found = least_squares(off, np.zeros(columns.shape[1]), loss="soft_l1", f_scale=0.1).x
    return np.exp(found), np.exp(off(found))


def depthwise_rows(precision: str, known: list[tuple[Case, float]], lanes: int) -> tuple[list[dict[str, Any]], float]:
    """(rows of the table, cycles that the profile takes itself) of whole vectors of channels; known: cycles."""
    columns = []
    for case, _ in known:
        vectors = case.positions * case.groups / lanes
        at_edge, inside = case.touched() if precision == "fp32" else (0.0, 1.0)
        taps = vectors * case.taps * np.array([1 - at_edge, at_edge * inside])
        columns.append([1.0, vectors, *(taps if precision == "fp32" else taps[:1])])
    factors, ratio = fit(np.array(columns), np.array([cycles for _, cycles in known]))
    names = ("a vector and position", "a tap and vector", "a tap and vector at the edge")
    spread = np.percentile(ratio, [5, 95])
    rows = [
        {"what": "depthwise", "per": name, "cycles": float(value), "low": None, "high": None, "kernels": len(known)}
        for name, value in zip(names, factors[1:], strict=False)
    ]
    rows[0] |= {"low": float(spread[0]), "high": float(spread[1])}
    return rows, float(factors[0])


def row(what: str, per: str, cycles: list[float]) -> dict[str, Any]:
    return {
        "what": what,
        "per": per,
        "cycles": float(np.median(cycles)),
        "low": min(cycles),
        "high": max(cycles),
        "kernels": len(cycles),
    }


def table(target: Target, rounds: int) -> list[dict[str, Any]]:
    """The rows of the result."""
    lanes = target.matrix.columns
    every = {precision: cases(precision, lanes) for precision in ("fp32", "w8a8")}
    graphs = {
        case: Graph(case.subject, case.precision, 1, 1)
        for kinds in every.values()
        for own in kinds.values()
        for case in own
    }
    part = {"part": "TimmPart", "channels": 672, "size": 14, "arguments": {**MEAN, "tokens": False}}
    gate = Graph(part_subject(described_part(canonical(part))), "w8a8", 1, 1, led=True)
    seconds = least_times_s([*graphs.values(), gate], rounds)

    def cycles(case: Case) -> float:
        times = seconds[graphs[case]]
        return float(times["Conv" if case.precision == "fp32" else "QLinearConv"] * target.matrix.clock_hz)

    rows = []
    for precision, kinds in every.items():
        found, own = depthwise_rows(precision, [(case, cycles(case)) for case in kinds["depthwise"]], lanes)
        rate = target.matrix.positions * target.matrix.rates[precision]
        rows += found
        for kind in ("ragged", "narrow"):
            spent = []
            for case in kinds[kind]:
                width = case.inputs // case.groups
                if width == 1:  # as `hw_models.npu` has every depthwise one
                    products = ceil(case.outputs / lanes) / target.matrix.depthwise_taps
                else:
                    products = ceil(case.outputs / case.groups / lanes) * width * case.groups / rate
                beyond = (cycles(case) - own) / case.positions / case.taps
                if precision == "fp32":
                    spent.append((beyond - products) / case.inputs)
                elif kind == "narrow":
                    spent.append((beyond - products) / case.groups)
                else:
                    vectors = case.inputs // lanes * (found[1]["cycles"] + found[0]["cycles"] / case.taps)
                    spent.append((beyond - vectors) / (case.inputs % lanes))
            rows.append(
                row(kind, "a tap and group" if (precision, kind) == ("w8a8", "narrow") else "a tap and channel", spent)
            )
        spent = []
        for case in kinds["dense"]:
            vectors = case.positions * ceil(case.outputs / lanes)
            spent.append((cycles(case) - own) / vectors - case.inputs / rate)
        rows.append(row("1x1", "a vector of outputs", spent))
        for made in rows:
            made.setdefault("precision", precision)
    mean = seconds[gate]["ReduceMean"] * target.matrix.clock_hz / (14 * 14 * 672)
    return [*rows, row("mean over positions, channels last", "an element", [mean]) | {"precision": "w8a8"}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--target", help="by default the built-in target of this processor")
    parser.add_argument("--out", type=Path, default=Path("studies/results/library_kernels"))
    options = parser.parse_args()
    target = load_target(options.target or cpu_target(1))
    import onnxruntime

    what = "cycles of single kernels of ONNX Runtime at the clock of the target; products are counted at its rates"
    head = {"what": what, **provenance(), "runtime": f"ONNX Runtime {onnxruntime.__version__}", "target": target.name}
    head["columns"] = "low, high: over kernels; of depthwise the 5th and 95th percentile of fitted over measured cycles"
    result = {**head, "rounds": options.rounds, "kernels": table(target, options.rounds)}
    write_result(options.out, result, ["precision", "what", "per", "cycles", "low", "high", "kernels"], "kernels")


if __name__ == "__main__":
    main()
