"""Training of one architecture by itself: what one-shot figures are compared with, and what finalists get."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from nas.averaging import Average
from nas.data.bundle import DataBundle
from nas.group import Group, process_group
from nas.loop import Progress, Trainee, run_steps
from nas.losses import kl, label_loss
from nas.recipe import dropped_paths, make_optimizer, training_batch, update
from nas.spec import TrainSpec
from nas.teacher import Teacher
from search_spaces.architecture import Architecture
from search_spaces.network import MetaFormerNet, build_network

AfterStep = Callable[[int, MetaFormerNet], None]
"""Called after each step with (steps done, the network in training mode)."""


def train_alone(
    arch: Architecture,
    bundle: DataBundle,
    spec: TrainSpec,
    device: str | torch.device | None = None,
    *,
    initial: Mapping[str, torch.Tensor] | None = None,
    teacher: Callable[[torch.device], Teacher] | None = None,
    checkpoint: Path | None = None,
    header: Mapping[str, Any] | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    after_step: AfterStep | None = None,
) -> MetaFormerNet:
    """The network of `arch` after `spec.steps` steps on the batches a supernet of the same spec sees.

    Returned on the CPU, in evaluation mode. initial: its weights before the first step; None: fresh ones. teacher:
    makes, on a device, the network that it learns from beside the labels. checkpoint, header, resume, after_step: as in
    `nas.loop.run_steps`; what after_step raises ends the training. device: default CUDA where there is one.
    Raises NasError when the loss is not finite, KeyboardInterrupt after Ctrl-C when the state is saved.
    """
    with process_group(device) as group:
        torch.manual_seed(spec.seed)
        network = build_network(arch, bundle.num_classes, bundle.in_chans)
        if initial is not None:
            network.load_state_dict(dict(initial))
        network = network.to(group.device).to(memory_format=torch.channels_last).train()
        average = Average(network, spec.ema) if spec.ema else None
        trainee = Trainee(network, make_optimizer(network, spec), average)
        run_steps(
            trainee,
            _step(trainee, arch, bundle, spec, group, teacher(group.device) if teacher else None),
            spec,
            group,
            what=arch.key,
            checkpoint=checkpoint,
            header=header,
            resume=resume,
            progress=progress,
            after_step=None if after_step is None else lambda done: after_step(done, network),
        )
        network.load_state_dict(trainee.weights())
        return network.cpu().eval()


def _step(
    trainee: Trainee, arch: Architecture, bundle: DataBundle, spec: TrainSpec, group: Group, teacher: Teacher | None
) -> Callable[[int], float]:
    network, weights = trainee.model, list(trainee.model.parameters())
    forward: Any = torch.compile(network) if spec.compile else network

    def step(number: int) -> float:
        batch = training_batch(bundle, spec, arch.resolution, number, group)
        with (
            dropped_paths(network, spec.drop_path),
            torch.autocast(group.device.type, torch.bfloat16, enabled=group.device.type == "cuda"),
        ):
            logits = forward(batch.images)
        loss = label_loss(logits.float(), batch.labels, spec.label_smoothing)
        if teacher is not None:
            loss = 0.5 * loss + 0.5 * kl(logits.float(), teacher(batch.images))
        mean = batch.mean(loss)
        mean.backward()
        update(weights, trainee.optimizer, spec, number, group)
        return float(mean.detach())

    return step
