"""Supernet training: sandwich rule, in-place distillation, every mixer trained equally often, exact resume.

A sandwich step trains several networks on one batch: the largest and the smallest in the size axes, and random ones
(arXiv:1903.05134). The first steps train the largest alone: they cost a quarter, and bring the shared weights to where
distillation has something to teach. Mixers, norms and activations have no largest: each position deals its values from
a shuffled deck, so that none is trained more than one time oftener than another (strict fairness, arXiv:1907.01845).
The largest network learns from the labels; the others from the labels and from its predictions.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas.averaging import Average
from nas.checkpoint import load_checkpoint, load_header, save_checkpoint
from nas.data.bundle import DataBundle
from nas.data.mixing import check_rand_augment
from nas.errors import NasError
from nas.files import sole_user
from nas.group import Group, process_group
from nas.loop import Progress, Trainee, run_steps
from nas.losses import alpha_divergence, kl, label_loss
from nas.recipe import Batch, dropped_paths, make_optimizer, resized, training_batch, update
from nas.spec import SUPERNET_VERSION, TrainSpec
from nas.teacher import Teacher, load_teacher
from nas.teacher_files import teacher_identity
from nas.warm_start import origin_identity, warm_start_
from search_spaces.architecture import Architecture
from search_spaces.space import UNORDERED, SearchSpace
from search_spaces.supernet import Supernet


@dataclass(frozen=True)
class TrainedSupernet:
    """A finished supernet on the CPU, in evaluation mode, and where it lies. reused: it was trained before."""

    path: Path
    identity: str
    supernet: Supernet
    steps: int
    reused: bool


def supernet_identity(space: SearchSpace, bundle: DataBundle, spec: TrainSpec, origin: str | None = None) -> str:
    """Sixteen hexadecimal digits of everything the weights depend on. Bit widths are not among them.

    origin: as `known_origin` found it; None reads it from the file that spec.warm_start names.
    """
    description = space.to_dict()
    description["choices"] = {k: v for k, v in description["choices"].items() if k.split(".")[-1] != "bits"}
    training = asdict(spec)
    del training["checkpoint_every"], training["warm_start"]
    training["teacher"] = ""  # what it names is below
    content = [
        SUPERNET_VERSION,
        description,
        bundle.identity,
        bundle.num_classes,
        bundle.in_chans,
        training,
        *spec.revisions,
    ]
    if spec.teacher:
        content.append(["teacher", teacher_identity(spec.teacher)])
    if spec.warm_start:
        content.append(["warm start", origin_identity(spec.warm_start) if origin is None else origin])
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def known_origin(space: SearchSpace, bundle: DataBundle, spec: TrainSpec, folder: Path) -> str | None:
    """Identity of the supernet that spec.warm_start names; None without one.

    Where that file is gone, the finished supernet of this space, data and spec in `folder` says what it began with, and
    nothing is read but that. Raises UsageError where there is neither, or such supernets began with different ones.
    """
    if not spec.warm_start:
        return None
    if not Path(spec.warm_start).is_file():
        found = set()
        for path in (folder / "supernets").glob("*/supernet.safetensors"):
            with suppress(NasError):
                header = load_header(path)
                origin, named = header.get("origin"), header.get("train", {}).get("warm_start")
                own = origin is not None and named == spec.warm_start
                if own and header.get("identity") == supernet_identity(space, bundle, spec, origin):
                    found.add(str(origin))
        if len(found) == 1:
            return found.pop()
    return origin_identity(spec.warm_start)


def train_supernet(
    space: SearchSpace,
    bundle: DataBundle,
    spec: TrainSpec,
    folder: Path,
    *,
    progress: Progress | None = None,
    resume: bool = True,
    device: str | torch.device | None = None,
    origin: str | None = None,
) -> TrainedSupernet:
    """The trained supernet of this space, data and spec: the finished one in `folder`, or one trained now.

    An interrupted training goes on from its last checkpoint and ends with the same weights as an uninterrupted one.
    resume=False trains anew. device: default CUDA where there is one. origin: as in `supernet_identity`. After Ctrl-C
    the step under way is finished and saved, then KeyboardInterrupt is raised. Raises NasError when a checkpoint cannot
    be written or is damaged.
    """
    if spec.rand_augment:
        check_rand_augment(spec.rand_augment)
    if spec.warm_start and origin is None:
        origin = origin_identity(spec.warm_start)
    identity = supernet_identity(space, bundle, spec, origin)
    home = folder / "supernets" / identity
    finished = home / "supernet.safetensors"
    with process_group(device) as group:
        with sole_user(home, f"supernet {identity}") if group.leads else nullcontext():
            group.wait()
            reused = resume and finished.exists()
            if not reused:
                _train(space, bundle, spec, home, identity, origin, group, progress, resume)
            group.wait()
        supernet = load_supernet(finished, space, bundle, identity)
    return TrainedSupernet(finished, identity, supernet, spec.steps, reused)


def _train(
    space: SearchSpace,
    bundle: DataBundle,
    spec: TrainSpec,
    home: Path,
    identity: str,
    origin: str | None,
    group: Group,
    progress: Progress | None,
    resume: bool,
) -> None:
    """Train from the last checkpoint in `home`, if there is one, and leave supernet.safetensors there."""
    torch.manual_seed(spec.seed)
    supernet = Supernet(space, bundle.num_classes, bundle.in_chans)
    if spec.warm_start:
        warm_start_(supernet, spec.warm_start)
    supernet = supernet.to(group.device).train()
    teacher = load_teacher(spec.teacher, bundle, group.device) if spec.teacher else None
    trainee = Trainee(supernet, make_optimizer(supernet, spec), Average(supernet, spec.ema) if spec.ema else None)
    weights = list(supernet.parameters())
    unfinished = home / "checkpoint.safetensors"
    header = {
        "kind": "supernet",
        "identity": identity,
        "space": space.to_dict(),
        "data": {"name": bundle.name, "identity": bundle.identity, "class_names": list(bundle.class_names)},
        "num_classes": bundle.num_classes,
        "in_chans": bundle.in_chans,
        "train": asdict(spec),
        "origin": origin,
    }

    def step(number: int) -> float:
        batch = training_batch(bundle, spec, space.max_resolution, number, group)
        networks = sandwich(space, spec, number)
        loss = learn(supernet, networks, batch, spec, teacher)
        update(weights, trainee.optimizer, spec, number, group, len(networks))
        return loss

    run_steps(
        trainee,
        step,
        spec,
        group,
        what="the supernet",
        checkpoint=unfinished,
        header=header,
        resume=resume,
        progress=progress,
    )
    if group.leads:
        save_checkpoint(home / "supernet.safetensors", trainee.weights(), {**header, "step": spec.steps})
        unfinished.unlink(missing_ok=True)


def load_supernet(path: Path, space: SearchSpace, bundle: DataBundle, identity: str) -> Supernet:
    """The supernet of that identity in a checkpoint, in evaluation mode. Raises NasError for any other file."""
    tensors, header = load_checkpoint(path)
    if header.get("identity") != identity:
        raise NasError(f"{path} holds supernet {header.get('identity')}, not {identity}; delete it to train anew")
    with torch.device("meta"):
        supernet = Supernet(space, bundle.num_classes, bundle.in_chans)
    try:
        supernet.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise NasError(f"{path} does not hold a supernet of space {space.name}/{space.preset}; delete it") from error
    return supernet.requires_grad_(True).eval()


def sandwich(space: SearchSpace, spec: TrainSpec, step: int) -> list[Architecture]:
    """The architectures of one step: largest, smallest, then `spec.subnets` random ones; by seed and step.

    In the first `spec.single_path_share` of the steps only one, the largest or of random sizes. In the first
    `spec.small_warmup_share` of the others the smallest sizes are not on offer yet.
    """
    single = round(spec.steps * spec.single_path_share)
    count = 1 if step < single else 2 + spec.subnets
    first_draw = step if count == 1 else single + (step - single) * count
    grown = 1.0 if count == 1 else _grown(spec, step - single, spec.steps - single)
    ends: tuple[int, ...] = (-1, 0)
    if count == 1 and spec.single_path_sizes == "random":
        ends = ()
    rng = np.random.default_rng((spec.seed, step, 1))
    genomes = [space.sample(rng) for _ in range(count)]
    for choice in space.choices:
        if choice.word in UNORDERED:
            for number, genome in enumerate(genomes if spec.fairness else []):
                genome[choice.name] = _dealt(choice.name, choice.values, spec.seed, first_draw + number)
        elif choice.is_size:
            offered = choice.values[round((1 - grown) * (len(choice.values) - 1)) :]
            for genome in genomes:
                if genome[choice.name] not in offered:
                    genome[choice.name] = offered[int(rng.integers(len(offered)))]
            for genome, end in zip(genomes[:2], ends, strict=False):
                genome[choice.name] = offered[end]
    return [space.decode(genome) for genome in genomes]


def _grown(spec: TrainSpec, step: int, steps: int) -> float:
    """Share of every size axis that is on offer at sandwich step `step` of `steps`, counted from the largest."""
    warmup = spec.small_warmup_share * steps
    return 1.0 if step >= warmup else step / warmup


def _dealt(position: str, values: tuple[Any, ...], seed: int, draw: int) -> Any:
    """Value number `draw` of a position that deals its values from a deck, shuffled anew whenever it is empty."""
    deck, card = divmod(draw, len(values))
    name = int.from_bytes(hashlib.sha256(position.encode()).digest()[:4])
    return values[int(np.random.default_rng((seed, name, deck)).permutation(len(values))[card])]


def learn(
    supernet: Supernet, networks: list[Architecture], batch: Batch, spec: TrainSpec, external: Teacher | None
) -> float:
    """Add up the gradients of the networks of a step; the first teaches the others, and learns from `external` where
    that is given. Returns its loss, this process's part of it."""
    largest_loss = 0.0
    soft: Tensor | None = None
    for arch in networks:
        images = resized(batch.images, arch.resolution)
        with (
            dropped_paths(supernet.template(arch), spec.drop_path),
            torch.autocast(images.device.type, torch.bfloat16, enabled=images.device.type == "cuda"),
        ):
            logits = supernet(images, arch)
        logits = logits.float()
        loss = label_loss(logits, batch.labels, spec.label_smoothing)
        if soft is None:
            if external is not None:
                loss = 0.5 * loss + 0.5 * kl(logits, external(batch.images))
            soft = logits.detach().softmax(dim=1)
        elif spec.distillation != "none":
            divergence = alpha_divergence if spec.distillation == "alpha" else kl
            loss = 0.5 * loss + 0.5 * divergence(logits, soft)
        mean = batch.mean(loss)
        mean.backward()
        if arch is networks[0]:
            largest_loss = float(mean.detach())
    return largest_loss
