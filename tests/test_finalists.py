"""Finalists of a real, tiny study: trained, recorded, shown, exported as stand-alone; and what is refused."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from click.testing import CliRunner
from small_study import small_spec

import cli
from nas.checkpoint import load_checkpoint
from nas.errors import NothingFeasible, UsageError
from nas.export_study import export_trials
from nas.finalists import choose, run_finalists
from nas.finalists_report import finalists_rows, finalists_table
from nas.problem import pose, space_of
from nas.search import run_search
from nas.spec import override
from nas.study import Study, open_study
from nas.teacher import largest
from nas.train import load_supernet

pytestmark = pytest.mark.timeout(300)

CHOICES = {"resolution": [24], "depth": [1, 2], "expansion": [2.0], "bits": ["w8a8"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("finalists")


@pytest.fixture(scope="module")
def searched(folder) -> Study:
    spec = small_spec(space_choices=CHOICES, search_objectives=["top1", "latency", "params", "energy"])
    return run_search(spec, folder, name="small")


@pytest.fixture(scope="module")
def finished(searched) -> Study:
    return run_finalists(searched, top=2, steps=3)


def test_finalists_are_recorded_in_the_study(finished, folder):
    assert len(finished.finalists) == 2
    read = open_study(folder, None, "small")
    assert read.finalists == finished.finalists
    for number, record in read.finalists.items():
        assert number in {trial.number for trial in read.front}
        assert (record["steps"], record["stopped"], record["weights"], record["teacher"]) == (
            3,
            False,
            "inherited",
            "supernet",
        )
        assert (record["val"]["kind"], record["val"]["images"], record["val"]["samples"]) == ("stand-alone", "val", 150)
        assert record["train"]["learning_rate"] == pytest.approx(read.spec.train.learning_rate / 4)


def test_they_are_attributes_of_the_trials_in_optuna(finished):
    storage = optuna.storages.RDBStorage(finished.url)
    trials = optuna.load_study(study_name="small", storage=storage).get_trials()
    storage.engine.dispose()
    for trial in trials:
        record = finished.finalists.get(trial.user_attrs["trial"])
        assert ("stand_alone_top1" in trial.user_attrs) == (record is not None)
        if record is not None:
            assert trial.user_attrs["stand_alone_top1"] == record["val"]["top1"]
            assert trial.user_attrs["stand_alone_kind"] == "stand-alone"
            assert trial.user_attrs["stand_alone_weights"] == "inherited"


def test_the_same_again_trains_nothing_and_writes_no_attribute_twice(finished, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr("nas.trainings.train_alone", refuse)
    assert run_finalists(finished, top=2, steps=3).finalists == finished.finalists
    with sqlite3.connect(finished.root / "nas.db") as database:
        rows = database.execute("select trial_id, key from trial_user_attributes").fetchall()
    database.close()
    assert len(rows) == len(set(rows))


def test_training_begins_with_the_inherited_weights(finished, searched):
    """One step at a learning rate of nearly zero leaves them where they were."""
    still = run_finalists(searched, top=1, steps=1, learning_rate=1e-12, teacher="none")
    (number,) = {n for n, record in still.finalists.items() if record["steps"] == 1}
    record = still.finalists[number]
    problem = pose(searched.spec, searched.root)
    _, header = load_checkpoint(searched.supernet)
    supernet = load_supernet(searched.supernet, problem.space, problem.data, header["identity"])
    inherited = supernet.subnet(searched.trial(number).architecture)
    tensors, _ = load_checkpoint(record["path"])
    for name, parameter in inherited.named_parameters():
        assert torch.allclose(tensors[name], parameter, atol=1e-6), name
    assert run_finalists(finished, top=2, steps=3).finalists[number] == finished.finalists[number]


@pytest.mark.parametrize("granularity", ["stage", "block"])
def test_the_teacher_has_the_largest_sizes_and_the_kinds_of_its_pupil(granularity):
    opened = {"stem": ["conv3s2", "conv7s4"], "channel_mixer": ["mlp", "dwconv_ffn"], "gate": ["none", "se"]}
    space = space_of(override(small_spec(space_choices=CHOICES | opened), {"space.granularity": granularity}).space)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(20):
        pupil = space.decode(space.sample(rng))
        teacher = largest(space, pupil)
        assert (teacher.stem, teacher.resolution) == (pupil.stem, 24)
        for number, (own, big) in enumerate(zip(pupil.stages, teacher.stages, strict=True), start=1):
            assert (own.norm, own.activation) == (big.norm, big.activation)
            assert (len(big.blocks), big.width) == (2, space[f"stage{number}.width"].values[-1])
            for row, block in enumerate(big.blocks):
                like = own.blocks[min(row, len(own.blocks) - 1)]
                kinds = [(b.mixer_token, b.channel_mixer, b.gate) for b in (block, like)]
                assert kinds[0] == kinds[1]
                seen.add((teacher.stem, *kinds[0]))
    assert {row[0] for row in seen} == set(opened["stem"])
    assert {row[2:] for row in seen} == {(c, g) for c in opened["channel_mixer"] for g in opened["gate"]}


@pytest.mark.slow
def test_an_export_ships_these_weights_marked_stand_alone(finished, tmp_path):
    number = next(iter(finished.finalists))
    (folder,) = export_trials(finished, [finished.trial(number)], tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())["nas"]
    record = finished.finalists[number]
    metrics = config["metrics"]
    assert metrics["val_quantized_torch"] == record["val"], "what is exported is what was scored"
    assert metrics["val_quantized_onnx"]["kind"] == "stand-alone"
    assert metrics["selected_by"] is None
    assert config["provenance"]["training"] == record["identity"]
    card = (folder / "README.md").read_text()
    assert "stand-alone weights, 150 val images" in card
    assert "3 steps of 8 images from inherited weights, teacher supernet" in card


@pytest.mark.slow
def test_the_command_exports_the_shared_weights_at_the_cost_that_the_study_says(finished, folder, tmp_path):
    number, out = next(iter(finished.finalists)), tmp_path / "out"
    words = ["export", "--dir", str(folder), "--study", "small", "--trial", str(number), "--weights", "shared"]
    words += ["--out", str(out)]
    done = CliRunner().invoke(cli.cli, words, catch_exceptions=False)
    assert done.exit_code == 0
    (shared,) = map(Path, done.stdout.splitlines())
    assert shared.parent == out
    assert "one-shot weights" in (shared / "README.md").read_text()
    costed = CliRunner().invoke(cli.cli, ["cost", str(shared), "--target", "npu_40tops", "--json"])
    report, expected = json.loads(costed.stdout), finished.trial(number).costs["npu_40tops"]
    for key in ("latency_s", "energy_j", "weight_bytes", "macs"):
        assert report[key] == pytest.approx(expected[key], rel=1e-9)
    again = CliRunner().invoke(cli.cli, words)
    assert isinstance(again.exception, UsageError)
    assert "--force" in str(again.exception)


def test_table_and_rows_say_what_the_figures_are(finished):
    table = finalists_table(finished)
    assert "on 150 val images" in table
    assert "training added" in table
    assert "is uncalibrated: as the cost model predicts it, not measured" in table
    rows = finalists_rows(finished)
    assert [row["latency_s"] for row in rows] == sorted(row["latency_s"] for row in rows)
    assert {row["stand_alone"]["kind"] for row in rows} == {"stand-alone"}


def test_what_cannot_be_trained_is_one_line(searched, folder, tmp_path):
    size = len(searched.front)
    assert choose(searched, size + 1) == choose(searched, size)
    with pytest.raises(UsageError, match="--top must be at least 1, but is 0"):
        choose(searched, 0)
    with pytest.raises(UsageError, match="'resnet18q' is neither a folder nor a timm model"):
        run_finalists(searched, top=1, teacher="resnet18q")
    with pytest.raises(UsageError, match="weights of teacher resnet18 are not on this machine; give a file as"):
        run_finalists(searched, top=1, teacher="resnet18")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"teacher folder .* it needs config.json and model.safetensors"):
        run_finalists(searched, top=1, teacher=str(tmp_path / "empty"))
    nothing = small_spec(space_choices=CHOICES, search_constraints=["latency<=1ns"])
    with pytest.raises(NothingFeasible):
        run_search(nothing, folder, name="nothing")
    with pytest.raises(NothingFeasible, match="none of the 6 candidates of study nothing is feasible"):
        run_finalists(open_study(folder, None, "nothing"))


def test_commands_refuse_what_cannot_be_before_any_work(searched, folder, tmp_path):
    runner = CliRunner()
    place = ["--dir", str(folder), "--study", "small"]
    for words, said in (
        (["finalists", *place, "--top", "0"], "--top must be at least 1"),
        (["finalists", *place, "--teacher", "resnet18"], "not on this machine"),
        (["finalists", *place, "--top", "1", "--ray", "127.0.0.1:1", "--teacher", "none"], "no Ray cluster answers"),
        (["finalists", "--dir", str(tmp_path)], "no studies in"),
        (["rank", "--count", "2"], "--count must be at least 4"),
        (["rank", "--dir", str(tmp_path), "--ray", "127.0.0.1:1"], "no Ray cluster answers"),
        (["rank", "--plot", "rank.txt"], "a picture ends in .png"),
    ):
        result = runner.invoke(cli.cli, words)
        assert isinstance(result.exception, UsageError), (words, result.output)
        assert said in str(result.exception)
