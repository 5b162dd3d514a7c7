"""What is timed to know one latency: graphs, and how their times add up to it.

A block alone begins and ends with reorders of its map (into the layout of the kernels and back) and with the call of
the runtime, which inside a network it does not pay. So it is timed in a chain of three and alone, both behind a
pointwise convolution, and half the difference is its time. Without that convolution the chain would keep the layout of
its input: ONNX Runtime then reorders at every residual sum, which it fuses inside a network. A part that changes the
shape of its map cannot be chained: half of what the reorders of its two ends cost is taken off, known from a pointwise
convolution of that shape, timed alone and twice in a row.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from nas.measure.graphs import optimized_ops, write_graph, write_notes, writers
from nas.subjects import Subject

IMAGE_CHANNELS = 3

CHAIN = 3
"""Copies of a block in its longer graph."""

CHAINED = f"chain of {CHAIN} less one"
LED = f"{CHAINED}, led"
"""Methods: half the difference of a chain and one, as tables of earlier plans were timed, and with both behind a
pointwise convolution."""


@dataclass(frozen=True)
class Graph:
    """Some copies of something one behind the other, at a precision and a batch. led: as in `write_graph`."""

    subject: Subject
    precision: str
    batch: int
    copies: int
    led: bool = False

    @property
    def file_name(self) -> str:
        words = re.sub(r"[^A-Za-z0-9]+", "-", self.subject.name)[-40:]
        identity = f"{self.subject}/{self.precision}/{self.batch}/{self.copies}/{self.led}/{writers()}"
        return f"{words}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.onnx"


@dataclass(frozen=True)
class Job:
    """One latency to find out."""

    subject: Subject
    precision: str
    batch: int = 1

    @cached_property
    def terms(self) -> tuple[tuple[Graph, float], ...]:
        """Graphs, and the weights with which their times add up to the latency."""
        graph = self._graph(self.subject, 1)
        if self.subject.kind == "network":
            return ((graph, 1.0),)
        if self.is_chained:
            alone, chain = (self._graph(self.subject, copies, led=True) for copies in (1, CHAIN))
            return ((alone, -1 / (CHAIN - 1)), (chain, 1 / (CHAIN - 1)))
        terms = [(graph, 1.0)]
        part = json.loads(self.subject.description)
        for channels, size in _ends(part):
            probe = Probe(f"reorder-{channels}-{size}", "probe", size, str(channels))
            terms += [(self._graph(probe, 1), -1.0), (self._graph(probe, 2), 0.5)]
        return tuple(terms)

    @property
    def method(self) -> str:
        """In words, for the record."""
        if self.subject.kind == "network":
            return "whole"
        return LED if self.is_chained else "alone, less the reorders of its ends"

    @property
    def is_chained(self) -> bool:
        """Whether it is a block that is timed in a chain."""
        return self.subject.kind == "block" and is_chained(json.loads(self.subject.description))

    def _graph(self, subject: Subject, copies: int, *, led: bool = False) -> Graph:
        return Graph(subject, self.precision, self.batch, copies, led)


def name_of(job: Job) -> str:
    """In words; no two jobs of one call have the same."""
    batch = f", batch {job.batch}" if job.batch != 1 else ""
    return f"{job.subject.name} at {job.subject.input_size} in {job.precision}{batch}"


def graphs_of(jobs: Sequence[Job]) -> list[Graph]:
    """The distinct graphs of jobs."""
    return list(dict.fromkeys(graph for job in jobs for graph, _ in job.terms))


def is_chained(part: dict[str, Any]) -> bool:
    """Whether a described part writes a map like the one it reads."""
    arguments = part["arguments"]
    if part["part"] in ("ConvNorm", "TimmPart"):
        return (arguments["stride"], arguments["out_chans"]) == (1, part["channels"])
    return part["part"] == "MetaFormerBlock"


def _ends(part: dict[str, Any]) -> list[tuple[int, int]]:
    """(channels, size) of the maps that such a part reorders: it reads an image, or writes class scores, as they
    are.
    """
    size, arguments = part["size"], part["arguments"]
    if part["part"] == "Stem":
        stride = 4 if arguments["kind"] == "conv3s2x2" else 2
        return [(arguments["dim"], -(-size // stride))]
    if part["part"] == "Head":
        return [(part["channels"], size)]
    written = (arguments["out_chans"], -(-size // arguments["stride"]))
    return [written] if part["channels"] == IMAGE_CHANNELS else [(part["channels"], size), written]


class Probe(Subject):
    """A pointwise convolution and its activation: the least that is between two reorders."""

    def build(self) -> tuple[nn.Module, tuple[int, int, int, int]]:
        channels = int(self.description)
        module = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU())
        return module.eval(), (1, channels, self.input_size, self.input_size)


def prepare(job: Job, folder: Path) -> dict[str, Any]:
    """Write the graphs of a job that are not there yet; what is known of its own graph is returned.

    Raises UsageError for a subject that cannot be built, NasError for one that cannot be exported.
    """
    for graph, _ in job.terms:
        write_missing(graph, folder)
    path = folder / job.terms[0][0].file_name
    notes = path.with_suffix(".json")
    if notes.is_file():
        return json.loads(notes.read_text(encoding="utf-8"))
    return write_notes(path, optimized_ops(path), job.precision)


def write_missing(graph: Graph, folder: Path) -> None:
    """Write the file of a graph unless it is there."""
    path = folder / graph.file_name
    if not path.is_file():
        write_graph(path, graph.subject, graph.precision, graph.copies, graph.batch, led=graph.led)


def remove_graphs(jobs: Sequence[Job], folder: Path) -> None:
    """Delete the graphs of jobs that are done; those of probes stay for others."""
    for job in jobs:
        for graph, _ in job.terms:
            if graph.subject.kind != "probe":
                for suffix in (".onnx", ".json"):
                    (folder / graph.file_name).with_suffix(suffix).unlink(missing_ok=True)
