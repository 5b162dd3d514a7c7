"""The measurement packs of one CPU core: which blocks and networks they hold, and their measuring.

    python -m benchmarks.cpu_pack --set NAME --dir FOLDER --minutes 0        # write the graphs
    python -m benchmarks.cpu_pack --set NAME --dir FOLDER --minutes 4 --kinds block
    python -m benchmarks.cpu_pack --set NAME --dir FOLDER --minutes 4 --kinds network --export hw_models/packs

150 blocks and 30 networks to be predicted, 15 of timm and 15 drawn from the space (benchmarks/packs.py says how they
are chosen), each in fp32 and int8. What is measured is kept; the same command goes on. NAME is a target, or a further
set of networks to be predicted from its blocks (a folder of its own). The blocks of the pack epyc_zen5_core were chosen
by a design that is older (farthest points).
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
    "epyc_zen3_core/second": (
        "fasternet_t0", "inception_next_atto", "mambaout_femto", "regnetz_005", "resnetv2_18", "resnext26ts",
        "levit_128s", "pit_ti_224", "visformer_tiny", "convit_tiny", "efficientformerv2_s0", "hgnetv2_b0",
        "cs3darknet_s", "dpn48b", "resmlp_12_224",
    ),
}  # fmt: skip
"""Set -> the timm networks to be predicted, each at its own input size. A set is a target's own, or a further one of
networks alone, of families of which no block is in the target's pack."""

SEEDS = {"epyc_zen5_core": 2026, "epyc_zen3_core": 2027, "epyc_zen3_core/second": 2028}
"""Set -> seed of the networks of the space that are to be predicted."""


def design(which: str) -> Design:
    """Of a set of a core's packs."""
    target, _, further = which.partition("/")
    return Design(
        target,
        TIMM[which],
        drawn=(("mobile", 10), ("small", 5)),
        seed=SEEDS[which],
        blocks=0 if further else 150,
        formats=tuple((precision, 1) for precision in PRECISIONS),
        shortest_s=8e-6,
        longest_s=6e-3,
        further=further,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=list(TIMM), required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=0.0, help="0: write the graphs only")
    parser.add_argument("--kinds", nargs="+", default=["block", "network"])
    parser.add_argument("--patience", type=float, help="as of `nas measure`")
    parser.add_argument("--export", type=Path)
    args = parser.parse_args(arguments)
    chosen = design(args.set)
    every = load_jobs(args.dir, chosen)
    jobs = [job for job in every if job.subject.kind in args.kinds]
    on = CpuDevice(args.dir / "graphs")
    prepare_only = not args.minutes
    measure(
        jobs, on, chosen.target, args.dir, args.minutes or None, prepare_only=prepare_only, patience_s=args.patience
    )
    if args.export is not None:
        export(every, chosen, args.dir, args.export)


if __name__ == "__main__":
    main()
