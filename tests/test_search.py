"""The search on the real parts: what is found, what is kept when it is interrupted, what is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import optuna
import pytest
from PIL import Image
from small_study import small_spec, small_toml

from nas.errors import NothingFeasible, UsageError
from nas.problem import space_of
from nas.progress import Narrator
from nas.search import run_search, run_training
from nas.store import Store
from nas.study import open_study

ROOT = Path(__file__).resolve().parent.parent
TRIALS = 10


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(study, folder) of an uninterrupted search."""
    folder = tmp_path_factory.mktemp("finished")
    return run_search(small_spec(search_trials=TRIALS), folder, config="small"), folder


def facts(trial):
    """What must not depend on interruption, workers or time."""
    return trial.number, trial.genome, trial.accuracy, trial.costs, trial.moves


def test_every_trial_is_scored_and_the_front_is_validated(finished):
    study, folder = finished
    assert [trial.number for trial in study.trials] == list(range(TRIALS))
    assert len({trial.architecture.key for trial in study.trials}) == TRIALS
    assert all(trial.accuracy["kind"] == "one-shot" for trial in study.trials)
    assert {trial.number for trial in study.front} == set(study.validations)
    assert all(accuracy["images"] == "val" for accuracy in study.validations.values())
    assert 0 <= study.hypervolume <= 1
    for name in ("study.toml", "front.csv", "front.png"):
        assert (study.folder / name).stat().st_size > 0
    assert study.folder.parent.parent == folder


def test_the_optuna_study_tells_the_same(finished):
    study, _ = finished
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = optuna.storages.RDBStorage(study.url)
        mirrored = optuna.load_study(study_name=study.name, storage=storage)
        assert mirrored.metric_names == ["top1", "latency_s"]
    for ours, theirs in zip(study.trials, mirrored.trials, strict=True):
        assert theirs.number == theirs.user_attrs["trial"] == ours.number
        assert theirs.values == list(ours.values(study.goal))
        assert space_of(small_spec().space).complete(theirs.params) == dict(ours.genome)
        assert theirs.datetime_complete >= theirs.datetime_start
    keys = {"architecture", "architecture_json", "top1_stderr", "energy_j", "peak_onchip_bytes", "weight_bytes", "macs"}
    assert keys <= set(mirrored.trials[0].user_attrs)
    storage.engine.dispose()


def test_more_trials_continue_and_the_supernet_is_reused(finished, tmp_path):
    study, _ = finished
    first = run_search(small_spec(search_trials=5), tmp_path, config="small")
    weights = first.supernet.stat().st_mtime_ns
    both = run_search(small_spec(search_trials=TRIALS), tmp_path, config="small")
    assert both.name == first.name
    assert list(map(facts, both.trials)) == list(map(facts, study.trials))
    assert both.supernet.stat().st_mtime_ns == weights


def test_other_settings_start_another_study_and_say_so(finished, capfd):
    study, folder = finished
    from nas.progress import Narrator

    other = run_search(small_spec(search_trials=1, search_seed=1), folder, config="small", narrator=Narrator())
    assert other.name != study.name
    assert (
        f"settings differ from study {study.name} (search.seed 0 -> 1): this is a new study" in capfd.readouterr().err
    )
    # The nearest is named, not the newest.
    spec = small_spec(search_trials=1, search_seed=0, search_batch=3)
    run_search(spec, folder, config="small", narrator=Narrator())
    assert f"settings differ from study {study.name} (search.batch 4 -> 3)" in capfd.readouterr().err
    named = run_search(small_spec(search_trials=1, search_seed=2), folder, name="mine", narrator=Narrator())
    again = run_search(small_spec(search_trials=1, search_seed=3), folder, name="mine", narrator=Narrator())
    assert (named.name, again.name[:5]) == ("mine", "mine-")
    assert "study mine was made with other settings (search.seed 2 -> 3)" in capfd.readouterr().err
    assert open_study(folder, name=study.name).trials == study.trials


def test_impossible_constraints_train_nothing_and_say_by_how_much(tmp_path):
    spec = small_spec(search_trials=3, search_constraints=["latency<=1us", "peak_memory<=1B"])
    with pytest.raises(NothingFeasible) as caught:
        run_search(spec, tmp_path)
    said = str(caught.value)
    assert "none of the 3 candidates" in said
    assert "3 miss 'latency<=1us' (the nearest: latency " in said
    assert "3 miss 'peak_memory<=1B'" in said
    assert not (tmp_path / "supernets").exists()
    (trial, *_) = open_study(tmp_path).trials
    assert trial.accuracy is None
    with pytest.raises(UsageError, match=r"trial 0 .* was never scored: latency"):
        open_study(tmp_path).trial(0)


def test_infeasible_trials_are_grey_in_the_dashboard(tmp_path, finished):
    study, _ = finished
    bound = sorted(trial.costs["npu_40tops"]["weight_bytes"] for trial in study.trials)[2]
    spec = small_spec(search_trials=4, search_constraints=["top1>=99%", f"weight_size<={bound}B"])
    with pytest.raises(NothingFeasible):
        run_search(spec, tmp_path)
    storage = optuna.storages.RDBStorage(open_study(tmp_path).url)
    (mirrored,) = optuna.load_study(study_name=open_study(tmp_path).name, storage=storage).trials[:1]
    assert len(mirrored.system_attrs["constraints"]) == 3
    assert max(mirrored.system_attrs["constraints"]) > 0
    assert "top1" in mirrored.user_attrs["infeasible"]
    storage.engine.dispose()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.timeout(300)
@pytest.mark.slow
def test_an_interrupted_search_loses_nothing_and_refuses_a_second_one(finished, tmp_path, ending):
    study, _ = finished
    config, folder = small_toml(tmp_path, search_trials=500), tmp_path / "runs"
    command = [sys.executable, str(ROOT / "cli.py"), "search", "--config", str(config), "--dir", str(folder), "--quiet"]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        _wait_for_trials(folder, 5)
        if ending == signal.SIGINT:  # once: how the first will end cannot matter to the second
            os.kill(running.pid, signal.SIGSTOP)  # it holds the folder, and takes no time meanwhile
            second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
            assert second.returncode == 1
            assert f"in use by process {running.pid} on " in second.stderr
            assert second.stderr.count("\n") == 1
    finally:
        os.kill(running.pid, signal.SIGCONT)
        os.kill(running.pid, ending)
        _, said = running.communicate(timeout=60)
    if ending == signal.SIGINT:
        assert running.returncode == 130
        assert "run the same command again to go on" in said
        assert "\n" not in said.strip()
    resumed = run_search(small_spec(search_trials=TRIALS), folder, config="small")
    assert list(map(facts, resumed.trials[:TRIALS])) == list(map(facts, study.trials))
    storage = optuna.storages.RDBStorage(resumed.url)
    mirrored = optuna.load_study(study_name=resumed.name, storage=storage).trials
    storage.engine.dispose()
    assert [trial.user_attrs["trial"] for trial in mirrored] == list(range(len(resumed.trials)))


def _wait_for_trials(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            with closing(Store(folder)) as store:
                if store.count_trials(store.study().name) >= count:
                    return
        except UsageError:
            pass
        time.sleep(0.2)
    raise AssertionError("the search did not get going")


def test_a_damaged_supernet_is_refused(tmp_path):
    trained = run_training(small_spec(), tmp_path)
    content = bytearray(trained.path.read_bytes())
    content[-1] ^= 1
    trained.path.write_bytes(content)
    with pytest.raises(RuntimeError, match=r"is damaged or was changed .* delete it"):
        run_search(small_spec(), tmp_path)


def test_a_space_that_is_smaller_than_the_budget_ends_early(tmp_path):
    choices = {gene: values[:1] for gene, values in (
        ("resolution", [24]), ("depth", [1]), ("expansion", [2.0]), ("activation", ["relu"]), ("bits", ["w8a8"]),
        ("mixer", ["pool"]), ("stage1.width", [16]), ("stage2.width", [32]), ("stage3.width", [64]),
    )}  # fmt: skip
    choices |= {"norm": ["batchnorm"], "stage4.width": [96, 128]}
    study = run_search(small_spec(space_choices=choices, search_trials=9), tmp_path)
    assert len(study.trials) == 2


def test_what_opening_the_validation_images_brings_up_is_said(tmp_path, capfd):
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 10)):
        for name in ("ant", "bee"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{index}.png")
    (tmp_path / "data" / "val" / "bee" / "0.png").write_text("no image")
    spec = small_spec(data_source=str(tmp_path / "data"), search_trials=1)
    run_search(spec, tmp_path / "runs", narrator=Narrator())
    (line,) = (line for line in capfd.readouterr().err.splitlines() if "cannot be read" in line)
    assert line.startswith("validation images: 1 of 20 images in ")
