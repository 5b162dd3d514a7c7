"""How long one network takes to cost: cold (built, traced and costed for the first time in the process) and again.

ResNet50, and of timm's mobile-size models those with the most ops, which take longest: models of at most `MOBILE_MACS`
at their default size, by studies/results/timm_traces.csv. Imports are not counted.
Run: python -m benchmarks.cost_speed [--out studies/results/cost_speed]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance, write_result
from hw_models import Target, load_target
from nas.cost import cost_model

TRACES = Path(__file__).parents[1] / "studies" / "results" / "timm_traces.csv"
MOBILE_MACS = 1_000_000_000
SLOWEST = 12
AGAIN = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Write OUT.json and OUT.md.")
    parser.add_argument("--target", default="npu_40tops")
    options = parser.parse_args()
    import timm  # noqa: F401  (its import is not part of a cold network)

    target = load_target(options.target)
    network_seconds("resnet10t", target)  # torch loads parts of itself on first use
    mobile, considered = mobile_models()
    rows = [network_seconds(name, target) for name in ("resnet50", *mobile)]
    slowest = max(rows[1:], key=lambda row: row["cold_s"])
    result = {
        **provenance(),
        "target": target.name,
        "load": f"{os.getloadavg()[0]:.1f} at the end (other work slows what is measured)",
        "resnet50": f"{rows[0]['cold_s']:.2f} s cold, {rows[0]['again_s'] * 1e6:.0f} us again",
        "slowest mobile-size model": f"{slowest['model']}: {slowest['cold_s']:.2f} s cold; of the {considered} models "
        f"up to {MOBILE_MACS / 1e9:g} G macs the {SLOWEST} with the most ops were timed",
        "networks": rows,
    }
    print(json.dumps(result, indent=2))
    if options.out is not None:
        write_result(options.out, result, list(rows[0]))


def mobile_models() -> tuple[list[str], int]:
    """(those with the most ops, how many models are that small)."""
    with TRACES.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["problem"] and int(row["macs"]) <= MOBILE_MACS]
    rows.sort(key=lambda row: int(row["ops"]), reverse=True)
    return [row["model"] for row in rows[:SLOWEST]], len(rows)


def network_seconds(name: str, target: Target) -> dict[str, Any]:
    """Seconds to trace and cost a timm model for the first time in this process, and the median of more times."""
    start = time.perf_counter()
    report = cost_model(name, target)
    cold_s = time.perf_counter() - start
    again = []
    for _ in range(AGAIN):
        start = time.perf_counter()
        cost_model(name, target)
        again.append(time.perf_counter() - start)
    return {"model": name, "kernels": len(report.rows), "cold_s": cold_s, "again_s": sorted(again)[AGAIN // 2]}


if __name__ == "__main__":
    main()
