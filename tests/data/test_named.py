"""Data sets by timm's names, without the network: a stand-in for timm's data set, and what is missing."""

from __future__ import annotations

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from nas.data.load import load_data
from nas.data.source import DataError


class Drawer:
    """A map-style data set like torchvision's: (image, label) by index."""

    class_to_idx = {"disc": 0, "ring": 1}  # noqa: RUF012  (as in torchvision)

    def __init__(self, count: int) -> None:
        self.targets = [index % 2 for index in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("L", (10, 12), index), self.targets[index]


@pytest.fixture
def drawer(monkeypatch, tmp_path):
    """Replaces timm's factory; gives the list of the splits that were asked for."""
    asked = []

    def create_dataset(name, root, split, download):
        asked.append(split)
        if split == "validation":
            raise AssertionError("Unknown split")
        return Drawer(36 if split == "train" else 8)

    monkeypatch.setattr(timm.data, "create_dataset", create_dataset)
    monkeypatch.chdir(tmp_path)
    return asked


def test_named_set_is_read_and_val_only_when_asked_for(drawer):
    data = load_data("torch/drawer", resolution=8)
    assert data.class_names == ("disc", "ring")
    assert data.in_chans == 3
    assert len(data.train) + len(data.search) == 36
    assert drawer == ["train"]
    assert len(data.val) == 8
    assert drawer == ["train", "validation", "val"]


def test_limit_of_a_named_set_is_balanced(drawer):
    data = load_data("torch/drawer", resolution=8, limit=12)
    both = np.concatenate([data.train.labels, data.search.labels])
    assert np.bincount(both).tolist() == [6, 6]


def test_streams_are_read_in_order(monkeypatch, tmp_path):
    class Stream:
        def __init__(self) -> None:
            self.items = [Drawer(20)[index] for index in range(20)]

        def __len__(self) -> int:
            return 20

        def __iter__(self):
            return iter(self.items)

    monkeypatch.setattr(timm.data, "create_dataset", lambda *_, **__: Stream())
    monkeypatch.chdir(tmp_path)
    data = load_data("tfds/drawer", resolution=8, limit=12)
    assert data.class_names == ("0", "1")
    assert torch.isfinite(data.train.batch([0], 8)).all()


def test_too_large_a_named_set_names_the_cure(drawer):
    with pytest.raises(DataError, match="set a limit, or save them as an image folder"):
        load_data("torch/drawer", resolution=8, memory_bytes=100)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ImportError("No module named 'datasets'"),
            "hfds/some/set needs the package 'datasets': pip install datasets",
        ),
        (
            ConnectionError("no route to host"),
            "(no route to host): check the name and the network, or give an image",
        ),
        (AssertionError(), "hfds/some/set cannot be read (AssertionError)"),
    ],
)
def test_what_is_missing_is_said_in_one_line(monkeypatch, tmp_path, error, words):
    def create_dataset(*_, **__):
        raise error

    monkeypatch.setattr(timm.data, "create_dataset", create_dataset)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        load_data("hfds/some/set", resolution=8)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_goes_before_a_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torch" / "cifar10").mkdir(parents=True)
    with pytest.raises(DataError, match="no images in the class folders"):
        load_data("torch/cifar10", resolution=8)
