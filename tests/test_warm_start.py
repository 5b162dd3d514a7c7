"""A supernet that begins with the weights of a wider one: networks of both compute what they did; what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from small_networks import randomize
from small_study import small_spec

import cli
from nas.checkpoint import load_checkpoint, save_checkpoint
from nas.errors import UsageError
from nas.export_study import same_problem
from nas.finalists import run_finalists
from nas.problem import pose, space_of
from nas.progress import Narrator
from nas.search import run_search, run_training
from nas.spec import StudySpec, override
from nas.train import known_origin, supernet_identity
from nas.warm_start import origin_identity, warm_start_
from search_spaces.menu import MENU
from search_spaces.supernet import Supernet

WIDE = small_spec(
    space_mixers=[family for family, facts in MENU.items() if not facts.token_bound],
    space_choices={"resolution": [24, 32], "norm": ["batchnorm", "layernorm"], "gate": ["none", "se"]},
)
FEW = override(WIDE, {"space.mixers": ["dwconv", "gnconv_o3"]})
NARROW = {
    "space.choices.resolution": [24],
    "space.choices.norm": ["batchnorm"],
    "space.choices.depth": [1, 2],
    "space.choices.expansion": [2.0],
    "space.choices.stage1.width": [24],
    "space.choices.stage3.width": [64, 80],
    "space.choices.stage2.mixer": ["dwconv3", "dwconv5", "gnconv_o3"],
}


def kept(spec: StudySpec, folder: Path, **changed) -> Path:
    """A file as training leaves it, of a supernet with weights that hide no mistake."""
    space = space_of(spec.space)
    supernet = randomize(Supernet(space, 10))
    header = {"kind": "supernet", "identity": "wide", "space": space.to_dict(), "num_classes": 10, "in_chans": 3}
    path = folder / "supernet.safetensors"
    save_checkpoint(path, supernet.state_dict(), header | {"step": 2, "train": {"steps": 2}} | changed)
    return path


def test_networks_of_both_spaces_compute_the_same(tmp_path):
    path = kept(WIDE, tmp_path)
    narrow_space = space_of(override(WIDE, NARROW).space)
    wide, narrow = Supernet(space_of(WIDE.space), 10), Supernet(narrow_space, 10)
    wide.load_state_dict(load_checkpoint(path)[0])
    warm_start_(narrow, str(path))
    wide.eval(), narrow.eval()
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    met = set()
    for _ in range(60):
        arch = narrow_space.decode(narrow_space.sample(rng))
        met |= {block.mixer for stage in arch.stages for block in stage.blocks}
        with torch.no_grad():
            assert torch.equal(narrow(images, arch), wide(images, arch)), arch
    assert met == set(WIDE.space.mixers), "every mixer was among them"


def test_a_supernet_whose_mixers_shared_less_is_refused(tmp_path):
    spec = override(WIDE, {"space.mixers": ["mbconv", "pool"]})
    path = kept(spec, tmp_path)
    tensors, header = load_checkpoint(path)
    tensors["stages.0.blocks.0.token_mixer.mbconv.expand.conv.weight"] = torch.zeros(1)
    save_checkpoint(path, tensors, header)
    with pytest.raises(UsageError, match="its mixers share less than those of this version; train it anew"):
        warm_start_(Supernet(space_of(spec.space), 10), str(path))


def test_the_matrices_of_a_whole_block_are_found_without_an_mlp(tmp_path):
    wide = override(WIDE, {"space.mixers": ["mbconv"], "space.choices.channel_mixer": ["mlp", "dwconv_ffn"]})
    narrow = Supernet(space_of(override(wide, {"space.choices.channel_mixer": ["dwconv_ffn"]}).space), 10)
    warm_start_(narrow, str(kept(wide, tmp_path)))
    assert torch.equal(
        narrow.state_dict()["stages.0.blocks.0.mlp.mlp.fc1.weight"],
        load_checkpoint(tmp_path / "supernet.safetensors")[0]["stages.0.blocks.0.mlp.mlp.fc1.weight"],
    )


def test_training_begins_there_and_the_study_knows(tmp_path):
    first = run_training(small_spec(), tmp_path)
    still = {"train.learning_rate": 1e-12, "train.steps": 1, "train.weight_decay": 0.0}
    narrower = override(small_spec(), still | {"train.warm_start": str(first.path), "space.mixers": ["dwconv"]})
    second = run_training(narrower, tmp_path)
    assert second.identity != run_training(override(narrower, {"train.warm_start": ""}), tmp_path).identity
    wide = first.supernet.state_dict()
    for name, tensor in second.supernet.named_parameters():
        assert torch.allclose(tensor, wide[name], atol=1e-6), name
    assert run_training(narrower, tmp_path).reused
    study = run_search(override(narrower, {"search.trials": 2}), tmp_path, name="narrower")
    assert study.supernet == second.path


def test_a_study_outlives_the_file_it_began_with(tmp_path):
    first = run_training(small_spec(), tmp_path / "elsewhere")
    spec = override(small_spec(), {"train.warm_start": str(first.path), "search.trials": 2})
    study = run_search(spec, tmp_path, name="mine")
    moved = first.path.rename(tmp_path / "moved.safetensors")
    assert same_problem(study, Narrator(quiet=True)).identity == study.identity
    more = run_search(override(spec, {"search.trials": 3}), tmp_path, name="mine")
    assert (more.name, more.identity, len(more.trials), more.supernet) == ("mine", study.identity, 3, study.supernet)
    assert run_training(spec, tmp_path).reused
    assert len(run_finalists(study, top=1, steps=1).finalists) == 1
    with pytest.raises(UsageError, match="there is no such file"):  # it began with another file
        pose(override(spec, {"train.warm_start": str(tmp_path / "typo.safetensors")}), tmp_path)
    with pytest.raises(UsageError, match="there is no such file"):  # the supernet of these settings is not there
        run_training(override(spec, {"train.seed": 1}), tmp_path)
    assert study.supernet is not None
    study.supernet.unlink()
    with pytest.raises(UsageError, match=r"train\.warm_start cannot take .*: there is no such file; give") as caught:
        run_search(spec, tmp_path, name="mine")
    assert "\n" not in str(caught.value)
    moved.rename(first.path)
    assert run_training(spec, tmp_path).path == study.supernet


def test_what_began_with_two_files_of_one_name_does_not_choose(tmp_path):
    """Which of both the missing file was is not known."""
    bundle, space = pose(small_spec(), tmp_path).data, space_of(small_spec().space)
    spec = replace(small_spec().train, warm_start=str(tmp_path / "wide.safetensors"))
    for origins, known in ((["one"], "one"), (["one", "two"], None)):
        for origin in origins:
            identity = supernet_identity(space, bundle, spec, origin)
            header = {"identity": identity, "origin": origin, "train": {"warm_start": spec.warm_start}}
            save_checkpoint(tmp_path / "supernets" / identity / "supernet.safetensors", {"w": torch.zeros(1)}, header)
        if known is not None:
            assert known_origin(space, bundle, spec, tmp_path) == known
        else:
            with pytest.raises(UsageError, match="there is no such file"):
                known_origin(space, bundle, spec, tmp_path)


def test_where_the_file_lies_does_not_matter_but_what_is_in_it(tmp_path):
    bundle = pose(small_spec(), tmp_path).data
    (tmp_path / "other").mkdir()
    paths = [kept(FEW, tmp_path), kept(FEW, tmp_path / "other")]
    space = space_of(FEW.space)
    identities = [supernet_identity(space, bundle, replace(FEW.train, warm_start=str(path))) for path in paths]
    assert identities[0] == identities[1] != supernet_identity(space, bundle, FEW.train)
    third = kept(FEW, tmp_path / "other", identity="another")
    assert supernet_identity(space, bundle, replace(FEW.train, warm_start=str(third))) != identities[0]


@pytest.mark.parametrize(
    ("settings", "changed", "said"),
    [
        ({"space.mixers": ["pool"]}, {}, r"has no stages\.0.*offer only what its space offered"),
        (
            {"space.mixers": ["raft_mlp"], "space.choices.resolution": [24]},
            {},
            "raft_mlp are bound to one size of the map",
        ),
        ({"space.multiplex": 2}, {}, "its multiplex is None, that of this space 2"),
        ({}, {"num_classes": 100}, "its num_classes is 100, that of these images 10"),
        ({}, {"step": 1}, "no finished supernet; give the supernet.safetensors"),
        ({}, {"kind": "stand-alone"}, "no finished supernet"),
    ],
)
def test_a_supernet_without_these_weights_is_refused(tmp_path, settings, changed, said):
    path = kept(FEW, tmp_path, **changed)
    space = space_of(override(FEW, settings).space)
    with pytest.raises(UsageError, match=said):
        warm_start_(Supernet(space, 10), str(path))


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(UsageError, match="is no checkpoint; give the supernet"):
        origin_identity(str(tmp_path / "notes.txt"))


def test_larger_sizes_than_it_had_are_refused(tmp_path):
    path = kept(override(FEW, NARROW), tmp_path)
    with pytest.raises(UsageError, match=r"must fit into one of shape|has no "):
        warm_start_(Supernet(space_of(FEW.space), 10), str(path))


def test_a_missing_file_is_one_line_before_any_training(tmp_path):
    words = ["train", "--dir", str(tmp_path), "--set", f"train.warm_start={tmp_path}/none.safetensors"]
    result = CliRunner().invoke(cli.cli, words)
    assert isinstance(result.exception, UsageError)
    assert "there is no such file; give the supernet.safetensors of `nas train`" in str(result.exception)
    assert not list(tmp_path.glob("supernets/*"))
