"""Image folders as people have them: layouts, formats, damage, size, and the cache."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nas.data.bundle import ImageSource
from nas.data.decode import decode
from nas.data.load import load_data
from nas.data.source import DataError


def make(folder: Path, count: int, *, seed: int = 0, mode: str = "RGB", ending: str = "png", size=(12, 10)):
    """`count` images of noise in a new folder."""
    rng = np.random.default_rng([seed, *folder.name.encode()])
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{index:03d}.{ending}")


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 20), ("val", 5)):
        for name in ("ant", "bee"):
            make(tmp_path / split / name, count, seed=count)
    return tmp_path


def pixels(source: ImageSource) -> torch.Tensor:
    """All images of a split as they are stored, white being 1."""
    images = source.batch(range(len(source)), source.native_size)
    return images * torch.tensor(source.std).view(-1, 1, 1) + torch.tensor(source.mean).view(-1, 1, 1)


def refusal(path: Path, **arguments) -> str:
    with pytest.raises(DataError) as caught:
        load_data(str(path), resolution=8, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Layouts


def test_train_and_val_folders(folder):
    data = load_data(str(folder), resolution=8)
    assert data.class_names == ("ant", "bee")
    assert len(data.train) + len(data.search) == 40
    assert len(data.val) == 10
    assert data.notes == []


@pytest.mark.parametrize("name", ["validation", "valid", "test"])
def test_other_names_for_val(folder, name):
    (folder / "val").rename(folder / name)
    assert len(load_data(str(folder), resolution=8).val) == 10


def test_one_folder_is_split_by_path_and_says_so(folder):
    data = load_data(str(folder / "train"), resolution=8)
    assert (len(data.train) + len(data.search), len(data.val)) == (32, 8)
    assert "20% of the images whose path has the lowest SHA-256 are val (8 images)" in data.notes[0]
    other_seed = load_data(str(folder / "train"), resolution=8, seed=9)
    assert torch.allclose(pixels(data.val), pixels(other_seed.val), atol=1e-5)
    assert not torch.equal(pixels(data.search), pixels(other_seed.search))


def test_train_without_val_is_split_too(folder):
    (folder / "val").rename(folder.parent / f"{folder.name}-val")
    assert len(load_data(str(folder), resolution=8).val) == 8


def test_classes_may_be_named_train_and_test(tmp_path):
    for name in ("bus", "train", "test"):
        make(tmp_path / name, 10)
    assert load_data(str(tmp_path), resolution=8).class_names == ("bus", "test", "train")


def test_files_that_are_no_images_and_hidden_ones_are_left_out(folder):
    (folder / "train/ant/notes.txt").write_text("hello")
    (folder / "train/ant/.hidden.png").write_bytes(b"")
    make(folder / "train/bee/more", 3)
    data = load_data(str(folder), resolution=8)
    assert len(data.train) + len(data.search) == 43
    assert data.notes == [f"1 file in {folder} ignored: no image by the ending"]


# Formats


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "gif", "webp", "tif"])
def test_formats_of_pillow(tmp_path, ending):
    for name in ("a", "b"):
        make(tmp_path / name, 6, ending=ending)
    data = load_data(str(tmp_path), resolution=8)
    assert data.train.batch([0], 8).shape[-2:] == (8, 8)


def test_grey_folder_gives_one_channel_and_says_so(tmp_path):
    for name in ("a", "b"):
        make(tmp_path / "train" / name, 6, mode="L")
        make(tmp_path / "val" / name, 2, mode="RGB")  # colour in val does not change what the networks take
    data = load_data(str(tmp_path), resolution=8)
    assert data.in_chans == 1
    assert data.val.batch([0], 8).shape == (1, 1, 8, 8)
    assert "every training image is grey: networks get one input channel" in data.notes


def test_one_colour_image_makes_three_channels(tmp_path):
    for name in ("a", "b"):
        make(tmp_path / name, 6, mode="L")
    make(tmp_path / "b", 1, mode="RGB", ending="bmp")
    data = load_data(str(tmp_path), resolution=8)
    assert data.in_chans == 3
    first = pixels(data.train)[0]
    assert torch.allclose(first[0], first[1], atol=1e-6)


def test_sixteen_bits_a_pixel_are_scaled_not_clipped():
    deep = Image.fromarray(np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16))
    assert decode(deep, 2)[0].tolist() == [[0, 100], [200, 255]]


def test_shorter_side_is_resized_and_the_middle_cut():
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 200
    assert (decode(Image.fromarray(pixels), 8) == 200).all()
    assert decode(Image.fromarray(pixels), 4).shape == (3, 4, 4)


def test_photographs_are_turned_upright(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        assert (decode(image, 8)[:, 4:] == 255).all()


# Damage


def test_damaged_images_are_named_counted_and_skipped(folder):
    truncated = folder / "train/ant/003.png"
    truncated.write_bytes(truncated.read_bytes()[:150])
    (folder / "train/bee/007.png").write_bytes(b"this is no image")
    data = load_data(str(folder), resolution=8)
    assert len(data.train) + len(data.search) == 38
    note = data.notes[0]
    assert note.startswith(f"2 of 40 images in {folder / 'train'} cannot be read and were skipped: ant/003.png (")
    assert "bee/007.png (cannot identify image file" in note


def test_damaged_val_images_are_noted_when_val_is_opened(folder):
    (folder / "val/bee/001.png").write_bytes(b"")
    data = load_data(str(folder), resolution=8)
    assert data.notes == []
    assert len(data.val) == 9
    assert data.val.labels.tolist() == [0] * 5 + [1] * 4
    assert "1 of 10 images" in data.notes[0]


def test_too_many_damaged_images_are_refused(folder):
    for index in range(5):
        (folder / f"train/ant/{index:03d}.png").write_bytes(b"")
    words = refusal(folder)
    assert "5 of 40 images" in words
    assert "more than 10%" in words
    assert "the first is ant/000.png" in words
    assert "repair or remove them" in words


def test_refusals_name_the_cure(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no images in the class folders" in refusal(empty)

    make(tmp_path / "flat", 3)
    assert f"expected {tmp_path / 'flat'}/CLASS/*.png" in refusal(tmp_path / "flat")

    make(tmp_path / "one" / "cat", 9)
    assert "has one class, 'cat': at least two class folders are needed" in refusal(tmp_path / "one")

    make(tmp_path / "few" / "a", 1)
    (tmp_path / "few" / "b").mkdir()
    assert "has 1 images for 2 classes" in refusal(tmp_path / "few")

    make(tmp_path / "hole" / "a", 9)
    (tmp_path / "hole" / "b").mkdir()
    assert f"class folder {tmp_path / 'hole' / 'b'} has no images" in refusal(tmp_path / "hole")

    make(tmp_path / "scarce" / "a", 9)
    make(tmp_path / "scarce" / "b", 2)
    words = refusal(tmp_path / "scarce")
    assert "class 'b'" in words
    assert "3 are needed for train, search and val" in words

    assert "is a file" in refusal(tmp_path / "flat" / "000.png")
    assert "no folder" in refusal(tmp_path / "nowhere")

    make(tmp_path / "halves" / "val" / "a", 2)
    assert "has val/ but no train/" in refusal(tmp_path / "halves")


def test_class_of_val_that_train_does_not_have_is_refused(folder):
    make(folder / "val" / "wasp", 2)
    words = refusal(folder)
    assert "class 'wasp' that the training images do not have" in words


def test_unreadable_folder_is_named(folder, monkeypatch):
    scandir = os.scandir

    def refusing(path):
        if Path(path).name == "ant":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("nas.data.listing.os.scandir", refusing)
    assert f"{folder / 'train' / 'ant'} cannot be read (Permission denied): check its permissions" in refusal(folder)


# Decoded when used


def test_decoding_when_used_gives_the_same_as_decoding_at_once(folder):
    (folder / "train/ant/003.png").write_bytes(b"")
    make(folder / "train/ant", 1, mode="L", ending="bmp")
    at_once = load_data(str(folder), resolution=8)
    when_used = load_data(str(folder), resolution=8, memory_bytes=1000)
    assert when_used.identity == at_once.identity
    assert (when_used.mean, when_used.std) == (at_once.mean, at_once.std)
    for one, other in (
        (at_once.train, when_used.train),
        (at_once.search, when_used.search),
        (at_once.val, when_used.val),
    ):
        assert np.array_equal(one.labels, other.labels)
        rows = np.arange(len(one))[::-1]
        assert torch.equal(one.batch(rows, 8), other.batch(rows, 8))
    assert any(re.search(r"would take 0.0 GiB: decoded when used", note) for note in when_used.notes)


# Cache


def test_cache_changes_nothing_but_the_time(folder, tmp_path, monkeypatch):
    (folder / "train/ant/003.png").write_bytes(b"")
    cache = tmp_path / "cache"
    plain = load_data(str(folder), resolution=8)
    stored = load_data(str(folder), resolution=8, cache=cache)
    assert [path.suffix for path in cache.iterdir()] == [".npz"]
    monkeypatch.setattr("nas.data.folder.decode_all", None)  # decoding again would fail
    read = load_data(str(folder), resolution=8, cache=cache)
    assert plain.identity == stored.identity == read.identity
    assert plain.notes == stored.notes == read.notes
    assert torch.equal(plain.train.batch(range(30), 8), read.train.batch(range(30), 8))


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "replaced"])
def test_damaged_cache_is_ignored(folder, tmp_path, damage):
    cache = tmp_path / "cache"
    expected = load_data(str(folder), resolution=8, cache=cache)
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    elif damage == "emptied":
        content = bytearray()
    else:
        content = bytearray(b"PK\x03\x04 nonsense")
    file.write_bytes(content)
    again = load_data(str(folder), resolution=8, cache=cache)
    assert torch.equal(expected.train.batch(range(30), 8), again.train.batch(range(30), 8))


def test_changed_files_are_decoded_again(folder, tmp_path):
    cache = tmp_path / "cache"
    load_data(str(folder), resolution=8, cache=cache)
    make(folder / "train" / "ant", 20, seed=99)  # same names
    fresh = load_data(str(folder), resolution=8)
    assert torch.equal(
        load_data(str(folder), resolution=8, cache=cache).train.batch(range(30), 8),
        fresh.train.batch(range(30), 8),
    )


def test_cache_that_cannot_be_written_is_a_note(folder, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    data = load_data(str(folder), resolution=8, cache=blocked)
    assert "could not be kept" in data.notes[0]
    assert len(data.train) > 0
