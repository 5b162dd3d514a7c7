"""Names that become objects: those of the shipped studies exist, and paths are told from names."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas.errors import UsageError
from nas.objectives import resolve_goal
from nas.problem import load_targets, space_of, with_full_paths
from nas.samplers import SAMPLERS
from nas.spec import StudySpec, list_studies, load_spec, override


@pytest.mark.parametrize("name", list_studies())
def test_what_a_shipped_study_names_exists(name: str) -> None:
    _, spec = load_spec(name)
    targets = load_targets(spec)
    assert space_of(spec.space).size > spec.search.trials
    assert resolve_goal(spec.search.objectives, spec.search.constraints, list(targets)).axes
    assert spec.search.sampler in SAMPLERS


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


def test_a_teacher_is_found_again_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taught").mkdir()
    (tmp_path / "w.safetensors").write_bytes(b"")
    for word, full in (
        ("taught", str(tmp_path / "taught")),
        ("resnet18:w.safetensors", f"resnet18:{tmp_path / 'w.safetensors'}"),
        ("resnet18", "resnet18"),
        ("", ""),
    ):
        assert with_full_paths(override(StudySpec(), {"train.teacher": word})).train.teacher == full
    for word in ("resnet18:absent.safetensors", "absent/taught"):
        with pytest.raises(
            UsageError, match=r"there is no absent\S+, which the teacher .* put it back, or give"
        ) as said:
            with_full_paths(override(StudySpec(), {"train.teacher": word}))
        assert "\n" not in str(said.value)
