"""What a word after --data names. Loads nothing heavy: a path that is not there is said at once."""

from __future__ import annotations

from pathlib import Path

from nas.errors import UsageError

EMBEDDED = "procedural"
"""Images that are drawn: they come with the program."""

PACKAGES = {"torch": "torchvision", "hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow-datasets"}
"""Prefix of a name that timm knows -> the package that reads it."""

VAL_FOLDERS = ("val", "validation", "valid", "test")
"""Names that the folder of validation images may have beside `train`, in this order."""


class DataError(UsageError):
    """The images that were asked for cannot be used; the line says why and what to do."""


def is_embedded(source: str) -> bool:
    """Whether images are drawn: "procedural", or "procedural:OPTIONS"."""
    return source.partition(":")[0] == EMBEDDED


def folder_of(source: str) -> Path | None:
    """The image folder that is meant; None for drawn images and for what timm knows by name. A folder of that name goes
    before timm's.
    """
    path = Path(source).expanduser()
    is_named = not path.exists() and "/" in source and source.split("/")[0].lower() in PACKAGES
    return None if is_embedded(source) or is_named else path


def split_folders(root: Path) -> tuple[Path, Path | None]:
    """(training folder, validation folder or None) of an image folder (`VAL_FOLDERS`). Raises DataError."""
    if not root.exists():
        raise DataError(f"no folder {root}: give a folder with one folder of images per class, or 'procedural'")
    if not root.is_dir():
        raise DataError(f"{root} is a file: give a folder with one folder of images per class")
    val = next((root / name for name in VAL_FOLDERS if _holds_folders(root / name)), None)
    if _holds_folders(root / "train"):  # a folder of files is a class named train
        return root / "train", val
    if val is not None:
        raise DataError(f"{root} has {val.name}/ but no train/: put the training images into {root / 'train'}")
    return root, None


def _holds_folders(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_dir() for path in folder.iterdir())
