"""Every mixer beside its definition: the formulas of `mixer_formulas`, or written out here for those that are made of
slices and views.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from mixer_formulas import FORMULAS, ROLE_WIDTH
from small_networks import random_images, random_network, randomize
from torch import Tensor
from torch.nn import functional as F

from nas.errors import UsageError
from nas.export.onnx_files import export_graph, integer_form
from nas.export.verify import OnnxRunner
from nas.quantize import prepare
from nas.subjects import described_part
from nas.trace import trace_module
from search_spaces.architecture import Architecture, Block, Stage
from search_spaces.menu import MENU
from search_spaces.metaformer import PRESETS, load_space
from search_spaces.mixers import MIXERS
from search_spaces.mixers.branches import BranchSum
from search_spaces.network import bound_size, build_network, fold_

DIM = 64


def make(mixer: str, size: int, dim: int = DIM, kernel: int = 0) -> Any:
    family: Any = MIXERS[mixer]
    arguments = {"kernel": kernel, "expansion": 2.0, "role_width": ROLE_WIDTH, "activation": "gelu"}
    return randomize(family(dim, **arguments, **bound_size(mixer, size))).eval()


def images(size: int, dim: int = DIM) -> Tensor:
    return torch.randn(2, dim, size, size, generator=torch.Generator().manual_seed(size))


def same(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [5, 12])
@pytest.mark.parametrize(("mixer", "kernel"), [(name, kernel) for name in FORMULAS for kernel in MIXERS[name].kernels])
@torch.no_grad()
def test_a_mixer_computes_its_formula(mixer: str, kernel: int, size: int) -> None:
    layer, x = make(mixer, size, kernel=kernel), images(size)
    weights = {name: tensor.double().numpy() for name, tensor in layer.state_dict().items()}
    same(layer(x), torch.from_numpy(FORMULAS[mixer](x.double().numpy(), weights, kernel)).float())


@pytest.mark.parametrize(("size", "block", "halo"), [(5, 5, 0), (12, 6, 3), (16, 8, 3), (11, 1, 1)])
@torch.no_grad()
def test_halo_attention_pixel_by_pixel(size: int, block: int, halo: int) -> None:
    layer, x = make("halo", size, 32), images(size, 32)
    q = layer.q(x) * 32**-0.5
    k, v = (F.pad(projection(x), (halo,) * 4) for projection in (layer.k, layer.v))
    row_table, column_table = (
        torch.cat((m.table.weight, m.table.bias[:, None]), 1) for m in (layer.columns, layer.rows)
    )
    out = torch.zeros_like(q)
    window, middle = block + 2 * halo, 10  # the tables reach 7 pixels in a block of 8 and 3 of its halo
    for row in range(size):
        for column in range(size):
            top, left = row // block * block, column // block * block
            keys, values = (t[:, :, top : top + window, left : left + window].flatten(2) for t in (k, v))
            query = torch.cat((q[:, :, row, column], torch.ones(2, 1)), 1)
            down = torch.arange(window) - halo - (row - top)  # rows between the query and each row of keys
            right = torch.arange(window) - halo - (column - left)
            position = (query @ row_table[middle + down].T)[:, :, None] + (query @ column_table[middle + right].T)[
                :, None
            ]
            scores = (query[:, None, :-1] @ keys)[:, 0] + position.flatten(1)
            out[:, :, row, column] = (scores.softmax(1)[:, None] * values).sum(2)
    same(layer(x), layer.proj(out))


@torch.no_grad()
def test_gated_positional_attention_is_a_mixture_of_two_softmaxes() -> None:
    layer, x = make("gpsa", 4), images(4)
    q, k, v = (
        projection(x).unflatten(1, (2, 32)).flatten(3).transpose(2, 3) for projection in (layer.q, layer.k, layer.v)
    )
    content = (q @ k.transpose(2, 3) / math.sqrt(32)).softmax(3)
    pixel = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
    way = pixel[None] - pixel[:, None]  # [query, key, (down, right)]
    features = torch.cat((way, way.square().sum(2, keepdim=True)), 2)
    position = (features @ layer.position.T).permute(2, 0, 1).softmax(2)
    gate = layer.blend.sigmoid()[:, None, None]
    mixture = (1 - gate) * content + gate * position
    same(mixture.sum(3), torch.ones(2, 2, 16))
    expected = layer.proj((mixture @ v).transpose(2, 3).flatten(1, 2).unflatten(2, (4, 4)))
    same(layer(x), expected)
    fold_(torch.nn.Sequential(layer))
    same(layer(x), expected)


def test_heads_of_gated_positional_attention_begin_at_offsets_of_their_own() -> None:
    family: Any = MIXERS["gpsa"]
    layer = family(96, kernel=0, expansion=1.0, role_width=16, activation="relu", size=5)
    middle = layer.shares().detach()[:, 12].reshape(3, 5, 5)
    assert [divmod(int(shares.argmax()), 5) for shares in middle] == [(2, 2), (1, 2), (2, 1)]


@pytest.mark.parametrize("size", [1, 4, 7])
@torch.no_grad()
def test_outlook_attention_unfolds_and_folds(size: int) -> None:
    layer, x = make("outlook", size), images(size)
    count = -(-size // 2)
    pooled = F.avg_pool2d(x, 2, padding=size % 2, count_include_pad=False)
    weights = (layer.outlook(pooled) * 32**-0.5).reshape(2, 2, 9, 9, count**2).permute(0, 1, 4, 2, 3).softmax(4)
    values = F.unfold(layer.v(x), 3, padding=1, stride=2).reshape(2, 2, 32, 9, count**2).permute(0, 1, 4, 3, 2)
    mixed = (weights @ values).permute(0, 1, 4, 3, 2).reshape(2, 64 * 9, count**2)
    same(layer(x), layer.proj(F.fold(mixed, size, 3, padding=1, stride=2)))


@pytest.mark.parametrize("size", [1, 6, 7])
@torch.no_grad()
def test_wavelet_mixing_is_a_haar_transform_and_a_transposed_convolution(size: int) -> None:
    layer, x = make("wavemix", size), images(size)
    odd = size % 2
    y = F.pad(layer.reduce(x), (odd, 0, odd, 0))
    top, bottom = y[:, :, ::2], y[:, :, 1::2]
    (a, b), (c, d) = ((line[..., ::2], line[..., 1::2]) for line in (top, bottom))
    bands = torch.stack((a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d), 2).flatten(1, 2) / 2
    bands = layer.pwconv2(F.gelu(layer.pwconv1(bands)))
    weight = torch.empty(64, 64, 4, 4)
    ours = layer.enlarge.weight.reshape(64, 2, 2, 64, 2, 2)
    for row in range(4):
        for column in range(4):
            weight[:, :, row, column] = ours[:, row % 2, column % 2, :, 1 - row // 2, 1 - column // 2].T
    bias = layer.enlarge.bias.reshape(64, 2, 2)
    wide = F.conv_transpose2d(bands, weight, stride=2, padding=1)
    # The program allows a bias for each pixel of the four; a transposed convolution has one for all.
    turn = bias.flip(1, 2).repeat(1, wide.shape[2] // 2, wide.shape[3] // 2)
    same(layer(x), (wide + turn)[:, :, odd:, odd:])


@pytest.mark.parametrize("size", [1, 6, 7])
@torch.no_grad()
def test_hire_mlp_groups_rows_and_columns(size: int) -> None:
    layer, x = make("hire_mlp", size), images(size)

    def regions(part: Any, x: Tensor, ahead: int) -> Tensor:
        """Along the last axis; `ahead` zeros come first."""
        y = F.pad(x, (ahead, (ahead + size) % 2))
        pairs = y.unflatten(3, (-1, 2)).permute(0, 2, 3, 4, 1).flatten(3)  # [batch, line, region, pixel * channel]
        weight = part.down.conv.weight.flatten(2).transpose(1, 2).flatten(1)  # [hidden, pixel * channel]
        hidden = (pairs @ weight.T + part.down.conv.bias).permute(0, 3, 1, 2)
        hidden = F.gelu(part.down.norm(hidden)).permute(0, 2, 3, 1)
        both = hidden @ part.up.weight.flatten(1).T + part.up.bias
        return both.unflatten(3, (-1, 2)).permute(0, 3, 1, 2, 4).flatten(3)[..., ahead : ahead + size]

    rows = regions(layer.rows, x, 0) + regions(layer.rows_shifted, x, 1)
    turned = x.transpose(2, 3)
    columns = (regions(layer.columns, turned, 0) + regions(layer.columns_shifted, turned, 1)).transpose(2, 3)
    same(layer(x), layer.proj(layer.sum(rows, columns, layer.pixels(x))))


@torch.no_grad()
def test_wave_mlp_is_a_grouped_convolution_of_real_and_imaginary_parts() -> None:
    layer, x = make("wave_mlp", 5), images(5)
    branches = []
    for line, padding in ((layer.rows, (0, 3)), (layer.columns, (3, 0))):
        wave = line.amplitude(x) * torch.polar(torch.ones(1), F.relu(line.phase(x)))
        both = torch.stack((wave.real, wave.imag), 2).flatten(1, 2)
        weight = torch.cat((line.dwconv_real.weight, line.dwconv_imaginary.weight), 1)
        bias = line.dwconv_real.bias + line.dwconv_imaginary.bias
        branches.append(F.conv2d(both, weight, bias, padding=padding, groups=DIM))
    same(layer(x), layer.proj(layer.sum(*branches, layer.pixels(x))))


@torch.no_grad()
def test_dynamixer_line_by_line() -> None:
    layer, x = make("dynamixer", 5, 16), images(5, 16)
    branches = []
    for line, turned in ((layer.rows, x), (layer.columns, x.transpose(2, 3))):
        out = torch.zeros_like(turned)
        numbers = line.compress(turned)
        for row in range(5):
            for head in range(2):
                of_line = numbers[:, 2 * head : 2 * head + 2, row].flatten(1)
                mixing = line.generate(of_line).reshape(2, 5, 5).softmax(2)
                pixels = turned[:, 8 * head : 8 * head + 8, row]  # [batch, channel, pixel]
                out[:, 8 * head : 8 * head + 8, row] = torch.einsum("bij,bcj->bci", mixing, pixels)
        branches.append(line.out(out if turned is x else out.transpose(2, 3)))
    same(layer(x), layer.proj(layer.sum(*branches, layer.pixels(x))))


WRITTEN_OUT = {
    "halo": test_halo_attention_pixel_by_pixel,
    "gpsa": test_gated_positional_attention_is_a_mixture_of_two_softmaxes,
    "hire_mlp": test_hire_mlp_groups_rows_and_columns,
    "wave_mlp": test_wave_mlp_is_a_grouped_convolution_of_real_and_imaginary_parts,
    "dynamixer": test_dynamixer_line_by_line,
    "wavemix": test_wavelet_mixing_is_a_haar_transform_and_a_transposed_convolution,
    "outlook": test_outlook_attention_unfolds_and_folds,
}
"""The mixers that have their definition in this file."""


def test_every_mixer_has_a_definition() -> None:
    plugins = {name for name, facts in MENU.items() if facts.group == "plugin"}
    assert {*FORMULAS, *WRITTEN_OUT} == {*MIXERS} - plugins, "write a new mixer's formula into mixer_formulas"
    assert not {*FORMULAS} & {*WRITTEN_OUT}


def test_every_mixer_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "mixers.md").read_text(encoding="utf-8")
    rows = {cell for line in text.splitlines() if line.startswith("| `") for cell in line.split("|")[1].split("`")}
    words = {family: family + "/".join(str(kernel) for kernel in MENU[family].kernels if kernel) for family in MENU}
    missing = [words[family] for family, facts in MENU.items() if facts.group != "plugin" and words[family] not in rows]
    assert not missing, "write it into the table of docs/mixers.md"


@torch.no_grad()
def test_branches_are_weighed_by_shares_that_add_up_to_one() -> None:
    layer = randomize(BranchSum(32, "relu"))
    parts = [torch.randn(2, 32, 3, 3) for _ in range(3)]
    hidden = layer.fc1(sum(parts).mean((2, 3), keepdim=True)).relu()  # type: ignore[union-attr]
    shares = layer.fc2(hidden).reshape(2, 32, 3).softmax(2)
    same(layer(*parts), torch.einsum("bcn,nbchw->bchw", shares, torch.stack(parts)))
    same(layer(parts[0], parts[0], parts[0]), parts[0])


MACS = {
    "halo": lambda n, c, side: 4 * n * c * c + 2 * n * 12**2 * c + 42 * n * c,
    "gpsa": lambda n, c, side: 4 * n * c * c + 2 * n * n * c,
    "hire_mlp": lambda n, c, side: 4 * n * c * c + c * c + 2 * side * c * c,  # the last: regions at the border
    "wave_mlp": lambda n, c, side: n * (6 * c * c + 28 * c) + c * c,
    "dynamixer": lambda n, c, side: n * c * (9 * c + 4 * side + n) // 2 + c * c,
    "wavemix": lambda n, c, side: n * (c * c // 4 + c + c * c) + 16 * c * c * (side // 2 + 1) ** 2,
    "outlook": lambda n, c, side: 2 * n * c * c + n // 4 * (81 * (c // 32) * c + 81 * c),
}
"""macs of the folded form, as the documentation has them, of N tokens and C channels on a map with an even side."""


@pytest.mark.parametrize("mixer", MACS)
def test_macs_are_those_of_the_documentation(mixer: str) -> None:
    side = 12
    layer = fold_(torch.nn.Sequential(make(mixer, side)))
    assert trace_module(layer, [(1, DIM, side, side)]).macs == MACS[mixer](side * side, DIM, side)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mixer", "side"), [("halo", 24), ("halo", 22), ("outlook", 22), ("wavemix", 22), ("hire_mlp", 22)]
)
def test_halos_and_odd_maps_in_onnx_runtime(mixer: str, side: int) -> None:
    """The other tests of exported mixers see one block of 8x8 pixels."""
    block = Block(mixer, 0, 2.0, channel_mixer="none")
    arch = Architecture(side, "conv3s2", (Stage(32, 16, "batchnorm", "relu", (block,)),))
    pictures = F.interpolate(random_images(24), (side, side), mode="bilinear")
    prepared = prepare(random_network(arch), arch, [pictures], [pictures])
    for ours, exported, error in (
        (prepared.folded, prepared.folded, 1e-4),
        (prepared.quantized, integer_form(prepared.quantized), 0.1),
    ):
        model = export_graph(exported, (1, 3, side, side))
        assert not {node.op_type for node in model.graph.node} & {"GatherND", "ScatterND", "Col2Im", "Loop", "If"}
        theirs = OnnxRunner(model.SerializeToString())(pictures[:4])
        with torch.no_grad():
            expected = ours(pictures[:4])
        difference = theirs - expected
        assert difference.abs().max() <= error * expected.abs().max()


@pytest.mark.parametrize(("mixer", "multiple"), [("convfirst", 8), ("dynamixer", 8), ("raft_mlp", 4)])
def test_a_width_that_a_mixer_cannot_have_is_one_line_before_any_training(mixer: str, multiple: int) -> None:
    line = f"{mixer} needs a width that is a multiple of {multiple}, but got 30"
    stages = (Stage(30, 16, "batchnorm", "relu", (Block(mixer, 0, 2.0),)),)
    with pytest.raises(ValueError, match=f"^{line}$"):
        build_network(Architecture(16, "conv3s2", stages), 10, device="meta")
    block = {"dim": 30, "mixer": mixer, "kernel": 0, "expansion": 2.0, "norm": "batchnorm", "activation": "relu"}
    described = {"part": "MetaFormerBlock", "channels": 30, "size": 8}
    described["arguments"] = block | {"role_width": 16, **bound_size(mixer, 8)}  # type: ignore[assignment]
    with pytest.raises(UsageError, match=f"does not describe a block .{line}.; measure it again$"):
        described_part(json.dumps(described))
    for preset in PRESETS:  # whatever a search offers, a mixer can have
        space = load_space("metaformer", preset)
        widths = [int(width) for choice in space.choices if choice.name.endswith(".width") for width in choice.values]
        assert all(width % multiple == 0 for width in widths)
        with pytest.raises(ValueError, match=r"width"):
            load_space("metaformer", preset, choices={"stage1.width": [30]})
