"""The algebra of genomes and architectures."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import OPEN, SMALL, SMALL_BLOCKWISE, seeds, spaces

from search_spaces.architecture import ACTIVATIONS, CHANNEL_MIXERS, GATES, NORMS, STEMS, Architecture, BlockBits
from search_spaces.menu import MENU, chosen_mixers
from search_spaces.metaformer import PRESETS, load_space
from search_spaces.mixers import MIXERS


@given(spaces, seeds)
def test_encode_inverts_decode_on_architectures(space, seed):
    arch = space.decode(space.sample(np.random.default_rng(seed)))
    assert space.decode(space.encode(arch)) == arch


@given(spaces, seeds)
def test_canonical_genome_is_a_fixed_point_and_names_the_same_network(space, seed):
    genome = space.sample(np.random.default_rng(seed))
    canonical = space.canonical(genome)
    assert space.canonical(canonical) == canonical
    assert space.decode(canonical).key == space.decode(genome).key


@given(spaces, seeds)
def test_architecture_survives_json(space, seed):
    arch = space.decode(space.sample(np.random.default_rng(seed)))
    text = json.dumps(json.loads(arch.to_json()))
    assert Architecture.from_json(text) == arch
    assert Architecture.from_json(text).key == arch.key


@given(spaces, seeds)
def test_mutation_changes_something_and_stays_in_the_space(space, seed):
    rng = np.random.default_rng(seed)
    genome = space.sample(rng)
    before = dict(genome)
    mutant = space.mutate(genome, rng)
    assert genome == before, "the parent is not changed"
    assert mutant != genome
    space.decode(mutant)


def test_genes_of_absent_blocks_have_no_effect():
    genome = SMALL_BLOCKWISE.sample(np.random.default_rng(0)) | {"stage3.depth": 1}
    other = genome | {"stage3.block3.mixer": "dwconv7" if genome["stage3.block3.mixer"] != "dwconv7" else "pool"}
    assert genome != other
    assert SMALL_BLOCKWISE.decode(genome).key == SMALL_BLOCKWISE.decode(other).key


@pytest.mark.parametrize("granularity", ["stage", "block"])
def test_size_equals_a_count_of_distinct_keys(granularity):
    space = load_space(
        "metaformer",
        granularity=granularity,
        mixers=["pool", "mhsa", "identity", "mbconv"],
        choices={
            "stage1.mixer": ["pool"], "stage2.mixer": ["pool"], "stage3.mixer": ["pool", "mhsa"],
            "norm": ["batchnorm"], "activation": ["relu"], "stage1.width": [16],
            "stage4.channel_mixer": ["mlp", "none"], "stage4.gate": ["none", "se"], "stage4.expansion": [2.0, 3.0],
            "stage2.width": [32, 48], "stage3.width": [64], "stage4.width": [96],
            "stage1.expansion": [2.0], "stage2.expansion": [2.0], "stage3.expansion": [2.0], "resolution": [24, 32],
            "bits": ["w8a8"], "stage3.depth": [1, 2], "stage4.depth": [1], "stage1.depth": [1], "stage2.depth": [1],
            **({"stage4.block2.mixer": ["pool"], "stage4.block2.expansion": [2.0], "stage4.block2.gate": ["none"],
                "stage4.block2.channel_mixer": ["mlp"]} if granularity == "block" else {}),
        },
    )  # fmt: skip
    names = [choice.name for choice in space.choices]
    every = itertools.product(*(choice.values for choice in space.choices))
    keys = {space.decode(dict(zip(names, values, strict=True))).key for values in every}
    assert space.size == len(keys)


def test_stage_granularity_has_few_parameters():
    for preset in ("small", "mobile"):
        assert len(load_space("metaformer", preset).free) <= 24


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_offer_no_modifier_unasked(preset):
    """The keys that today's networks have are those they had before there were any modifiers."""
    space = load_space("metaformer", preset)
    assert space.closed == {
        "norm": tuple(norm for norm in NORMS if norm not in ("batchnorm", "layernorm")),
        "activation": tuple(act for act in ACTIVATIONS if act not in ("relu", "hardswish", "gelu")),
        "stem": tuple(stem for stem in STEMS if stem not in space["stem"].values),
        "channel_mixer": tuple(kind for kind in CHANNEL_MIXERS if kind != "mlp"),
        "gate": tuple(gate for gate in GATES if gate != "none"),
    }
    arch = space.decode(space.sample(np.random.default_rng(0)))
    assert not {"channel_mixer", "gate"} & set(arch.to_json().replace('"', " ").split())
    assert set(arch.to_dict()["stages"][0]["blocks"][0]) == {"mixer", "kernel", "expansion", "bits"}


def test_a_key_from_before_the_modifiers_still_holds():
    """Written by commit fbdcd1e: `SMALL.decode(SMALL.sample(np.random.default_rng(0)))`."""
    assert SMALL.decode(SMALL.sample(np.random.default_rng(0))).key == "6ade0474ea00e931"


def test_genes_open_to_what_is_on_the_menu_and_no_further():
    space = load_space("metaformer", choices={"stem": ["conv7s4"], "stage3.gate": ["grn", "se"], "norm": list(NORMS)})
    assert space["stem"].values == ("conv7s4",)
    assert space["stage3.gate"].values == ("se", "grn"), "in the order of the menu"
    assert space["stage4.gate"].values == ("none",)
    assert space["norm"].values == NORMS
    assert space.closed["stem"] == tuple(stem for stem in STEMS if stem != "conv7s4")
    assert "gate" not in space.closed, "each is open somewhere"
    assert "norm" not in space.closed
    with pytest.raises(ValueError, match="gate offers"):
        load_space("metaformer", choices={"gate": ["sse"]})


@pytest.mark.parametrize("granularity", ["stage", "block"])
def test_the_special_holds_against_the_general_in_any_order(granularity):
    entries = {"gate": ["none", "se"], "stage1.gate": ["none"], "bits": ["w8a8", "w4a8"], "stage2.bits": ["w8a8"]}
    expected = {"stage1": ("none",), "stage2": ("none", "se")}
    if granularity == "block":
        entries |= {"stage1.block2.gate": ["grn"]}
    spaces = [
        load_space("metaformer", granularity=granularity, choices=dict(order))
        for order in itertools.permutations(entries.items())
    ]
    assert all(space == spaces[0] for space in spaces)
    last = ".block1" if granularity == "block" else ""
    for stage, values in expected.items():
        assert spaces[0][f"{stage}{last}.gate"].values == values
    if granularity == "block":
        assert spaces[0]["stage1.block2.gate"].values == ("grn",)


def test_genes_without_effect_name_the_same_network():
    genome = OPEN.sample(np.random.default_rng(0))
    for mixer, gene, values in (
        ("identity", "channel_mixer", ("mlp", "none")),  # an empty block is none
        ("mbconv3", "channel_mixer", ("mlp", "dwconv_ffn")),
        ("mbconv3", "channel_mixer", ("mlp", "none")),
    ):
        changed = genome | {"stage2.mixer": mixer}
        keys = {OPEN.decode(changed | {f"stage2.{gene}": value}).key for value in values}
        assert len(keys) == 1, (mixer, gene)
    bare = genome | {"stage2.mixer": "dwconv5", "stage2.channel_mixer": "none"}
    keys = {OPEN.decode(bare | {"stage2.gate": gate}).key for gate in GATES}
    keys |= {OPEN.decode(bare | {"stage2.expansion": expansion}).key for expansion in (2.0, 4.0)}
    assert len(keys) == 1
    gated = genome | {"stage2.mixer": "mbconv3"}
    assert len({OPEN.decode(gated | {"stage2.gate": gate}).key for gate in GATES}) == len(GATES)


def test_menu_matches_the_modules():
    assert list(MENU) == list(MIXERS), "a row of MIXERS and one of MENU (search_spaces/menu.py) go together, in order"
    for name, mixer in MIXERS.items():
        facts = MENU[name]
        for clause in ("kernels", "late_only", "token_bound", "replaces_block", "gated"):
            assert getattr(facts, clause) == getattr(mixer, clause), (name, clause)


def test_the_default_is_the_core():
    core = ("identity", "pool", "dwconv", "sepconv", "inception", "mbconv", "relu_linear", "mhsa")
    assert load_space("metaformer").mixers == core
    assert load_space("metaformer", mixers=["core"]) == load_space("metaformer")


def test_groups_add_up_and_a_minus_takes_away():
    core, first, second = (set(chosen_mixers([group])) for group in ("core", "first", "second"))
    assert core < first
    assert not first & second
    assert set(chosen_mixers(["all"])) == first | second == set(MENU)
    assert set(chosen_mixers(["first", "-core", "mhsa"])) == first - core | {"mhsa"}
    assert chosen_mixers(["mhsa", "pool", "mhsa"]) == ["pool", "mhsa"]


def test_attention_is_offered_in_late_stages_only():
    for stage, offered in ((1, False), (2, False), (3, True), (4, True)):
        assert ("mhsa" in SMALL[f"stage{stage}.mixer"].values) is offered


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"name": "metaforner"}, "did you mean 'metaformer'"),
        ({"name": "metaformer", "preset": "huge"}, "presets small, mobile"),
        ({"name": "metaformer", "granularity": "layer"}, "'stage' or 'block'"),
        ({"name": "metaformer", "mixers": ["dwcon"]}, "did you mean 'dwconv'"),
        ({"name": "metaformer", "mixers": ["zzz"]}, "known: identity, .* and the groups core, first"),
        ({"name": "metaformer", "mixers": ["core", "-all"]}, "no token mixer is left of core, -all"),
        ({"name": "metaformer", "mixers": ["mhsa"]}, "stage 1 has no mixer left"),
        (
            {"name": "metaformer", "mixers": ["pool", "random"]},
            r"bound to one resolution \(random\) .*resolution=\[64\]",
        ),
        ({"name": "metaformer", "choices": {"resolutoin": [32]}}, "did you mean 'resolution'"),
        ({"name": "metaformer", "choices": {"resolution": [33]}}, "resolution offers"),
        ({"name": "metaformer", "choices": {"stage1.mixer": ["mhsa"]}}, "stage1.mixer offers"),
        ({"name": "metaformer", "choices": {"width": [16]}}, "nothing is left for stage2.width"),
    ],
)
def test_bad_spaces_are_refused_with_the_cure(arguments, line):
    with pytest.raises(ValueError, match=line):
        load_space(**arguments)


def test_mixers_bound_to_a_resolution_refuse_stems_of_two_strides():
    choices = {"resolution": [32], "stem": ["conv3s2", "conv7s4"]}
    with pytest.raises(ValueError, match="cannot go with stems of different strides"):
        load_space("metaformer", mixers=["core", "random"], choices=choices)


def test_bad_genomes_are_refused():
    genome = SMALL.sample(np.random.default_rng(0))
    with pytest.raises(ValueError, match="gene resolution is missing"):
        SMALL.decode({k: v for k, v in genome.items() if k != "resolution"})
    with pytest.raises(ValueError, match="must be one of"):
        SMALL.decode(genome | {"resolution": 33})
    with pytest.raises(ValueError, match="not in space"):
        SMALL.decode(genome | {"stage9.depth": 1})
    mobile = load_space("metaformer", "mobile")
    with pytest.raises(ValueError, match="resolution must be one of"):
        SMALL.encode(mobile.decode(mobile.sample(np.random.default_rng(0))))


@given(st.sampled_from(["w8", "8a8", "w8a8 ", "w3a8", "w8a4", ""]))
def test_bad_bit_policies_are_refused(text):
    with pytest.raises(ValueError, match="bit"):
        BlockBits.parse(text)


@pytest.mark.parametrize("damage", [{"stages": []}, {"stem": "conv9"}, {"resolution": 0}, {"extra": 1, "stages": None}])
def test_damaged_architectures_are_refused(damage):
    data = SMALL.decode(SMALL.sample(np.random.default_rng(0))).to_dict() | damage
    with pytest.raises(ValueError, match=r"architecture|stem"):
        Architecture.from_dict(data)
