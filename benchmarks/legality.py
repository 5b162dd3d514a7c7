"""What is called illegal of what ran: every published row of a timm model on a device that has a target.

Run: python -m benchmarks.legality --data FOLDER [--out studies/results]
FOLDER holds `npu_published.csv` (columns device, precision, runtime, batch, compute_unit, timm_name, input_res,
latency_ms, fps, metric_kind). A network that ran on a device is legal for its target, or the target is wrong. Rows that
left the accelerator prove nothing; they are named: those whose compute unit says so, and those that take `SLOWER` times
as long as the same network at 16-bit floats on the same device, which narrower numbers on the same engine do not.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance
from benchmarks.published import PRECISIONS, seconds, target_of
from hw_models import estimate, load_target
from nas.bits import put_precision
from nas.cost import timm_workload
from nas.errors import UsageError
from nas.trace import TraceError

SLOWER = 3.0
"""DenseNet121, which loses most by quantization among rows that stayed, takes 1.7 times its time at fp16."""

COMMAND = {"command": "python -m benchmarks.legality --data FOLDER"}


@dataclass(frozen=True)
class Published:
    """A network that ran. left: why it counts as having left the accelerator, "" when it does not."""

    device: str
    precision: str
    runtime: str
    model: str
    input_size: int | None
    seconds: float
    left: str = ""

    def __str__(self) -> str:
        size = f" at {self.input_size}" if self.input_size else ""
        return f"{self.model}{size}, {self.precision} on {self.device}, {self.runtime}"


@dataclass(frozen=True)
class Verdict:
    """violations: what the target objects to; None where it was not asked, and `problem` says why."""

    row: Published
    target: str | None
    violations: tuple[str, ...] | None
    problem: str = ""


def read(path: Path) -> list[Published]:
    """Distinct networks that ran, the fastest row of each. Raises UsageError."""
    found: dict[tuple[Any, ...], Published] = {}
    at_fp16: dict[tuple[Any, ...], float] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if not row["timm_name"] or not (row["latency_ms"] or row["fps"]):
                    continue
                size = int(row["input_res"]) if row["input_res"] else None
                precision = (row["precision"].split() or ["unknown"])[0]
                share = re.search(r"%GPU (\d+)", row["compute_unit"])
                left = f"runs on {row['compute_unit']}" if share and int(share[1]) > 50 else ""
                key = (row["device"], precision, row["runtime"], row["timm_name"], size, row["batch"])
                one = Published(row["device"], precision, row["runtime"], row["timm_name"], size, seconds(row), left)
                if key not in found or one.seconds < found[key].seconds:
                    found[key] = one
                if precision == "fp16":
                    same = (one.device, one.model, size, row["batch"])
                    at_fp16[same] = min(at_fp16.get(same, one.seconds), one.seconds)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; give the folder of {path.name} by --data") from error
    except (KeyError, ValueError) as error:
        raise UsageError(f"{path} does not have the columns of npu_published.csv ({error})") from error
    distinct: dict[tuple[Any, ...], Published] = {}
    for key, one in found.items():
        times = one.seconds / at_fp16.get((one.device, one.model, one.input_size, key[-1]), float("inf"))
        slower = f"{times:.1f} times as long as at fp16 on the same device" if times >= SLOWER else ""
        marked = Published(**(asdict(one) | {"left": one.left or slower}))
        if key[:-1] not in distinct or distinct[key[:-1]].left:  # at any batch
            distinct[key[:-1]] = marked
    return list(distinct.values())


def judge(rows: Iterable[Published]) -> list[Verdict]:
    """What each row's target says of its network."""
    return [_judge(row) for row in rows]


def _judge(row: Published) -> Verdict:
    name = target_of(row.device)
    if name is None:
        return Verdict(row, None, None, "no target")
    precision = PRECISIONS.get(row.precision)
    if precision is None:
        return Verdict(row, name, None, f"precision {row.precision} is not one for the whole network")
    try:
        return Verdict(row, name, _violations(row.model, row.input_size, precision, name))
    except (TraceError, UsageError) as error:
        return Verdict(row, name, None, str(error))


@cache
def _violations(model: str, input_size: int | None, precision: str, target: str) -> tuple[str, ...]:
    workload = put_precision(timm_workload(model, input_size, 1, True), precision)
    return tuple(map(str, estimate(workload, load_target(target)).violations))


def wrong(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Networks that ran on the device, though its target says that they cannot."""
    return [verdict for verdict in verdicts if verdict.violations and not verdict.row.left]


def markdown(verdicts: Sequence[Verdict]) -> str:
    asked = [verdict for verdict in verdicts if verdict.violations is not None]
    stayed = [verdict for verdict in asked if not verdict.row.left]
    lines = [
        "# Legality of what ran",
        "",
        f"{len(verdicts)} networks (device, precision, runtime, timm model, size) are published as having run. Of the",
        f"{len(stayed)} that stayed on a device with a target, {len(wrong(verdicts))} are called illegal by it.",
        "",
        "| target | ran | called illegal |",
        "|---|---|---|",
    ]
    ran: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in stayed:
        ran[str(verdict.target)].append(verdict)
    lines += [f"| {name} | {len(own)} | {len(wrong(own))} |" for name, own in sorted(ran.items())]
    lines += ["", "## Called illegal", "", "| network | reasons |", "|---|---|"]
    lines += [f"| {one.row} | {'; '.join(one.violations or ())} |" for one in wrong(verdicts)] or ["| - | - |"]
    lines += ["", "## Left the accelerator", "", "| network | why | its target says |", "|---|---|---|"]
    lines += [
        f"| {one.row} | {one.row.left} | {'; '.join(one.violations or ()) or 'nothing'} |"
        for one in verdicts
        if one.row.left
    ] or ["| - | - | - |"]
    lines += ["", "## Not asked", "", "| networks | why |", "|---|---|"]
    problems = Counter(one.problem for one in verdicts if one.violations is None)
    lines += [f"| {count} | {problem} |" for problem, count in problems.most_common()] or ["| - | - |"]
    lines += ["", "## Provenance", ""] + [f"- {key}: {value}" for key, value in (provenance() | COMMAND).items()]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of npu_published.csv")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    args = parser.parse_args(arguments)
    verdicts = judge(read(args.data / "npu_published.csv"))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "legality.md").write_text(markdown(verdicts), encoding="utf-8")
    record = {"_meta": provenance() | COMMAND, "verdicts": [asdict(verdict) for verdict in verdicts]}
    (args.out / "legality.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(markdown(verdicts))


if __name__ == "__main__":
    main()
