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
from nas.quantize.graph import Point, quantization_points, tensors_read, trace, weighted_layers
from nas.quantize.grid import ActivationGrid, LayerGrid, Quantizer, activation_grid, layer_grid
from nas.quantize.ranges import find_ranges
from search_spaces.architecture import Architecture
from search_spaces.network import MetaFormerNet, fold_


class QuantizedNetwork(nn.Module):
    """The folded network with every weight on its grid and a quantizer behind every tensor that is written.

    For inference; images [batch, channels, height, width] to float logits [batch, num_classes].
    layer_grids: by path of the layer. activation_grids: by name of the tensor (`nas.quantize.graph.Point`).
    """

    def __init__(
        self,
        body: fx.GraphModule,
        layer_grids: dict[str, LayerGrid],
        activation_grids: dict[str, ActivationGrid],
    ) -> None:
        super().__init__()
        self.body, self.layer_grids, self.activation_grids = body, layer_grids, activation_grids

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.contiguous(memory_format=torch.channels_last))


@dataclass(frozen=True)
class Prepared:
    """A candidate, ready to be scored and exported.

    folded: float, deploy form. quantized: fake-quantized from it. calibration: reproduces both from the weights.
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
    in_place: bool = False,
) -> Prepared:
    """Calibrate a copy of `network` on training images [batch, channels, height, width], fold, quantize.

    data, weights: identities that the calibration carries. in_place: `network` itself becomes the folded one, for a
    caller that has no other use for it: a copy takes a tenth of the time. Deterministic given weights, architecture,
    images.
    Raises ValueError without images, and for a layer that has no quantization rule.
    """
    network = _for_inference(network if in_place else copy.deepcopy(network))
    norm_images = recalibrate_batchnorm(network, bn_batches)
    norms = {name: (norm.running_mean.clone(), norm.running_var.clone()) for name, norm in _batchnorms(network).items()}
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
    network = _for_inference(copy.deepcopy(network))
    for name, norm in _batchnorms(network).items():
        mean, var = calibration.norms[name]
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
    folded = _fold(network)
    graph = trace(folded)
    points = quantization_points(folded, graph, arch)
    return Prepared(folded, calibration, _quantize(folded, graph, points, arch, calibration.ranges))


def _for_inference(network: MetaFormerNet) -> MetaFormerNet:
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _batchnorms(network: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}


def _fold(network: MetaFormerNet) -> MetaFormerNet:
    fold_(network)
    network.deploy = True
    return network.requires_grad_(False).to(memory_format=torch.channels_last)


@torch.no_grad()
def _quantize(
    folded: MetaFormerNet,
    graph: fx.Graph,
    points: list[Point],
    arch: Architecture,
    ranges: Mapping[str, tuple[float, float]],
) -> QuantizedNetwork:
    """The quantized network around `graph`, which it takes over; `folded` is not changed."""
    modules: dict[str, nn.Module] = dict(folded.named_modules())
    layers = weighted_layers(folded)
    read = tensors_read(folded, graph, points)
    activation_grids = {point.name: activation_grid(*ranges[point.name], point.bits) for point in points}
    layer_grids = {}
    for path, layer in layers.items():
        assert layer.bias is not None
        bits, _ = bits_at(path, getattr(layer, "role", ""), arch)
        input_scale = activation_grids[read[path]].scale
        layer_grids[path] = layer_grid(layer.weight, layer.bias, bits, input_scale)
        modules[path] = _rounded(layer, layer_grids[path])
    for point in points:
        name = "quantizers." + point.name.replace(".", "_")
        computed = bool(point.node.all_input_nodes)  # the images and constants are others' too
        modules[name] = Quantizer(activation_grids[point.name], owns_input=computed)
        with graph.inserting_after(point.node):
            quantizer = graph.call_module(name, (point.node,))
        point.node.replace_all_uses_with(quantizer)
        quantizer.args = (point.node,)  # its own input was replaced too
    body = fx.GraphModule(modules, graph, "Quantized")
    return QuantizedNetwork(body, layer_grids, activation_grids).eval()


def _rounded(layer: nn.Conv2d | nn.Linear, grid: LayerGrid) -> nn.Module:
    """A copy of `layer` with weight and bias on their grids."""
    rounded = copy.copy(layer)
    assert layer.bias is not None
    weight = grid.values(grid.codes(layer.weight))
    if weight.dim() == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    bias = grid.bias_codes(layer.bias).float() * grid.bias_scale
    rounded._parameters = {name: nn.Parameter(value, False) for name, value in (("weight", weight), ("bias", bias))}
    rounded._buffers = {}  # where weights that are not learned lie
    return rounded
