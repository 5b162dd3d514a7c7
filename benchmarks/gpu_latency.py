"""Whole networks on a GPU predicted from measurements of single blocks, at batch 1 and batch 64.

    python -m benchmarks.gpu_latency --out studies/results

Blocks and networks are those of the packs h200 and h200_networks (benchmarks/gpu_pack.py), in fp16. The predictor is
fitted to the blocks of one batch at a time, and predicts the networks of that batch. A prediction counts as near when
it lies within 10 percent of the measured latency, or within the spread of its repeats where that is wider. Beside it
stand the cost model as it is, and the cost model times the one number that suits the blocks best.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.block_study import study, write
from benchmarks.gpu_pack import DESIGN
from benchmarks.provenance import measured_on, provenance
from hw_models import load_target
from hw_models.measurements import load_pack, read_measurements

LIMITS = (
    "not blind: the first fit, of the target as it was before anything was measured, is gpu_latency_first.md; then "
    "kernels of three of these networks and of five blocks were profiled (h200_kernels.md), and the target was "
    "described anew by them and by times of blocks, with the errors of these networks in view; the order is by worth, "
    "and what the minutes did not reach, or the tool refused, is left out"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    parser.add_argument("--packs", type=Path, help="folder that benchmarks.gpu_pack exported to, if not the package's")
    parser.add_argument("--name", default="gpu_latency", help="of the files of results")
    args = parser.parse_args()
    target, held_out = load_target(DESIGN.target), f"{DESIGN.target}_networks"
    if args.packs is None:
        blocks, networks = load_pack(DESIGN.target), load_pack(held_out)
    else:
        blocks = read_measurements(args.packs / f"{DESIGN.target}.csv")
        networks = read_measurements(args.packs / "held_out" / f"{held_out}.csv")
    scores, rows = [], []
    for precision, batch in DESIGN.formats:
        if not any((record.precision, record.batch) == (precision, batch) for record in networks):
            print(f"{precision}, batch {batch}: no network was reached", flush=True)
            continue
        found, detail = study(target, blocks, networks, [(precision, batch)], f"{precision}, batch {batch}")
        scores += found
        rows += detail
    head = {
        "what": "whole networks on a GPU, predicted from measured blocks alone",
        **provenance(),
        **measured_on(networks[0]),
        "limits": LIMITS,
    }
    write(args.out, args.name, head, scores, rows)


if __name__ == "__main__":
    main()
