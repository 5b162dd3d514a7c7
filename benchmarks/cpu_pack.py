"""The measurement packs of one CPU core: which blocks and networks they hold, and their measuring.

    python -m benchmarks.cpu_pack --target NAME --dir FOLDER --minutes 0        # write the graphs
    python -m benchmarks.cpu_pack --target NAME --dir FOLDER --minutes 4 --kinds block
    python -m benchmarks.cpu_pack --target NAME --dir FOLDER --minutes 4 --kinds network --export hw_models/packs

150 blocks and 30 networks to be predicted, 15 of timm and 15 drawn from the space (benchmarks/packs.py says how they
are chosen), each in fp32 and int8. What is measured is kept; the same command goes on. The blocks of the pack
epyc_zen5_core were chosen by a design that is older (farthest points).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.packs import Design, export, load_jobs, measure
from nas.measure.cpu import PRECISIONS, CpuDevice

TIMM = {
    "epyc_zen5_core": (
        "mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv3_large_100", "efficientnet_lite0", "efficientnet_b0",
        "mnasnet_100", "resnet18", "regnety_004", "ghostnet_100", "convnext_atto", "deit_tiny_patch16_224",
        "poolformer_s12", "mobilevit_xs", "efficientvit_b0", "repvgg_a0",
    ),
    "epyc_zen3_core": (
        "mobilenetv4_conv_small", "semnasnet_075", "fbnetc_100", "lcnet_100", "mobileone_s0", "rexnet_100",
        "regnetx_008", "resnet26d", "ese_vovnet19b_dw", "edgenext_xx_small", "convnextv2_atto", "pvt_v2_b0",
        "fastvit_t8", "starnet_s1", "efficientformer_l1",
    ),
}  # fmt: skip
"""Target -> the timm networks to be predicted, each at its own input size."""

SEEDS = {"epyc_zen5_core": 2026, "epyc_zen3_core": 2027}
"""Target -> seed of the networks of the space that are to be predicted."""


def design(target: str) -> Design:
    """Of a core's packs."""
    return Design(
        target,
        TIMM[target],
        drawn=(("mobile", 10), ("small", 5)),
        seed=SEEDS[target],
        blocks=150,
        formats=tuple((precision, 1) for precision in PRECISIONS),
        shortest_s=8e-6,
        longest_s=6e-3,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=list(TIMM), required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=0.0, help="0: write the graphs only")
    parser.add_argument("--kinds", nargs="+", default=["block", "network"])
    parser.add_argument("--export", type=Path)
    args = parser.parse_args(arguments)
    every = load_jobs(args.dir, design(args.target))
    jobs = [job for job in every if job.subject.kind in args.kinds]
    on = CpuDevice(args.dir / "graphs")
    measure(jobs, on, args.target, args.dir, args.minutes or None, prepare_only=not args.minutes)
    if args.export is not None:
        export(every, args.target, args.dir, args.export)


if __name__ == "__main__":
    main()
