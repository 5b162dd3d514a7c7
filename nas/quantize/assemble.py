"""From a trained plain network to its folded and quantized forms.

BatchNorm statistics on training images, folding, activation ranges on training images, fake quantization.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from nas.accuracy import recalibrate_batchnorm
from nas.bits import bits_at
from nas.quantize.calibration import Calibration
from nas.quantize.graph import INPUT, Point, quantization_points, trace, weighted_layers
from nas.quantize.grid import ActivationGrid, Quantizer, WeightGrid, activation_grid, weight_grid
from nas.quantize.ranges import find_ranges
from search_spaces.architecture import Architecture
from search_spaces.network import MetaFormerNet, fold_


class QuantizedNetwork(nn.Module):
    """The folded network with every weight on its grid and a quantizer behind every tensor that is written.

    For inference; images [batch, channels, height, width] to float logits [batch, num_classes].
    weight_grids: by path of the layer. activation_grids: by name of the tensor (`nas.quantize.graph.Point`).
    """

    def __init__(
        self,
        body: fx.GraphModule,
        weight_grids: dict[str, WeightGrid],
        activation_grids: dict[str, ActivationGrid],
    ) -> None:
        super().__init__()
        self.body, self.weight_grids, self.activation_grids = body, weight_grids, activation_grids

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.contiguous(memory_format=torch.channels_last))


@dataclass(frozen=True)
class Prepared:
    """A candidate, ready to be scored and exported.

    folded: float, deploy form. quantized: fake-quantized from it. calibration: reproduces both from the
    weights.
    """

    folded: MetaFormerNet
    calibration: Calibration
    quantized: QuantizedNetwork


def prepare(
    network: MetaFormerNet,
    arch: Architecture,
    bn_batches: Iterable[Tensor],
    calibration_batches: Iterable[Tensor],
    *,
    data: str = "",
    weights: str = "",
) -> Prepared:
    """Calibrate a copy of `network` on training images [batch, channels, height, width], fold, quantize.

    data, weights: identities that the calibration carries. Deterministic given weights, architecture, images.
    Raises ValueError without images, and for a layer that has no quantization rule.
    """
    network = _copy_for_inference(network)
    norm_images = recalibrate_batchnorm(network, bn_batches)
    norms = {
        name: (norm.running_mean.clone(), norm.running_var.clone())
        for name, norm in _batchnorms(network).items()
    }
    folded = _fold(network)
    graph = trace(folded)
    points = quantization_points(folded, graph, arch)
    ranges, range_images = find_ranges(folded, graph, points, calibration_batches)
    calibration = Calibration(norms, ranges, arch.key, data, weights, norm_images, range_images)
    return Prepared(folded, calibration, _quantize(folded, graph, points, arch, ranges))


def restore(network: MetaFormerNet, arch: Architecture, calibration: Calibration) -> Prepared:
    """What `prepare` made of the same weights, from its calibration, without images.

    Raises ValueError when the calibration is of another architecture.
    """
    if calibration.architecture != arch.key:
        raise ValueError(f"the calibration is of architecture {calibration.architecture}, but got {arch.key}")
    network = _copy_for_inference(network)
    for name, norm in _batchnorms(network).items():
        mean, var = calibration.norms[name]
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
    folded = _fold(network)
    graph = trace(folded)
    points = quantization_points(folded, graph, arch)
    return Prepared(folded, calibration, _quantize(folded, graph, points, arch, calibration.ranges))


def _copy_for_inference(network: MetaFormerNet) -> MetaFormerNet:
    return copy.deepcopy(network).eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _batchnorms(network: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}


def _fold(network: MetaFormerNet) -> MetaFormerNet:
    fold_(network)
    network.deploy = True
    return network.requires_grad_(False).to(memory_format=torch.channels_last)


@torch.inference_mode()
def _quantize(
    folded: MetaFormerNet,
    graph: fx.Graph,
    points: list[Point],
    arch: Architecture,
    ranges: Mapping[str, tuple[float, float]],
) -> QuantizedNetwork:
    """The quantized network around `graph`, which it takes over; `folded` is not changed."""
    modules: dict[str, nn.Module] = dict(folded.named_modules())
    weight_grids: dict[str, WeightGrid] = {}
    for path, layer in weighted_layers(folded).items():
        weight_grids[path] = weight_grid(layer.weight, bits_at(path, "", arch)[0])
        modules[path] = _rounded(layer, weight_grids[path])
    activation_grids: dict[str, ActivationGrid] = {}
    for point in points:
        grid = activation_grid(*ranges[point.name], point.bits)
        activation_grids[point.name] = grid
        name = "quantizers." + point.name.replace(".", "_")
        modules[name] = Quantizer(grid, owns_input=point.name != INPUT)
        with graph.inserting_after(point.node):
            quantizer = graph.call_module(name, (point.node,))
        point.node.replace_all_uses_with(quantizer)
        quantizer.args = (point.node,)  # its own input was replaced too
    body = fx.GraphModule(modules, graph, "Quantized")
    return QuantizedNetwork(body, weight_grids, activation_grids).eval()


def _rounded(layer: nn.Conv2d | nn.Linear, grid: WeightGrid) -> nn.Module:
    """A copy of `layer` with its weight on the grid; the bias is shared."""
    rounded = copy.copy(layer)
    rounded._parameters = dict(layer._parameters)
    values = grid.values(grid.codes(layer.weight))
    if values.dim() == 4:
        values = values.contiguous(memory_format=torch.channels_last)
    rounded.weight = nn.Parameter(values, requires_grad=False)
    return rounded
