"""A training as steps that can be interrupted anywhere: checkpoints, Ctrl-C, kill -9, and the same end.

A step's randomness derives from its number, so what a checkpoint must hold is weights, optimizer moments and averages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.averaging import Average
from nas.checkpoint import load_checkpoint, save_checkpoint
from nas.errors import NasError
from nas.group import Group
from nas.interrupt import deferred_interrupt
from nas.spec import TrainSpec
from search_spaces.norms import progressive_norms, set_progress

Progress = Callable[[int, int, float], None]
"""Called after each step with (steps done, steps in all, loss; of a supernet that of its largest network)."""


class Enough(Exception):
    """Raised by `after_step`: this training ends here."""


@dataclass
class Trainee:
    """What a checkpoint holds of a training under way."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None

    def state(self) -> dict[str, Tensor]:
        """Weights, buffers, AdamW moments and averages by name."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `state`."""
        self.model.load_state_dict(_below("model.", tensors))
        for name, parameter in self.model.named_parameters():
            state = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = tensors.get(f"optimizer.{key}.{name}")
                if value is not None:  # fused AdamW wants moments in memory as their parameter is
                    like = value if key == "step" else parameter
                    state[key] = torch.empty_like(like, device=parameter.device).copy_(value)
            if state:
                self.optimizer.state[parameter] = state
        if self.average is not None:
            self.average.restore(_below("average.", tensors))

    def weights(self) -> dict[str, Tensor]:
        """What is kept when the training has ended: the averaged weights where there are such."""
        averaged = self.average.tensors if self.average is not None else {}
        return {**self.model.state_dict(), **averaged}


def run_steps(
    trainee: Trainee,
    step: Callable[[int], float],
    spec: TrainSpec,
    group: Group,
    *,
    what: str,
    checkpoint: Path | None = None,
    header: Mapping[str, Any] | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    after_step: Callable[[int], None] | None = None,
) -> None:
    """Do steps 0 to `spec.steps`, those left after the last checkpoint, each by `step(number)`, which gives its loss.

    checkpoint: where the state is kept every `spec.checkpoint_every` steps, and after Ctrl-C; None keeps none. header:
    what the training is; its `identity` must be that of the checkpoint. after_step: called with the number of steps
    done, again for a step that is done again on resume; it ends the training with `Enough`, when the state is saved.
    Raises NasError when the loss of a step is not finite, KeyboardInterrupt after Ctrl-C when the state is saved.
    """
    header = header or {}
    first = 0
    if checkpoint is not None and resume and checkpoint.exists():
        tensors, saved = load_checkpoint(checkpoint)
        check_budget(checkpoint, saved, header)
        first = int(saved["step"])
        trainee.restore(tensors)

    def keep(done: int) -> None:
        if checkpoint is not None and group.leads:
            save_checkpoint(checkpoint, trainee.state(), {**header, "step": done})

    norms = progressive_norms(trainee.model)
    with ExitStack() as stack:
        stop_if_asked = stack.enter_context(deferred_interrupt())
        stack.enter_context(group.joint_statistics())
        for number in range(first, spec.steps):
            torch.manual_seed((spec.seed * 1_000_003 + number) * group.size + group.rank)
            set_progress(norms, number / spec.steps)
            loss = group.total(step(number))
            if not math.isfinite(loss):
                raise NasError(
                    f"training of {what} diverged at step {number + 1}; lower train.learning_rate "
                    f"({spec.learning_rate:g})"
                )
            if trainee.average is not None:
                trainee.average.add(trainee.model, number)
            if progress is not None and group.leads:
                progress(number + 1, spec.steps, loss)
            if after_step is not None:
                try:
                    after_step(number + 1)
                except Enough:
                    keep(number + 1)
                    raise
            if group.total(float(_asked(stop_if_asked))):  # all stop, or none
                keep(number + 1)
                raise KeyboardInterrupt
            if (number + 1) % spec.checkpoint_every == 0 and number + 1 < spec.steps:
                keep(number + 1)


def check_budget(path: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise NasError, naming what differs, unless a checkpoint is of the training that is wanted."""
    if saved.get("identity") == wanted.get("identity"):
        return
    before, now = saved.get("train") or {}, wanted.get("train") or {}
    differing = [f"train.{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
    reason = ", ".join(differing) or f"{saved.get('identity')}, not {wanted.get('identity')}"
    raise NasError(f"{path} is of another training ({reason}); delete it to train anew")


def _asked(stop_if_asked: Callable[[], None]) -> bool:
    try:
        stop_if_asked()
    except KeyboardInterrupt:
        return True
    return False


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
