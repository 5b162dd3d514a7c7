"""`nas finalists` ended by kill -9 in the middle: the same command goes on from the checkpoints and loses nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_study import small_spec

from nas.checkpoint import load_checkpoint
from nas.finalists import run_finalists
from nas.search import run_search
from nas.study import Study, open_study

CHOICES = {"resolution": [24], "depth": [1], "expansion": [2.0], "bits": ["w8a8"]}
STEPS, KEPT_EVERY = 60, 10
WORDS = ("--study", "small", "--top", "2", "--steps", str(STEPS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("searched")
    spec = small_spec(
        space_choices=CHOICES,
        search_objectives=["top1", "latency", "params", "energy"],
        train_checkpoint_every=KEPT_EVERY,
    )
    run_search(spec, made, name="small")
    return made


def weights(study: Study) -> dict[int, dict[str, torch.Tensor]]:
    return {number: load_checkpoint(Path(record["path"]))[0] for number, record in study.finalists.items()}


def without_paths(study: Study) -> dict[int, dict]:
    return {n: {key: value for key, value in r.items() if key != "path"} for n, r in study.finalists.items()}


def killed(folder: Path) -> tuple[str, int]:
    """Run the command until its second training has left a checkpoint, and kill it with no chance to tidy up.

    (folder of the finished training, steps in the checkpoint of the other).
    """
    command = [sys.executable, "-m", "cli", "finalists", "--dir", str(folder), *WORDS]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[1]
    )
    trainings = folder / "trainings"
    deadline = time.monotonic() + 120
    try:
        while not (list(trainings.glob("*/result-*.json")) and list(trainings.glob("*/checkpoint.safetensors"))):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.kill()
    assert process.wait() == -9
    (finished,) = trainings.glob("*/result-*.json")
    (unfinished,) = trainings.glob("*/checkpoint.safetensors")
    return finished.parent.name, int(load_checkpoint(unfinished)[1]["step"])


@pytest.mark.timeout(300)
def test_a_killed_command_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    whole, cut = (Path(shutil.copytree(folder, tmp_path / name)) for name in ("whole", "cut"))
    finished, kept = killed(cut)
    assert kept in range(KEPT_EVERY, STEPS, KEPT_EVERY)
    before = {path: path.stat().st_mtime_ns for path in (cut / "trainings" / finished).glob("*.safetensors")}

    import nas.trainings

    begun: list[tuple[str, list[int]]] = []
    train_alone = nas.trainings.train_alone

    def counted(arch, *args, progress, header, **kwargs):
        begun.append((header["identity"], []))
        return train_alone(
            arch, *args, progress=lambda *at: begun[-1][1].append(at[0]) or progress(*at), header=header, **kwargs
        )

    monkeypatch.setattr(nas.trainings, "train_alone", counted)
    resumed = run_finalists(open_study(cut, None, "small"), top=2, steps=STEPS)
    ((identity, steps),) = begun
    assert identity != finished, "what had ended is not trained again"
    assert steps == list(range(kept + 1, STEPS + 1)), "the other goes on from its checkpoint"
    assert {path: path.stat().st_mtime_ns for path in before} == before

    uninterrupted = run_finalists(open_study(whole, None, "small"), top=2, steps=STEPS)
    assert without_paths(resumed) == without_paths(uninterrupted)
    ours, theirs = weights(resumed), weights(uninterrupted)
    assert ours.keys() == theirs.keys()
    assert len(ours) == 2
    for number in ours:
        assert all(torch.equal(ours[number][name], tensor) for name, tensor in theirs[number].items())
    assert open_study(cut, None, "small").finalists == resumed.finalists, "and the study has both"
