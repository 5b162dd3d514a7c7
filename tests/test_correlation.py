"""Rank correlations against second implementations, and what intervals must do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nas.correlation import agreement, bootstrap, kendall, spearman

VALUES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=25)


@given(VALUES)
def test_kendall_and_spearman_equal_those_of_scipy_ties_included(pairs):
    x, y = np.array(pairs, float).T
    with np.errstate(all="ignore"):
        if len(set(x)) < 2 or len(set(y)) < 2:
            assert np.isnan(kendall(x, y))
            assert np.isnan(spearman(x, y))
            return
        assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_within_bands_only_pairs_of_one_band_count():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    y = np.array([2.0, 1.0, 4.0, 3.0])  # wrong within each half, right between them
    band = np.array([0, 0, 1, 1])
    assert kendall(x, y, band) == -1.0
    assert kendall(x, y) == pytest.approx((4 - 2) / 6)
    assert kendall(x, y, np.zeros(4, np.int64)) == kendall(x, y)


@settings(max_examples=8)
@given(st.integers(0, 1000))
def test_an_interval_holds_its_value_and_repeats(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=30)
    y = x + rng.normal(size=30)
    found = bootstrap(30, lambda pick: kendall(x[pick], y[pick]), seed)
    assert found.low <= found.value <= found.high
    assert found == bootstrap(30, lambda pick: kendall(x[pick], y[pick]), seed)


def test_intervals_narrow_with_the_number_of_networks():
    def width(count: int) -> float:
        rng = np.random.default_rng(1)
        x = rng.normal(size=count)
        y = x + rng.normal(size=count)
        found = bootstrap(count, lambda pick: kendall(x[pick], y[pick]))
        return found.high - found.low

    assert width(100) < 0.7 * width(25)


def test_the_rival_is_the_best_other_score_and_the_lead_is_the_difference():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=40)
    scores = {"one-shot": truth, "params": truth + rng.normal(size=40), "macs": rng.normal(size=40)}
    found = agreement(truth, scores, np.arange(40) % 4)
    assert found.rival == "params"
    assert found.tau["one-shot"].value == 1.0
    assert found.lead.value == pytest.approx(1.0 - found.tau["params"].value)
    assert found.lead.low > 0
    assert found.spearman["one-shot"].value == pytest.approx(1.0)
    assert found.tau_in_band["one-shot"].value == 1.0
