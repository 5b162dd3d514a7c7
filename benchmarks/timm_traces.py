"""Which of timm's image models can be traced at their default size, and whether the macs are torch's.

    python -m benchmarks.timm_traces --out studies/results    all of timm.list_models(), meta device, no downloads
    python -m benchmarks.timm_traces --part 0/2 & python -m benchmarks.timm_traces --part 1/2
    python -m benchmarks.timm_traces --count 0                without torch's counter, in half the time

One line a model goes into timm_traces.csv as soon as it is known, so the same command continues where an interrupted
one stopped, and several may work on parts of the list. Models that were traced but not counted are counted, the
smallest first. The last one to finish writes timm_traces.md.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.provenance import provenance
from nas.trace import TraceError, trace_module

COLUMNS = ("model", "input_size", "ops", "macs", "folded_macs", "torch_macs", "params", "problem")
"""macs: traced; folded_macs: done once, on constants alone; torch_macs: torch's flop counter / 2, their sum."""


def trace(name: str, count: bool = True) -> dict[str, Any]:
    """One line of the table. `problem` says why a model was not built or not traced; the figures are then empty."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "") | {"model": name}
    try:
        with torch.device("meta"):
            model = timm.create_model(name).eval()
    except Exception as error:  # whatever a model's own code raises is what the table is for
        return row | {"problem": f"not built: {_line(error)}"}
    shape = (1, *model.default_cfg["input_size"])
    row["input_size"] = "x".join(map(str, shape[1:]))
    try:
        workload = trace_module(model, [shape], name)
    except TraceError as error:
        return row | {"problem": f"not traced: {_line(error)}"}
    row |= {"ops": len(workload.ops), "params": workload.params}
    return row | {
        "macs": workload.macs,
        "folded_macs": workload.folded_macs,
        "torch_macs": _torch_macs(model, shape) if count else "",
    }


def count(row: dict[str, Any]) -> dict[str, Any]:
    """The line of a model that was traced, with torch's count."""
    with torch.device("meta"):
        model = timm.create_model(row["model"]).eval()
    return row | {"torch_macs": _torch_macs(model, (1, *model.default_cfg["input_size"]))}


def _torch_macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    counter = FlopCounterMode(display=False)
    model.requires_grad_(False)  # the counter hooks into gradients of whatever has them
    with torch.no_grad(), counter:
        model(torch.empty(shape, device="meta"))
    return int(counter.get_total_flops()) // 2


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def read(path: Path) -> list[dict[str, str]]:
    """The last line of every model."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list({row["model"]: row for row in csv.DictReader(file)}.values())


def markdown(rows: list[dict[str, str]], names: list[str], command: str) -> str:
    """The counts, and every model that is missing from them with the reason."""
    traced = [row for row in rows if not row["problem"]]
    built = [row for row in rows if not row["problem"].startswith("not built")]
    counted = [row for row in traced if row["torch_macs"]]
    unequal = [row for row in counted if int(row["macs"]) + int(row["folded_macs"]) != int(row["torch_macs"])]
    lines = [
        "# timm's image models, traced",
        "",
        f"Of the {len(names)} architectures of `timm.list_models()` (timm {timm.__version__}), at their default input",
        "size, on the meta device, without a download:",
        "",
        f"- {len(built)} can be built, {len(traced)} are traced;",
        f"- for {len(counted) - len(unequal)} of the {len(counted)} that were counted, the macs equal torch's flop",
        "  counter / 2 exactly.",
        "",
        "`timm_traces.csv` has one line a model.",
        "",
        "## Not traced",
        "",
        "| model | why |",
        "|---|---|",
    ]
    lines += [f"| {row['model']} | {row['problem']} |" for row in rows if row["problem"]] or ["| - | - |"]
    if unequal:
        lines += ["", "## Macs that differ from torch's counter", "", "| model | traced | torch |", "|---|---|---|"]
        lines += [
            f"| {row['model']} | {int(row['macs']) + int(row['folded_macs'])} | {row['torch_macs']} |"
            for row in unequal
        ]
    lines += ["", "## Provenance", ""] + [
        f"- {key}: {value}" for key, value in (provenance() | {"command": command}).items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="0/1", help="I/N: every N-th model from the I-th on")
    parser.add_argument("--count", type=int, default=1, help="0: leave torch's counter out")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    args = parser.parse_args()
    index, parts = map(int, args.part.split("/"))
    names = timm.list_models()
    path = args.out / "timm_traces.csv"
    args.out.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        path.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    known = {row["model"]: row for row in read(path)}
    mine = sorted(names[index::parts], key=lambda name: int(known[name]["ops"] or 0) if name in known else 0)
    with path.open(
        "a", encoding="utf-8", newline="", buffering=1
    ) as file:  # a line at a time: parts may share the file
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        for name in mine:
            if name not in known:
                writer.writerow(trace(name, bool(args.count)))
            elif args.count and not (known[name]["problem"] or known[name]["torch_macs"]):
                writer.writerow(count(known[name]))
    rows = sorted(read(path), key=lambda row: names.index(row["model"]))
    if len(rows) == len(names):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        report = markdown(rows, names, "python -m benchmarks.timm_traces")
        (args.out / "timm_traces.md").write_text(report, encoding="utf-8")
    problems = Counter(row["problem"].partition(":")[0] or "traced" for row in rows)
    print(f"{len(rows)} of {len(names)}: {dict(problems)}")


if __name__ == "__main__":
    main()
