"""Quantized networks, against a hand-written evaluation and against their float networks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_networks import MIXER_KERNELS, random_images, random_network, small_architecture
from torch import Tensor, fx, nn
from torch.nn import functional as F

from nas.accuracy import predict
from nas.quantize import Calibration, Prepared, prepare, restore
from nas.quantize.graph import quantization_points
from search_spaces.architecture import Architecture


def prepared(arch: Architecture) -> Prepared:
    images = random_images(64)
    return prepare(random_network(arch), arch, images.split(32), images.split(32))


def signal_to_noise(signal: Tensor, other: Tensor) -> float:
    """Decibels."""
    return float(10 * torch.log10(signal.var() / (signal - other).var()))


def reference_rounding(
    candidate: Prepared,
) -> tuple[Callable[[str, Tensor], Tensor], Callable[[str], Tensor]]:
    """Activation and weight quantization written again, in numpy, from nothing but scales and zero points."""
    modules = dict(candidate.folded.named_modules())

    def activation(name: str, x: Tensor) -> Tensor:
        grid = candidate.quantized.activation_grids[name]
        scale = np.float32(grid.scale)
        codes = np.clip(np.rint(x.numpy() / scale) + grid.zero_point, *grid.bounds)
        return torch.from_numpy(((codes - grid.zero_point) * scale).astype(np.float32))

    def weight(path: str) -> Tensor:
        grid = candidate.quantized.layer_grids[path]
        values = modules[path].weight.numpy()
        scale = grid.scale.numpy().reshape(-1, *[1] * (values.ndim - 1))
        limit = 2 ** (grid.bits - 1)
        return torch.from_numpy(np.clip(np.rint(values / scale), -limit, limit - 1) * scale)

    return activation, weight


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w8a16"])
def test_a_network_equals_its_hand_written_evaluation(bits: str) -> None:
    candidate = prepared(small_architecture([("dwconv", 5)], bits, activation="gelu", stages=1))
    q, w = reference_rounding(candidate)
    bias = {path: module.bias for path, module in candidate.folded.named_modules() if hasattr(module, "bias")}
    for path, grid in candidate.quantized.layer_grids.items():
        unit = grid.scale * grid.input_scale
        bias[path] = torch.round(bias[path] / unit) * unit
    block = "stages.0.blocks.0"
    x = q("input", random_images(16, seed=2))
    x = q("stem.conv1.conv", F.conv2d(x, w("stem.conv1.conv"), bias["stem.conv1.conv"], 2, 1))
    path = f"{block}.token_mixer.dwconv"
    y = q(path, F.conv2d(x, w(path), bias[path], padding=2, groups=32))
    x = q(f"{block}.add1", x + y)
    y = F.conv2d(x, w(f"{block}.mlp.fc1"), bias[f"{block}.mlp.fc1"])
    y = q(f"{block}.mlp.act", F.gelu(y))  # the layer and its activation are one operation
    y = q(f"{block}.mlp.fc2", F.conv2d(y, w(f"{block}.mlp.fc2"), bias[f"{block}.mlp.fc2"]))
    x = q(f"{block}.add2", x + y)
    x = q("head.global_pool", x.mean((2, 3)))
    expected = F.linear(x, w("head.fc"), bias["head.fc"])
    actual = predict(candidate.quantized, [random_images(16, seed=2)])
    # A sum in another order may fall on the other side of a rounding boundary: one step, here and there.
    assert signal_to_noise(expected, actual) > 45
    assert set(candidate.quantized.activation_grids) == {
        "input", "stem.conv1.conv", path, f"{block}.add1", f"{block}.mlp.act", f"{block}.mlp.fc2",
        f"{block}.add2", "head.global_pool",
    }  # fmt: skip


def test_bits_follow_the_policy_of_the_block() -> None:
    grids = prepared(small_architecture([("relu_linear", 0)], "w4a8")).quantized
    weights = {path: grid.bits for path, grid in grids.layer_grids.items()}
    assert {path for path, bits in weights.items() if bits == 8} == {
        "stem.conv1.conv", "stages.1.downsample.conv", "head.fc",
    }  # fmt: skip
    wide = {name.rpartition(".")[2] for name, grid in grids.activation_grids.items() if grid.bits == 16}
    assert wide == {"state", "numerator", "denominator"}
    outside = prepared(small_architecture([("dwconv", 3)], "w8a16")).quantized.activation_grids
    assert {name for name, grid in outside.items() if grid.bits == 8} == {
        "input", "stem.conv1.conv", "stages.1.downsample.conv", "head.global_pool",
    }  # fmt: skip


def test_concatenated_tensors_share_one_grid() -> None:
    names = prepared(small_architecture([("inception", 0)], stages=1)).quantized.activation_grids
    assert [name for name in names if "token_mixer" in name] == ["stages.0.blocks.0.token_mixer.cat"]


@pytest.mark.parametrize("norm", ["batchnorm", "layernorm"])
@pytest.mark.parametrize(("mixer", "kernel"), MIXER_KERNELS)
def test_more_bits_are_closer_to_float(mixer: str, kernel: int, norm: str) -> None:
    images = random_images(32, seed=2)
    noise = {}
    for bits in ("w4a8", "w8a8", "w16a16"):
        candidate = prepared(small_architecture([(mixer, kernel)], bits, norm, stages=1))
        noise[bits] = signal_to_noise(predict(candidate.folded, [images]), predict(candidate.quantized, [images]))
    assert noise["w4a8"] < noise["w8a8"] < noise["w16a16"] + 0.1
    # Input, stem and head have 8 bits whatever the policy of the blocks is.
    assert noise["w8a8"] > 20
    assert noise["w16a16"] > 25


def test_preparation_is_deterministic_and_restores_from_its_calibration() -> None:
    arch = small_architecture([("mbconv", 3), ("relu_linear", 0), ("pool", 0)], "w4a8")
    images = random_images(32, seed=2)
    one, other = prepared(arch), prepared(arch)
    assert one.calibration.to_bytes() == other.calibration.to_bytes()
    assert one.calibration.key == other.calibration.key
    again = restore(random_network(arch), arch, Calibration.from_bytes(one.calibration.to_bytes()))
    assert again.calibration.key == one.calibration.key
    logits = predict(one.quantized, [images])
    assert torch.equal(logits, predict(other.quantized, [images]))
    assert torch.equal(logits, predict(again.quantized, [images]))
    assert torch.equal(predict(one.folded, [images]), predict(again.folded, [images]))


def test_preparation_changes_neither_network_nor_images() -> None:
    arch = small_architecture([("mhsa", 0), ("pool", 0)])
    network, images = random_network(arch), random_images(32)
    before, pixels = {name: value.clone() for name, value in network.state_dict().items()}, images.clone()
    candidate = prepare(network, arch, [images], [images])
    predict(candidate.quantized, [images])
    assert torch.equal(images, pixels)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_in_place_is_the_same_without_a_copy() -> None:
    arch = small_architecture(MIXER_KERNELS, stages=1)
    images, network = random_images(32), random_network(arch)
    copied = prepare(network, arch, images.split(16), images.split(16))
    again = prepare(network, arch, images.split(16), images.split(16), in_place=True)
    assert copied.calibration.to_bytes() == again.calibration.to_bytes()
    assert again.folded is network
    assert copied.folded is not network
    batches = images.split(8)
    expected = predict(copied.quantized, batches)
    assert torch.equal(predict(again.quantized, batches), expected)


def test_batches_at_a_time_change_no_logit() -> None:
    """The quantized network of every mixer keeps nothing of a batch."""
    arch = small_architecture(MIXER_KERNELS, stages=1)
    images = random_images(64)
    quantized = prepare(random_network(arch), arch, [images], [images]).quantized
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = predict(quantized, images.split(4))
        for _ in range(3):
            assert torch.equal(predict(quantized, images.split(4), streams=4), one)
    finally:
        torch.set_num_threads(threads)


def test_folding_keeps_the_function() -> None:
    arch = small_architecture(MIXER_KERNELS, stages=1)
    images, network = random_images(32), random_network(arch)
    candidate = prepare(network, arch, [images], [images])
    for name, (mean, var) in candidate.calibration.norms.items():
        norm = network.get_submodule(name)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
    torch.testing.assert_close(predict(candidate.folded, [images]), predict(network, [images]), rtol=1e-4, atol=1e-4)


def test_a_damaged_or_foreign_calibration_is_refused() -> None:
    arch = small_architecture([("dwconv", 3)])
    candidate = prepared(arch)
    data = candidate.calibration.to_bytes()
    for bad in (
        data[:-3],
        data[:10],
        b"",
        b"x" * 100,
        data.replace(b"nas calibration 1", b"nas calibration 9"),
    ):
        with pytest.raises(ValueError, match="not a calibration"):
            Calibration.from_bytes(bad)
    other = small_architecture([("dwconv", 5)])
    with pytest.raises(ValueError, match=arch.key):
        restore(random_network(other), other, candidate.calibration)


def test_calibration_without_images_is_refused() -> None:
    arch = small_architecture([("dwconv", 3)])
    with pytest.raises(ValueError, match="at least one image"):
        prepare(random_network(arch), arch, [], [random_images(8)])
    with pytest.raises(ValueError, match="at least one image"):
        prepare(random_network(arch), arch, [random_images(8)], [])


def test_weights_that_diverged_are_named() -> None:
    arch = small_architecture([("dwconv", 3)])
    network = random_network(arch)
    with torch.no_grad():
        network.stages[0].blocks[0].mlp.fc1.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"stages\.0\.blocks\.0.* not finite"):
        prepare(network, arch, [random_images(8)], [random_images(8)])


def test_an_unknown_operation_is_named() -> None:
    arch = small_architecture([("dwconv", 3)])

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cumsum(x, 1)

    network = Odd()
    with pytest.raises(ValueError, match="cumsum"):
        quantization_points(network, fx.symbolic_trace(network).graph, arch)
