"""The ranking study on real, tiny trainings: what is drawn, what is reported, and that nothing is done twice."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from small_study import small_spec

from nas.errors import UsageError
from nas.problem import pose
from nas.rank import BANDS, bands_of, draw, run_rank
from nas.rank_report import rank_picture, rank_table, rank_text

SPEC = small_spec(space_choices={"resolution": [24], "depth": [1], "expansion": [2.0], "bits": ["w8a8"]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rank")


@pytest.fixture(scope="module")
def ranking(folder):
    return run_rank(SPEC, folder, count=5, val_images=40)


def test_draws_differ_cover_the_bands_and_repeat(folder):
    problem = pose(SPEC, folder)
    drawn = draw(problem, 12, 0)
    assert len({each.architecture.key for each in drawn}) == 12
    assert np.bincount([each.band for each in drawn]).tolist() == [12 // BANDS] * BANDS
    macs = [[each.cost["macs"] for each in drawn if each.band == band] for band in range(BANDS)]
    assert all(max(low) < min(high) for low, high in pairwise(macs))
    assert draw(problem, 12, 0) == drawn
    assert draw(problem, 12, 1) != drawn


def test_bands_are_equally_wide_in_log_macs():
    bands = bands_of(np.logspace(0, 4, 400))
    assert bands.tolist() == sorted(bands.tolist())
    outer = 95 + 10  # the ends beyond the percentiles belong to the outer bands
    assert np.bincount(bands).tolist() == [outer, 95, 95, outer]


def test_the_figures_follow_from_the_networks_listed(ranking):
    record = json.loads((ranking.folder / "rank.json").read_text())
    rows = record["networks"]
    assert [row["alone"]["kind"] for row in rows] == ["stand-alone"] * 5
    assert {row["alone"]["images"] for row in rows} == {"val"}
    assert {row["alone"]["samples"] for row in rows} == {40}
    assert {row["one_shot"]["kind"] for row in rows} == {"one-shot"}
    alone = [row["alone"]["top1"] for row in rows]
    for name, scores in (("macs", [r["macs"] for r in rows]), ("one-shot", [r["one_shot"]["top1"] for r in rows])):
        expected = stats.kendalltau(scores, alone).statistic
        assert record["agreement"]["tau"][name]["value"] == (pytest.approx(expected) if expected == expected else None)
    assert record["agreement"]["rival"] in ("params", "macs", "latency")


def test_table_text_and_plot_say_what_they_show(ranking):
    for text in (rank_table(ranking), rank_text(ranking)):
        assert "one-shot top-1" in text
        counts = ", ".join(map(str, np.bincount([network.band for network in ranking.networks], minlength=BANDS)))
        assert f"5 networks of the space, {counts} in the 4 bands of macs" in text
        assert "top-1 on 40 validation images" in text
        assert "predicted for npu_40tops" in text
    assert rank_picture(ranking).startswith(b"\x89PNG")
    assert (ranking.folder / "rank.png").read_bytes() == rank_picture(ranking)


def test_the_same_command_again_trains_nothing(ranking, folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr("nas.trainings.train_alone", refuse)
    again = run_rank(SPEC, folder, count=5, val_images=40)
    assert json.dumps(again.to_dict()) == json.dumps(ranking.to_dict())


def test_too_few_networks_are_one_line(folder):
    with pytest.raises(UsageError, match="--count must be at least 4"):
        run_rank(SPEC, folder, count=3)
    with pytest.raises(UsageError, match=r"only 0 of 80 networks drawn .* --count wants 5; lower it, or loosen"):
        run_rank(small_spec(search_constraints=["latency<=1ns"]), folder, count=5)
