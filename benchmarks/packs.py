"""Measurement packs of a target: which blocks and networks they hold, chosen before anything is measured.

Blocks are chosen over the cost model's features alone (`nas.measure.design`) from parts of the space metaformer as its
presets offer it and with everything opened, from blocks of timm networks and from single convolutions, such that
networks of the space and the timm networks they come from are predicted best. Networks to be predicted are named ones
of timm, of whose families no block is taken, and ones drawn from the space.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product, zip_longest
from pathlib import Path

import numpy as np

from benchmarks.narrator import Stamped
from hw_models import Target, load_target
from hw_models.families import Units
from hw_models.measurements import Measurement, measurements_csv, read_measurements
from nas.files import write_whole
from nas.measure.design import CPU_CLOCK_S, Points, draw_networks, log_latency_vector, most_telling, part_pool
from nas.measure.jobs import Job
from nas.measure.peace import taken_at_peace
from nas.measure.run import measure_jobs
from nas.measure.session import Device, Outcome
from nas.subjects import Subject, architecture_subject, canonical, described_part, named_subject, part_subject
from nas.timm_parts import timm_descriptions
from search_spaces import load_space
from search_spaces.metaformer import OPENABLE
from search_spaces.space import SearchSpace

SOURCES = (
    "mobilenetv1_100", "mobilenetv2_050", "mobilenetv3_small_075", "mobilenetv3_large_075", "efficientnet_b1",
    "efficientnet_es", "spnasnet_100", "tinynet_c", "hardcorenas_b", "ghostnet_100", "ghostnetv2_100",
    "repghostnet_050", "dla34", "hrnet_w18_small", "selecsls42b", "cspresnet50", "gernet_s", "skresnet18", "repvgg_a0",
    "densenet121", "mobilevit_xxs", "mobilevitv2_050", "efficientvit_b0", "efficientvit_m0", "poolformerv2_s12",
    "caformer_s18", "vit_tiny_patch16_224", "xcit_nano_12_p16_224", "coat_lite_tiny", "tiny_vit_5m_224", "repvit_m0_9",
    "swiftformer_xs", "shvit_s1", "nextvit_small", "mixer_s32_224",
)  # fmt: skip
"""timm networks of which blocks are taken."""

SPACES = (("mobile", False, 400, 30), ("mobile", True, 300, 0), ("small", False, 150, 10))
"""(preset, whether every choice and the first group of mixers are open, parts among which is chosen, networks that the
blocks are to predict)."""

CHANNELS, SIZES = (16, 24, 40, 64, 96, 160, 256, 384), (112, 56, 28, 14, 7)
SHAPES = ((3, 1, 1), (3, 2, 1), (1, 1, 1), (3, 1, 0), (3, 2, 0), (5, 1, 0), (5, 2, 0), (7, 1, 0), (3, 1, 8), (3, 2, 8))
"""(kernel, stride, channels per group; 0: depthwise, 1: one group) of single convolutions."""


@dataclass(frozen=True)
class Design:
    """What is fixed of a target's packs.

    timm: networks to be predicted, each at its own input size; drawn: (preset, networks) of the space, with `seed`.
    blocks: how many. formats: (precision, batch) in which each is measured. shortest_s, longest_s: predicted times of
    blocks that are worth their measuring. clock_s: scatter of a measured time that does not shrink with it. further:
    name of a set of networks beside the first.
    """

    target: str
    timm: tuple[str, ...]
    drawn: tuple[tuple[str, int], ...]
    seed: int
    blocks: int
    formats: tuple[tuple[str, int], ...]
    shortest_s: float
    longest_s: float
    clock_s: float = CPU_CLOCK_S
    further: str = ""


def family(model: str) -> str:
    """Of a timm model, by its name: letters, and a version where one is said."""
    found = re.match(r"[a-z]+(v\d+)?", model)
    assert found is not None
    return found[0]


def blocks(design: Design) -> list[Subject]:
    """The blocks to measure, the one worth most first."""
    if not design.blocks:
        return []
    target = load_target(design.target)
    taken = {family(name) for name in design.timm}
    sources = [name for name in SOURCES if family(name) not in taken]
    candidates = {subject.name: subject for subject in (*_space_parts(), *_timm_parts(sources), *_convolutions())}
    goals = [named_subject(name) for name in sources]
    for preset, is_open, _, count in SPACES:
        goals += [architecture_subject(arch, 1000) for arch in draw_networks(_space(preset, is_open=is_open), count, 0)]
    kept, pieces = [], []
    for subject in candidates.values():
        units = [_units(subject, *form, target) for form in design.formats]
        seconds = [own.seconds.sum() for own in units]
        if min(seconds) < design.shortest_s or max(seconds) > design.longest_s:
            continue
        kept.append(subject)
        pieces.append(units)
    points = [Points.of(own, design.clock_s) for own in zip(*pieces, strict=True)]
    aims = [
        np.array([log_latency_vector(_units(subject, *form, target)) for subject in goals]) for form in design.formats
    ]
    return [kept[index] for index, _ in most_telling(points, aims, design.blocks)]


def _units(subject: Subject, precision: str, batch: int, target: Target) -> Units:
    from nas.calibrate import record_units  # which needs a database: blocks are chosen where there is one

    return record_units(subject.record(target.name, precision, 1.0, batch=batch), target)


def _space(preset: str, *, is_open: bool) -> SearchSpace:
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


def networks(design: Design) -> list[Subject]:
    """What is to be predicted, no part in choosing the blocks: of timm and of the space in turns."""
    named = [named_subject(name) for name in design.timm]
    drawn = [
        architecture_subject(arch, 1000)
        for preset, count in design.drawn
        for arch in draw_networks(load_space("metaformer", preset), count, design.seed)
    ]
    return [subject for subject in chain(*zip_longest(named, drawn)) if subject is not None]


def load_jobs(folder: Path, design: Design) -> list[Job]:
    """Blocks, then networks, in each format: kept in subjects.json of the folder once they are chosen.

    Raises SystemExit where they are those of another set.
    """
    path, own = folder / "subjects.json", f"{design.target}/{design.further}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        kept = [[s.name, s.kind, s.input_size, s.description] for s in (*blocks(design), *networks(design))]
        path.write_text(json.dumps({"set": own, "subjects": kept}))
    content = json.loads(path.read_text())
    if content["set"] != own:
        raise SystemExit(f"{folder} holds the set {content['set']}, not {own}: give --dir a folder of its own")
    subjects = [Subject(*row) for row in content["subjects"]]
    return [Job(subject, *form) for subject in subjects for form in design.formats]


class TimesFile:
    """Times kept in FOLDER/times.csv, so that a machine without the packages of a database can take them."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "times.csv"

    def of(self, target: str) -> list[Measurement]:
        """All of a target; none where nothing was measured yet."""
        return read_measurements(self._path, target) if self._path.exists() else []

    def put(self, records: Iterable[Measurement]) -> None:
        """Kept when this returns, in the place of earlier ones of the same identity."""
        for record in records:
            kept = {one.identity: one for one in self.of(record.target)}
            kept[record.identity] = record
            write_whole(self._path, measurements_csv(list(kept.values())))


def measure(
    jobs: Sequence[Job],
    device: Device,
    target: str,
    folder: Path,
    minutes: float | None,
    *,
    prepare_only: bool,
    patience_s: float | None = None,
) -> Outcome:
    """Measure what the folder does not have yet, and say what came of it."""
    narrator = Stamped()
    kept = TimesFile(folder)
    outcome = measure_jobs(
        jobs, device, target, kept, narrator, minutes=minutes, prepare_only=prepare_only, patience_s=patience_s
    )
    narrator.say(
        f"known {outcome.known}, new {len(outcome.measured)}, refused {len(outcome.refused)}, left {outcome.left}"
    )
    for name, reason in outcome.refused.items():
        narrator.say(f"refused {name}: {reason}")
    return outcome


def export(jobs: Sequence[Job], design: Design, folder: Path, out: Path) -> None:
    """Write all measurements of `jobs` in the folder, in the order of the jobs: out/TARGET.csv with the
    blocks and out/held_out/TARGET_networks.csv (or TARGET_FURTHER_networks.csv), where there are any.
    """
    place = {(job.subject.name, job.precision, job.batch): number for number, job in enumerate(jobs)}
    keyed = {
        (record.subject, record.precision, record.batch): record
        for record in taken_at_peace(TimesFile(folder).of(design.target))
    }
    records = [keyed[key] for key in sorted(keyed.keys() & place.keys(), key=place.__getitem__)]
    words = "_".join(word for word in (design.target, design.further, "networks") if word)
    for kind, name in (("block", design.target), ("network", f"held_out/{words}")):
        rows = [record for record in records if record.kind == kind]
        if rows:
            path = out / f"{name}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(measurements_csv(rows))
