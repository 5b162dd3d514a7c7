"""The measurement packs of one CPU core: which blocks and networks they hold, and their measuring.

    python -m benchmarks.cpu_pack --target NAME --dir FOLDER --minutes 0        # write the graphs
    python -m benchmarks.cpu_pack --target NAME --dir FOLDER --minutes 4 --kinds block
    python -m benchmarks.cpu_pack --target NAME --dir FOLDER --minutes 4 --kinds network --export hw_models/packs

150 blocks, chosen over the cost model's features alone (`nas.measure.goals`) from parts of the space metaformer as its
presets offer it and with everything opened, from blocks of timm networks and from single convolutions, such that
networks of the space and the timm networks they come from are predicted best. 30 networks to be predicted: 15 of timm,
of whose families no block was taken, and 15 drawn from the space. Each in fp32 and int8. What is measured is kept; the
same command goes on. The blocks of the pack epyc_zen5_core were chosen by a design that is older (farthest points).
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hw_models import Target, load_target
from hw_models.families import Units
from hw_models.measurements import measurements_csv
from nas.calibrate import record_units
from nas.measure.cpu import PRECISIONS, CpuDevice
from nas.measure.design import draw_networks, part_pool
from nas.measure.goals import least_variance, log_latency_vector, scatter
from nas.measure.jobs import Job
from nas.measure.records import MeasurementStore
from nas.measure.run import measure_jobs
from nas.progress import Narrator
from nas.store import Store
from nas.subjects import Subject, architecture_subject, canonical, described_part, named_subject, part_subject
from nas.timm_parts import timm_descriptions
from search_spaces import load_space
from search_spaces.metaformer import OPENABLE

Array = NDArray[np.float64]

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

SOURCES = (
    "mobilenetv1_100", "mobilenetv2_050", "mobilenetv3_small_075", "mobilenetv3_large_075", "efficientnet_b1",
    "efficientnet_es", "spnasnet_100", "tinynet_c", "hardcorenas_b", "ghostnet_100", "ghostnetv2_100",
    "repghostnet_050", "dla34", "hrnet_w18_small", "selecsls42b", "cspresnet50", "gernet_s", "skresnet18", "repvgg_a0",
    "densenet121", "mobilevit_xxs", "mobilevitv2_050", "efficientvit_b0", "efficientvit_m0", "poolformerv2_s12",
    "caformer_s18", "vit_tiny_patch16_224", "xcit_nano_12_p16_224", "coat_lite_tiny", "tiny_vit_5m_224", "repvit_m0_9",
    "swiftformer_xs", "shvit_s1", "nextvit_small", "mixer_s32_224",
)  # fmt: skip
"""timm networks of which blocks are taken."""

BLOCKS = 150
SPACES = (("mobile", False, 400, 30), ("mobile", True, 300, 0), ("small", False, 150, 10))
"""(preset, whether every choice and the first group of mixers are open, parts among which is chosen, networks that the
blocks are to predict)."""

SHORTEST_S, LONGEST_S = 8e-6, 6e-3
"""Predicted times of blocks that are worth their measuring."""

CHANNELS, SIZES = (16, 24, 40, 64, 96, 160, 256, 384), (112, 56, 28, 14, 7)
SHAPES = ((3, 1, 1), (3, 2, 1), (1, 1, 1), (3, 1, 0), (3, 2, 0), (5, 1, 0), (5, 2, 0), (7, 1, 0), (3, 1, 8), (3, 2, 8))
"""(kernel, stride, channels per group; 0: depthwise, 1: one group) of single convolutions."""


def family(model: str) -> str:
    """Of a timm model, by its name: letters, and a version where one is said."""
    found = re.match(r"[a-z]+(v\d+)?", model)
    assert found is not None
    return found[0]


def blocks(target: Target) -> list[Subject]:
    """The design, the block worth most first."""
    taken = {family(name) for name in TIMM[target.name]}
    sources = [name for name in SOURCES if family(name) not in taken]
    candidates = {subject.name: subject for subject in (*_space_parts(), *_timm_parts(sources), *_convolutions())}
    goals = [named_subject(name) for name in sources]
    for preset, is_open, _, count in SPACES:
        goals += [architecture_subject(arch, 1000) for arch in draw_networks(_space(preset, is_open=is_open), count, 0)]
    kept, vectors, scatters, aims = [], [], [], []
    for subject in candidates.values():
        units = [_units(subject, precision, target) for precision in PRECISIONS]
        seconds = [own.seconds.sum() for own in units]
        if min(seconds) < SHORTEST_S or max(seconds) > LONGEST_S:
            continue
        kept.append(subject)
        vectors.append([log_latency_vector(own) for own in units])
        scatters.append([scatter(own) for own in seconds])
    for subject in goals:
        aims.append([log_latency_vector(_units(subject, precision, target)) for precision in PRECISIONS])
    chosen = least_variance(*(list(np.moveaxis(np.array(rows), 1, 0)) for rows in (vectors, scatters, aims)), BLOCKS)
    return [kept[index] for index in chosen]


def _units(subject: Subject, precision: str, target: Target) -> Units:
    return record_units(subject.record(target.name, precision, 1.0), target)


def _space(preset: str, *, is_open: bool) -> object:
    mixers = ["first", "-random", "-spatial_mlp"] if is_open else None  # those two are bound to one resolution
    choices = {name: list(values) for name, values in OPENABLE.items()} if is_open else None
    return load_space("metaformer", preset, mixers=mixers, choices=choices)


def _space_parts() -> Iterator[Subject]:
    for preset, is_open, count, _ in SPACES:
        yield from (part_subject(part) for part in part_pool(_space(preset, is_open=is_open), count, 0, 1000, 3))


def _timm_parts(sources: Sequence[str]) -> Iterator[Subject]:
    for name in sources:
        yield from (part_subject(described_part(canonical(found))) for found in timm_descriptions(name))


def _convolutions() -> Iterator[Subject]:
    for (kernel, stride, width), channels, size in product(SHAPES, CHANNELS, SIZES):
        groups = channels if width == 0 else channels // width if width > 1 else 1
        arguments = {"in_chans": channels, "out_chans": channels, "kernel": kernel, "stride": stride, "groups": groups}
        description = {"part": "ConvNorm", "channels": channels, "size": size, "arguments": arguments}
        yield part_subject(described_part(canonical(description)))


def networks(target: str) -> list[Subject]:
    """What is to be predicted; no part in choosing the blocks."""
    out = [named_subject(name) for name in TIMM[target]]
    for preset, count in (("mobile", 10), ("small", 5)):
        drawn = draw_networks(load_space("metaformer", preset), count, SEEDS[target])
        out += [architecture_subject(arch, 1000) for arch in drawn]
    return out


def load_jobs(folder: Path, target: str) -> list[Job]:
    """The same at every call: kept in the folder once chosen."""
    path = folder / "subjects.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        kept = [
            [s.name, s.kind, s.input_size, s.description] for s in (*blocks(load_target(target)), *networks(target))
        ]
        path.write_text(json.dumps(kept))
    subjects = [Subject(*row) for row in json.loads(path.read_text())]
    return [Job(subject, precision) for subject in subjects for precision in PRECISIONS]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=list(TIMM), required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=0.0, help="0: write the graphs only")
    parser.add_argument("--kinds", nargs="+", default=["block", "network"])
    parser.add_argument("--export", type=Path)
    args = parser.parse_args(arguments)
    jobs = [job for job in load_jobs(args.dir, args.target) if job.subject.kind in args.kinds]
    store = MeasurementStore(Store(args.dir, create=True))
    outcome = measure_jobs(
        jobs,
        CpuDevice(args.dir / "graphs"),
        args.target,
        store,
        Narrator(),
        minutes=args.minutes or None,
        prepare_only=not args.minutes,
    )
    print(f"known {outcome.known}, new {len(outcome.measured)}, left {outcome.left}")
    for name, reason in outcome.refused.items():
        print(f"refused {name}: {reason}")
    if args.export is not None:
        place = {
            (job.subject.name, job.precision): number for number, job in enumerate(load_jobs(args.dir, args.target))
        }
        records = sorted(store.of(args.target), key=lambda record: place[record.subject, record.precision])
        for kind, name in (("block", args.target), ("network", f"held_out/{args.target}_networks")):
            own = [record for record in records if record.kind == kind]
            (args.export / f"{name}.csv").write_text(measurements_csv(own))


if __name__ == "__main__":
    main()
