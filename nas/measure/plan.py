"""A folder of ONNX files to time on a device that cannot be reached from here, and the table to fill in."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hw_models.measurements import OWN, PRECISIONS
from nas.bits import costed_precision
from nas.errors import UsageError
from nas.export.folder import QDQ_FILE, whole_folder
from nas.interrupt import deferred_interrupt
from nas.measure.ask import chosen_blocks, space_of, target_name
from nas.measure.design import IN_CHANS, NUM_CLASSES, draw_networks
from nas.measure.graphs import write_graph
from nas.measure.jobs import CHAIN, is_chained
from nas.measure.table import copies_name
from nas.measure.wanted import read_wanted
from nas.problem import find_target
from nas.progress import Narrator
from nas.subjects import Subject, architecture_subject, named_subject

COLUMNS = (
    "file", "model", "kind", "input_size", "batch", "precision", "latency_ms", "runtime", "runtime_version",
    "description",
)  # fmt: skip

TABLE = "measurements.csv"

BLOCKS, NETWORKS = 20, 5
"""How many are chosen by default."""


@dataclass(frozen=True)
class _Line:
    """One file to time, and its row of the table. copies: of a block, behind a pointwise convolution; 0: a network."""

    file: str
    subject: Subject
    copies: int
    precision: str

    @property
    def model(self) -> str:
        return copies_name(self.subject.name, self.copies) if self.copies else self.subject.name

    @property
    def files(self) -> int:
        """How many are written for it: the float one, and one in integers."""
        return 2 if self.precision == "w8a8" else 1

    def write(self, path: Path, precision: str) -> None:
        """Its graph, as `nas measure` times it here; as it was exported, where it runs at bits of its own."""
        if self.precision == OWN:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(self.subject.name) / QDQ_FILE, path)
            return
        write_graph(path, self.subject, precision, self.copies or 1, led=self.copies > 0)


def write_plan(
    target: str,
    out: Path,
    narrator: Narrator,
    *,
    space: str = "metaformer",
    preset: str = "mobile",
    blocks: int | None = None,
    networks: int | None = None,
    models: Sequence[str] = (),
    precision: str | None = None,
    wanted: Path | None = None,
    seed: int = 0,
    force: bool = False,
) -> Path:
    """Write the folder `out`: float ONNX files of blocks and networks, README.md, and an empty measurements.csv.

    target: whose cost model chooses the blocks: a built-in target or a TOML file. blocks, networks: how many to
    choose, 20 and 5 by default. precision: in which the device shall run them, w8a8 by default; for that each file is
    also there in integer arithmetic (QDQ). "own": exported folders at their own bits, in the files that were exported.
    wanted: a table of suggested blocks, which then are the blocks, in the precisions that it names; networks are then
    added only where asked for.
    The folder appears whole or not at all. Raises UsageError for what does not exist, or when `out` does and `force`
    is False.
    """
    described, made = find_target(target), space_of(space, preset)
    suggested = [] if wanted is None else _suggested(wanted, blocks, precision)
    own = precision or (suggested[0][1] if suggested else "w8a8")
    if own not in (*PRECISIONS, OWN):
        raise UsageError(f"unknown precision {own!r}; known: {', '.join(PRECISIONS)}, {OWN}")
    if own == OWN:
        _check_exported(models, blocks, networks)
    chosen_alone = wanted is not None or own == OWN
    count, drawn = (
        (0 if chosen_alone else usual) if asked is None else asked
        for asked, usual in ((blocks, BLOCKS), (networks, NETWORKS))
    )
    if count < 0 or drawn < 0 or count + drawn + len(models) + len(suggested) < 1:
        raise UsageError("a plan needs something to time: --budget and --networks must be positive")
    subjects = [named_subject(model) for model in dict.fromkeys(models)]
    subjects += [architecture_subject(arch, NUM_CLASSES, IN_CHANS) for arch in draw_networks(made, drawn, seed)]
    by_design = chosen_blocks(made, described, 2 * count, [costed_precision(own)], seed) if count else []
    subjects += [subject for subject in by_design if is_chainable(subject)][:count]
    pairs = [(subject, own) for subject in subjects] + suggested
    lines = [line for subject, precision in pairs for line in _lines(subject, precision)]
    files = sum(line.files for line in lines)
    narrator.say(f"{files} ONNX files, some {_megabytes(lines):.0f} MB, for {out}")
    # Ctrl-C between files: torch's exporter answers it with a dump of the graph
    with whole_folder(out, force=force) as folder, narrator.bar("files") as update, deferred_interrupt() as stop:
        for number, line in enumerate(lines):
            stop()
            update(number, len(lines), line.file)
            line.write(folder / line.file, "fp32")
            if line.files == 2:
                line.write(folder / _qdq(line.file), "w8a8")
        (folder / TABLE).write_text(_table(lines), encoding="utf-8")
        (folder / "README.md").write_text(_readme(target, lines), encoding="utf-8")
        update(len(lines), len(lines), "")
    return out.absolute()


def _megabytes(lines: Sequence[_Line]) -> float:
    """What the files will take, within a tenth: 4 bytes a weight and 1 in integers, beside what graphs take."""
    total = 0.0
    for line in lines:
        if line.precision == OWN:
            total += (Path(line.subject.name) / QDQ_FILE).stat().st_size
            continue
        with torch.device("meta"):
            module, _ = line.subject.build()
        weights = sum(parameter.numel() for parameter in module.parameters())
        total += (line.copies or 1) * weights * (4.1 if line.files == 1 else 5.2)
    return total / 1e6


def _check_exported(models: Sequence[str], blocks: int | None, networks: int | None) -> None:
    """Raises UsageError for anything but exported folders, which alone have bits of their own."""
    if blocks or networks:
        raise UsageError(
            f"--budget and --networks go without --precision {OWN}: only what was exported has its own bits"
        )
    for model in models:
        if not (Path(model) / QDQ_FILE).is_file():
            raise UsageError(f"{model} has no {QDQ_FILE}: --precision {OWN} is for folders that `nas export` wrote")


def _suggested(table: Path, blocks: int | None, precision: str | None) -> list[tuple[Subject, str]]:
    """Blocks of a table of suggestions, in their precisions. Raises UsageError for what a plan cannot hold."""
    if blocks is not None or precision is not None:
        raise UsageError("--budget and --precision go without --from: its lines say which blocks, and in which one")
    found = read_wanted(table)
    for subject, _, batch in found:
        if batch != 1:
            raise UsageError(f"{table} asks for batch {batch}: the files of a plan are of one image")
        if not is_chainable(subject):
            raise UsageError(f"{table}: {subject.name} cannot be timed in a chain; take its line out")
    return [(subject, own) for subject, own, _ in found]


def is_chainable(subject: Subject) -> bool:
    """Whether several copies of a part fit one behind the other: only then a board can tell its time from the rest."""
    return subject.kind == "block" and is_chained(json.loads(subject.description))


def _lines(subject: Subject, precision: str) -> list[_Line]:
    words = subject.name.replace(":", "-").replace("/", "-")
    if precision == OWN:
        return [_Line(f"networks/{Path(subject.name).name}.onnx", subject, 0, precision)]
    if subject.kind == "network":
        return [_Line(f"networks/{words}-{subject.input_size}.onnx", subject, 0, precision)]
    return [_Line(f"blocks/{words}-x{copies}.onnx", subject, copies, precision) for copies in (1, CHAIN)]


def _qdq(file: str) -> str:
    return file.replace(".onnx", "-qdq.onnx")


def _table(lines: Sequence[_Line]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in lines:
        subject = line.subject
        row = [
            line.file,
            line.model,
            subject.kind,
            subject.input_size,
            1,
            line.precision,
            "",
            "",
            "",
            subject.description,
        ]
        writer.writerow(row)
    return stream.getvalue()


def _readme(target: str, lines: Sequence[_Line]) -> str:
    """target: as the user named it; a file is named so that it is found from anywhere."""
    named = Path(target).resolve() if target.endswith(".toml") else target
    blocks = sum(line.subject.kind == "block" for line in lines) // 2
    networks = sum(line.subject.kind == "network" for line in lines)
    note = "Weights are random: they do not change the time, but the outputs mean nothing."
    what = f"{blocks} blocks and {networks} networks, chosen so that their times tell most about the rest."
    in_pairs = f"""A block is there twice, once (`-x1`) and {CHAIN} times in a
   row (`-x{CHAIN}`), both behind the same small convolution: time both or neither. Half their difference is the time
   of the block inside a network: what both files pay (the call, the convolution, the map's way in and out) is not
   in it."""
    precisions = list(dict.fromkeys(line.precision for line in lines))
    precision = precisions[0] if len(precisions) == 1 else "the precision of its line"
    if precisions == [OWN]:
        what, in_pairs = f"{networks} exported networks, to be compared with what is predicted of them.", ""
        precision = "the number formats of its QuantizeLinear and DequantizeLinear pairs"
        note = "Weights and scales are those of the exported networks: outputs mean what their cards say."
    if "w8a8" in precisions:
        note = f"""Beside each float file lies the same graph with QuantizeLinear and DequantizeLinear pairs
(`-qdq.onnx`), for compilers that take a quantized graph. Use one of the two for all files. {note}"""
    return f"""# What to time on {target_name(target)}

{what}

1. Compile each file of the table `{TABLE}` for the device in **{precision}**, as you would compile a network for
   production: same compiler version, same options, batch 1.
2. Run each on the device with nothing else running: some runs to warm up, then at least thirty, one at a time. Write
   the **median** time of one inference in **milliseconds** into the column `latency_ms`. Time what the device computes;
   leave the transfer of the image out if you can, and treat all files alike.
3. Write the compiler or runtime and its version into `runtime` and `runtime_version`, the same in every line.
4. Leave the latency of a file that does not compile empty. {in_pairs}
5. Keep all other columns as they are, and hand the table back:
   `nas measure import {TABLE} --target {named}` (and `--dir` where your studies do not lie in `./nas_runs`)

{note}
"""
