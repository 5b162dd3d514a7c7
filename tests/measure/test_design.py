"""The choice of blocks: the formula against brute force, what it prefers, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from hw_models import estimate_part, load_target
from hw_models.families import part_units
from nas.bits import put_precision
from nas.cost import part_workload
from nas.measure.design import (
    Points,
    choose_parts,
    clock_s,
    draw_networks,
    log_latency_vector,
    most_telling,
    part_pool,
    scatter,
)
from search_spaces import load_space

CORE = load_target("epyc_zen3_core")
_SPACE = load_space("metaformer", "small", mixers=["dwconv", "mhsa", "pool"])


def _left(own: np.ndarray, noise: np.ndarray, goals: np.ndarray, chosen: list[int]) -> float:
    """Summed variance of the goals once the chosen are measured, by the posterior of a linear model."""
    seen, scatters = own[chosen], noise[chosen]
    precision = np.eye(own.shape[1]) + seen.T @ (seen / scatters[:, None] ** 2)
    return float(np.trace(goals @ np.linalg.inv(precision) @ goals.T))


def test_each_next_one_takes_most_off_the_variance_of_the_goals() -> None:
    rng = np.random.default_rng(0)
    formats = [(rng.standard_normal((9, 5)), rng.uniform(0.1, 1.0, 9), rng.standard_normal((4, 5))) for _ in range(2)]
    points, goals = [Points(own, noise) for own, noise, _ in formats], [goals for _, _, goals in formats]
    chosen = [row for row, _ in most_telling(points, goals, 5)]
    assert len(set(chosen)) == 5
    for number in range(5):
        left = {
            row: sum(_left(own, noise, goals, [*chosen[:number], row]) for own, noise, goals in formats)
            for row in range(9)
            if row not in chosen[:number]
        }
        assert left[chosen[number]] == pytest.approx(min(left.values()))


def test_all_are_chosen_when_more_are_wanted() -> None:
    chosen = most_telling([Points(np.eye(3), np.full(3, 0.1))], [np.eye(3)], 7)
    assert sorted(row for row, _ in chosen) == [0, 1, 2]
    none = Points.of([], 1e-6)
    assert most_telling([none], [none.vectors], 4) == []


def test_the_first_block_for_a_goal_is_the_one_that_is_like_it() -> None:
    space = load_space("metaformer", "small", mixers=["dwconv", "pool"])
    pool = [part for part in part_pool(space, 24, 0, 10, 3) if part.spec[0] == "MetaFormerBlock"]
    vectors = np.array([_vector(part) for part in pool])
    for row in range(len(pool)):
        points = Points(vectors, np.full(len(pool), 1e-3))
        ((first, sigma),) = most_telling([points], [vectors[row : row + 1]], 1)
        assert sigma == pytest.approx(np.linalg.norm(vectors[first]))
        assert np.allclose(vectors[first], vectors[row])


def test_what_was_seen_is_as_if_it_had_been_chosen_before() -> None:
    rng = np.random.default_rng(1)
    points, goals = Points(rng.standard_normal((12, 6)), rng.uniform(0.1, 1.0, 12)), rng.standard_normal((4, 6))
    whole = most_telling([points], [goals], 12)
    first = [row for row, _ in whole[:4]]
    rest = [row for row in range(12) if row not in first]
    seen, left = (Points(points.vectors[rows], points.scatters[rows]) for rows in (first, rest))
    after = most_telling([left], [goals], 8, [seen])
    assert [rest[row] for row, _ in after] == [row for row, _ in whole[4:]]
    assert [sigma for _, sigma in after] == pytest.approx([sigma for _, sigma in whole[4:]])


def _vector(part) -> np.ndarray:
    workload = put_precision(part_workload(part), "fp32")
    return log_latency_vector(part_units(estimate_part(workload, CORE, (False, False)), 0.0))


def test_nearby_kernels_have_nearby_vectors_and_short_times_scatter() -> None:
    pool = part_pool(load_space("metaformer", "small", mixers=["dwconv"]), 8, 0, 10, 3)
    vectors = [_vector(part) for part in pool]
    assert all(np.isfinite(vector).all() for vector in vectors)
    assert np.array_equal(vectors[0], _vector(pool[0]))
    assert scatter(1e-6, 2e-6) > scatter(1e-5, 2e-6) > scatter(1e-3, 2e-6) > 0
    assert clock_s(load_target("npu_40tops")) < clock_s(CORE)


def test_the_choice_is_repeatable_distinct_and_wider_than_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.measure.design.POOL", 60)
    target = load_target("npu_40tops")
    chosen = choose_parts(_SPACE, target, 12, ("w8a8",), 0, 10, 3)
    again = choose_parts(_SPACE, target, 12, ("w8a8",), 0, 10, 3)
    assert [part.spec for part in chosen] == [part.spec for part in again]
    assert len({part.spec for part in chosen}) == 12
    mixers = {dict(part.spec[4:]).get("mixer") for part in chosen}
    assert {"dwconv", "mhsa", "pool"} <= mixers


def test_the_pool_is_distinct() -> None:
    pool = part_pool(_SPACE, 40, 1, 10, 3)
    assert len({part.spec for part in pool}) == len(pool) >= 40


def test_drawn_networks_are_distinct_and_repeatable() -> None:
    first, again = draw_networks(_SPACE, 5, 3), draw_networks(_SPACE, 5, 3)
    assert [arch.key for arch in first] == [arch.key for arch in again]
    assert len({arch.key for arch in first}) == 5
    single = _SPACE.restrict({name.name: [name.values[0]] for name in _SPACE.choices})
    assert len(draw_networks(single, 5, 3)) == 1


def test_bf16_is_costed_as_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.measure.design.POOL", 20)
    target = load_target("h200")
    chosen, as_fp16 = (choose_parts(_SPACE, target, 4, (precision,), 0, 10, 3) for precision in ("bf16", "fp16"))
    assert [part.spec for part in chosen] == [part.spec for part in as_fp16]
