"""The record of studies: what is committed stays, and what goes wrong is one line with its cure."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pytest

from nas.describe import describe_studies
from nas.errors import NasError, UsageError
from nas.files import sole_user, write_whole
from nas.spec import StudySpec
from nas.store import Store, check_name
from nas.study import read_study
from nas.trial import Trial
from search_spaces.metaformer import load_space

SPACE = load_space("metaformer")


def made_trial(number: int) -> Trial:
    genome = SPACE.sample(np.random.default_rng(number))
    return Trial(number, genome, SPACE.decode(genome), None, {"npu": {"latency_s": 0.1 + 0.2, "violations": []}})


@pytest.fixture
def store(tmp_path):
    with closing(Store(tmp_path, create=True)) as made:
        yield made


def test_trials_come_back_equal_and_in_order(store):
    store.put_study("s", "id", "config", StudySpec())
    trials = [made_trial(number) for number in range(3)]
    for trial in reversed(trials):
        store.add_trial("s", trial)
    assert store.trials("s") == trials
    assert store.count_trials("s") == 3
    assert store.trials("another") == []


def test_the_newest_study_is_the_one_that_was_searched_last(store):
    for name in ("one", "two", "one"):
        store.put_study(name, "id", "config", StudySpec())
    assert store.study().name == "one"
    assert store.study("two").spec == StudySpec()
    with pytest.raises(UsageError, match=r"no study 'twoo' .* did you mean 'two'"):
        store.study("twoo")


def test_a_study_of_another_version_bars_none_but_itself(tmp_path, store):
    for name in ("mine", "foreign"):
        store.put_study(name, "id", "config", StudySpec())
    with closing(sqlite3.connect(tmp_path / "nas.db")) as connection, connection:
        connection.execute("UPDATE nas_studies SET spec = '[train]\nstepz = 3\n' WHERE name = 'foreign'")
    assert [study.name for study in store.studies()] == ["foreign", "mine"]
    assert read_study(store, "mine").spec == StudySpec()
    with pytest.raises(UsageError, match=r"foreign was made by another version .*'stepz'.* start a new one") as caught:
        read_study(store)
    assert "\n" not in str(caught.value)
    listed = describe_studies(tmp_path, None)["studies"]
    assert [(study["name"], study["wanted"]) for study in listed] == [("foreign", None), ("mine", 100)]


def test_a_trial_that_another_process_wrote_is_not_overwritten(store):
    store.add_trial("s", made_trial(0))
    with pytest.raises(NasError, match="two searches run on it"):
        store.add_trial("s", made_trial(0))


def test_nothing_to_read_is_said(tmp_path, store):
    with pytest.raises(UsageError, match="run `nas search` first"):
        store.study()
    with pytest.raises(UsageError, match="run `nas search` first"):
        Store(tmp_path / "elsewhere")


def test_reading_makes_no_database(tmp_path):
    with pytest.raises(UsageError, match=r"no database at .*typo.db: run `nas search` first"):
        Store(tmp_path, f"sqlite:///{tmp_path / 'typo.db'}")
    assert list(tmp_path.iterdir()) == []


def test_the_database_of_another_program_is_refused_and_left_alone(tmp_path):
    with closing(sqlite3.connect(tmp_path / "nas.db")) as connection:
        connection.execute("CREATE TABLE customers (id INTEGER)")
    with pytest.raises(UsageError, match=r"another program .*'customers'"):
        Store(tmp_path, create=True)
    with closing(sqlite3.connect(tmp_path / "nas.db")) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("customers",)]


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    (tmp_path / "nas.db").write_text("a letter to my mother, " * 100)
    with pytest.raises(UsageError, match="is not an SQLite database"):
        Store(tmp_path, create=True)
    assert (tmp_path / "nas.db").read_text().startswith("a letter")


def test_a_damaged_database_is_told_from_another_file(tmp_path):
    with closing(Store(tmp_path, create=True)) as store:
        for number in range(200):
            store.put_study(f"study-{number}", "id", "config", StudySpec())
    content = bytearray((tmp_path / "nas.db").read_bytes())
    content[4096 : 4096 * 20] = b"\x5a" * (4096 * 19)
    (tmp_path / "nas.db").write_bytes(content)
    said = r"is damaged .*: put back a copy of it, or save what `sqlite3 nas\.db \.recover`"
    with closing(Store(tmp_path)) as store, pytest.raises(NasError, match=said):
        store.studies()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NasError, match=r"cannot make the folder .* name a writable one with --dir"):
        Store(tmp_path / "file" / "runs", create=True)


def test_a_database_that_cannot_be_written(tmp_path):
    (tmp_path / "nas.db").mkdir()
    with pytest.raises(NasError, match=r"cannot be written .*unable to open"):
        Store(tmp_path, create=True)


@pytest.mark.parametrize(
    ("url", "said"),
    [("nas.db", "not a database URL"), ("oracel://x", "not a database URL"), ("mysql://h/x", "pip install")],
)
def test_urls_that_lead_nowhere(tmp_path, url, said):
    with pytest.raises(UsageError, match=said):
        Store(tmp_path, url, create=True)


def _add_all(store, trials):
    for trial in trials:
        store.add_trial("s", trial)


def test_a_full_disk_keeps_what_was_committed(tmp_path, store):
    trials = [made_trial(number) for number in range(100)]
    store.add_trial("s", trials[0])
    with store._engine.connect() as connection:  # SQLite's own limit gives SQLITE_FULL, as a full disk does
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        connection.commit()
    full = r"disk is full.*free some space and run the same command again"
    with pytest.raises(NasError, match=full):
        _add_all(store, trials[1:])
    kept = store.trials("s")
    assert kept == trials[: len(kept)]
    assert 1 <= len(kept) < 100


def test_a_copy_of_the_database_file_alone_has_what_was_committed(tmp_path, store):
    store.put_study("s", "id", "config", StudySpec())
    trials = [made_trial(number) for number in range(3)]
    for trial in trials:
        store.add_trial("s", trial)
    copied = tmp_path / "elsewhere"
    copied.mkdir()
    shutil.copy(tmp_path / "nas.db", copied)  # while it is open, as after kill -9
    with closing(Store(copied)) as other:
        assert other.trials("s") == trials


def test_a_file_is_whole_or_absent(tmp_path):
    write_whole(tmp_path / "a" / "file", "text")
    assert (tmp_path / "a" / "file").read_text() == "text"
    with pytest.raises(NasError, match="cannot write"):
        write_whole(tmp_path / "a" / "file" / "below", "text")
    with pytest.raises(NasError, match="cannot write"):
        write_whole(tmp_path / "a", "a folder is in the way")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "file"]


def test_a_folder_has_one_user_at_a_time(tmp_path):
    used = r"study s is in use by process \d+ on .*; wait for it, stop it"
    with sole_user(tmp_path, "study s"), pytest.raises(NasError, match=used), sole_user(tmp_path, "study s"):
        pass
    with sole_user(tmp_path, "study s"):
        pass


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 200])
def test_names_that_could_not_name_a_folder(name):
    with pytest.raises(UsageError, match="a study's name"):
        check_name(name)
