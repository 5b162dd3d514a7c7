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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nas.checkpoint import load_checkpoint, save_checkpoint
from nas.data.augment import augment
from nas.data.bundle import DataBundle
from nas.errors import NasError
from nas.files import sole_user
from nas.interrupt import deferred_interrupt
from nas.spec import TrainSpec
from search_spaces.architecture import Architecture
from search_spaces.space import SearchSpace
from search_spaces.supernet import Supernet

FORMAT = 1
"""Raised when training changes what the same spec gives."""

Progress = Callable[[int, int, float], None]
"""Called after each step with (steps done, steps in all, loss of the largest network)."""


@dataclass(frozen=True)
class TrainedSupernet:
    """A finished supernet on the CPU, in evaluation mode, and where it lies. reused: it was trained before."""

    path: Path
    identity: str
    supernet: Supernet
    steps: int
    reused: bool


def supernet_identity(space: SearchSpace, bundle: DataBundle, spec: TrainSpec) -> str:
    """Sixteen hexadecimal digits of everything the weights depend on. Bit widths are not among them."""
    description = space.to_dict()
    description["choices"] = {k: v for k, v in description["choices"].items() if k.split(".")[-1] != "bits"}
    training = asdict(spec)
    del training["checkpoint_every"]
    content = [FORMAT, description, bundle.identity, bundle.num_classes, bundle.in_chans, training]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def train_supernet(
    space: SearchSpace,
    bundle: DataBundle,
    spec: TrainSpec,
    folder: Path,
    *,
    progress: Progress | None = None,
    resume: bool = True,
    device: str | torch.device | None = None,
) -> TrainedSupernet:
    """The trained supernet of this space, data and spec: the finished one in `folder`, or one trained now.

    An interrupted training goes on from its last checkpoint and ends with the same weights as an uninterrupted one.
    resume=False trains anew. device: default CUDA where there is one. After Ctrl-C the step under way is finished and
    saved, then KeyboardInterrupt is raised. Raises NasError when a checkpoint cannot be written or is damaged.
    """
    identity = supernet_identity(space, bundle, spec)
    home = folder / "supernets" / identity
    finished = home / "supernet.safetensors"
    with sole_user(home, f"supernet {identity}"):
        reused = resume and finished.exists()
        if not reused:
            _train(space, bundle, spec, home, identity, progress, resume, device)
        supernet = load_supernet(finished, space, bundle, identity)
    return TrainedSupernet(finished, identity, supernet, spec.steps, reused)


def _train(
    space: SearchSpace,
    bundle: DataBundle,
    spec: TrainSpec,
    home: Path,
    identity: str,
    progress: Progress | None,
    resume: bool,
    device: str | torch.device | None,
) -> None:
    """Train from the last checkpoint in `home`, if there is one, and leave supernet.safetensors there."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(spec.seed)
    supernet = Supernet(space, bundle.num_classes, bundle.in_chans).to(device).train()
    optimizer = torch.optim.AdamW(_parameter_groups(supernet, spec.weight_decay), lr=spec.learning_rate)
    unfinished = home / "checkpoint.safetensors"
    first = 0
    if resume and unfinished.exists():
        tensors, saved = load_checkpoint(unfinished)
        first = int(saved["step"])
        _restore(supernet, optimizer, tensors)
    header = {
        "kind": "supernet",
        "identity": identity,
        "space": space.to_dict(),
        "data": {"name": bundle.name, "identity": bundle.identity, "class_names": list(bundle.class_names)},
        "num_classes": bundle.num_classes,
        "in_chans": bundle.in_chans,
        "train": asdict(spec),
    }

    def keep(steps_done: int) -> None:
        save_checkpoint(unfinished, _state(supernet, optimizer), {**header, "step": steps_done})

    with deferred_interrupt() as stop_if_asked:
        for step in range(first, spec.steps):
            loss = _train_step(supernet, optimizer, bundle, spec, step, device)
            if not np.isfinite(loss):
                raise NasError(
                    f"training diverged at step {step + 1}; lower train.learning_rate ({spec.learning_rate:g})"
                )
            if progress is not None:
                progress(step + 1, spec.steps, loss)
            try:
                stop_if_asked()
            except KeyboardInterrupt:
                keep(step + 1)
                raise
            if (step + 1) % spec.checkpoint_every == 0 and step + 1 < spec.steps:
                keep(step + 1)
        save_checkpoint(home / "supernet.safetensors", supernet.state_dict(), {**header, "step": spec.steps})
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

    In the first `spec.single_path_share` of the steps only the largest.
    """
    single = round(spec.steps * spec.single_path_share)
    count = 1 if step < single else 2 + spec.subnets
    first_draw = step if count == 1 else single + (step - single) * count
    rng = np.random.default_rng((spec.seed, step, 1))
    genomes = [space.sample(rng) for _ in range(count)]
    for choice in space.choices:
        last_word = choice.name.split(".")[-1]
        if last_word in ("mixer", "norm", "activation"):
            for number, genome in enumerate(genomes):
                genome[choice.name] = _dealt(choice.name, choice.values, spec.seed, first_draw + number)
        elif last_word != "bits":
            for genome, end in zip(genomes[:2], (-1, 0), strict=False):
                genome[choice.name] = choice.values[end]
    return [space.decode(genome) for genome in genomes]


def _dealt(position: str, values: tuple[Any, ...], seed: int, draw: int) -> Any:
    """Value number `draw` of a position that deals its values from a deck, shuffled anew whenever it is empty."""
    deck, card = divmod(draw, len(values))
    name = int.from_bytes(hashlib.sha256(position.encode()).digest()[:4])
    return values[int(np.random.default_rng((seed, name, deck)).permutation(len(values))[card])]


def _train_step(
    supernet: Supernet,
    optimizer: torch.optim.Optimizer,
    bundle: DataBundle,
    spec: TrainSpec,
    step: int,
    device: torch.device,
) -> float:
    """One optimizer step over the sandwich of `step`; returns the loss of the largest network."""
    for group in optimizer.param_groups:
        group["lr"] = spec.learning_rate * schedule(step, spec.steps, spec.warmup_steps)
    images, labels = training_batch(bundle, spec, supernet.space.max_resolution, step, device)
    teacher: Tensor | None = None
    largest_loss = 0.0
    optimizer.zero_grad(set_to_none=True)
    networks = sandwich(supernet.space, spec, step)
    for arch in networks:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = supernet(_resized(images, arch.resolution), arch)
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, label_smoothing=spec.label_smoothing)
        if teacher is None:
            teacher, largest_loss = logits.detach().softmax(dim=1), float(loss.detach())
        else:
            loss = 0.5 * loss + 0.5 * F.cross_entropy(logits, teacher)
        loss.backward()
    torch.nn.utils.clip_grad_norm_(supernet.parameters(), float(len(networks)))
    optimizer.step()
    return largest_loss


def schedule(step: int, steps: int, warmup_steps: int) -> float:
    """Learning rate factor in (0, 1]: linear warm-up, then half a cosine to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + float(np.cos(np.pi * (step - warmup_steps) / max(1, steps - warmup_steps))))


def training_batch(
    bundle: DataBundle, spec: TrainSpec, resolution: int, step: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The augmented training images [n, c, resolution, resolution] and labels [n] of a step, by seed and step."""
    source = bundle.train
    size = min(spec.batch_size, len(source))
    per_epoch = len(source) // size
    epoch, position = divmod(step, per_epoch)
    order = np.random.default_rng((spec.seed, epoch, 2)).permutation(len(source))
    rows = np.sort(order[position * size : (position + 1) * size])
    images = source.batch(rows, resolution).to(device)
    generator = torch.Generator().manual_seed(spec.seed * 1_000_003 + step)
    images = augment(images, generator, flip=bundle.flip).contiguous(memory_format=torch.channels_last)
    return images, torch.from_numpy(source.labels[rows]).to(device)


def _resized(images: Tensor, resolution: int) -> Tensor:
    if images.shape[-1] == resolution:
        return images
    small = F.interpolate(images, size=(resolution, resolution), mode="bilinear", antialias=True)
    return small.contiguous(memory_format=torch.channels_last)


def _parameter_groups(supernet: Supernet, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels; none for biases and norms."""
    decayed = [p for p in supernet.parameters() if p.ndim > 1]
    plain = [p for p in supernet.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def _state(supernet: Supernet, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights, buffers and AdamW moments by name."""
    tensors = {f"model.{name}": tensor for name, tensor in supernet.state_dict().items()}
    for name, parameter in supernet.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
    return tensors


def _restore(supernet: Supernet, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of `_state`."""
    prefix = "model."
    supernet.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    for name, parameter in supernet.named_parameters():
        state = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = tensors.get(f"optimizer.{key}.{name}")
            if value is not None:
                state[key] = value if key == "step" else value.to(parameter.device)
        if state:
            optimizer.state[parameter] = state
