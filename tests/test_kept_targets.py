"""A study knows its targets by itself: their files may be edited or lost."""

from __future__ import annotations

import pytest
from small_study import small_spec

from hw_models import load_target
from nas.errors import UsageError
from nas.export_study import export_trials, same_problem
from nas.kept_targets import kept_targets, say_edited
from nas.progress import Narrator
from nas.search import run_search
from nas.store import Store
from nas.study import open_study

CLOCK = '[matrix]\nclock_hz = { value = %g, source = "data sheet" }\n'


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """(study of a target of one's own and one that ships, the target's file)."""
    folder = tmp_path_factory.mktemp("kept")
    mine = folder / "my_npu.toml"
    mine.write_text('like = "npu_40tops"\n' + CLOCK % 8e8)
    spec = small_spec(search_targets=[str(mine), "ethos_u85_2048"], search_trials=2)
    return run_search(spec, folder), mine


def warned(study, capsys):
    say_edited(study, Narrator())
    return capsys.readouterr().err


def test_what_is_kept_is_what_the_search_had(searched):
    study, mine = searched
    kept = kept_targets(study)
    assert list(kept) == list(study.goal.targets) == ["my_npu", "ethos_u85_2048"]
    assert kept == {"my_npu": load_target(mine), "ethos_u85_2048": load_target("ethos_u85_2048")}


@pytest.mark.parametrize("since", ["edited", "gone", "broken"])
def test_a_study_outlives_the_file_of_its_target(searched, tmp_path, capsys, since):
    study, mine = searched
    text = mine.read_text()
    assert warned(study, capsys) == ""
    try:
        {
            "edited": lambda: mine.write_text(text.replace("8e+08", "4e+08")),
            "gone": mine.unlink,
            "broken": lambda: mine.write_text("like ="),
        }[since]()
        assert same_problem(study, Narrator(quiet=True)).identity == study.identity
        assert "are of my_npu as it was" in capsys.readouterr().err  # a warning, which nothing keeps back
        said = warned(study, capsys)
        assert ("edited" if since == "edited" else "read no more") in said
        assert said.count("warning") == 1
        if since == "gone":
            assert export_trials(study, study.front[:1], tmp_path)[0].is_dir()
    finally:
        mine.write_text(text)


def test_prose_alone_is_no_edit(searched, capsys):
    study, mine = searched
    text = mine.read_text()
    mine.write_text('title = "Mine, at last"\n' + text)
    assert warned(study, capsys) == ""
    mine.write_text(text)


def test_a_study_that_kept_no_targets_is_of_an_earlier_version(searched):
    study, _ = searched
    store = Store(study.root)
    with store.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE nas_targets RENAME TO away")
    try:
        with pytest.raises(UsageError, match="was made by an earlier version"):
            same_problem(open_study(study.root), Narrator(quiet=True))
        assert len(open_study(study.root).trials) == 2  # which is still shown
    finally:
        with store.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE away RENAME TO nas_targets")
        store.close()
