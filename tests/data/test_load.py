"""What every source of data promises, tried on the procedural set and on a folder."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from nas.data.load import load_data
from nas.data.source import DataError

PROCEDURAL = "procedural:train=300,val=60"


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("val", 6)):
        for name in ("cat", "dog", "eel"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (20, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture(params=["procedural", "folder"])
def source(request, photo_folder):
    return PROCEDURAL if request.param == "procedural" else str(photo_folder)


def test_splits_are_disjoint_stratified_and_complete(source):
    data = load_data(source, resolution=16)
    assert data.train.rows is not None
    assert data.search.rows is not None
    both = np.concatenate([data.train.rows, data.search.rows])
    assert len(set(both)) == len(both) == len(data.train) + len(data.search)
    assert len(data.search) == pytest.approx(len(both) / 6, abs=data.num_classes)
    counts = np.bincount(data.search.labels, minlength=data.num_classes)
    assert counts.min() >= 1
    assert counts.max() - counts.min() <= 1


def test_everything_repeats(source):
    first, again = (load_data(source, resolution=16, seed=1) for _ in range(2))
    assert first.identity == again.identity
    assert (first.mean, first.std) == (again.mean, again.std)
    for one, other in ((first.train, again.train), (first.search, again.search), (first.val, again.val)):
        assert np.array_equal(one.labels, other.labels)
        assert torch.equal(one.batch(range(9), 16), other.batch(range(9), 16))


def test_identity_tells_what_changes_the_content(source):
    identities = {
        load_data(source, resolution=resolution, seed=seed, limit=limit).identity
        for resolution, seed, limit in ((16, 0, None), (24, 0, None), (16, 1, None), (16, 0, 60))
    }
    assert len(identities) == 4


def test_batches_are_normalised_and_resized(source):
    data = load_data(source, resolution=16)
    whole = data.train.batch(np.arange(len(data.train)), 16)
    assert whole.dtype == torch.float32
    assert whole.shape == (len(data.train), 3, 16, 16)
    assert torch.allclose(whole.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(whole.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3)
    small = data.train.batch([0, 5], 8)
    expected = torch.nn.functional.interpolate(whole[[0, 5]], (8, 8), mode="bilinear", antialias=True)
    assert torch.allclose(small, expected, atol=1e-5)


def test_batch_takes_lists_arrays_and_tensors_and_refuses_rows_outside(source):
    data = load_data(source, resolution=16)
    expected = data.search.batch([2, 0], 16)
    assert torch.equal(data.search.batch(np.array([2, 0]), 16), expected)
    assert torch.equal(data.search.batch(torch.tensor([2, 0]), 16), expected)
    with pytest.raises(IndexError, match="must lie below"):
        data.search.batch([len(data.search)], 16)


def test_val_is_not_touched_before_it_is_asked_for(source, monkeypatch):
    opened = []
    for module, name in (("nas.data.load", "_draw_val"), ("nas.data.folder", "_open_val")):
        original = getattr(__import__(module, fromlist=[name]), name)

        def spy(*arguments, original=original):
            opened.append(original)
            return original(*arguments)

        monkeypatch.setattr(f"{module}.{name}", spy)
    data = load_data(source, resolution=16)
    data.train.batch([0], 16)
    data.search.batch([0], 16)
    assert not opened
    assert len(data.val) > 0
    data.val.batch([0], 16)
    assert len(opened) == 1


def test_a_bundle_travels_to_another_process(source):
    data = load_data(source, resolution=16)
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy.val.batch([1], 16), data.val.batch([1], 16))


def test_limit_bounds_both_sets(source):
    data = load_data(source, resolution=16, limit=60)
    assert len(data.train) + len(data.search) == 60
    assert len(data.val) <= 60


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("procedural:clases=12", "unknown option 'clases=12'; options are classes="),
        ("procedural:classes=many", "classes must be int, but got 'many'"),
        ("procedural:classes=40", "10 <= classes <= 16"),
        ("procedural:train", "unknown option 'train'"),
        ("no/such/folder", "no folder no/such/folder: give a folder with one folder of images per class"),
    ],
)
def test_bad_sources_get_one_clear_line(source, words):
    with pytest.raises(DataError) as caught:
        load_data(source, resolution=16)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"resolution": 0}, "resolution must be positive, but got 0"),
        ({"resolution": 16, "limit": 0}, "limit must be positive, but got 0"),
        ({"resolution": 16, "limit": 20}, "three images a class"),
    ],
)
def test_bad_arguments_get_one_clear_line(arguments, words):
    with pytest.raises(DataError, match=words):
        load_data("procedural", **arguments)
