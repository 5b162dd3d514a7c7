"""Tables on disk: found again, merged, made anew when broken, and never for another program, target or space."""

from __future__ import annotations

from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from hw_models import load_target
from hw_models.population import COLUMNS, FIGURES
from nas.population import PopulationCost, genes_of
from nas.table_files import TableFile
from search_spaces import load_space

SPACE = load_space(
    "metaformer", mixers=["pool", "dwconv"], choices={"resolution": [24], "depth": [1], "bits": ["w8a8"]}
)
TARGET = load_target("npu_40tops")


def _file(folder: Path) -> TableFile:
    return TableFile(folder, SPACE, TARGET, 10, 3)


def _rows(*codes: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.repeat(np.array(codes, dtype=np.float64)[:, None], len(COLUMNS), axis=1)
    return np.array(codes, dtype=np.int64), rows


def test_rows_are_found_again_and_merged(tmp_path: Path) -> None:
    assert _file(tmp_path).read() == {}
    _file(tmp_path).add({"stem": _rows(0, 2)})
    _file(tmp_path).add({"stem": _rows(2, 4), "head": _rows(1)})
    found = _file(tmp_path).read()
    assert sorted(found) == ["head", "stem"]
    assert found["stem"][0].tolist() == [0, 2, 4]
    assert found["stem"][1][:, 0].tolist() == [0.0, 2.0, 4.0]
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".npz"] == [".lock"]


@pytest.mark.parametrize("content", [b"", b"nonsense", "half"])
def test_a_broken_file_is_made_anew(tmp_path: Path, content: bytes | str) -> None:
    file = _file(tmp_path)
    file.add({"stem": _rows(0)})
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    assert file.read() == {}
    file.add({"stem": _rows(2)})
    assert file.read()["stem"][0].tolist() == [2]


def test_a_file_of_something_else_is_not_used(tmp_path: Path) -> None:
    file = _file(tmp_path)
    faster = replace(TARGET, matrix=replace(TARGET.matrix, clock_hz=2e9))
    others = [
        TableFile(tmp_path, SPACE, faster, 10, 3),
        TableFile(tmp_path, SPACE, TARGET, 11, 3),
        TableFile(tmp_path, SPACE.restrict({"mixer": ["pool"]}), TARGET, 10, 3),
    ]
    assert len({file.path, *(other.path for other in others)}) == 4
    others[0].add({"stem": _rows(0)})
    others[0].path.rename(file.path)  # a file under the wrong name
    assert file.read() == {}


def test_the_same_program_gives_the_same_name(tmp_path: Path) -> None:
    prose = replace(TARGET, title="another", sources={})
    assert TableFile(tmp_path, SPACE, prose, 10, 3).path == _file(tmp_path).path


def _add(folder: Path, codes: list[int]) -> None:
    for code in codes:
        _file(folder).add({"stem": _rows(code)})


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    context = get_context("fork")
    writers = [context.Process(target=_add, args=(tmp_path, list(range(first, 40, 4)))) for first in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(_file(tmp_path).read()["stem"][0].tolist()) == list(range(40))


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    _file(tmp_path / "file").add({"stem": _rows(0)})
    assert _file(tmp_path / "file").read() == {}


def test_a_population_starts_from_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    genes = genes_of(SPACE, [SPACE.sample(rng) for _ in range(6)])
    first = PopulationCost(SPACE, TARGET, 10, folder=tmp_path)
    figures = first.cost(genes)
    first.save()
    monkeypatch.setattr("nas.part_rows.trace_module", lambda *_: pytest.fail("traced again"))
    again = PopulationCost(SPACE, TARGET, 10, folder=tmp_path)
    assert again.rows_known == first.rows_known > 0
    for name in FIGURES:
        np.testing.assert_array_equal(again.cost(genes)[name], figures[name])


def test_filling_knows_every_network() -> None:
    space = SPACE.restrict(
        {"mixer": ["pool"], "width": [16, 24, 32, 64, 96], "expansion": [2.0], "activation": ["relu"]}
    )
    population = PopulationCost(space, TARGET, 10)
    assert not population.is_full
    population.fill()
    assert population.is_full
    known = population.rows_known
    rng = np.random.default_rng(1)
    population.cost(genes_of(space, [space.sample(rng) for _ in range(200)]))
    assert population.rows_known == known
