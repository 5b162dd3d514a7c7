"""Files and folders that refuse are one line, not a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas.errors import NasError
from nas.files import sole_user, write_whole


def test_a_folder_that_may_not_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    for call in ("open", "stat", "unlink"):  # simulated: root may do everything
        monkeypatch.setattr(Path, call, refuse)
    with pytest.raises(NasError, match=r"cannot write .*Permission denied"):
        write_whole(tmp_path / "file", "text")


def test_a_folder_that_cannot_be_made_has_no_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NasError, match=r"cannot write .* name a writable folder"), sole_user(tmp_path / "file", "it"):
        pass
