"""Every entry of a spec tells studies, supernets and trainings apart, but for those listed here with their reasons."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
from small_study import small_spec

from hw_models.target_file import TARGETS_FOLDER
from nas.checkpoint import save_checkpoint
from nas.data.load import load_data
from nas.problem import pose
from nas.spec import EvaluateSpec, StudySpec, TrainSpec, override
from nas.train import supernet_identity
from nas.trainings import SharedWeights, Training, Workshop
from search_spaces.metaformer import load_space
from search_spaces.plugin import Plugin, uninstall

ENTRIES = [
    (section.name, entry.name)
    for section in fields(StudySpec)
    for entry in fields(type(getattr(StudySpec(), section.name)))
]

NOT_OF_STUDIES = {
    "search.trials": "a longer study is the same one, which goes on",
    "train.checkpoint_every": "an interrupted training ends with the same weights however often they were saved",
    "data.source": "the images themselves count, not where they lie",
    "search.targets": "the figures of the targets count, not the names of their files",
    "search.calibrations": "the calibrations themselves count, and which share of latencies is asked for",
    "train.warm_start": "the supernet in the file counts, not where it lies",
    "space.plugin": "the text of the file counts, not where it lies",
    "train.teacher": "what its files hold counts, and the name of one without files, by `pose`",
    "data.flip": "images that are not mirrored have another identity",
}
NOT_OF_SUPERNETS = {
    "checkpoint_every": "as of studies",
    "warm_start": "as of studies: `origin` takes its place",
}
NOT_OF_TRAININGS = {
    "checkpoint_every": "as of studies",
    "single_path_share": "networks alone have no single paths",
    "single_path_sizes": "the same",
    "subnets": "nor others beside them",
    "small_warmup_share": "nor sizes that come later",
    "fairness": "nor mixers that are dealt",
    "distillation": "nor a largest network that teaches them; where the supernet does, its identity counts",
    "teacher": "that of a training is named with it, and that of a supernet is in the supernet's identity",
    "warm_start": "the weights that it begins with are named with it, and with them the supernet",
}


def changed(section: Any, entry: str) -> Any:
    """`section` with another value of the entry, of its type."""
    value, hint = getattr(section, entry), get_type_hints(type(section))[entry]
    if hint is bool:
        other: Any = not value
    elif hint in (int, float):
        other = value + 1
    elif isinstance(value, tuple):
        other = (*value, "another")
    elif isinstance(value, Mapping):
        other = {**value, "another": ("value",)}
    elif value is None:
        other = 3 if hint == int | None else 0.9 if hint == float | None else "another"
    else:
        other = f"{value}another"
    return replace(section, **{entry: other})


@pytest.mark.parametrize(("section", "entry"), ENTRIES)
def test_a_study_is_another_when_an_entry_is(section: str, entry: str) -> None:
    spec = StudySpec()
    other = replace(spec, **{section: changed(getattr(spec, section), entry)})
    assert other != spec
    assert (other.identity("a fact") == spec.identity("a fact")) == (f"{section}.{entry}" in NOT_OF_STUDIES)


def test_exceptions_name_entries_that_there_are() -> None:
    assert NOT_OF_STUDIES.keys() <= {f"{section}.{entry}" for section, entry in ENTRIES}
    assert NOT_OF_SUPERNETS.keys() | NOT_OF_TRAININGS.keys() <= {entry.name for entry in fields(TrainSpec)}


@pytest.fixture(scope="module")
def bundle():
    return load_data("procedural:train=160,val=40", resolution=24)


OF_SUPERNETS = load_space(
    "metaformer",
    mixers=["pool", "dwconv"],
    choices={
        "resolution": [24, 32],
        "depth": [1, 2],
        "norm": ["batchnorm", "affine"],
        "stem": ["conv3s2", "conv7s4"],
        "channel_mixer": ["mlp", "none"],
        "gate": ["none", "se"],
    },
)
"""Several values of every choice."""


@pytest.mark.parametrize("entry", [entry.name for entry in fields(TrainSpec)])
def test_a_supernet_is_another_when_its_training_is(bundle, entry: str) -> None:
    spec, other = TrainSpec(), changed(TrainSpec(), entry)
    ours, theirs = (supernet_identity(OF_SUPERNETS, bundle, s, "where it began") for s in (spec, other))
    if entry == "warm_start":
        assert theirs != ours, "another beginning than none"
        moved = replace(other, warm_start="moved")
        ours = supernet_identity(OF_SUPERNETS, bundle, moved, "where it began")
        assert supernet_identity(OF_SUPERNETS, bundle, moved, "elsewhere") != ours
    assert (theirs == ours) == (entry in NOT_OF_SUPERNETS)


@pytest.mark.parametrize("choice", [choice.name for choice in OF_SUPERNETS.choices])
def test_a_supernet_is_another_when_its_space_is(bundle, choice: str) -> None:
    assert len(OF_SUPERNETS[choice].values) > 1
    narrower = OF_SUPERNETS.restrict({choice: OF_SUPERNETS[choice].values[1:]})
    ours, theirs = (supernet_identity(space, bundle, TrainSpec()) for space in (OF_SUPERNETS, narrower))
    # One set of weights serves every width of their bits.
    assert (theirs == ours) == (choice.rpartition(".")[2] == "bits")


def of_other_data(bundle: Any) -> list[Any]:
    """Other images, other classes, other channels."""
    train = bundle.train
    return [
        replace(bundle, identity="other"),
        replace(bundle, train=replace(train, class_names=train.class_names[:-1])),
        replace(bundle, train=replace(train, in_chans=1)),
    ]


def test_a_supernet_is_another_when_its_data_are(bundle) -> None:
    found = {supernet_identity(OF_SUPERNETS, b, TrainSpec()) for b in (bundle, *of_other_data(bundle))}
    assert len(found) == 4


def workshop(bundle: Any, folder: Path) -> Workshop:
    shared = SharedWeights(folder / "supernet.safetensors", "the supernet", OF_SUPERNETS)
    return Workshop(folder, bundle, TrainSpec(), EvaluateSpec(), shared)


def a_training(**settings: Any) -> Training:
    arch = OF_SUPERNETS.decode({choice.name: choice.values[0] for choice in OF_SUPERNETS.choices})
    return Training(0, arch, **settings)


@pytest.mark.parametrize("entry", [entry.name for entry in fields(TrainSpec)])
def test_a_training_alone_is_another_when_its_recipe_is(bundle, tmp_path, entry: str) -> None:
    one = workshop(bundle, tmp_path)
    other = replace(one, spec=changed(one.spec, entry))
    assert (other.identity(a_training()) == one.identity(a_training())) == (entry in NOT_OF_TRAININGS)


def test_a_training_alone_is_another_when_its_network_data_or_teacher_are(bundle, tmp_path) -> None:
    one, training = workshop(bundle, tmp_path), a_training()
    arch = OF_SUPERNETS.decode({choice.name: choice.values[-1] for choice in OF_SUPERNETS.choices})
    trainings = [training, replace(training, architecture=arch), a_training(weights="inherited")]
    trainings += [a_training(teacher="supernet"), a_training(teacher="resnet18"), a_training(teacher="resnet34")]
    found = [one.identity(each) for each in trainings]
    other = replace(one, shared=replace(one.shared, identity="another supernet"))  # type: ignore[type-var]
    found += [other.identity(trainings[2]), other.identity(trainings[3])]
    found += [replace(one, bundle=b).identity(training) for b in of_other_data(bundle)]
    found += [replace(one, plugin=Plugin("mine.py", text)).identity(training) for text in ("a", "b")]
    assert len(set(found)) == len(found)
    assert other.identity(training) == one.identity(training), "which it never meets"
    assert one.identity(replace(training, number=7, costs=(1.0,))) == one.identity(training), "the caller's own words"


SPEC = small_spec()


def posed(folder: Path, **settings: Any) -> str:
    return pose(override(SPEC, {key.replace("_", ".", 1): value for key, value in settings.items()}), folder).identity


def test_images_count_wherever_they_lie(tmp_path) -> None:
    one = posed(tmp_path)
    assert posed(tmp_path / "elsewhere") == one
    assert posed(tmp_path, data_source="procedural:train=160,val=151") != one


def test_figures_of_targets_count_wherever_they_lie(tmp_path) -> None:
    text = (TARGETS_FOLDER / "npu_40tops.toml").read_text()
    files = [tmp_path / name for name in ("a/mine.toml", "b/mine.toml", "c/mine.toml")]
    for file in files:
        file.parent.mkdir()
        file.write_text(text)
    files[2].write_text(text.replace("clock_hz = { value = 1.0e9", "clock_hz = { value = 1.1e9", 1))
    one, moved, faster = (posed(tmp_path, search_targets=[str(file)]) for file in files)
    assert one == moved != faster


def test_the_supernet_that_a_study_begins_with_counts_wherever_it_lies(tmp_path) -> None:
    found = []
    for name, identity in (("a", "first"), ("b", "first"), ("c", "second")):
        path = tmp_path / f"{name}.safetensors"
        save_checkpoint(path, {}, {"kind": "supernet", "identity": identity, "step": 2, "train": {"steps": 2}})
        found.append(posed(tmp_path, train_warm_start=str(path)))
    assert found[0] == found[1] != found[2]
    assert posed(tmp_path) not in found


def test_the_text_of_a_plugin_counts_wherever_it_lies(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("nas.conformance.check_plugin", lambda plugin: None)  # which has tests of its own
    found = []
    text = "from search_spaces.mixers.pooling import Pooling\nclass Mine(Pooling): pass\nMIXERS = {'mine': Mine}\n"
    try:
        for name, words in (("a", ""), ("b", ""), ("c", "# edited\n")):
            (tmp_path / f"{name}.py").write_text(text + words)
            settings = {"space_plugin": str(tmp_path / f"{name}.py"), "space_mixers": ["mine"]}
            found.append(posed(tmp_path, **settings))
    finally:
        uninstall()
    assert found[0] == found[1] != found[2]


def test_calibrations_and_the_cost_model_count(tmp_path, monkeypatch) -> None:
    found = [posed(tmp_path)]
    for fact in ("first 0.9", "second 0.9"):
        latency = SimpleNamespace(identity=fact)
        monkeypatch.setattr("nas.problem.calibrated", lambda spec, *_, of=latency: (spec, {"npu_40tops": of}))
        found.append(posed(tmp_path))
    monkeypatch.setattr(sys.modules["hw_models.estimate"], "COST_MODEL_VERSION", "another")
    found.append(posed(tmp_path))
    assert len(set(found)) == 4


@pytest.mark.parametrize("entry", [entry.name for entry in fields(EvaluateSpec)])
def test_a_training_that_is_scored_otherwise_has_another_result(bundle, tmp_path, entry: str) -> None:
    one = workshop(bundle, tmp_path)
    other = replace(one, evaluate=changed(one.evaluate, entry))
    assert other.identity(a_training()) == one.identity(a_training()), "the weights are the same"
    assert other._result(a_training()) != one._result(a_training())
