"""What one optimizer step is made of, for the supernet and for networks alone: batch, optimizer, learning rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import drop_path
from torch import Tensor, nn

from nas.data.augment import augment
from nas.data.bundle import DataBundle
from nas.data.mixing import mixed, rand_augmented
from nas.group import Group
from nas.spec import TrainSpec
from search_spaces.network import MetaFormerBlock


@dataclass(frozen=True)
class Batch:
    """This process's share of a step's joint batch, on its device.

    images: [n, channels, resolution, resolution], channels last in memory. labels: classes [n], or probabilities
    [n, classes] of mixed images. joint: images of the joint batch.
    """

    images: Tensor
    labels: Tensor
    joint: int

    def mean(self, per_image: Tensor) -> Tensor:
        """This share's part of the mean over the joint batch: the parts of all processes add up to it."""
        return per_image.sum() / self.joint


def training_batch(bundle: DataBundle, spec: TrainSpec, resolution: int, step: int, group: Group) -> Batch:
    """The augmented training images of a step, by seed and step alone."""
    source = bundle.train
    size = min(spec.batch_size, len(source))
    per_epoch = len(source) // size
    epoch, position = divmod(step, per_epoch)
    order = np.random.default_rng((spec.seed, epoch, 2)).permutation(len(source))
    rows = order[position * size : (position + 1) * size]
    mixes = (spec.mixup or spec.cutmix) and size % 2 == 0
    if not mixes:  # images are mixed in pairs by place: in the order drawn, pairs are chance; sorted, as classes lie
        rows = np.sort(rows)
    share = group.share(size)
    images = source.batch(rows[share], resolution, "cpu" if spec.rand_augment else group.device)
    if spec.rand_augment:
        seeds = [(spec.seed, step, int(row)) for row in share]
        images = rand_augmented(images, spec.rand_augment, seeds, bundle.mean, bundle.std)
    generator = torch.Generator().manual_seed(spec.seed * 1_000_003 + step)
    images = augment(images.to(group.device), generator, flip=bundle.flip, share=share, joint=size)
    labels = torch.from_numpy(source.labels[rows[share]]).to(group.device)
    if mixes:
        images, labels = mixed(
            images, labels, bundle.num_classes, spec.mixup, spec.cutmix, spec.label_smoothing, (spec.seed, step)
        )
    return Batch(images.contiguous(memory_format=torch.channels_last), labels, size)


def resized(images: Tensor, resolution: int) -> Tensor:
    """Images at another resolution, antialiased."""
    if images.shape[-1] == resolution:
        return images
    small = F.interpolate(images, size=(resolution, resolution), mode="bilinear", antialias=True)
    return small.contiguous(memory_format=torch.channels_last)


def schedule(step: int, steps: int, warmup_steps: int) -> float:
    """Learning rate factor in (0, 1]: linear warm-up, of half of the steps at most, then half a cosine to zero."""
    warmup_steps = min(warmup_steps, steps // 2)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + float(np.cos(np.pi * (step - warmup_steps) / max(1, steps - warmup_steps))))


def make_optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.AdamW:
    """AdamW with weight decay for matrices and kernels, none for biases and norms; one kernel does all of its step."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=spec.learning_rate, fused=True)


def update(
    weights: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    spec: TrainSpec,
    step: int,
    group: Group,
    networks: int = 1,
) -> None:
    """One optimizer step on the gradients of `networks` networks, summed over the group, clipped, then cleared.

    weights: all that the optimizer holds, listed once: walking through a supernet takes longer than its step.
    """
    for parameters in optimizer.param_groups:
        parameters["lr"] = spec.learning_rate * schedule(step, spec.steps, spec.warmup_steps)
    group.sum_gradients(weights)
    if spec.clip_norm:
        torch.nn.utils.clip_grad_norm_(weights, spec.clip_norm * networks)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@contextmanager
def dropped_paths(network: nn.Module, rate: float) -> Iterator[None]:
    """Inside, `network` in training mode leaves out residual branches, image by image (stochastic depth,
    arXiv:1603.09382): the last with probability `rate`, linearly less towards the first, which always stays."""
    if not rate:
        yield
        return
    sums = list(_residual_sums(network))
    handles = []
    for number, add in enumerate(sums):
        probability = rate * number / max(1, len(sums) - 1)
        handles.append(add.register_forward_pre_hook(_dropper(probability)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _residual_sums(network: nn.Module) -> Iterable[nn.Module]:
    for block in network.modules():
        if isinstance(block, MetaFormerBlock):
            yield from (add for name in ("add1", "add2") if (add := getattr(block, name, None)) is not None)


def _dropper(probability: float) -> Any:
    def drop(module: nn.Module, terms: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, branch = terms
        return x, drop_path(branch, probability, module.training)

    return drop
