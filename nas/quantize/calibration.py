"""What calibration found: BatchNorm statistics and activation ranges. Frozen, in one safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

_FORMAT = "nas calibration 1"


@dataclass(frozen=True, eq=False)
class Calibration:
    """With the network's weights it determines the folded and the quantized network, bit for bit.

    norms: BatchNorm module path -> (running mean, running variance), each [channels] float32.
    ranges: name of a quantized tensor -> (low, high), after clipping.
    architecture: key of the architecture. data, weights: identities of the images and weights it was made with.
    norm_images, range_images: how many training images each part saw.
    """

    norms: Mapping[str, tuple[Tensor, Tensor]]
    ranges: Mapping[str, tuple[float, float]]
    architecture: str
    data: str
    weights: str
    norm_images: int
    range_images: int

    @cached_property
    def key(self) -> str:
        """Sixteen hexadecimal digits of the content."""
        return hashlib.sha256(self.to_bytes()).hexdigest()[:16]

    def identity(self) -> dict[str, Any]:
        """What it is, JSON-able, without the tensors."""
        return {
            "architecture": self.architecture,
            "data": self.data,
            "weights": self.weights,
            "norm_images": self.norm_images,
            "range_images": self.range_images,
        }

    def to_bytes(self) -> bytes:
        """A safetensors file; equal calibrations give equal bytes."""
        tensors = {"ranges": torch.tensor(list(self.ranges.values()), dtype=torch.float64).reshape(-1, 2)}
        for name, (mean, var) in self.norms.items():
            tensors[f"{name}.mean"], tensors[f"{name}.var"] = mean.contiguous(), var.contiguous()
        header = {
            "format": _FORMAT,
            "norms": list(self.norms),
            "ranges": list(self.ranges),
            **self.identity(),
        }
        # One key: safetensors writes several in no fixed order, and the bytes would differ between processes.
        return safetensors.torch.save(tensors, metadata={"nas": json.dumps(header, sort_keys=True)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Calibration:
        """Inverse of `to_bytes`. Raises ValueError when `data` is damaged or something else."""
        try:
            size = int.from_bytes(data[:8], "little")
            header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["nas"])
            if header.pop("format") != _FORMAT:
                raise ValueError("another format")
            tensors = safetensors.torch.load(data)
            norms = {name: (tensors[f"{name}.mean"], tensors[f"{name}.var"]) for name in header.pop("norms")}
            pairs = tensors["ranges"].tolist()
            ranges = {name: (low, high) for name, (low, high) in zip(header.pop("ranges"), pairs, strict=True)}
            return cls(norms=norms, ranges=ranges, **header)
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"not a calibration of this program, or damaged: {error}") from error
