"""Weight sharing: the supernet equals the extracted network, and sharing equals hand-sliced plain layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from small_networks import randomize
from strategies import OPEN, OPEN_BLOCKWISE, SMALL, architectures
from torch import nn

import search_spaces.supernet
from search_spaces.architecture import Architecture, Block, Stage
from search_spaces.elastic import shared_index
from search_spaces.layers import Add
from search_spaces.menu import MENU
from search_spaces.metaformer import load_space
from search_spaces.mixers import MIXERS
from search_spaces.network import build_network, fold
from search_spaces.parts import network_parts
from search_spaces.supernet import Supernet

CLASSES = 7
ARCH = SMALL.decode(SMALL.sample(np.random.default_rng(3)))


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    return randomize(Supernet(OPEN, CLASSES)).eval()


@pytest.fixture(scope="module")
def blockwise() -> Supernet:
    return randomize(Supernet(OPEN_BLOCKWISE, CLASSES)).eval()


def images(arch: Architecture, channels_last: bool = False) -> torch.Tensor:
    x = torch.randn(3, 3, arch.resolution, arch.resolution, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def one_mixer(mixer: str, kernel: int, norm: str, activation: str, widths: tuple[int, ...], depth: int) -> Architecture:
    stages = tuple(
        Stage(width, role, norm, activation, (Block(mixer, kernel, 3.0),) * depth)
        for width, role in zip(widths, SMALL.role_widths, strict=True)
    )
    return Architecture(24, "conv3s2", stages)


@settings(max_examples=12, deadline=None)
@given(architectures(OPEN))
def test_supernet_equals_subnet_exactly(supernet, arch):
    with torch.no_grad():
        for channels_last in (False, True):
            x = images(arch, channels_last)
            assert torch.equal(supernet(x, arch), supernet.subnet(arch)(x))


@settings(max_examples=8, deadline=None)
@given(architectures(OPEN_BLOCKWISE))
def test_supernet_equals_subnet_exactly_with_different_blocks_in_a_stage(blockwise, arch):
    with torch.no_grad():
        x = images(arch)
        assert torch.equal(blockwise(x, arch), blockwise.subnet(arch)(x))


def test_depthwise_conv_shares_the_centre_of_the_largest_kernel(supernet):
    arch = one_mixer("dwconv", 3, "batchnorm", "relu", (16, 32, 64, 96), 1)
    block = supernet.subnet(arch).stages[1].blocks[0]
    full = supernet.stages[1].blocks[0]
    x = torch.randn(2, 32, 9, 9)
    weight = full.token_mixer["dwconv"].dwconv.weight[:32, :, 2:5, 2:5]
    bias = full.token_mixer["dwconv"].dwconv.bias[:32]
    mixed = F.conv2d(x, weight, bias, padding=1, groups=32)
    norm = full.norm1["dwconv"]["batchnorm"]
    normed = F.batch_norm(
        mixed, norm.running_mean[:32], norm.running_var[:32], norm.weight[:32], norm.bias[:32], eps=norm.eps
    )
    with torch.no_grad():
        torch.testing.assert_close(block.norm1(block.token_mixer(x)), normed)


def test_attention_takes_whole_heads(supernet):
    stages = one_mixer("mhsa", 0, "layernorm", "relu", (16, 32, 64, 96), 1).stages
    early = one_mixer("pool", 0, "layernorm", "relu", (16, 32, 64, 96), 1).stages
    arch = Architecture(24, "conv3s2", early[:2] + stages[2:])
    mixer = supernet.subnet(arch).stages[2].blocks[0].token_mixer
    full = supernet.stages[2].blocks[0].token_mixer["mhsa"]
    assert (mixer.heads, full.heads) == (2, 3)
    x = torch.randn(2, 64, 5, 5)
    tokens = x.flatten(2).transpose(1, 2)  # [batch, tokens, channels], the textbook form

    def heads(conv: nn.Conv2d) -> torch.Tensor:
        out = tokens @ conv.weight[:64, :64, 0, 0].T + conv.bias[:64]
        return out.unflatten(2, (2, 32)).transpose(1, 2)

    attended = F.scaled_dot_product_attention(heads(full.q), heads(full.k), heads(full.v))
    merged = attended.transpose(1, 2).flatten(2)
    expected = merged @ full.proj.weight[:64, :64, 0, 0].T + full.proj.bias[:64]
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), expected.transpose(1, 2).unflatten(2, (5, 5)), rtol=1e-4, atol=1e-5)


def test_linear_attention_equals_its_quadratic_form(supernet):
    arch = one_mixer("relu_linear", 0, "layernorm", "relu", (16, 32, 64, 96), 1)
    mixer = supernet.subnet(arch).stages[1].blocks[0].token_mixer
    x = torch.randn(2, 32, 4, 4)
    with torch.no_grad():
        q, k, v = (layer(x).unflatten(1, (2, 16)).flatten(3) for layer in (mixer.q, mixer.k, mixer.v))
        weights = q.relu().transpose(2, 3) @ k.relu() / 16  # [batch, heads, query, key]
        weights = weights / (weights.sum(3, keepdim=True) + mixer.kernel.eps)
        out = (v @ weights.transpose(2, 3)).flatten(1, 2).unflatten(2, (4, 4))
        expected = mixer.proj(out + mixer.dwconv(mixer.v(x)))
        torch.testing.assert_close(mixer(x), expected, rtol=1e-4, atol=1e-5)


def test_inception_channels_keep_their_role_at_every_width(supernet):
    outs = []
    x = torch.randn(1, 32, 8, 8)
    for width in (16, 32):
        arch = one_mixer("inception", 0, "batchnorm", "relu", (width, 32, 64, 96), 1)
        with torch.no_grad():
            outs.append(supernet.subnet(arch).stages[0].blocks[0].token_mixer(x[:, :width]))
    assert torch.equal(outs[0], outs[1][:, :16])


@settings(max_examples=5, deadline=None)
@given(architectures(SMALL))
def test_gradient_reaches_every_active_parameter_and_no_other(arch):
    supernet = Supernet(SMALL, CLASSES).train()
    supernet(images(arch), arch).square().sum().backward()
    reached = sum(int((p.grad != 0).sum()) for p in supernet.parameters() if p.grad is not None)
    active = sum(p.numel() for p in supernet.subnet(arch).parameters())
    assert reached <= active
    # A parameter without gradient may be a dead ReLU or a bias in front of BatchNorm; whole tensors are not.
    for source in (source for piece in supernet.pieces(arch) for source in piece.sources):
        if not source.is_buffer:
            assert getattr(source.owner, source.attribute).grad is not None, source.name


WHOLE = {family: mixer.channel_matrices for family, mixer in MIXERS.items() if mixer.replaces_block}


def test_every_mixer_that_is_the_whole_block_shares_its_pointwise_matrices() -> None:
    """The dense 3x3 of fused_mbconv is none of an MLP."""
    for family, matrices in WHOLE.items():
        make: Any = MIXERS[family]
        block = make(16, kernel=make.kernels[0], expansion=2.0, role_width=16, activation="relu")
        pointwise = {name for name, p in block.named_parameters() if p.ndim == 4 and p.shape[2:] == (1, 1)}
        assert {name for name, _ in matrices} == pointwise, f"name the 1x1 matrices of {family} in its channel_matrices"


@pytest.mark.parametrize("family", list(WHOLE))
def test_a_block_in_one_piece_trains_the_matrices_of_a_block_in_two(family: str) -> None:
    space = load_space("metaformer", mixers=["pool", family], choices={"expansion": [2.0, 4.0]})
    supernet = Supernet(space, CLASSES).train()
    genome = space.sample(np.random.default_rng(0))
    whole, two = (
        space.decode(genome | {f"stage{number}.mixer": word for number in (1, 2, 3, 4)} | {"stage1.expansion": 2.0})
        for word in (MENU[family].words(family)[0], "pool")
    )
    supernet(images(whole), whole).square().sum().backward()
    block, plain = supernet.subnet(whole).stages[0].blocks[0].token_mixer, supernet.subnet(two).stages[0].blocks[0].mlp
    held = supernet.stages[0].blocks[0].mlp["mlp"]
    for name, layer in WHOLE[family]:
        weight = block.get_parameter(name)
        assert torch.equal(weight, plain.get_submodule(layer).weight)
        grad = held.get_submodule(layer).weight.grad
        assert grad[tuple(map(slice, weight.shape))].abs().sum() > 0
        assert int((grad != 0).sum()) <= weight.numel()


def test_supernet_leaves_its_input_and_its_weights_alone(supernet):
    arch = SMALL.decode(SMALL.sample(np.random.default_rng(3)))
    x = images(arch)
    before, weights = x.clone(), {k: v.clone() for k, v in supernet.state_dict().items()}
    with torch.no_grad():
        supernet(x, arch)
        subnet = supernet.subnet(arch)
        for parameter in subnet.parameters():
            parameter.zero_()
    assert torch.equal(x, before)
    assert all(torch.equal(v, weights[k]) for k, v in supernet.state_dict().items())


def test_a_narrow_tensor_must_fit():
    with pytest.raises(ValueError, match="must fit"):
        shared_index((4, 4), (5, 4))


@settings(max_examples=10, deadline=None)
@given(architectures(OPEN))
def test_parts_chain_and_hold_all_parameters(arch):
    parts = list(network_parts(arch, CLASSES))
    with torch.device("meta"):
        modules = [part.build() for part in parts]
        x = torch.empty(parts[0].input_shape)
        for part, module in zip(parts, modules, strict=True):
            assert tuple(x.shape) == part.input_shape, part.name
            x = module(x)
    assert tuple(x.shape) == (1, CLASSES)
    whole = fold(build_network(arch, CLASSES))
    assert sum(p.numel() for m in modules for p in m.parameters()) == sum(p.numel() for p in whole.parameters())


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown token mixer 'spin'"):
        build_network(one_mixer("spin", 0, "batchnorm", "relu", (16, 32, 64, 96), 1), CLASSES)
    with pytest.raises(ValueError, match="kernels"):
        build_network(one_mixer("dwconv", 9, "batchnorm", "relu", (16, 32, 64, 96), 1), CLASSES)


def test_what_is_remembered_is_bounded_and_forgetting_changes_nothing(monkeypatch):
    monkeypatch.setattr(search_spaces.supernet, "PIECES_KEPT", 5)
    monkeypatch.setattr(search_spaces.supernet, "PARTS_KEPT", 7)
    supernet = randomize(Supernet(SMALL, CLASSES)).eval()
    rng = np.random.default_rng(4)
    archs = [SMALL.decode(SMALL.sample(rng)) for _ in range(6)]
    with torch.no_grad():
        first = [supernet(images(arch), arch) for arch in archs]
        assert all(torch.equal(supernet(images(arch), arch), out) for arch, out in zip(archs, first, strict=True))
    assert len(supernet._pieces) == 5
    assert len(supernet._parts) == 7


def test_a_copy_runs_with_its_own_weights():
    supernet = randomize(Supernet(SMALL, CLASSES)).eval()
    arch = SMALL.decode(SMALL.sample(np.random.default_rng(4)))
    with torch.no_grad():
        before = supernet(images(arch), arch)
        other = randomize(copy.deepcopy(supernet), seed=1)
        assert not torch.equal(other(images(arch), arch), before)
        assert torch.equal(supernet(images(arch), arch), before)
        assert torch.equal(other(images(arch), arch), other.subnet(arch)(images(arch)))


def test_equal_blocks_of_a_network_have_hooks_of_their_own(supernet):
    arch = one_mixer("dwconv", 3, "batchnorm", "relu", (16, 32, 64, 96), 2)
    sums = [module for module in supernet.template(arch).modules() if isinstance(module, Add)]
    assert len(sums) == len({id(module) for module in sums}) == 2 * 2 * 4


def changes(supernet: Supernet) -> dict[str, Callable[[], object]]:
    """Ways in which weights change between two batches."""
    stem = supernet.stem["conv3s2"]
    state = {name: value + 0.1 for name, value in supernet.state_dict().items() if value.is_floating_point()}

    def in_place() -> None:
        with torch.no_grad():
            stem.conv1.conv.weight.mul_(1.5)

    def in_inference_mode() -> None:
        with torch.inference_mode():
            stem.conv1.norm.running_var.add_(1.0)

    def by_an_optimizer() -> None:
        optimizer = torch.optim.AdamW(supernet.parameters(), lr=0.1)
        for parameter in supernet.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    return {
        "in place": in_place,
        "in inference mode": in_inference_mode,
        "another parameter": lambda: setattr(stem.conv1.conv, "weight", nn.Parameter(stem.conv1.conv.weight * 2)),
        "a checkpoint": lambda: supernet.load_state_dict(state, strict=False),
        "a checkpoint, assigned": lambda: supernet.load_state_dict(state, strict=False, assign=True),
        "an optimizer": by_an_optimizer,
        "another type": lambda: supernet.to(torch.bfloat16).to(torch.float32),
        "training": lambda: (supernet.train()(images(ARCH), ARCH), supernet.eval()),  # BatchNorm statistics
    }


@pytest.mark.parametrize("way", list(changes(Supernet(SMALL, CLASSES))))
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_weights_that_are_kept_ready_follow_every_change(way, mode):
    supernet = randomize(Supernet(SMALL, CLASSES)).eval()
    x = images(ARCH)
    with mode():
        before = supernet(x, ARCH)
        assert supernet.ready(ARCH) is supernet.ready(ARCH)
    changes(supernet)[way]()
    with mode():
        after = supernet(x, ARCH)
        assert not torch.equal(after, before)
        assert torch.equal(after, supernet.subnet(ARCH)(x))


def test_weights_that_count_no_changes_are_read_anew():
    with torch.inference_mode():
        supernet = randomize(Supernet(SMALL, CLASSES)).eval()
        before = supernet(images(ARCH), ARCH)
        supernet.stem["conv3s2"].conv1.conv.weight.mul_(1.5)
        assert not torch.equal(supernet(images(ARCH), ARCH), before)


def test_what_was_made_ready_in_inference_mode_does_not_stand_in_the_way_of_training():
    supernet = randomize(Supernet(SMALL, CLASSES)).eval()
    with torch.inference_mode():
        supernet(images(ARCH), ARCH)
    supernet(images(ARCH), ARCH).sum().backward()
    assert supernet.stem["conv3s2"].conv1.conv.weight.grad is not None
