"""What a space holds: shares against a count by hand, and what a search says of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hw_models import load_target
from nas.commands.survey import survey as command
from nas.cost import cost_architecture
from nas.errors import UsageError
from nas.objectives import resolve_goal
from nas.population import PopulationCost
from nas.survey import Share, run_survey, survey, survey_text
from search_spaces import load_space
from tests.small_study import small_spec

SPACE = load_space(
    "metaformer",
    mixers=["pool", "dwconv"],
    choices={"resolution": [24], "depth": [1], "activation": ["relu"], "expansion": [2.0], "norm": ["batchnorm"]},
)
TARGET = load_target("npu_40tops")


def test_shares_are_those_of_the_networks_costed_one_by_one() -> None:
    samples, seed = 15, 3
    rng = np.random.default_rng(seed)
    genes = np.stack([rng.integers(0, len(choice.values), samples) for choice in SPACE.choices], axis=1)
    reports = [
        cost_architecture(
            SPACE.decode({c.name: c.values[i] for c, i in zip(SPACE.choices, row, strict=True)}), TARGET, 10
        )
        for row in genes
    ]
    latencies = np.array([report.latency_s for report in reports])
    bound_s, weights = float(np.median(latencies)) * (1 + 1e-6), 100_000
    goal = resolve_goal(
        ["top1", "latency"], [f"latency<={bound_s}s", f"weight_size<={weights}B", "top1>=50%"], ["npu_40tops"]
    )
    found = survey({"npu_40tops": PopulationCost(SPACE, TARGET, 10)}, goal, samples, seed)
    fast, small = latencies <= bound_s, np.array([report.weight_bytes <= weights for report in reports])
    assert [share.fraction for share in found.shares] == [fast.mean(), small.mean(), 1.0]
    assert found.together.fraction == (fast & small).mean()
    assert found.spread["npu_40tops"]["latency_s"] == pytest.approx(np.quantile(latencies, (0, 0.05, 0.5, 0.95, 1)))
    text = survey_text(found)
    assert "on npu_40tops" in text
    assert "all of them" in text
    assert json.loads(json.dumps(found.to_dict()))["shares"][-1]["samples"] == samples


def test_what_a_device_cannot_run_is_not_counted() -> None:
    narrow = replace(TARGET, legality=replace(TARGET.legality, depthwise_kernels=(3, 5)))
    goal = resolve_goal(["top1", "latency"], [], ["npu_40tops"])
    share = survey({"npu_40tops": PopulationCost(SPACE, narrow, 10)}, goal, 40).together
    assert 0 < share.fraction < 1
    assert share.demand == "all of them"


def test_no_hit_is_said_as_a_bound() -> None:
    assert "none of 300" in str(Share("x", 0.0, 300))
    assert Share("x", 0.0, 300).stderr > 0
    assert "37.00%" in str(Share("x", 0.37, 100))


def test_wrong_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one network"):
        run_survey(small_spec(), tmp_path, 0, 10)
    with pytest.raises(UsageError, match="at least one class"):
        run_survey(small_spec(), tmp_path, 5, 0)


@pytest.mark.parametrize("words", [["--data", "/no/such"], ["--train-steps", "5"]])
def test_what_a_survey_does_not_look_at_is_refused(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(UsageError, match=f"{words[0]} does nothing here: a survey sees no image"):
        command.main([*words, "--dir", str(tmp_path)], standalone_mode=False)


def test_the_command_prints_a_table_and_keeps_its_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--set", "space.choices={resolution=[24],depth=[1],expansion=[2.0]}", "--mixers", "pool", "--dir"]
    words += [str(tmp_path), "--samples", "50", "--target", "npu_40tops", "--constraint", "latency<=1ms", "--quiet"]
    command.main(words, standalone_mode=False)
    first = capsys.readouterr().out
    assert "latency<=1ms" in first
    assert "standard error" in first
    monkeypatch.setattr("nas.part_rows.trace_module", lambda *_: pytest.fail("traced again"))
    command.main(words, standalone_mode=False)
    assert capsys.readouterr().out == first
