"""Every sampler: proposals in the space, repeatable, and the same whether or not the search was
interrupted.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nas.candidates import MOVES, admit
from nas.commands.search import search
from nas.objectives import resolve_goal
from nas.samplers import POPULATION, SAMPLERS, Proposer
from nas.trial import Trial, to_optuna
from search_spaces.metaformer import load_space

SPACE = load_space("metaformer", choices={"resolution": [24, 32]})
GOAL = resolve_goal(["top1", "latency"], ["latency<=2.5ms"], ["npu"])
BATCH = 8


def cost(architecture):
    """A cost that is quick and plausible: what is wide, deep and large is slow."""
    width = sum(stage.width * len(stage.blocks) for stage in architecture.stages)
    latency_s = 1e-8 * width * architecture.resolution**2
    return {"npu": {"latency_s": latency_s, "energy_j": 1.0, "peak_onchip_bytes": 1, "weight_bytes": 1,
                    "dram_bytes": 1, "macs": 1, "params": 1, "violations": []}}  # fmt: skip


def finished(number, proposal) -> Trial:
    architecture = SPACE.decode(proposal.genome)
    top1 = int(architecture.key[:6], 16) / 16**6
    accuracy = {"top1": top1, "stderr": 0.01, "samples": 100, "kind": "one-shot", "images": "search"}
    return Trial(
        number, proposal.genome, architecture, accuracy, cost(architecture), sampler_state=proposal.sampler_state
    )


def run(sampler, batches, told=(), seed=3):
    """Trials of a search that goes on from `told`."""
    proposer, trials = Proposer(SPACE, GOAL, sampler, seed), list(told)
    for first in range(0, len(trials), BATCH):
        proposer.tell(trials[first : first + BATCH])
    for batch in range(len(trials) // BATCH, batches):
        proposals = proposer.ask(batch, BATCH)
        new = [finished(batch * BATCH + i, proposal) for i, proposal in enumerate(proposals)]
        proposer.tell(new)
        trials += new
    return trials


def genomes(trials):
    return [dict(trial.genome) for trial in trials]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_resumed_search_proposes_what_an_uninterrupted_one_does(sampler):
    batches = 2 * POPULATION // BATCH + 2
    whole = run(sampler, batches)
    for stopped_after in (1, POPULATION // BATCH + 1, batches - 1):
        resumed = run(sampler, batches, told=whole[: stopped_after * BATCH])
        assert genomes(resumed) == genomes(whole)
    assert genomes(run(sampler, 2, seed=4)) != genomes(whole[: 2 * BATCH])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_that_is_cut_short_is_the_beginning_of_the_whole_one(sampler):
    trials = run(sampler, POPULATION // BATCH + 1)
    proposer = Proposer(SPACE, GOAL, sampler, 3)
    proposer.tell(trials)
    batch = len(trials) // BATCH
    assert proposer.ask(batch, 3) == proposer.ask(batch, BATCH)[:3]


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"random"}))
def test_samplers_learn(sampler):
    """After some generations more proposals meet a constraint than at random."""
    trials = run(sampler, 6 * POPULATION // BATCH)
    feasible = [trial.is_feasible(GOAL) for trial in trials]
    assert sum(feasible[-POPULATION:]) > sum(feasible[:POPULATION])


def test_the_help_names_every_sampler():
    (option,) = (option for option in search.params if option.name == "sampler")
    assert all(name in option.help for name in SAMPLERS), "write it into nas/commands/search.py"


def test_a_trial_as_optuna_sees_it():
    trial = finished(0, run("random", 1)[0])
    frozen = to_optuna(trial, GOAL, SPACE)
    assert frozen.params == {choice.name: trial.genome[choice.name] for choice in SPACE.free}
    assert SPACE.complete(frozen.params) == dict(trial.genome)
    assert frozen.values == list(trial.values(GOAL))
    assert list(frozen.constraints.values()) == list(trial.gaps(GOAL).values())
    assert frozen.user_attrs["top1_kind"] == "one-shot"
    assert frozen.user_attrs["latency_s"] == trial.costs["npu"]["latency_s"]
    unseen = replace(trial, accuracy=None)
    assert to_optuna(unseen, resolve_goal(["top1"], ["latency<=1us"], ["npu"]), SPACE).user_attrs["infeasible"]
    assert not unseen.is_feasible(GOAL)


def test_a_new_feasible_proposal_is_taken_as_it_is():
    genome = SPACE.sample(np.random.default_rng(0))
    candidate = admit(genome, set(), SPACE, resolve_goal(["top1"], [], ["npu"]), cost, np.random.default_rng(1))
    assert (dict(candidate.genome), candidate.moves, candidate.gap) == (genome, 0, 0)


def test_a_duplicate_moves_away_and_repeatably():
    genome = SPACE.sample(np.random.default_rng(0))
    seen = {SPACE.decode(genome).key}
    goal = resolve_goal(["top1"], [], ["npu"])
    one, two = (admit(genome, seen, SPACE, goal, cost, np.random.default_rng(1)) for _ in range(2))
    assert one == two
    assert one.moves == 1
    assert one.architecture.key not in seen


def test_a_candidate_climbs_to_a_tight_constraint():
    rng = np.random.default_rng(0)
    goal = resolve_goal(["top1"], ["latency<=1.5ms"], ["npu"])
    starts = [SPACE.sample(rng) for _ in range(20)]
    admitted = [admit(genome, set(), SPACE, goal, cost, np.random.default_rng(i)) for i, genome in enumerate(starts)]
    proposed = sum(not goal.shortfalls(cost(SPACE.decode(g)), None, images=False) for g in starts)
    assert proposed < 5
    assert sum(candidate.gap == 0 for candidate in admitted) > 15


def test_an_impossible_constraint_returns_the_nearest_miss():
    genome = SPACE.sample(np.random.default_rng(0))
    goal = resolve_goal(["top1"], ["latency<=1us"], ["npu"])
    candidate = admit(genome, set(), SPACE, goal, cost, np.random.default_rng(0))
    start = goal.shortfalls(cost(SPACE.decode(genome)), None, images=False)[0].gap
    assert 0 < candidate.gap < start


def test_a_space_without_a_new_network_says_so():
    only = load_space("metaformer", choices={c.name: [c.values[0]] for c in SPACE.choices})
    genome = only.sample(np.random.default_rng(0))
    goal = resolve_goal(["top1"], [], ["npu"])
    assert admit(genome, {only.decode(genome).key}, only, goal, cost, np.random.default_rng(0)) is None
    assert MOVES > 1
