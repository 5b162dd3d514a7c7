"""A folder of studies that was moved: its weights are found; what is gone is said with the command that makes it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest
from small_study import small_spec

from nas.errors import NasError
from nas.export_study import same_problem
from nas.finalists import run_finalists
from nas.progress import Narrator
from nas.search import run_search, run_training
from nas.spec import load_spec
from nas.study import open_study
from nas.train import load_supernet, supernet_identity
from nas.trainings import load_outcome

pytestmark = pytest.mark.timeout(300)


def test_a_moved_folder_keeps_its_weights_and_what_is_gone_can_be_made_again(tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    searched = run_search(small_spec(search_trials=2), old, config="small")
    run_finalists(searched, top=1, steps=1, teacher="none")
    before = searched.supernet
    old.rename(new)

    def check():
        study = open_study(new)
        problem = same_problem(study, Narrator(quiet=True))
        identity = supernet_identity(problem.space, problem.data, problem.spec.train)
        load_supernet(study.trained_supernet, problem.space, problem.data, identity)
        (record,) = study.finalists.values()
        load_outcome(record, problem.data)
        assert study.trained_supernet == new / before.relative_to(old)
        return study, problem, record

    study, problem, record = check()
    absolute = {**record, "path": record["path"].replace(str(new), str(old))}
    with closing(sqlite3.connect(new / "nas.db")) as database, database:  # as records once were
        assert str(tmp_path) not in str(database.execute("SELECT supernet FROM nas_studies").fetchall())
        assert str(tmp_path) not in str(database.execute("SELECT record FROM nas_finalists").fetchall())
        database.execute("UPDATE nas_studies SET supernet = ?", [str(before)])
        database.execute("UPDATE nas_finalists SET record = ?", [json.dumps(absolute)])
    check()

    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr("nas.trainings.train_alone", refuse)
        run_finalists(study, top=1, steps=1, teacher="none")
    gone = study.trained_supernet
    gone.unlink()
    config = study.folder / "study.toml"
    with pytest.raises(NasError, match=f"{gone} is gone; `nas train --config {config} --dir {new}` makes it again"):
        run_finalists(study, top=1, steps=1)
    assert run_training(load_spec(str(config))[1], new).path == gone
    (new / "trainings" / record["identity"] / "network.safetensors").unlink()
    with pytest.raises(NasError, match="is gone: train it again with `nas finalists`"):
        load_outcome(record, problem.data)
    run_finalists(study, top=1, steps=1, teacher="none")
    load_outcome(record, problem.data)
