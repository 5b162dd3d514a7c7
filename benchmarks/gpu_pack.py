"""The measurement pack of one GPU: which blocks and networks it holds, and their measuring.

    python -m benchmarks.gpu_pack --dir FOLDER --choose                          # subjects.json alone, needs no GPU
    python -m benchmarks.gpu_pack --dir FOLDER --minutes 2 --prepare-only        # compile; other work may run beside
    python -m benchmarks.gpu_pack --dir FOLDER --minutes 3 --export hw_models/packs

96 blocks and 60 networks to be predicted, 30 of timm and 30 drawn from the space (benchmarks/packs.py says how they are
chosen), each in fp16 at batch 1 and batch 64. The blocks worth most come first, then networks of timm and of the space
in turns, then the other blocks, so that what is measured when the time is up can be studied. What is measured is kept;
the same command goes on, and one with the subjects.json of another folder measures the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.packs import Design, export, load_jobs, measure
from nas.measure.design import CLOCK_S
from nas.measure.jobs import Job

DESIGN = Design(
    target="h200",
    timm=(
        "mobilenetv2_100", "resnet18", "mobilenetv3_large_100", "deit_tiny_patch16_224", "lcnet_100", "convnext_atto",
        "mobilenetv4_conv_small", "regnety_004", "efficientvit_b0", "poolformer_s12", "mobileone_s0", "pvt_v2_b0",
        "mnasnet_100", "resnet26d", "starnet_s1", "efficientnet_lite0", "repvgg_a0", "mobilevit_xs", "fbnetc_100",
        "regnetx_008", "mobilenetv3_small_100", "edgenext_xx_small", "semnasnet_075", "ese_vovnet19b_dw",
        "convnextv2_atto", "efficientformer_l1", "efficientnet_b0", "fastvit_t8", "ghostnet_100", "rexnet_100",
    ),
    drawn=(("mobile", 20), ("small", 10)),
    seed=2028,
    blocks=96,
    formats=(("fp16", 1), ("fp16", 64)),
    shortest_s=3e-6,
    longest_s=4e-3,
    clock_s=CLOCK_S,
)  # fmt: skip
"""Fixed before anything of it was measured."""

FIRST = 64
"""Blocks that are measured before the networks."""


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """The first blocks, the networks, the other blocks; each in all its formats."""
    subjects = list(dict.fromkeys(job.subject for job in jobs if job.subject.kind == "block"))
    first = set(subjects[:FIRST])
    return sorted(jobs, key=lambda job: 1 if job.subject.kind == "network" else 0 if job.subject in first else 2)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--choose", action="store_true", help="choose blocks and networks, and measure nothing")
    parser.add_argument("--minutes", type=float, help="when to stop, opening of graphs included")
    parser.add_argument("--workers", type=int, help="processes that compile [default: processors less 2]")
    parser.add_argument("--batch", type=int, nargs="+", default=sorted({batch for _, batch in DESIGN.formats}))
    parser.add_argument("--kinds", nargs="+", default=["block", "network"])
    parser.add_argument("--prepare-only", action="store_true", help="compile into torch's caches and time nothing")
    parser.add_argument("--export", type=Path)
    args = parser.parse_args(arguments)
    every = load_jobs(args.dir, DESIGN)
    if args.choose:
        return
    from nas.measure.cuda import CudaDevice

    jobs = [job for job in in_order(every) if job.subject.kind in args.kinds and job.batch in args.batch]
    on = CudaDevice(args.workers)
    if on.default_target() != DESIGN.target:
        raise SystemExit(f"this GPU is {on.default_target()}, and the pack is of {DESIGN.target}")
    try:
        measure(jobs, on, DESIGN.target, args.dir, args.minutes, prepare_only=args.prepare_only)
    finally:  # what is measured is worth keeping, whatever ended it
        if args.export is not None:
            export(every, DESIGN, args.dir, args.export)


if __name__ == "__main__":
    main()
