"""The measurement packs of one CPU core: which blocks and networks they hold, and their measuring.

    python -m benchmarks.cpu_pack --dir FOLDER --minutes 0        # write the graphs (some minutes)
    python -m benchmarks.cpu_pack --dir FOLDER --minutes 4 --kinds block
    python -m benchmarks.cpu_pack --dir FOLDER --minutes 4 --kinds network --export hw_models/packs

150 blocks, chosen over their features alone: of the space metaformer as its presets offer it, of the space with
everything opened, and single convolutions such as mobile networks are made of (grouped ones, strided depthwise ones),
which the space has not. 30 networks to be predicted: 15 of timm, 15 drawn from the space. Each in fp32 and int8. What
is measured is kept; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import product
from math import log2
from pathlib import Path

import numpy as np

from benchmarks.cpu_latency import BLOCKS, NETWORKS, TARGET
from hw_models import load_target
from hw_models.measurements import measurements_csv
from nas.measure.cpu import PRECISIONS, CpuDevice
from nas.measure.design import choose_parts, draw_networks, farthest_points
from nas.measure.jobs import Job
from nas.measure.records import MeasurementStore
from nas.measure.run import measure_jobs
from nas.progress import Narrator
from nas.store import Store
from nas.subjects import Subject, architecture_subject, canonical, described_part, named_subject, part_subject
from search_spaces import load_space
from search_spaces.metaformer import OPENABLE

TIMM = (
    "mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv3_large_100", "efficientnet_lite0", "efficientnet_b0",
    "mnasnet_100", "resnet18", "regnety_004", "ghostnet_100", "convnext_atto", "deit_tiny_patch16_224",
    "poolformer_s12", "mobilevit_xs", "efficientvit_b0", "repvgg_a0",
)  # fmt: skip

SPACES = (("mobile", False, 40), ("mobile", True, 45), ("small", True, 25))
"""(preset, whether every choice and the first group of mixers are open, blocks)."""

CONVOLUTIONS = 40
CHANNELS, SIZES = (16, 24, 40, 64, 96, 160, 256, 384), (112, 56, 28, 14, 7)
SHAPES = ((3, 1, 1), (3, 2, 1), (1, 1, 1), (3, 1, 0), (3, 2, 0), (5, 1, 0), (5, 2, 0), (7, 1, 0), (3, 1, 8), (3, 2, 8))
"""(kernel, stride, channels per group; 0: depthwise, 1: one group)."""
LEAST_MACS, MOST_MACS = 5e5, 2e8


def blocks() -> list[Subject]:
    """The design: the most telling blocks of each space, then convolutions."""
    target = load_target(TARGET)
    chosen: dict[str, Subject] = {}
    for preset, is_open, count in SPACES:
        mixers = ["first", "-random", "-spatial_mlp"] if is_open else None  # those two are bound to one resolution
        choices = {name: list(values) for name, values in OPENABLE.items()} if is_open else None
        space = load_space("metaformer", preset, mixers=mixers, choices=choices)
        wanted = len(chosen) + count
        for part in choose_parts(space, target, 2 * count, PRECISIONS, 0, 1000, 3):
            subject = part_subject(part)
            if len(chosen) < wanted:
                chosen.setdefault(subject.name, subject)
    return [*chosen.values(), *convolutions()]


def convolutions() -> list[Subject]:
    """Single convolutions, far from each other in the logarithms of their sizes."""
    found, features = [], []
    for (kernel, stride, width), channels, size in product(SHAPES, CHANNELS, SIZES):
        groups = channels if width == 0 else channels // width if width > 1 else 1
        macs = (size // stride) ** 2 * channels * (channels // groups) * kernel**2
        if LEAST_MACS <= macs <= MOST_MACS:
            arguments = {"in_chans": channels, "out_chans": channels, "kernel": kernel, "stride": stride}
            description = {"part": "ConvNorm", "channels": channels, "size": size}
            found.append(canonical(description | {"arguments": arguments | {"groups": groups}}))
            kind = [3.0 * (width == 0), 3.0 * (width == 1), 3.0 * (width > 1)]
            features.append([*kind, log2(channels), log2(size), 2 * log2(kernel), 1.0 * stride])
    chosen = farthest_points(np.array(features), CONVOLUTIONS)
    return [part_subject(described_part(found[index])) for index in chosen]


def networks() -> list[Subject]:
    """What is to be predicted; no part in choosing the blocks."""
    out = [named_subject(name) for name in TIMM]
    for preset, count in (("mobile", 10), ("small", 5)):
        drawn = draw_networks(load_space("metaformer", preset), count, 2026)
        out += [architecture_subject(arch, 1000) for arch in drawn]
    return out


def load_jobs(folder: Path) -> list[Job]:
    """The same at every call: kept in the folder once chosen."""
    path = folder / "subjects.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        kept = [[s.name, s.kind, s.input_size, s.description] for s in (*blocks(), *networks())]
        path.write_text(json.dumps(kept))
    subjects = [Subject(*row) for row in json.loads(path.read_text())]
    return [Job(subject, precision) for subject in subjects for precision in PRECISIONS]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=0.0, help="0: write the graphs only")
    parser.add_argument("--kinds", nargs="+", default=["block", "network"])
    parser.add_argument("--export", type=Path)
    args = parser.parse_args(arguments)
    jobs = [job for job in load_jobs(args.dir) if job.subject.kind in args.kinds]
    store = MeasurementStore(Store(args.dir, create=True))
    outcome = measure_jobs(
        jobs,
        CpuDevice(args.dir / "graphs"),
        TARGET,
        store,
        Narrator(),
        minutes=args.minutes or None,
        prepare_only=not args.minutes,
    )
    print(f"known {outcome.known}, new {len(outcome.measured)}, left {outcome.left}")
    for name, reason in outcome.refused.items():
        print(f"refused {name}: {reason}")
    if args.export is not None:
        records = store.of(TARGET)
        for kind, name in (("block", BLOCKS), ("network", f"held_out/{NETWORKS}")):
            own = [record for record in records if record.kind == kind]
            (args.export / f"{name}.csv").write_text(measurements_csv(own))


if __name__ == "__main__":
    main()
