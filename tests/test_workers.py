"""Ray actors: the same figures as one process, and a killed actor's candidate is scored again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
from small_study import small_spec

from nas.errors import NasError, UsageError
from nas.problem import pose
from nas.train import train_supernet
from nas.workers import Job, scorer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    problem = pose(small_spec(), folder)
    trained = train_supernet(problem.space, problem.data, problem.spec.train, folder)
    return problem.evaluator(trained.supernet, trained.identity)


@pytest.fixture(scope="module")
def jobs(evaluator):
    space, rng = evaluator.supernet.space, np.random.default_rng(0)
    return [Job(number, space.decode(space.sample(rng)), "search") for number in range(8)]


def actors_of_this_process() -> list[int]:
    """Process ids of the Ray actors that descend from this process."""
    parent_of, command_of = {}, {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as stat, open(f"/proc/{pid}/cmdline") as command:
                parent_of[int(pid)] = int(stat.read().rpartition(")")[2].split()[1])
                command_of[int(pid)] = command.read()
        except OSError:
            continue  # it has ended meanwhile

    def descends(pid: int) -> bool:
        return pid in parent_of and (parent_of[pid] == os.getpid() or descends(parent_of[pid]))

    return [pid for pid, command in command_of.items() if "_Worker" in command and descends(pid)]


def test_actors_give_the_same_figures_and_survive_a_kill(evaluator, jobs):
    before = torch.get_num_threads()
    with scorer(evaluator, 0) as score:
        here = dict(score(jobs))
    assert torch.get_num_threads() == before
    found, killed = {}, []
    with scorer(evaluator, 2) as score:
        for number, evaluation in score(jobs):
            found[number] = evaluation
            if len(found) == 2:
                killed = actors_of_this_process()[:1]
                os.kill(killed[0], signal.SIGKILL)
    assert killed
    assert found == here


@pytest.mark.parametrize("workers", [0, 1])
def test_a_candidate_that_cannot_be_scored_is_named_with_the_cure(evaluator, jobs, workers):
    broken = deepcopy(evaluator)
    with torch.no_grad():
        for weights in broken.supernet.parameters():
            weights.fill_(float("nan"))
    said = r"^trial 3 cannot be scored \(.* is not finite .*\): r24 .* lower train.learning_rate or more train.steps$"
    with scorer(broken, workers) as score, pytest.raises(NasError, match=said):
        list(score(jobs[3:4]))


def test_what_is_wrong_with_the_images_is_not_laid_on_a_candidate(jobs):
    class NoImages:
        def evaluate(self, *_):
            raise UsageError("no image can be read")

    with scorer(NoImages(), 0) as score, pytest.raises(UsageError, match="no image can be read"):
        list(score(jobs))


def test_one_process_loads_nothing_of_ray():
    code = (
        "import sys, nas.search, nas.workers, nas.evaluate, nas.trainings, nas.rank\n"
        "with nas.workers.scorer(None, 0): pass\n"
        "sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
