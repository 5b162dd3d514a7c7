"""The machine at hand: which commit a record carries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nas.measure.device import commit


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    commit.cache_clear()
    monkeypatch.delenv("NAS_COMMIT", raising=False)
    yield
    commit.cache_clear()


def _git(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    git = folder / "git"
    git.write_text(f"#!/bin/sh\n{script}\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_commit_of_a_source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _git(tmp_path, monkeypatch, "echo v1-5-gabc")
    assert commit() == "v1-5-gabc"


def test_an_installed_program_inside_a_repository_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _git(tmp_path, monkeypatch, 'case "$*" in *ls-files*) exit 1;; esac; echo of-others')
    assert commit().startswith("nas")


def test_a_source_without_its_repository_is_of_the_commit_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_COMMIT", "abc1234")
    assert commit() == "abc1234"
