"""The moving average of a network's weights over its training steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Average:
    """average <- d average + (1 - d) weights after every step, with d = min(decay, (1 + n) / (10 + n)) at step n.

    The smaller decay of the first steps forgets the initial weights, as in TensorFlow's ExponentialMovingAverage
    (`num_updates`). Parameters only: BatchNorm statistics are estimated anew for whatever weights are scored.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def add(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        names, parameters = zip(*model.named_parameters(), strict=True)
        torch._foreach_lerp_([self.tensors[name] for name in names], list(parameters), 1 - decay)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises ValueError when a tensor is missing: the checkpoint was made without an average."""
        for name, tensor in self.tensors.items():
            if name not in tensors:
                raise ValueError(f"no average of {name} in the checkpoint")
            tensor.copy_(tensors[name])
