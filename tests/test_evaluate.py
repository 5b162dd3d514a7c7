"""Scoring a candidate reads of the data what each of its steps may see, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closed_data import ReadTooEarlyOrLate, closed
from small_networks import randomize
from torch import nn

from nas.data.bundle import ImageSource
from nas.data.load import load_data
from nas.evaluate import Evaluator
from nas.spec import EvaluateSpec, TrainSpec
from nas.standalone import train_alone
from nas.teacher import largest_teacher
from nas.train import train_supernet
from search_spaces.metaformer import load_space
from search_spaces.supernet import Supernet

SPACE = load_space("metaformer", mixers=["pool", "dwconv"], choices={"resolution": [24], "depth": [1]})
ARCH = SPACE.decode({choice.name: choice.values[0] for choice in SPACE.choices})
SPEC = EvaluateSpec(bn_images=24, calibration_images=16, search_images=20, batch_size=16)
PARTS = ("train", "search", "val")


@pytest.fixture(scope="module")
def bundle():
    return load_data("procedural:train=160,val=40", resolution=24)


@pytest.fixture(scope="module")
def supernet():
    return randomize(Supernet(SPACE, 12)).eval()


@pytest.mark.parametrize("part", PARTS)
def test_a_closed_part_cannot_be_read(bundle, part):
    source = getattr(closed(bundle, part), part)
    for read in (len, lambda s: s.labels, lambda s: s.batch([0], 24)):
        with pytest.raises(ReadTooEarlyOrLate):
            read(source)


def test_a_candidate_is_prepared_with_training_images_and_scored_on_those_asked_for(bundle, supernet):
    prepared = Evaluator(closed(bundle, "search", "val"), SPEC, supernet).prepare(ARCH)
    for images, others in (("search", ("train", "val")), ("val", ("train", "search"))):
        accuracy = Evaluator(closed(bundle, *others), SPEC, supernet).score(prepared, ARCH, images)
        assert (accuracy.images, accuracy.samples) == (images, {"search": 20, "val": 40}[images])


def test_statistics_and_ranges_come_of_the_first_training_images_of_one_shuffled_order(bundle, supernet, monkeypatch):
    rows: list[int] = []
    read = ImageSource.batch

    def noted(source: ImageSource, indices: np.ndarray, *rest: object) -> torch.Tensor:
        rows.extend(map(int, indices))
        return read(source, indices, *rest)

    monkeypatch.setattr(ImageSource, "batch", noted)
    Evaluator(bundle, SPEC, supernet).prepare(ARCH)
    statistics, ranges = rows[: SPEC.bn_images], rows[SPEC.bn_images :]
    assert ranges == statistics[: SPEC.calibration_images]
    assert len(set(statistics)) == SPEC.bn_images
    assert statistics != sorted(statistics), "images lie class by class in many data sets"


def test_networks_are_trained_and_taught_on_training_images_alone(bundle, supernet, tmp_path):
    only_train, spec = closed(bundle, "search", "val"), TrainSpec(steps=2, batch_size=8, warmup_steps=1)
    train_supernet(SPACE, only_train, spec, tmp_path, device="cpu")
    train_alone(
        ARCH, only_train, spec, "cpu", teacher=lambda device: largest_teacher(supernet, ARCH, only_train, device)
    )


def test_a_teacher_from_the_supernet_has_batchnorm_statistics_of_its_own(bundle, supernet):
    """Those of a supernet are of many networks at once. Of the first norm they can be computed by hand."""
    network = largest_teacher(supernet, ARCH, bundle, "cpu").network
    seen: list[torch.Tensor] = []
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    with norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])), torch.no_grad():
        network(bundle.train.batch(range(len(bundle.train)), 24))
    values = seen[0].transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(norm.running_mean.double(), values.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), values.var(1), rtol=1e-4, atol=1e-5)
    shared = {name: tensor for name, tensor in supernet.subnet(ARCH).state_dict().items() if "running" in name}
    own = network.state_dict()
    assert all(name in own for name in shared)
    assert not any(torch.equal(own[name][: len(shared[name])], shared[name]) for name in shared)
