"""Processes that train one network together, as `torchrun` starts them; without it a group of one.

Every process has the whole network and an equal share of each batch. Gradients are summed over the group and
BatchNorm takes its statistics over the joint batch, so that the result is that of one process with the joint batch, to
rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nas.errors import UsageError


@dataclass(frozen=True, slots=True)
class Group:
    """rank: number of this process among `size`. device: where it computes."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def share(self, count: int) -> np.ndarray:
        """The rows of a batch of `count` that are this process's, int64.

        A row and its mirror (count - 1 - row) go to one process, as timm's mixup pairs these two.
        """
        rows = np.arange(count)
        return rows[np.minimum(rows, count - 1 - rows) % self.size == self.rank]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the group, in one message."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def total(self, value: float) -> float:
        """Sum of a number over the group."""
        if self.size == 1:
            return value
        number = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(number)
        return float(number)

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            dist.barrier()

    def joint_statistics(self) -> AbstractContextManager[Any]:
        """Inside, BatchNorm in training mode normalises with the statistics of the joint batch."""
        return _JointBatchNorm() if self.size > 1 else nullcontext()


@contextmanager
def process_group(device: str | torch.device | None = None) -> Iterator[Group]:
    """The group that torchrun made, or one of this process alone.

    device: default CUDA where there is one; in a group, the GPU of the local rank. Raises UsageError where torchrun
    started more processes than there are GPUs (and there is any).
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if size == 1 or dist.is_initialized():
        yield Group(0, 1, kind)
        return
    if kind.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"torchrun started process {local} of this machine, which has {torch.cuda.device_count()} GPUs; give "
                "--nproc-per-node the number of GPUs"
            )
        kind = torch.device("cuda", local)
        torch.cuda.set_device(kind)
    dist.init_process_group("nccl" if kind.type == "cuda" else "gloo")
    try:
        yield Group(dist.get_rank(), size, kind)
    finally:
        dist.destroy_process_group()


class _GroupSum(torch.autograd.Function):
    """Sum of a tensor over the group, which every process has; so every gradient of it reaches every process."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def _group_sum(tensor: Tensor) -> Tensor:
    total: Tensor = _GroupSum.apply(tensor)
    return total


class _JointBatchNorm(TorchFunctionMode):
    """Computes `F.batch_norm` in training mode over all processes (torch's SyncBatchNorm does, but on GPUs only and as
    another layer)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given = dict(zip(names, args, strict=False)) | kwargs
        if not given.get("training"):
            return func(*args, **kwargs)
        return _joint_batch_norm(**{name: given.get(name) for name in names if name != "training"})


def _joint_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float | None,
    eps: float | None,
) -> Tensor:
    """[batch, channels, ...] normalised per channel over the joint batch; running statistics as torch keeps them."""
    x = input.float()
    axes = [axis for axis in range(x.ndim) if axis != 1]
    count = torch.tensor(x.numel() / x.shape[1], device=x.device)
    dist.all_reduce(count)
    mean = _group_sum(x.sum(axes)) / count
    shape = [1, -1, *([1] * (x.ndim - 2))]
    centred = x - mean.view(shape)
    variance = _group_sum(centred.square().sum(axes)) / count
    if running_mean is not None and running_var is not None:
        step = 0.1 if momentum is None else momentum
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean), step)
            running_var.lerp_((variance * (count / (count - 1))).to(running_var), step)
    out = centred * torch.rsqrt(variance + (1e-5 if eps is None else eps)).view(shape)
    if weight is not None:
        out = out * weight.view(shape)
    if bias is not None:
        out = out + bias.view(shape)
    return out.to(input.dtype).contiguous(memory_format=torch.channels_last) if x.ndim == 4 else out.to(input.dtype)
