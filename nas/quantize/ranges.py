"""Static activation ranges from training images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from nas.quantize.graph import Point
from nas.quantize.grid import clipped_range

SAMPLES_PER_TENSOR = 8192
"""Values of a tensor, over all calibration images, on which its clipping is chosen."""


class _RangeFinder(fx.Interpreter):
    """Runs the float network and notes, of every point, its extremes and a fixed random sample of values."""

    def __init__(self, network: nn.Module, graph: fx.Graph, points: list[Point], samples: int) -> None:
        super().__init__(network, graph=graph)
        self.points = {point.node: point for point in points}
        self.samples = samples
        self.extremes: dict[str, tuple[float, float]] = {}
        self.values: dict[str, list[Tensor]] = {point.name: [] for point in points}
        self.generator = torch.Generator().manual_seed(0)

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        point = self.points.get(n)
        if point is not None:
            self._note(point, out)
        return out

    def _note(self, point: Point, tensor: Tensor) -> None:
        low, high = (float(value) for value in tensor.aminmax())
        before = self.extremes.get(point.name, (low, high))
        self.extremes[point.name] = min(low, before[0]), max(high, before[1])
        if point.bits == 8:
            picks = torch.randint(tensor.numel(), (self.samples,), generator=self.generator).to(tensor.device)
            # Every noted tensor is dense: in memory order, whatever its format, this is a view.
            dense = tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
            self.values[point.name].append(dense[picks])


@torch.inference_mode()
def find_ranges(
    folded: nn.Module, graph: fx.Graph, points: list[Point], batches: Iterable[Tensor]
) -> tuple[dict[str, tuple[float, float]], int]:
    """Ranges by name of the point, and the number of images seen.

    folded: the float network that `graph` is of. Raises ValueError without images, and for a tensor that is not finite.
    """
    batches = list(batches)
    images = sum(len(batch) for batch in batches)
    if not images:
        raise ValueError("activation ranges need at least one image, but got none")
    finder = _RangeFinder(folded, graph, points, -(-SAMPLES_PER_TENSOR // len(batches)))
    for batch in batches:
        finder.run(batch.contiguous(memory_format=torch.channels_last))
    ranges = {}
    for point in points:
        low, high = finder.extremes[point.name]
        if not (low > -float("inf") and high < float("inf")):
            raise ValueError(f"the tensor {point.name} is not finite on the calibration images: [{low}, {high}]")
        samples = torch.cat(finder.values[point.name]) if point.bits == 8 else torch.empty(0)
        ranges[point.name] = clipped_range(low, high, samples, point.bits)
    return ranges, images
