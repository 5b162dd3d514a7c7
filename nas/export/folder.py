"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nas.errors import NasError, UsageError

QDQ_FILE = "model_qdq.onnx"
"""In the folder of an exported network: the network at its own bits."""


def refuse_to_replace(out: Path, *, force: bool) -> None:
    """Raises UsageError when `out` exists and `force` is False."""
    if out.exists() and not force:
        raise UsageError(f"{out.absolute()} exists; choose another folder, or replace it with --force")


@contextmanager
def whole_folder(out: Path, *, force: bool) -> Iterator[Path]:
    """An empty folder to write into, that becomes `out` when the block ends well and vanishes when it does not.

    What a killed process left behind at an earlier try is removed. Raises UsageError when `out` exists and
    `force` is False, NasError when the disk refuses.
    """
    out = out.absolute()
    refuse_to_replace(out, force=force)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(out)
        part.mkdir()
        try:
            yield part
            _replace(out, part)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or error
        raise NasError(f"cannot write {out} ({reason}); free some space or use another folder") from error


def _replace(out: Path, part: Path) -> None:
    """Put `part` in the place of `out`. Between the two renames a crash leaves the old one beside it, whole."""
    old = part.with_suffix(".old")
    if out.exists():
        out.rename(old)
    part.rename(out)
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink(missing_ok=True)


def _remove_leftovers(out: Path) -> None:
    for path in out.parent.glob(f".{out.name}.*.part"):
        process = path.name.removeprefix(f".{out.name}.").removesuffix(".part")
        if process.isdecimal() and not _runs(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return process != os.getpid()
