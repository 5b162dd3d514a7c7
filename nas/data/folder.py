"""An ordinary image folder as a data set: DIR/{train,val}/CLASS/* or DIR/CLASS/*."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from nas.data.build import Reading, build_bundle, require_per_class
from nas.data.bundle import ArrayPixels, DataBundle, LabelledPixels, Pixels
from nas.data.cache import cache_key, read_cached, write_cached
from nas.data.decode import Decoded, FilePixels, ImageFiles, decode_all
from nas.data.listing import Listing, align_classes, list_images
from nas.data.source import split_folders
from nas.data.split import first_of_each_class, split_by_path

VAL_SHARE = 0.2
"""Share of the images kept for validation where the folder has no validation images of its own."""


def load_folder(root: Path, reading: Reading) -> DataBundle:
    """The bundle of an image folder, see `nas.data.load_data`. Raises DataError."""
    notes: list[str] = []
    train, val = _list_splits(root, notes)
    if reading.limit is not None:
        train = train.take(first_of_each_class(train.labels, reading.limit))
        val = val.take(first_of_each_class(val.labels, reading.limit))
    require_per_class(train.labels, train.class_names, 2, "train and search", str(train.root))
    images, in_chans = _open(train, reading, notes)
    if in_chans == 1:
        notes.append("every training image is grey: networks get one input channel")
    bundle = build_bundle(
        root.resolve().name,
        reading,
        images,
        partial(_open_val, val, replace(reading, progress=None), notes, in_chans),
        class_names=train.class_names,
        in_chans=in_chans,
        native_size=reading.resolution,
        content={"train": train.content(), "val": val.content()},
    )
    bundle.notes = notes  # the list itself: opening val adds to it
    return bundle


def _list_splits(root: Path, notes: list[str]) -> tuple[Listing, Listing]:
    train_root, val_root = split_folders(root)
    train = list_images(train_root)
    ignored = train.ignored
    if val_root is not None:
        val = list_images(val_root)
        ignored += val.ignored
        val = align_classes(val, train.class_names)
    else:
        require_per_class(train.labels, train.class_names, 3, "train, search and val", str(train_root))
        rest, part = split_by_path(train.names, train.labels, VAL_SHARE)
        train, val = train.take(rest), train.take(part)
        notes.append(
            f"{root} has no validation folder: of every class, the {VAL_SHARE:.0%} of the images "
            f"whose path has the lowest SHA-256 are val ({len(val)} images)"
        )
    if ignored:
        notes.append(f"{ignored} file{'s' * (ignored > 1)} in {root} ignored: no image by the ending")
    return train, val


def _open_val(listing: Listing, reading: Reading, notes: list[str], in_chans: int) -> LabelledPixels:
    return _open(listing, reading, notes, in_chans)[0]


def _open(
    listing: Listing, reading: Reading, notes: list[str], in_chans: int | None = None
) -> tuple[LabelledPixels, int]:
    """Decode or check the files of a listing; also the channels, found out if None. Notes what it skips."""
    files = ImageFiles(listing.root, listing.names)
    size = reading.resolution
    need_bytes = len(listing) * (in_chans or 3) * size * size
    decoded = _decode_cached(listing, files, reading, in_chans, need_bytes <= reading.memory_bytes, notes)
    if decoded.bad:
        notes.append(_skipped(files, decoded.bad))
    if decoded.images is not None:
        pixels: Pixels = ArrayPixels(decoded.images)
    else:
        notes.append(
            f"{len(listing)} images of {listing.root} would take {need_bytes / 2**30:.1f} GiB: decoded when used"
        )
        pixels = FilePixels(files, decoded.good, size, decoded.in_chans)
    return LabelledPixels(pixels, listing.labels[decoded.good]), decoded.in_chans


def _decode_cached(
    listing: Listing, files: ImageFiles, reading: Reading, in_chans: int | None, keep: bool, notes: list[str]
) -> Decoded:
    size, cache = reading.resolution, reading.cache
    if cache is None:
        return decode_all(files, size, in_chans=in_chans, keep=keep, progress=reading.progress)
    how = [size, in_chans, keep]
    key = cache_key({"files": listing.content(), "mtimes_ns": listing.mtimes_ns.tolist(), "how": how})
    decoded = read_cached(cache, key)
    if decoded is None:
        decoded = decode_all(files, size, in_chans=in_chans, keep=keep, progress=reading.progress)
        try:
            write_cached(cache, key, decoded)
        except OSError as error:
            notes.append(f"decoded images could not be kept in {cache} ({error.strerror}) and are decoded each time")
    return decoded


def _skipped(files: ImageFiles, bad: Sequence[tuple[int, str]]) -> str:
    shown = ", ".join(f"{files.names[row]} ({reason})" for row, reason in bad[:5])
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    return f"{len(bad)} of {len(files)} images in {files.root} cannot be read and were skipped: {shown}{more}"
