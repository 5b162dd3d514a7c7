"""Networks trained alone: resumed exactly, never done twice, never mixed up, the same in one process and on Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_study import small_spec

from nas.accuracy import Accuracy
from nas.checkpoint import load_checkpoint, load_header
from nas.errors import NasError, UsageError
from nas.fleet import gpu_share, weight_sets
from nas.halving import Halving, Rung, survives
from nas.problem import pose
from nas.trainings import Outcome, SharedWeights, Training, Workshop, train_all

SETTINGS = {
    "train_steps": 6,
    "train_checkpoint_every": 2,
    "train_drop_path": 0.2,
    "train_ema": 0.9,
    "train_mixup": 0.2,
    "train_rand_augment": "rand-m5-n1",
}


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    return pose(small_spec(**SETTINGS), tmp_path_factory.mktemp("problem"))


@pytest.fixture
def workshop(problem, tmp_path):
    return Workshop(tmp_path, problem.data, problem.spec.train, problem.spec.evaluate, val_images=20)


@pytest.fixture(scope="module")
def trainings(problem):
    rng = np.random.default_rng(0)
    return [Training(n, problem.space.decode(problem.space.sample(rng))) for n in range(3)]


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    return load_checkpoint(outcome.path)[0]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_an_interrupted_training_ends_with_the_same_weights_and_figures(workshop, trainings, tmp_path):
    elsewhere = replace(workshop, folder=tmp_path / "whole")
    whole = elsewhere.train(trainings[0])

    def interrupt(done: int, total: int, loss: float) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        workshop.train(trainings[0], interrupt)
    steps: list[int] = []
    cut = workshop.train(trainings[0], lambda *at: steps.append(at[0]))
    assert steps == [4, 5, 6], "no step is done twice"
    assert same(weights(whole), weights(cut))
    assert replace(whole, path=cut.path) == cut
    assert cut.search.kind == cut.val.kind == "stand-alone"
    assert (cut.search.samples, cut.val.samples) == (24, 20)


def test_a_killed_run_repeats_no_finished_training_and_goes_on_in_the_other(workshop, trainings, tmp_path):
    script = f"""
import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
from pathlib import Path
from test_trainings import SETTINGS, small_spec, pose, Workshop, Training, train_all, np
folder = Path({str(tmp_path)!r})
problem = pose(small_spec(**SETTINGS), folder)
rng = np.random.default_rng(0)
trainings = [Training(n, problem.space.decode(problem.space.sample(rng))) for n in range(3)]
workshop = Workshop(folder, problem.data, problem.spec.train, problem.spec.evaluate, val_images=20)
for outcome in train_all(workshop, trainings, report=lambda *at: print(*at, flush=True)):
    pass
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("1 5 "):
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert workshop.outcome(trainings[0]) is not None
    seen: list[tuple[int, int]] = []
    outcomes = list(train_all(workshop, trainings[:2], report=lambda number, done, loss: seen.append((number, done))))
    assert [outcome.number for outcome in outcomes] == [0, 1]
    assert seen[0] == (1, 5), "from the checkpoint after step 4; a step after it may be done again"
    elsewhere = replace(workshop, folder=tmp_path / "whole")
    assert same(weights(elsewhere.train(trainings[1])), weights(outcomes[1]))


def test_a_finished_training_says_with_how_many_threads_it_was_made(workshop, trainings):
    assert load_header(workshop.train(trainings[0]).path)["threads"] == torch.get_num_threads()


def test_budgets_lie_beside_each_other_and_a_file_of_another_is_refused(workshop, trainings):
    first = workshop.train(trainings[0])
    longer = replace(workshop, spec=replace(workshop.spec, steps=7))
    assert longer.outcome(trainings[0]) is None
    longer.home(trainings[0]).mkdir()
    (longer.home(trainings[0]) / "network.safetensors").write_bytes(first.path.read_bytes())
    with pytest.raises(NasError, match=r"is of another training \(train.steps 6 -> 7\); delete it to train anew"):
        longer.train(trainings[0])


def test_what_concerns_supernets_alone_does_not_train_networks_anew(workshop, trainings):
    identity = workshop.identity(trainings[0])
    for change in ({"subnets": 3}, {"fairness": False}, {"single_path_share": 0.1}, {"checkpoint_every": 9}):
        assert replace(workshop, spec=replace(workshop.spec, **change)).identity(trainings[0]) == identity
    others = [replace(workshop, spec=replace(workshop.spec, **change)) for change in ({"steps": 7}, {"ema": 0.5})]
    others_of = {other.identity(trainings[0]) for other in others} | {workshop.identity(trainings[1])}
    assert len(others_of | {identity}) == 4


@pytest.mark.parametrize("begun", ["fresh", "inherited"])
def test_a_training_follows_what_the_files_of_its_teacher_hold(workshop, trainings, problem, tmp_path, begun):
    folder = tmp_path / "teacher"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text(name)
    shared = replace(workshop, shared=SharedWeights(tmp_path / "supernet", "supernet", problem.space))
    training = replace(trainings[0], weights=begun, teacher=str(folder))
    identity = shared.identity(training)
    moved = folder.rename(tmp_path / "moved")
    assert shared.identity(replace(training, teacher=str(moved))) == identity
    (moved / "model.safetensors").write_text("other weights")
    assert shared.identity(replace(training, teacher=str(moved))) != identity


def test_a_teacher_or_weights_of_a_supernet_that_is_not_there_are_refused(workshop, trainings):
    with pytest.raises(ValueError, match="needs `shared`"):
        workshop.train(replace(trainings[0], weights="inherited"))


def test_torchrun_is_not_for_many_trainings(workshop, trainings, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"torchrun is for `nas train`.*--workers N"):
        list(train_all(workshop, trainings))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"])
def test_an_address_where_no_cluster_answers_is_one_line(workshop, trainings, address):
    with pytest.raises(UsageError, match=rf"no Ray cluster answers at '{address}'.*leave --ray out"):
        list(train_all(workshop, trainings, address=address))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ray_tune_trials_give_the_outcomes_of_one_process(workshop, trainings, tmp_path, capfd):
    here = {o.number: o for o in train_all(replace(workshop, folder=tmp_path / "here"), trainings)}
    steps: list[tuple[int, int]] = []
    there = {
        o.number: o
        for o in train_all(
            workshop, trainings, workers=2, report=lambda number, done, loss: steps.append((number, done))
        )
    }
    assert {n: replace(o, path=here[n].path) for n, o in there.items()} == here
    assert {number for number, _ in steps} == {0, 1, 2}
    assert capfd.readouterr().out == "", "stdout is for data"
    assert list((workshop.folder / "ray").iterdir()) == []


@pytest.fixture(scope="module")
def twins(problem, trainings):
    """A network, and the same with other bits."""
    genome = problem.space.encode(trainings[0].architecture)
    bits = [
        choice.name
        for choice in problem.space.free
        if choice.name.endswith(".bits") and genome[choice.name] != choice.values[-1]
    ]
    other = genome | {name: problem.space[name].values[-1] for name in bits}
    return [trainings[0], Training(9, problem.space.decode(other))]


def test_networks_that_differ_in_bits_alone_are_one_trial(workshop, trainings, twins):
    assert twins[0].architecture != twins[1].architecture
    assert weight_sets(workshop, [*twins, *trainings[1:]]) == [twins, *([each] for each in trainings[1:])]


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_training_that_diverges_on_ray_is_one_line_and_nothing_waits_for_it(workshop, twins):
    hopeless = replace(workshop, spec=replace(workshop.spec, learning_rate=1e30, warmup_steps=0, clip_norm=0.0))
    with pytest.raises(NasError, match="diverged at step"):
        list(train_all(hopeless, twins, workers=2))


@pytest.mark.parametrize(
    ("trials", "gpus", "share"), [(4, 0, 0.0), (2, 4, 1.0), (4, 4, 1.0), (6, 2, 0.3333), (3, 2, 0.5)]
)
def test_gpus_are_shared_fairly(trials, gpus, share):
    assert gpu_share(trials, gpus) == share
    if gpus and share < 1:
        assert gpus * int(1 / share) >= trials


def rung(number: int, top1: float, *costs: float) -> Rung:
    return Rung(number, 2, costs, Accuracy.of(round(1000 * top1), 1000, "stand-alone", "search"))


def test_what_no_cheaper_network_beats_goes_on():
    others = [rung(n, 0.5 + n / 100, n) for n in range(1, 8)]
    assert survives(rung(0, 0.1, 0.5), others, 3), "the cheapest, however bad"
    assert survives(rung(9, 0.9, 20.0), others, 3), "the best, however dear"
    assert not survives(rung(9, 0.2, 20.0), others, 3), "dear and bad"
    assert survives(rung(9, 0.2, 20.0), others[:1], 3), "while there is hardly anything to compare it with"


def test_networks_are_compared_at_fractions_of_the_steps(tmp_path):
    halving = Halving("company", factor=3, levels=2)
    assert halving.rungs(90) == [10, 30]
    assert halving.rungs(2) == []
    assert halving.goes_on(rung(0, 0.5, 1.0), tmp_path)
    assert halving.goes_on(rung(1, 0.6, 2.0), tmp_path)
    assert not halving.goes_on(rung(2, 0.4, 3.0), tmp_path)
    assert halving.goes_on(rung(0, 0.5, 1.0), tmp_path), "the same again is the same"


def test_a_hopeless_training_is_stopped_and_can_be_taken_up_later(workshop, trainings):
    dear = [replace(training, costs=(float(n),)) for n, training in enumerate(trainings)]
    strict = replace(workshop, halving=Halving("company", factor=2, levels=1))
    board = workshop.folder / "trainings" / "rungs-company"
    for number in (7, 8, 9):
        halving = strict.halving
        assert halving is not None
        halving.goes_on(replace(rung(number, 1.0, 0.0), step=3), board)
    stopped = strict.train(dear[2])
    assert (stopped.stopped, stopped.steps, stopped.val) == (True, 3, None)
    assert strict.train(dear[2]) == stopped
    steps: list[int] = []
    ended = workshop.train(trainings[2], lambda *at: steps.append(at[0]))
    assert (ended.stopped, ended.steps) == (False, 6)
    assert steps == [4, 5, 6]
