"""Tables, JSON, picture and note of a study, and what they say of their own figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nas.errors import NothingFeasible, UsageError
from nas.front import covered, front, reference
from nas.objectives import resolve_goal
from nas.picture import trade_off_picture, trade_off_plotly, write_picture
from nas.report import front_csv, front_markdown, front_table, in_short, networks
from nas.spec import StudySpec, override
from nas.study import Study
from nas.trial import Trial
from search_spaces.metaformer import load_space

SPACE = load_space("metaformer")
TARGETS = ["npu_a", "npu_b"]


def made_trial(number: int, top1: float | None, latency_s: float) -> Trial:
    genome = SPACE.sample(np.random.default_rng(number))
    figures = {"energy_j": 1e-3, "peak_onchip_bytes": 10**5, "weight_bytes": 2 * 10**5, "dram_bytes": 3 * 10**5}
    costs = {
        name: {"latency_s": scale * latency_s, **figures, "macs": 10**7, "params": 10**5, "violations": []}
        for name, scale in zip(TARGETS, (1, 3), strict=True)
    }
    accuracy = None
    if top1 is not None:
        accuracy = {"top1": top1, "stderr": 0.01, "samples": 900, "kind": "one-shot", "images": "search"}
    return Trial(number, genome, SPACE.decode(genome), accuracy, costs)


@pytest.fixture
def study(tmp_path):
    trials = [
        made_trial(0, 0.60, 1e-3),
        made_trial(1, 0.70, 2e-3),
        made_trial(2, 0.55, 1.5e-3),  # dominated
        made_trial(3, 0.90, 9e-3),  # too slow, though scored
        made_trial(4, None, 20e-3),  # too slow, never scored
        made_trial(5, 0.50, 0.5e-3),
    ]
    constraints = ["latency@npu_a<=5ms"]
    return Study(
        name="s",
        identity="0" * 16,
        url="sqlite://",
        folder=tmp_path / "studies" / "s",
        spec=override(StudySpec(), {"search.constraints": constraints, "search.batch": 3}),
        goal=resolve_goal(["top1", "latency"], constraints, TARGETS),
        trials=trials,
        validations={1: {"top1": 0.66, "stderr": 0.02, "samples": 500, "kind": "one-shot", "images": "val"}},
        supernet=None,
    )


def test_the_front_ignores_what_is_infeasible_and_the_order_of_trials(study):
    assert [trial.number for trial in study.front] == [5, 0, 1]
    assert front(list(reversed(study.trials)), study.goal) == study.front
    assert front([], study.goal) == []


def test_hypervolume_is_measured_from_a_corner_that_the_first_batch_fixes(study):
    corner = reference(study.trials[:3], study.goal)
    assert corner == pytest.approx((0.0, 2.2e-3, 6.6e-3))
    assert study.hypervolume == covered(study.front, study.goal, corner)
    assert 0 < study.hypervolume < 1
    longer = replace(study, trials=[*study.trials, made_trial(6, 0.95, 1e-4)])
    assert longer.hypervolume > study.hypervolume


def test_networks_are_plain_data_with_every_target(study):
    rows = networks(study)
    assert [row["trial"] for row in rows] == [5, 0, 1]
    assert rows[2]["latency_s"] == 2e-3
    assert rows[2]["targets"]["npu_b"]["latency_s"] == 6e-3
    assert rows[2]["val_top1"] == 0.66
    assert "val_top1" not in rows[0]
    assert len(front_csv(study).splitlines()) == 4


def test_the_table_says_what_its_figures_are(study):
    table = front_table(study)
    assert "latency @npu_a ms" in table
    assert "latency @npu_b ms" in table
    assert "70.0 ±1.0" in table
    assert "6 trials, 5 scored on images, 2 infeasible" in table
    assert "uncalibrated: as the cost model predicts it, not measured" in table
    assert "one-shot, on 900 search images" in table
    assert "500 validation images" in table
    assert "flatters top-1 by +4.0 points" in table
    assert "| trial |" in front_markdown(study)
    assert in_short(study.front[0].architecture).startswith("r")


def test_choosing_a_trial(study):
    assert study.best_under("latency@npu_a<=1ms").number == 0
    assert study.best_under("top1>=50%").number == 1
    with pytest.raises(NothingFeasible, match=r"none of the 4 feasible trials .* the nearest, trial 5: latency@npu_a"):
        study.best_under("latency@npu_a<=1us")
    with pytest.raises(UsageError, match="cannot read the constraint"):
        study.best_under("latency")
    with pytest.raises(UsageError, match=r"trial 4 .* was never scored: latency@npu_a 20 ms is 300.0% above 5 ms"):
        study.trial(4)


def test_a_study_without_trials_says_so(study):
    empty = replace(study, trials=[])
    assert "has no trials yet" in str(empty.nothing_feasible())
    with pytest.raises(UsageError, match="has no trial 2; it has none yet"):
        empty.trial(2)


def test_nothing_feasible_counts_per_demand(study):
    empty = replace(study, trials=study.trials[3:5])
    said = str(empty.nothing_feasible())
    assert "none of the 2 candidates" in said
    assert "2 miss 'latency@npu_a<=5ms' (the nearest: latency@npu_a 9 ms is 80.0% above 5 ms)" in said


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_pictures(study, form):
    beginning = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert trade_off_picture(study, form).startswith(beginning[form])


def test_a_picture_of_a_study_without_scores_is_drawn_too(study, tmp_path):
    write_picture(replace(study, trials=study.trials[4:5], validations={}), tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 0
    with pytest.raises(UsageError, match=r"ends in .png, .svg or .pdf"):
        write_picture(study, Path("front.jpeg"))


def test_the_dashboard_s_card_holds_the_front(study):
    traces, _ = trade_off_plotly(study)
    assert traces[1]["x"] == [0.5e-3, 1e-3, 2e-3]
    assert traces[1]["error_y"]["array"] == [0.01] * 3


def test_accuracy_after_its_own_training_stands_beside_the_one_shot_figure(study):
    val = {"top1": 0.75, "stderr": 0.01, "samples": 700, "kind": "stand-alone", "images": "val"}
    stopped = {"val": None, "stopped": True}
    trained = replace(study, finalists={1: {"val": val, "stopped": False}, 5: stopped})
    rows = {row["trial"]: row for row in networks(trained)}
    assert (rows[1]["alone_top1"], rows[1]["alone_top1_samples"]) == (0.75, 700)
    assert not any("alone_top1" in row for number, row in rows.items() if number != 1)
    table = front_table(trained)
    assert "alone top-1 %" in table
    assert "75.0 ±1.0" in table
    assert "on 700 validation images" in table
    assert "alone" not in front_table(study)
