"""Many trainings of networks alone: each finished one is on disk before the next, an unfinished one goes on.

A training has a folder of its own, named by all that its weights depend on: DIR/trainings/IDENTITY. So trainings of
another budget lie beside each other, and two commands that want the same one share it.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nas.accuracy import Accuracy
from nas.checkpoint import load_checkpoint, save_checkpoint
from nas.data.bundle import DataBundle
from nas.errors import NasError
from nas.evaluate import Scoring
from nas.files import found_path, kept_path, sole_user, write_whole
from nas.halving import Halving, Rung
from nas.loop import Enough, Progress, check_budget
from nas.progress import Narrator
from nas.spec import EvaluateSpec, TrainSpec
from nas.standalone import train_alone
from nas.teacher import largest_teacher, load_teacher
from nas.teacher_files import teacher_identity
from nas.train import load_supernet
from nas.workers import one_thread, refuse_torchrun
from search_spaces.architecture import Architecture
from search_spaces.network import MetaFormerNet, build_network, network_kwargs
from search_spaces.plugin import Plugin, install
from search_spaces.space import SearchSpace

if TYPE_CHECKING:
    from search_spaces.supernet import Supernet

FORMAT = 1
"""Raised when training alone changes what the same spec gives."""

_OF_SUPERNETS = (
    "single_path_share",
    "single_path_sizes",
    "subnets",
    "small_warmup_share",
    "fairness",
    "distillation",
    "teacher",
    "warm_start",
    "checkpoint_every",
)
"""Entries of TrainSpec that a training alone does not depend on; its teacher is named beside the spec."""

_KINDS_ONCE_SIZES = {"stem", "channel_mixer", "gate"}
"""Genes of which a teacher from the supernet once had the last value on offer, not its pupil's."""


@dataclass(frozen=True, slots=True)
class Training:
    """A network to be trained by itself.

    number: what the caller knows it by. weights: "fresh", or "inherited" from the supernet. teacher: "none",
    "supernet", or as `nas.teacher.load_teacher` reads it. costs: what it costs, least is best; halving compares
    networks by them.
    """

    number: int
    architecture: Architecture
    weights: str = "fresh"
    teacher: str = "none"
    costs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a training ended. steps: those done; fewer than wanted when it was stopped as hopeless, and then `search` is
    of that moment and `val` is None. path: checkpoint of the weights."""

    number: int
    architecture: Architecture
    identity: str
    steps: int
    stopped: bool
    search: Accuracy
    val: Accuracy | None
    path: Path

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        val = self.val and self.val.to_dict()
        whole = {"search": self.search.to_dict(), "val": val, "path": str(self.path)}
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "architecture": self.architecture.to_dict(),
            **whole,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Outcome:
        made = {
            "architecture": Architecture.from_dict(data["architecture"]),
            "search": Accuracy.from_dict(data["search"]),
            "val": data["val"] and Accuracy.from_dict(data["val"]),
            "path": Path(data["path"]),
        }
        return cls(**{**data, **made})


@dataclass(frozen=True)
class SharedWeights:
    """Where a trained supernet lies and what it is of; loaded when a training asks for it."""

    path: Path
    identity: str
    space: SearchSpace


@dataclass(frozen=True)
class Workshop:
    """All that a training needs beside itself; it can be sent to another process that sees the same folder.

    folder: that of all studies. val_images: how many validation images score a network; None: all. halving: None
    trains everything to the end. plugin: where mixers of the user's own come from.
    """

    folder: Path
    bundle: DataBundle
    spec: TrainSpec
    evaluate: EvaluateSpec
    shared: SharedWeights | None = None
    val_images: int | None = None
    halving: Halving | None = None
    plugin: Plugin | None = None

    def identity(self, training: Training) -> str:
        """Sixteen hexadecimal digits of all that its weights depend on. Bit widths are not among them."""
        spec = {key: value for key, value in asdict(self.spec).items() if key not in _OF_SUPERNETS}
        arch, teacher = training.architecture, training.teacher
        if teacher not in ("none", "supernet"):
            teacher = teacher_identity(teacher)
        content: list[Any] = [FORMAT, "alone", network_kwargs(arch), spec, self.bundle.identity]
        content += [self.bundle.num_classes, self.bundle.in_chans, training.weights, teacher, *self.spec.revisions]
        if training.weights == "inherited" or training.teacher == "supernet":
            content.append(self.weights_of_supernet.identity)
        if teacher == "supernet" and {c.word for c in self.weights_of_supernet.space.free} & _KINDS_ONCE_SIZES:
            content.append("a teacher has its pupil's kinds")
        if self.plugin is not None:
            content.append(self.plugin.identity)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def home(self, training: Training) -> Path:
        return self.folder / "trainings" / self.identity(training)

    def outcome(self, training: Training) -> Outcome | None:
        """That of a training which has ended; None also where the weights of a finished one are gone."""
        path = self._result(training)
        if not path.is_file():
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        weights = found_path(record["path"], self.folder)
        if not record["stopped"] and not weights.is_file():
            return None
        return Outcome.from_dict(record | {"number": training.number, "path": weights})

    def train(self, training: Training, progress: Progress | None = None) -> Outcome:
        """Train it, or go on with it, and score it; on disk when this returns.

        Raises NasError when it diverges, KeyboardInterrupt after Ctrl-C when its state is saved.
        """
        if (known := self.outcome(training)) is not None:
            return known
        if self.plugin is not None:
            install(self.plugin)  # this process may not have met it
        home = self.home(training)
        with sole_user(home, f"training {home.name}"):
            outcome = self._train(training, home, progress)
            kept = outcome.to_dict() | {"path": kept_path(outcome.path, self.folder)}
            write_whole(self._result(training), json.dumps(kept, indent=1) + "\n")
        return outcome

    def _train(self, training: Training, home: Path, progress: Progress | None) -> Outcome:
        arch, finished = training.architecture, home / "network.safetensors"
        header: dict[str, Any] = {"kind": "stand-alone", "identity": home.name, "train": asdict(self.spec)}
        header |= {"architecture": arch.to_dict(), "weights": training.weights, "teacher": training.teacher}
        header["threads"] = torch.get_num_threads()
        if not finished.exists():
            try:
                network = train_alone(
                    arch,
                    self.bundle,
                    self.spec,
                    initial=self._supernet.subnet(arch).state_dict() if training.weights == "inherited" else None,
                    teacher=partial(self._teacher, training) if training.teacher != "none" else None,
                    checkpoint=home / "checkpoint.safetensors",
                    header=header,
                    progress=progress,
                    after_step=partial(self._review, training, home) if self.halving is not None else None,
                )
            except Enough as hopeless:
                rung: Rung = hopeless.args[0]
                path = home / "checkpoint.safetensors"
                return Outcome(training.number, arch, home.name, rung.step, True, rung.accuracy, None, path)
            save_checkpoint(finished, network.state_dict(), {**header, "step": self.spec.steps})
            (home / "checkpoint.safetensors").unlink(missing_ok=True)
        network = load_alone(finished, arch, self.bundle, header)
        search, val = self._scored(network, arch, home.name)
        return Outcome(training.number, arch, home.name, self.spec.steps, False, search, val, finished)

    def _scored(self, network: MetaFormerNet, arch: Architecture, identity: str) -> tuple[Accuracy, Accuracy]:
        with one_thread() as streams:
            prepared = self._scoring.prepare_network(network, arch, identity)
            search = self._scoring.score(prepared, arch, "search", "stand-alone", streams=streams)
            return search, self._scoring.score(prepared, arch, "val", "stand-alone", self.val_images, streams)

    def _review(self, training: Training, home: Path, done: int, network: MetaFormerNet) -> None:
        """At a rung: write down the quantized accuracy so far, and end a training that is hopeless."""
        assert self.halving is not None
        if done not in self.halving.rungs(self.spec.steps):
            return
        copied = copy.deepcopy(network).cpu().eval()
        with one_thread() as streams:
            prepared = self._scoring.prepare_network(copied, training.architecture, home.name)
            accuracy = self._scoring.score(prepared, training.architecture, "search", "stand-alone", streams=streams)
        rung = Rung(training.number, done, training.costs, accuracy)
        board = self.folder / "trainings" / f"rungs-{self.halving.name}"
        if not self.halving.goes_on(rung, board):
            raise Enough(rung)

    def _teacher(self, training: Training, device: torch.device) -> Any:
        if training.teacher == "supernet":
            return largest_teacher(self._supernet, training.architecture, self.bundle, device)
        return load_teacher(training.teacher, self.bundle, device)

    def _result(self, training: Training) -> Path:
        """One per way of scoring and stopping: the same weights serve several."""
        halving = self.halving.name if self.halving is not None else ""
        how = [training.architecture.key, asdict(self.evaluate), self.val_images, halving]
        digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:8]
        return self.home(training) / f"result-{digest}.json"

    @property
    def weights_of_supernet(self) -> SharedWeights:
        if self.shared is None:
            raise ValueError("a training with weights or a teacher from the supernet needs `shared`")
        return self.shared

    @cached_property
    def _supernet(self) -> Supernet:
        shared = self.weights_of_supernet
        return load_supernet(shared.path, shared.space, self.bundle, shared.identity)

    @cached_property
    def _scoring(self) -> Scoring:
        return Scoring(self.bundle, self.evaluate)


def load_alone(path: Path, arch: Architecture, bundle: DataBundle, header: dict[str, Any]) -> MetaFormerNet:
    """The network of a finished training, in evaluation mode. Raises NasError for another training's file."""
    tensors, saved = load_checkpoint(path)
    check_budget(path, saved, header)
    network = build_network(arch, bundle.num_classes, bundle.in_chans)
    network.load_state_dict(tensors)
    return network.eval()


def load_outcome(record: Mapping[str, Any], bundle: DataBundle) -> MetaFormerNet:
    """The network of a finished training by its record (`Outcome.to_dict`). Raises NasError when its file is gone."""
    path = Path(record["path"])
    if not path.is_file():
        raise NasError(f"{path} is gone: train it again with `nas finalists`, or export with --weights shared")
    return load_alone(path, Architecture.from_dict(record["architecture"]), bundle, {"identity": record["identity"]})


Report = Callable[[int, int, float], None]
"""Called with (number of a training, steps done, loss)."""


def train_all(
    workshop: Workshop,
    trainings: Sequence[Training],
    *,
    workers: int = 0,
    address: str | None = None,
    report: Report | None = None,
) -> Iterator[Outcome]:
    """The outcomes of `trainings` as they end; those on disk first, without work.

    workers: that many at a time as Ray Tune trials, on this machine or on the cluster at `address`; 0: one after the
    other in this process, without Ray. Raises what `Workshop.train` raises; UsageError when `address` does not answer.
    """
    check_place(address)
    waiting = []
    for training in trainings:
        if (known := workshop.outcome(training)) is not None:
            yield known
        else:
            waiting.append(training)
    if not waiting:
        return
    if workers or address:
        from nas.fleet import train_on_ray

        yield from train_on_ray(workshop, waiting, workers, address, report)
        return
    for training in waiting:
        yield workshop.train(training, _progress(training, report))


def train_all_shown(
    workshop: Workshop,
    trainings: Sequence[Training],
    title: str,
    narrator: Narrator,
    *,
    workers: int = 0,
    address: str | None = None,
) -> Iterator[Outcome]:
    """As `train_all`, beneath a bar of that title."""
    total = workshop.spec.steps * len(trainings)
    steps = dict.fromkeys((training.number for training in trainings), 0)
    ended = 0
    with narrator.bar(title) as update:

        def report(number: int, done: int, loss: float) -> None:
            steps[number] = done
            update(sum(steps.values()), total, f"{ended} of {len(trainings)} networks, loss {loss:.2f}")

        for outcome in train_all(workshop, trainings, workers=workers, address=address, report=report):
            yield outcome
            ended += 1
            steps[outcome.number] = workshop.spec.steps
            update(sum(steps.values()), total, f"{ended} of {len(trainings)} networks")


def check_place(address: str | None) -> None:
    """Raise UsageError where `train_all` cannot work: under torchrun, or without the cluster at `address`."""
    refuse_torchrun("nas rank, nas finalists")
    if address:
        from nas.fleet import check_cluster

        check_cluster(address)


def _progress(training: Training, report: Report | None) -> Progress | None:
    if report is None:
        return None
    return lambda done, total, loss: report(training.number, done, loss)
