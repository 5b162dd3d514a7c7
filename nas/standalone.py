"""Stand-alone training of one architecture from fresh weights: what one-shot figures are compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from nas.data.bundle import DataBundle
from nas.errors import NasError
from nas.spec import TrainSpec
from nas.train import schedule, training_batch
from search_spaces.architecture import Architecture
from search_spaces.network import MetaFormerNet, build_network


def train_alone(
    arch: Architecture, bundle: DataBundle, spec: TrainSpec, device: str | torch.device | None = None
) -> MetaFormerNet:
    """The network of `arch` after `spec.steps` steps on the batches a supernet of the same spec sees.

    Returned on the CPU, in evaluation mode. device: default CUDA where there is one. Raises NasError when the loss is
    not finite.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(spec.seed)
    network = build_network(arch, bundle.num_classes, bundle.in_chans)
    network = network.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay)
    for step in range(spec.steps):
        for group in optimizer.param_groups:
            group["lr"] = spec.learning_rate * schedule(step, spec.steps, spec.warmup_steps)
        images, labels = training_batch(bundle, spec, arch.resolution, step, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = network(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=spec.label_smoothing)
        if not torch.isfinite(loss):
            raise NasError(f"training of {arch.key} diverged at step {step + 1}; lower train.learning_rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return network.cpu().eval()
