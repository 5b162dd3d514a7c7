"""Study specifications: strict reading, overriding, identity."""

from __future__ import annotations

import hashlib
import json
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import UsageError
from nas.problem import space_of
from nas.spec import (
    SUPERNET_VERSION,
    StudySpec,
    TrainSpec,
    differences,
    list_studies,
    load_spec,
    override,
    parse_setting,
    to_toml,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.fixed_dictionaries(
    {
        "space.choices": st.dictionaries(texts, st.lists(st.integers(1, 64) | texts, max_size=3), max_size=2),
        "data.source": texts,
        "train.steps": st.integers(1, 10**6),
        "train.learning_rate": st.floats(1e-9, 1e3),
        "search.constraints": st.lists(texts, max_size=3),
    }
)


@given(values)
def test_what_is_written_is_read_back(settings):
    spec = override(StudySpec(), settings)
    assert StudySpec.from_dict(tomllib.loads(to_toml(spec))) == spec


@pytest.mark.parametrize("name", list_studies())
def test_every_shipped_study_is_read(name):
    assert load_spec(name)[0] == name


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"trian": {}}, r"unknown section \[trian\]; did you mean 'train'"),
        ({"train": {"stepz": 1}}, r"unknown key 'stepz' in \[train\]; did you mean 'steps'"),
        ({"train": {"steps": "many"}}, "train.steps must be a whole number, but got 'many'"),
        ({"train": {"steps": True}}, "train.steps must be a whole number, but got True"),
        ({"train": {"steps": 0}}, "train.steps must be at least 1"),
        ({"train": {"batch_size": 1}}, "train.batch_size must be at least 2, but got 1"),
        ({"evaluate": {"bn_images": 1}}, "evaluate.bn_images must be at least 2, but got 1"),
        ({"evaluate": {"calibration_images": 1}}, "evaluate.calibration_images must be at least 2"),
        ({"evaluate": {"batch_size": 1}}, "evaluate.batch_size must be at least 2"),
        ({"train": {"learning_rate": -1.0}}, "learning_rate"),
        ({"train": {"learning_rate": float("nan")}}, "learning_rate"),
        ({"train": 3}, r"\[train\] must be a section"),
        ({"search": {"objectives": "top1"}}, "search.objectives must be a list"),
        ({"search": {"objectives": []}}, "search.objectives must name at least one"),
        ({"search": {"trials": -5}}, "search.trials must be at least 1"),
        ({"data": {"limit": 0}}, "data.limit must be at least 1"),
        ({"space": {"choices": [1]}}, "space.choices must be a table"),
    ],
)
def test_mistakes_are_named_with_their_cure(content, said):
    with pytest.raises(UsageError, match=said) as caught:
        StudySpec.from_dict(content)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_or_not_toml(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'quickstart'"):
        load_spec("quickstrat")
    bad = tmp_path / "bad.toml"
    bad.write_text("[train]\nsteps = 1\nsteps = 2\n")
    with pytest.raises(UsageError, match=r"bad.toml: not a TOML file.*line 3"):
        load_spec(str(bad))


def test_settings_are_toml_or_a_bare_word():
    assert parse_setting("train.steps=3") == ("train.steps", 3)
    assert parse_setting("data.source = torch/cifar10") == ("data.source", "torch/cifar10")
    assert parse_setting('search.targets=["a", "b"]') == ("search.targets", ["a", "b"])
    with pytest.raises(UsageError, match="write it like"):
        parse_setting("train.steps")
    with pytest.raises(UsageError, match="did you mean 'steps'"):
        override(StudySpec(), {"train.stes": 3})
    with pytest.raises(UsageError, match=r"did you mean 'train.steps'"):
        override(StudySpec(), {"trian.steps": 3})


def test_another_preset_takes_the_choices_of_the_first_away():
    _, spec = load_spec("quickstart")
    assert spec.space.choices == {"resolution": (24, 32)}
    mobile = override(spec, {"space.preset": "mobile"})
    assert mobile.space.choices == {}
    assert space_of(mobile.space).preset == "mobile"
    assert override(spec, {"space.preset": "small", "train.steps": 3}).space.choices == spec.space.choices
    opened = override(spec, {"space.choices.stage3.gate": ["none", "se"]})
    assert dict(opened.space.choices) == {**spec.space.choices, "stage3.gate": ("none", "se")}
    given = override(spec, {"space.preset": "mobile", "space.choices": {"depth": [1]}})
    assert given.space.choices == {"depth": (1,)}


def test_an_identity_has_no_entry_that_is_younger_than_it_at_its_default():
    """Written out: studies made before there were `multiplex` and `flip` go on under their names."""
    content = StudySpec().to_dict()
    for section, key in (
        ("search", "trials"), ("search", "calibrations"), ("search", "targets"), ("train", "checkpoint_every"),
        ("train", "warm_start"), ("data", "source"), ("data", "flip"), ("space", "multiplex"),
    ):  # fmt: skip
        del content[section][key]
    text = json.dumps([SUPERNET_VERSION, content, "images"], sort_keys=True)
    assert StudySpec().identity("images") == hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({}, []),
        ({"train.mixup": 0.2}, ["pairs are drawn"]),
        ({"train.cutmix": 1.0}, ["pairs are drawn"]),
        ({"train.steps": 40}, []),
        ({"train.steps": 10}, ["warm-up is half"]),
    ],
)
def test_what_trains_otherwise_than_it_once_did_is_another_study(entries, said, monkeypatch):
    spec = override(StudySpec(), entries)
    identity = spec.identity("images")
    assert spec.train.revisions == said
    monkeypatch.setattr(TrainSpec, "revisions", [])
    assert (spec.identity("images") == identity) == (not said)


def test_identity_is_what_the_study_is_not_how_long_or_where():
    spec = StudySpec()
    longer = override(spec, {"search.trials": 7, "train.checkpoint_every": 3, "data.source": "/moved"})
    assert longer.identity("images") == spec.identity("images")
    assert spec.identity("other images") != spec.identity("images")
    changed = override(spec, {"search.batch": 4})
    assert changed.identity("images") != spec.identity("images")
    assert differences(spec, override(changed, {"search.trials": 7})) == ["search.batch 8 -> 4"]
