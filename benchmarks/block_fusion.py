"""What fusing whole blocks is worth on a GPU: blocks of a space as a chain of kernels and as one (`nas measure gap`).

    python -m benchmarks.block_fusion --out studies/results

A second run finds the compilers' work on disk and takes a second or two a block.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.narrator import Stamped
from benchmarks.provenance import provenance, write_result
from nas.measure.gap import Gap, gap_text, measure_gap

COLUMNS = (
    "precision", "what", "eager_us", "compiled_us", "fused_us", "ratio", "ratio_low", "ratio_high", "model_ratio",
    "peak_share_compiled", "peak_share_fused", "error",
)  # fmt: skip


def rows_of(gap: Gap) -> list[dict[str, Any]]:
    """A row per block: its figures, in microseconds too, and the shares of its matrix engine's peak."""
    return [
        {"precision": gap.precision, **row.to_dict()}
        | {f"{way}_us": 1e6 * getattr(row, f"{way}_s") for way in ("eager", "compiled", "fused")}
        | {f"peak_share_{way}": row.peak_s / getattr(row, f"{way}_s") for way in ("compiled", "fused")}
        for row in gap.rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    parser.add_argument("--name", default="block_fusion_h200", help="of the files of results")
    parser.add_argument("--budget", type=int, default=12, help="blocks")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", nargs="+", default=["fp16", "bf16"])
    args = parser.parse_args()
    path = args.out / args.name
    measure_gap(
        Stamped(), budget=args.budget, batch=args.batch, precisions=args.precision, after=lambda gaps: write(path, gaps)
    )


def write(path: Path, gaps: Sequence[Gap]) -> None:
    """Print the last precision's figures, and write all that there are."""
    print(gap_text(gaps[-1]), flush=True)
    medians = {
        gap.precision: f"{float(np.median([row.ratio for row in gap.rows])):.3g} times as fast as the compiled chain"
        for gap in gaps
        if gap.rows
    }
    result = {
        "what": "blocks of metaformer/mobile on a GPU: torch's kernels in a chain, the compiler's, one fused kernel",
        **provenance(),
        "target": gaps[0].target,
        "batch": gaps[0].batch,
        "state": gaps[-1].state,
        "left_out": {f"{name} in {gap.precision}": why for gap in gaps for name, why in gap.left_out.items()},
        "median of fused kernels": medians,
        "blocks": [row for gap in gaps for row in rows_of(gap)],
    }
    write_result(path, result, columns=COLUMNS, rows="blocks")


if __name__ == "__main__":
    main()
