"""What surrounds the token mixers: each norm, activation, stem, channel mixer and gate is folded, costed, quantized and
exported like the rest. That they are shared exactly is in search_spaces/test_supernet.py.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import random_images, random_network, small_architecture
from strategies import OPEN
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas.accuracy import predict
from nas.export.onnx_files import write_float_onnx, write_qdq_onnx
from nas.export.standalone import standalone_source
from nas.export.verify import OnnxRunner
from nas.quantize import Prepared, prepare
from nas.trace import trace_module
from search_spaces.architecture import ACTIVATIONS, CHANNEL_MIXERS, GATES, NORMS, STEMS, Architecture, Block, Stage
from search_spaces.channel_mixers import CHANNEL_MIXER_LAYERS
from search_spaces.layers import ACTIVATION_LAYERS, ConvNorm, SquaredReLU, StarReLU
from search_spaces.metaformer import OPENABLE, load_space
from search_spaces.network import build_network, fold, network_kwargs
from search_spaces.norms import NORM_LAYERS, RepBatchNorm2d, progressive_norms, set_progress
from search_spaces.parts import network_parts
from search_spaces.supernet import Supernet

CASES = [
    *(("norm", value) for value in NORMS),
    *(("activation", value) for value in ACTIVATIONS),
    *(("stem", value) for value in STEMS),
    *(("channel_mixer", value) for value in CHANNEL_MIXERS),
    *(("gate", value) for value in GATES),
]
every_modifier = pytest.mark.parametrize(("gene", "value"), CASES)

MIXERS = [("dwconv", 5), ("sepconv", 3), ("mbconv", 3), ("identity", 0)]
"""Norm behind, norm before, none, and no mixer at all."""


def modified(gene: str, value: str) -> Architecture:
    arch = small_architecture(MIXERS, activation="hardswish", stages=1)
    if gene == "stem":
        return replace(arch, stem=value)
    stages: list[Stage] = []
    for stage in arch.stages:
        if gene in ("norm", "activation"):
            stages.append(replace(stage, **{gene: value}))
        else:
            keep = {"identity"} | ({"mbconv"} if gene == "channel_mixer" else set())
            changed = (b if b.mixer in keep else replace(b, **{gene: value}) for b in stage.blocks)
            stages.append(replace(stage, blocks=tuple(changed)))
    return replace(arch, stages=tuple(stages))


def prepared(arch: Architecture) -> Prepared:
    images = random_images(32)
    network = random_network(arch)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:  # so that no gate and no norm is the identity
                parameter.add_(torch.rand_like(parameter) * 0.3)
    return prepare(network, arch, [images], [images])


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def test_what_can_be_opened_is_what_the_modules_can_build():
    """Gates and stems have no table: every test below builds them."""
    said = "a name in search_spaces/architecture.py and a row of the table of classes go together"
    assert {*NORMS} == {*NORM_LAYERS}, said
    assert {*ACTIVATIONS} == {*ACTIVATION_LAYERS}, said
    assert {*CHANNEL_MIXERS} == {*CHANNEL_MIXER_LAYERS, "none"}, said
    assert {gene: set(values) for gene, values in OPENABLE.items()} == {
        gene: {value for name, value in CASES if name == gene} for gene in OPENABLE
    }


def test_the_documentation_has_a_row_for_each():
    text = (Path(__file__).parents[1] / "docs" / "modifiers.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1].rpartition(".")[2]: line for line in text.splitlines() if line.startswith("| `")}
    missing = [value for gene, value in CASES if f"`{value}`" not in rows[gene]]
    assert not missing, "write it into the table of docs/modifiers.md"


def test_only_star_relu_has_numbers_of_its_own():
    """A supernet holds the numbers of one activation (`search_spaces.shared.widest_activation`)."""
    trained = [name for name, layer in ACTIVATION_LAYERS.items() if [*layer().parameters()]]
    assert trained == ["starrelu"], "a second one with trained numbers needs a place in the shared weights"


@every_modifier
def test_folding_changes_nothing(gene, value):
    network = random_network(modified(gene, value))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.rand_like(parameter) * 0.3)
        folded = fold(network)
        assert relative(folded.stem(random_images(4)), network.stem(random_images(4))) < 1e-5
        x = torch.randn(2, 32, 7, 7)
        for before, after in zip(network.stages[0].blocks, folded.stages[0].blocks, strict=True):
            assert relative(after(x), before(x)) < 1e-5, "what reads the norm? (norm_consumers)"


@pytest.mark.parametrize("stem", STEMS)
def test_a_stem_reduces_as_the_menu_and_the_network_say(stem):
    network = random_network(modified("stem", stem))
    (features,) = network.forward_intermediates(torch.zeros(1, 3, 32, 32), intermediates_only=True)
    assert 32 // features.shape[2] == STEMS[stem] == network.feature_info[0]["reduction"]


@every_modifier
def test_it_traces_and_its_macs_equal_torch(gene, value):
    for part in network_parts(modified(gene, value), 10):
        with torch.device("meta"):
            module = part.build()
            counter = FlopCounterMode(display=False)
            with counter, torch.no_grad():
                module(torch.empty(part.input_shape))
        workload = trace_module(module, [part.input_shape])
        assert workload.macs + workload.folded_macs == counter.get_total_flops() / 2, part.name


@every_modifier
def test_it_folds_quantizes_and_leaves_no_norm_that_could_go(gene, value):
    arch = modified(gene, value)
    made = prepared(arch)
    images = random_images(16, seed=3)
    left = {type(m) for m in made.folded.modules() if "Norm" in type(m).__name__ and not isinstance(m, ConvNorm)}
    assert {cls.__name__ for cls in left} <= {"LayerNorm2d", "ResponseNorm"}
    exact, rounded = predict(made.folded, [images]), predict(made.quantized, [images])
    assert torch.isfinite(rounded).all()
    assert 10 * torch.log10(exact.var() / (exact - rounded).var()) > 10, "decibels"


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("channel_mixer", ["mlp", "dwconv_ffn"])
def test_star_relu_folds_where_a_dense_layer_follows_and_stays_elsewhere(channel_mixer, gate):
    arch = small_architecture([("mbconv", 3), ("dwconv", 3)], activation="starrelu", stages=1)
    blocks = tuple(replace(block, gate=gate) for block in arch.stages[0].blocks)
    blocks = (blocks[0], replace(blocks[1], channel_mixer=channel_mixer))
    arch = replace(arch, stages=(replace(arch.stages[0], blocks=blocks),))
    network = random_network(arch)
    folded = fold(network)
    x = torch.randn(2, 32, 7, 7)
    with torch.no_grad():
        for before, after in zip(network.stages[0].blocks, folded.stages[0].blocks, strict=True):
            assert relative(after(x), before(x)) < 1e-5
    expected = SquaredReLU if gate == "none" else StarReLU
    assert isinstance(folded.stages[0].blocks[1].mlp.act, expected)
    assert isinstance(folded.stages[0].blocks[0].token_mixer.act1, StarReLU), "a padded convolution follows"


EXPORTED = [
    ("batchnorm", "starrelu", "mlp", "se", "conv7s4"),
    ("repbn", "hardswish", "dwconv_ffn", "none", "conv3s2x2"),
    ("layernorm", "gelu", "dwconv_ffn", "grn", "conv3s2"),
    ("affine", "relu", "none", "none", "conv3s2"),
]
"""Every value of every gene once: an export takes seconds."""


def test_every_value_is_exported_once():
    genes = ("norm", "activation", "channel_mixer", "gate", "stem")
    exported = {(gene, value) for row in EXPORTED for gene, value in zip(genes, row, strict=True)}
    missing = {*CASES} - exported
    assert not missing, "put it into a row of EXPORTED"


@pytest.mark.parametrize(("norm", "activation", "channel_mixer", "gate", "stem"), EXPORTED)
def test_it_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, norm, activation, channel_mixer, gate, stem):
    mixers = [("dwconv", 3), ("mbconv", 3)]
    arch = small_architecture(mixers, norm=norm, activation=activation, stages=1)
    first, second = arch.stages[0].blocks
    blocks = (replace(first, channel_mixer=channel_mixer, gate=gate), replace(second, gate=gate))
    arch = replace(arch, stem=stem, stages=(replace(arch.stages[0], blocks=blocks),))
    made = prepared(arch)
    images = random_images(8, seed=3)
    expected = predict(made.folded, [images])

    name = f"alone_{norm}"
    alone = ModuleType(name)
    alone.__file__ = str(tmp_path / "alone.py")
    arguments = network_kwargs(arch) | {"deploy": True}
    source = standalone_source(name, "A network.", arguments, {"num_classes": 10, "mean": (0.5, 0.5)})
    monkeypatch.setitem(sys.modules, name, alone)  # where timm looks up the model's module
    exec(compile(source, alone.__file__, "exec"), alone.__dict__)
    network = alone.__dict__[name](num_classes=10)
    network.load_state_dict(made.folded.state_dict(), strict=True)
    assert relative(predict(network.eval(), [images]), expected) < 1e-6

    write_float_onnx(tmp_path / "float.onnx", made.folded, (1, 3, 16, 16))
    assert relative(torch.as_tensor(OnnxRunner(tmp_path / "float.onnx")(images)), expected) < 1e-4
    write_qdq_onnx(tmp_path / "qdq.onnx", made.quantized, (1, 3, 16, 16))
    ours, theirs = predict(made.quantized, [images]), torch.as_tensor(OnnxRunner(tmp_path / "qdq.onnx")(images))
    assert relative(theirs, ours) < 0.05  # a value here and there falls on the other side of a rounding boundary


def test_squeeze_excitation_and_response_norm_equal_their_formulas():
    for gate in ("se", "grn"):
        arch = modified("gate", gate)
        block = random_network(arch).stages[0].blocks[0]
        layer = block.mlp.gate
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(torch.rand_like(parameter) - 0.5)
            x = torch.randn(3, 64, 5, 6)
            if gate == "se":
                mean = x.mean((2, 3))
                hidden = F.relu(mean @ layer.fc1.weight[:, :, 0, 0].T + layer.fc1.bias)
                scale = ((hidden @ layer.fc2.weight[:, :, 0, 0].T + layer.fc2.bias) / 6 + 0.5).clamp(0, 1)
                expected = x * scale[:, :, None, None]
            else:
                norms = x.square().sum((2, 3)).sqrt()
                relative_norms = norms / (norms.mean(1, keepdim=True) + 1e-6)
                weight, bias = layer.weight[None, :, None, None], layer.bias[None, :, None, None]
                expected = x * (1 + weight * relative_norms[:, :, None, None]) + bias
            torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_layernorm_fades_into_batchnorm():
    torch.manual_seed(0)
    norm = RepBatchNorm2d(8).train()
    x = torch.randn(4, 8, 5, 5) * 3 + 1
    plain = nn.BatchNorm2d(8)(x) + x
    layer = F.layer_norm(x.permute(0, 2, 3, 1), (8,), eps=norm.ln.eps).permute(0, 3, 1, 2)
    for done, share in ((0.0, 1.0), (0.25, 0.5), (0.5, 0.0), (1.0, 0.0)):
        set_progress([norm], done)
        torch.testing.assert_close(norm(x), share * layer + (1 - share) * plain)
    set_progress([norm], 0.0)
    norm.eval()
    scale, shift = norm.affine()
    expected = x * scale.float()[:, None, None] + shift.float()[:, None, None]
    torch.testing.assert_close(norm(x), expected)  # deployed it is BatchNorm, whatever the training had reached


def test_progress_of_a_supernet_reaches_its_networks():
    space = load_space("metaformer", mixers=["dwconv"], choices={"norm": ["repbn"], "resolution": [24]})
    supernet = Supernet(space, 5).train()
    arch = space.decode(space.sample(np.random.default_rng(0)))
    set_progress(progressive_norms(supernet), 0.1)
    shares = [float(m.layernorm_share) for m in supernet.subnet(arch).modules() if isinstance(m, RepBatchNorm2d)]
    assert len(shares) > 4
    assert shares == pytest.approx([0.8] * len(shares))
    supernet(torch.randn(4, 3, 24, 24), arch).square().sum().backward()
    of_layernorm = [p for name, p in supernet.named_parameters() if "blocks.0.norm2.repbn.ln.weight" in name]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in of_layernorm)


@pytest.fixture(scope="module")
def multiplexed() -> Supernet:
    space = load_space(
        "metaformer",
        multiplex=2,
        mixers=["sepconv", "mhsa"],
        choices={"resolution": [24], "norm": ["batchnorm"], "stage3.depth": [3]},
    )
    torch.manual_seed(0)
    supernet = Supernet(space, 5).eval()
    with torch.no_grad():
        for parameter in supernet.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.rand_like(parameter) * 0.5)
    return supernet


def test_multiplexed_blocks_share_matrices_times_a_gain(multiplexed):
    space = multiplexed.space
    genome = space.sample(np.random.default_rng(0)) | {"stage3.mixer": "sepconv3", "stage3.width": 64}
    network = multiplexed.subnet(space.decode(genome))
    first, second, third = (block.token_mixer.pwconv1 for block in network.stages[2].blocks)
    gain = multiplexed.stages[2].blocks[1].token_mixer["sepconv"].pwconv1.weight_gain[: len(second.weight)]
    torch.testing.assert_close(second.weight, first.weight * gain[:, None, None, None])
    assert not torch.equal(second.bias, first.bias), "biases are the block's own"
    assert not torch.allclose(third.weight / first.weight, (third.weight / first.weight)[:, :1]), "so is the next pair"
    x = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        assert torch.equal(multiplexed(x, space.decode(genome)), network(x))


def test_multiplexing_trains_the_leader_through_its_followers(multiplexed):
    space = multiplexed.space
    arch = space.decode(space.sample(np.random.default_rng(1)) | {"stage3.mixer": "mhsa"})
    multiplexed(torch.randn(2, 3, 24, 24), arch).square().sum().backward()
    leader, follower = (block.token_mixer["mhsa"] for block in multiplexed.stages[2].blocks[:2])
    assert leader.q.weight.grad.abs().sum() > 0
    assert follower.q.weight_gain.grad.abs().sum() > 0
    own = Supernet(load_space("metaformer", mixers=["sepconv", "mhsa"]), 5)
    shared = Supernet(load_space("metaformer", mixers=["sepconv", "mhsa"], multiplex=2), 5)
    count = [sum(p.numel() for p in net.parameters()) for net in (own, shared)]
    assert count[1] < 0.85 * count[0]


def test_unknown_modifiers_are_refused():
    with pytest.raises(ValueError, match="gate must be one of none, se, grn"):
        Block("dwconv", 3, 2.0, gate="cbam")
    with pytest.raises(ValueError, match="channel_mixer must be one of"):
        Block("dwconv", 3, 2.0, channel_mixer="conv")
    kwargs: dict[str, Any] = network_kwargs(small_architecture([("dwconv", 3)]))
    kwargs["stages"][0]["blocks"][0]["channel_mixer"] = "conv"
    with pytest.raises(ValueError, match="unknown channel mixer 'conv'"):
        build_network(small_architecture([("dwconv", 3)]), 10).__class__(**kwargs)
    with pytest.raises(ValueError, match="multiplex must be 1"):
        load_space("metaformer", multiplex=0)
    assert OPEN.multiplex == 1
