"""Names that become objects: which of them are paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas.problem import with_full_paths
from nas.spec import StudySpec, override


@pytest.mark.parametrize(
    ("word", "is_path"),
    [("images", True), ("procedural", False), ("procedural:classes=12", False), ("torch/cifar10", False)],
)
def test_a_folder_of_images_is_found_again_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, is_path: bool
) -> None:
    for name in ("images", "procedural"):  # the embedded set keeps its name even beside a folder of that name
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    source = with_full_paths(override(StudySpec(), {"data.source": word})).data.source
    assert source == (str(tmp_path / word) if is_path else word)


def test_a_target_file_is_found_again_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = override(StudySpec(), {"search.targets": ["npu_40tops", "mine.toml", "./mine"]})
    assert with_full_paths(spec).search.targets == ("npu_40tops", str(tmp_path / "mine.toml"), str(tmp_path / "mine"))
