"""A folder that appears whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nas.errors import NasError, UsageError
from nas.export.folder import whole_folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_folder_appears_when_all_is_written(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "network"
    with whole_folder(out, force=False) as folder:
        (folder / "file").write_text("x")
        assert not out.exists()
    assert names(out) == {"file"}
    assert names(out.parent) == {"network"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("bad")])
def test_a_failure_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def write() -> None:
        with whole_folder(tmp_path / "network", force=False) as folder:
            (folder / "file").write_text("x")
            raise error

    with pytest.raises(type(error)):
        write()
    assert names(tmp_path) == set()


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(NasError, match=r"No space left.*free some space"), whole_folder(tmp_path / "n", force=False):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == set()


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    out = tmp_path / "network"
    out.mkdir()
    (out / "old").write_text("x")
    with pytest.raises(UsageError, match="--force"), whole_folder(out, force=False):
        pass
    with pytest.raises(ValueError, match="bad"), whole_folder(out, force=True):
        raise ValueError("bad")
    assert names(out) == {"old"}
    with whole_folder(out, force=True) as folder:
        (folder / "new").write_text("x")
    assert names(out) == {"new"}
    assert names(tmp_path) == {"network"}


def test_what_a_killed_process_left_is_removed_and_a_running_one_is_not_disturbed(tmp_path: Path) -> None:
    dead, alive = tmp_path / ".network.999999999.part", tmp_path / f".network.{os.getppid()}.part"
    for folder in (dead, alive):
        folder.mkdir()
    with whole_folder(tmp_path / "network", force=False):
        pass
    assert names(tmp_path) == {"network", alive.name}
