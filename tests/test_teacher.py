"""External teachers: timm models with local weights, at their own resolution and normalisation."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from small_study import small_spec

from nas.data.load import load_data
from nas.errors import UsageError
from nas.export_study import same_problem
from nas.progress import Narrator
from nas.search import run_search
from nas.spec import TrainSpec
from nas.standalone import train_alone
from nas.teacher import load_teacher
from nas.teacher_files import full_teacher, teacher_identity
from nas.train import supernet_identity
from search_spaces.metaformer import load_space

NAME = "test_resnet"


@pytest.fixture(scope="module")
def bundle():
    return load_data("procedural:train=120,val=40", resolution=24)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=12)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    return model.eval(), tmp_path / "weights.safetensors"


def test_a_teacher_sees_images_as_it_was_trained_to(bundle, weights):
    model, path = weights
    teacher = load_teacher(f"{NAME}:{path}", bundle)
    images = bundle.train.batch(range(4), 24)
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    ours, our_std = (torch.tensor(values).view(1, 3, 1, 1) for values in (bundle.mean, bundle.std))
    side = config["input_size"][1]
    pixels = (
        torch.nn.functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True) * our_std + ours
    )
    with torch.no_grad():
        expected = model((pixels - mean) / std).softmax(1)
    assert torch.allclose(teacher(images), expected, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


def test_networks_learn_from_a_teacher_and_their_identity_follows_its_weights(bundle, weights, tmp_path):
    _, path = weights
    space = load_space(
        "metaformer", mixers=["pool"], choices={"resolution": [24], "depth": [1], "width": [16, 32, 64, 96]}
    )
    arch = space.decode({choice.name: choice.values[0] for choice in space.choices})
    spec, word = TrainSpec(steps=2, batch_size=8, warmup_steps=1), f"{NAME}:{path}"
    taught = train_alone(arch, bundle, spec, "cpu", teacher=lambda device: load_teacher(word, bundle, device))
    alone = train_alone(arch, bundle, spec, "cpu")
    assert not torch.equal(taught.head.fc.weight, alone.head.fc.weight)
    with_teacher = TrainSpec(steps=2, teacher=word)
    before = supernet_identity(space, bundle, with_teacher), teacher_identity(word)
    save_file(timm.create_model(NAME, num_classes=12).state_dict(), path)
    assert supernet_identity(space, bundle, with_teacher) != before[0]
    assert teacher_identity(word) != before[1]


def test_a_teacher_is_named_by_what_its_files_hold_not_by_where_they_lie(tmp_path, monkeypatch):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}")
        (tmp_path / folder / "model.safetensors").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    known = teacher_identity("one")
    assert teacher_identity(full_teacher("two")) == known
    (tmp_path / "two" / "config.json").write_text('{"mean": 0}')
    assert teacher_identity("two") != known, "its normalisation is part of it"
    assert teacher_identity("a:one/model.safetensors") != teacher_identity("b:one/model.safetensors")
    assert teacher_identity("resnet18") == "resnet18"
    (tmp_path / "one" / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"there is no one/model.safetensors, which the teacher 'one' needs"):
        teacher_identity("one")


def test_a_study_has_trials_of_one_teacher_alone(weights, tmp_path):
    _, path = weights
    spec = small_spec(train_teacher=f"{NAME}:{path}", search_trials=2)
    first = run_search(spec, tmp_path, config="taught")
    assert run_search(spec, tmp_path, config="taught").name == first.name
    save_file(timm.create_model(NAME, num_classes=12).state_dict(), path)
    with pytest.raises(UsageError, match=r"ran with other .* teacher"):
        same_problem(first, Narrator(quiet=True))
    second = run_search(spec, tmp_path, config="taught")
    assert (second.name != first.name, len(second.trials)) == (True, 2)
    assert second.supernet != first.supernet


def test_what_cannot_teach_is_one_line(bundle, weights, tmp_path):
    _, path = weights
    save_file(timm.create_model(NAME, num_classes=7).state_dict(), tmp_path / "seven.safetensors")
    (tmp_path / "weights.pth").write_bytes(b"pickle")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    for word, said in (
        (f"{NAME}:{tmp_path / 'seven.safetensors'}", "has 7 classes, but the data has 12"),
        (f"{NAME}:{tmp_path / 'absent.safetensors'}", "wants a .safetensors file of its weights"),
        (f"{NAME}:{tmp_path / 'weights.pth'}", "wants a .safetensors file of its weights"),
        (f"{NAME}:{tmp_path / 'broken.safetensors'}", "cannot be read"),
        (f"resnet18:{path}", "does not hold weights of resnet18"),
    ):
        with pytest.raises(UsageError, match=said) as raised:
            load_teacher(word, bundle)
        assert "\n" not in str(raised.value)
