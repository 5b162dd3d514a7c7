"""The design that aims at whole networks: the formula against brute force, and what it prefers."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.goals import least_variance, log_latency_vector, scatter
from hw_models import estimate_part, load_target
from hw_models.families import part_units
from nas.bits import put_precision
from nas.cost import part_workload
from nas.measure.design import part_pool
from search_spaces import load_space

CORE = load_target("epyc_zen3_core")


def _left(own: np.ndarray, noise: np.ndarray, goals: np.ndarray, chosen: list[int]) -> float:
    """Summed variance of the goals once the chosen are measured, by the posterior of a linear model."""
    seen, scatters = own[chosen], noise[chosen]
    precision = np.eye(own.shape[1]) + seen.T @ (seen / scatters[:, None] ** 2)
    return float(np.trace(goals @ np.linalg.inv(precision) @ goals.T))


def test_each_next_one_takes_most_off_the_variance_of_the_goals() -> None:
    rng = np.random.default_rng(0)
    formats = [(rng.standard_normal((9, 5)), rng.uniform(0.1, 1.0, 9), rng.standard_normal((4, 5))) for _ in range(2)]
    chosen = least_variance(*([own[k] for own in formats] for k in range(3)), 5)
    assert len(set(chosen)) == 5
    for number in range(5):
        left = {
            row: sum(_left(own, noise, goals, [*chosen[:number], row]) for own, noise, goals in formats)
            for row in range(9)
            if row not in chosen[:number]
        }
        assert left[chosen[number]] == pytest.approx(min(left.values()))


def test_all_are_chosen_when_more_are_wanted() -> None:
    one = [np.eye(3)], [np.full(3, 0.1)], [np.eye(3)]
    assert sorted(least_variance(*one, 7)) == [0, 1, 2]


def test_the_first_block_for_a_goal_is_the_one_that_is_like_it() -> None:
    space = load_space("metaformer", "small", mixers=["dwconv", "pool"])
    pool = [part for part in part_pool(space, 24, 0, 10, 3) if part.spec[0] == "MetaFormerBlock"]
    vectors = np.array([_vector(part) for part in pool])
    for row in range(len(pool)):
        first = least_variance([vectors], [np.full(len(pool), 1e-3)], [vectors[row : row + 1]], 1)[0]
        assert np.allclose(vectors[first], vectors[row])


def _vector(part) -> np.ndarray:
    workload = put_precision(part_workload(part), "fp32")
    return log_latency_vector(part_units(estimate_part(workload, CORE, (False, False)), 0.0))


def test_nearby_kernels_have_nearby_vectors_and_short_times_scatter() -> None:
    pool = part_pool(load_space("metaformer", "small", mixers=["dwconv"]), 8, 0, 10, 3)
    vectors = [_vector(part) for part in pool]
    assert all(np.isfinite(vector).all() for vector in vectors)
    assert np.array_equal(vectors[0], _vector(pool[0]))
    assert scatter(1e-6) > scatter(1e-5) > scatter(1e-3) > 0
