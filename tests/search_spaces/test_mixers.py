"""What every token mixer of the registry must do: shared, folded, traced, trained, exported and quantized alike."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import random_images, random_network, randomize, small_architecture
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hw_models.workload import Workload
from nas.accuracy import predict
from nas.export.macs import count_macs
from nas.export.onnx_files import INPUT_NAME, export_graph, integer_form
from nas.export.verify import onnx_session
from nas.quantize import Prepared, prepare
from nas.trace import trace_module
from search_spaces.architecture import NORMS, Architecture
from search_spaces.menu import MENU
from search_spaces.metaformer import load_space
from search_spaces.mixers import MIXERS
from search_spaces.network import MetaFormerBlock, MetaFormerNet, bound_size, fold, network_kwargs
from search_spaces.parts import network_parts
from search_spaces.space import SearchSpace
from search_spaces.supernet import Supernet

every_mixer = pytest.mark.parametrize("mixer", MIXERS)
with_weights = pytest.mark.parametrize("mixer", [name for name in MIXERS if name not in ("identity", "pool")])
STAGE = 2
"""The stage that is looked at: any mixer may stand there."""


def space_of(mixer: str) -> SearchSpace:
    """The small preset at 24 and 40 px with blocks of this mixer only, where it may stand."""
    assert mixer in MENU, f"{mixer} has no row in MENU (search_spaces/menu.py)"
    words: list[Any] = MENU[mixer].words(mixer)
    sizes = [40] if MIXERS[mixer].token_bound else [24, 40]
    choices: dict[str, list[Any]] = {"resolution": sizes, "depth": [1], "stage3.mixer": words, "stage4.mixer": words}
    return load_space("metaformer", mixers=["identity", mixer], choices=choices)


def some_architectures(space: SearchSpace, mixer: str, count: int = 3) -> list[Architecture]:
    rng = np.random.default_rng(zlib.crc32(mixer.encode()))
    return [space.decode(space.sample(rng)) for _ in range(count)]


def make(mixer: str, dim: int, kernel: int, role_width: int = 16, size: int = 5, activation: str = "gelu") -> nn.Module:
    bound = bound_size(mixer, size)
    family: Any = MIXERS[mixer]
    return family(dim, kernel=kernel, expansion=2.0, role_width=role_width, activation=activation, **bound)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cut(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Leading channels, middle of the kernel: written for up to four dimensions, apart from the supernet's own rule."""
    for dim in (0, 1)[: tensor.ndim]:
        tensor = tensor.narrow(dim, 0, shape[dim])
    for dim in (2, 3)[: max(0, tensor.ndim - 2)]:
        tensor = tensor.narrow(dim, (tensor.shape[dim] - shape[dim]) // 2, shape[dim])
    return tensor.clone()


@every_mixer
def test_the_supernet_equals_the_extracted_network_and_a_plain_layer_with_sliced_weights(mixer: str) -> None:
    space = space_of(mixer)
    supernet = randomize(Supernet(space, 5)).eval()
    for arch in some_architectures(space, mixer):
        network, x, side = supernet.subnet(arch), noise(2, 3, arch.resolution, arch.resolution), arch.resolution // 8
        with torch.no_grad():
            for images in (x, x.contiguous(memory_format=torch.channels_last)):
                assert torch.equal(supernet(images, arch), network(images))
            stage = arch.stages[STAGE]
            block = stage.blocks[0]
            assert block.mixer in (mixer, "identity")
            features = noise(2, stage.width, side, side)
            plain = make(mixer, stage.width, block.kernel, stage.role_width, side, stage.activation).eval()
            if not MIXERS[mixer].replaces_block:
                shared = supernet.stages[STAGE].blocks[0].token_mixer[mixer].state_dict()
                plain.load_state_dict({name: cut(shared[name], t.shape) for name, t in plain.state_dict().items()})
                assert torch.equal(network.stages[STAGE].blocks[0].token_mixer(features), plain(features))


@with_weights
def test_channels_keep_their_roles_at_every_width(mixer: str) -> None:
    """With zeros for all that a narrow mixer has not, the wide one computes what the narrow one does."""
    kernel = MIXERS[mixer].kernels[-1]
    narrow = randomize(make(mixer, 32, kernel)).eval()
    wide = make(mixer, 64, kernel).eval()
    learned = dict(wide.named_parameters())
    state = wide.state_dict()
    for name, small in narrow.state_dict().items():
        if name in learned or "running" in name:
            state[name] = torch.ones_like(state[name]) if "running_var" in name else torch.zeros_like(state[name])
            state[name][tuple(slice(0, size) for size in small.shape)] = small
        elif small.shape == state[name].shape:  # not learned and as wide: one for both
            state[name] = small
    wide.load_state_dict(state)
    x = torch.zeros(2, 64, 5, 5)
    x[:, :32] = noise(2, 32, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(wide(x)[:, :32], narrow(x[:, :32]), rtol=1e-4, atol=1e-5)


@every_mixer
def test_every_map_keeps_its_shape_or_the_bound_is_declared(mixer: str) -> None:
    layer = make(mixer, 32, MIXERS[mixer].kernels[-1], size=4).eval()
    with torch.no_grad():
        assert layer(noise(2, 32, 4, 4)).shape == (2, 32, 4, 4)
        for side in (1, 2, 3, 7, 8, 14):
            if MIXERS[mixer].token_bound:
                with pytest.raises(RuntimeError):
                    layer(noise(1, 32, side, side))
            else:
                if MIXERS[mixer].sized:
                    layer = make(mixer, 32, MIXERS[mixer].kernels[-1], size=side).eval()
                assert layer(noise(1, 32, side, side)).shape == (1, 32, side, side)


def blocks_of(mixer: str, norm: str) -> tuple[Architecture, MetaFormerNet, MetaFormerNet]:
    """A small architecture, its network with random weights, and that folded."""
    arch = small_architecture([(mixer, MIXERS[mixer].kernels[-1])], norm=norm, activation="hardswish", stages=1)
    network = randomize(random_network(arch)).eval()
    return arch, network, fold(network)


@every_mixer
@pytest.mark.parametrize("norm", NORMS)
def test_folding_changes_nothing_but_rounding_and_is_the_form_that_is_costed(mixer: str, norm: str) -> None:
    arch, network, folded = blocks_of(mixer, norm)
    block, merged = network.stages[0].blocks[0], folded.stages[0].blocks[0]
    x = noise(2, 32, 8, 8)
    with torch.no_grad():
        expected = block(x)
        assert (merged(x) - expected).norm() <= 1e-5 * expected.norm()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    for other in (
        MetaFormerNet(**network_kwargs(arch), deploy=True).stages[0].blocks[0],  # what an exported folder builds
        next(part.build() for part in network_parts(arch, 10) if part.name == "stages.0.blocks.0"),  # what is costed
    ):
        shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
        assert shapes == {name: tensor.shape for name, tensor in merged.state_dict().items()}


@every_mixer
def test_macs_equal_those_of_torch_and_fvcore(mixer: str) -> None:
    _, network, folded = blocks_of(mixer, "layernorm")
    counts = count_macs(folded, (1, 3, 16, 16))
    assert counts.equal, counts
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.to("meta")(torch.empty(1, 3, 16, 16, device="meta"))
    assert trace_module(network, [(1, 3, 16, 16)]).macs == counter.get_total_flops() // 2


@every_mixer
def test_a_block_is_traced_without_unknown_operations(mixer: str) -> None:
    for side in (4, 7):
        workload: Workload = trace_module(
            MetaFormerBlock(48, mixer, MIXERS[mixer].kernels[0], 2.0, "batchnorm", "gelu", 16, size=side).to("meta"),
            [(1, 48, side, side)],
        )
        assert workload.outputs
        assert len({op.name for op in workload.ops}) == len(workload.ops)


@every_mixer
def test_only_a_mixer_that_is_the_whole_block_has_a_hidden_width(mixer: str) -> None:
    """The supernet takes the parts of two blocks of different expansion for the same."""
    arguments: dict[str, Any] = {"kernel": MIXERS[mixer].kernels[0], "role_width": 16, "activation": "relu"}
    bound: dict[str, Any] = {"size": 5} if MIXERS[mixer].token_bound or MIXERS[mixer].sized else {}
    small, large = (MIXERS[mixer](32, expansion=e, **arguments, **bound).state_dict() for e in (1.0, 4.0))
    same = {k: v.shape for k, v in small.items()} == {k: v.shape for k, v in large.items()}
    assert same != MIXERS[mixer].replaces_block


@with_weights
def test_gradient_reaches_every_active_parameter_and_no_other(mixer: str) -> None:
    space = space_of(mixer)
    supernet = randomize(Supernet(space, 5)).train()
    smallest = {choice.name: choice.values[0] for choice in space.choices}
    arch = space.decode(smallest | {"activation": "gelu", "resolution": 40})
    supernet(noise(4, 3, 40, 40), arch).square().sum().backward()
    active: dict[int, Tensor] = {}
    for source in (source for piece in supernet.pieces(arch) for source in piece.sources):
        tensor = getattr(source.owner, source.attribute)
        if not source.is_buffer:
            assert tensor.grad is not None, source.name
            used = tensor.grad if source.index is None else tensor.grad[source.index]
            # A bias in front of BatchNorm moves nothing; a whole matrix or kernel does.
            assert used.ndim == 1 or used.abs().max() > 0, source.name
            mask = torch.zeros_like(tensor, dtype=torch.bool)
            mask[source.index or ...] = True
            active[id(tensor)] = mask
    for parameter in supernet.parameters():
        if parameter.grad is not None:
            assert not parameter.grad[~active[id(parameter)]].any()


@dataclass(frozen=True)
class Exported:
    """A mixer's small network, and what ONNX Runtime computes of its files, [images, classes]."""

    prepared: Prepared
    floating: Tensor
    integer: Tensor


class _SideBySide(nn.Module):
    """Several networks on one input: one export, an output for each."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(network(x) for network in self.networks)


IMAGES = random_images(16, seed=2)


@pytest.fixture(scope="module")
def exported() -> dict[str, Exported]:
    """Every mixer through calibration, folding, quantization, ONNX and ONNX Runtime.

    Without channel mixers, which test_modifiers exports: they would be most of the nodes.
    """
    calibration = random_images(48)
    prepared = {}
    for mixer in MIXERS:
        arch = alone(mixer)
        prepared[mixer] = prepare(random_network(arch), arch, [calibration], [calibration])
    floating = _run([one.folded for one in prepared.values()])
    integer = _run([integer_form(one.quantized) for one in prepared.values()])
    return {mixer: Exported(one, x, q) for (mixer, one), x, q in zip(prepared.items(), floating, integer, strict=True)}


def alone(mixer: str) -> Architecture:
    """One block with a token mixer only; one without a token mixer, or whose mixer is the whole block, as it is."""
    arch = small_architecture([(mixer, MIXERS[mixer].kernels[-1])], stages=1)
    if mixer == "identity" or MIXERS[mixer].replaces_block:
        return arch
    (stage,) = arch.stages
    return replace(arch, stages=(replace(stage, blocks=(replace(stage.blocks[0], channel_mixer="none"),)),))


def _run(networks: list[nn.Module]) -> list[Tensor]:
    model = export_graph(_SideBySide(networks), (1, 3, 16, 16))
    assert not any(node.op_type in ("If", "Loop", "Scan") for node in model.graph.node)
    assert all(dim.dim_value > 0 for value in model.graph.output for dim in value.type.tensor_type.shape.dim)
    session = onnx_session(model.SerializeToString())
    runs = [session.run(None, {INPUT_NAME: image[None].numpy()}) for image in IMAGES]
    return [torch.from_numpy(np.concatenate(outputs)) for outputs in zip(*runs, strict=True)]


def decibels(signal: Tensor, other: Tensor) -> float:
    return float(10 * torch.log10(signal.var() / (signal - other).var().clamp_min(1e-20)))


@pytest.mark.slow
@pytest.mark.timeout(900)  # one core: 1.3 seconds a mixer, all in the first test, which exports
@every_mixer
def test_onnx_runtime_computes_the_float_network(mixer: str, exported: dict[str, Exported]) -> None:
    ours = predict(exported[mixer].prepared.folded, [IMAGES])
    assert (ours - exported[mixer].floating).abs().max() <= 1e-4 * ours.abs().max()


@pytest.mark.slow
@pytest.mark.timeout(900)
@every_mixer
def test_eight_bits_are_close_to_float_and_onnx_runtime_computes_them(
    mixer: str, exported: dict[str, Exported]
) -> None:
    prepared = exported[mixer].prepared
    ours = predict(prepared.quantized, [IMAGES])
    assert decibels(predict(prepared.folded, [IMAGES]), ours) > 20
    # Integer kernels round otherwise here and there. The worst is `dynamixer`, 25 dB: that of softmax rounds down, so
    # that the weights of a mixture add up to less than one.
    assert decibels(ours, exported[mixer].integer) > 23
    kinds = {type(module) for module in prepared.folded.modules()}
    assert nn.BatchNorm2d not in kinds


class Halves(nn.Module):
    """Shares by halves of its channels, as no mixer must."""

    kernels, token_bound, sized = (0,), False, False

    def __init__(self, dim: int, **_: Any) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        return torch.cat((left, -right), dim=1)


def test_a_mixer_that_shifts_roles_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MIXERS, "dwconv", Halves)  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        test_channels_keep_their_roles_at_every_width("dwconv")
