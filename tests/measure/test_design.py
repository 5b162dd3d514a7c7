"""The choice of blocks: farthest points, nested, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hw_models import load_target
from nas.measure.design import choose_parts, draw_networks, farthest_points, part_pool
from search_spaces import load_space

_SPACE = load_space("metaformer", "small", mixers=["dwconv", "mhsa", "pool"])


@given(arrays(float, (12, 3), elements=st.floats(-10, 10)), st.integers(0, 14))
def test_farthest_points_are_distinct_nested_and_far(points: np.ndarray, count: int) -> None:
    chosen = farthest_points(points, count)
    assert len(set(chosen)) == len(chosen) == min(count, 12)
    assert chosen == farthest_points(points, 12)[: len(chosen)]
    for number in range(1, len(chosen)):  # by brute force: nobody left is farther from those before
        before = points[chosen[:number]]
        distance = ((points[:, None] - before[None]) ** 2).sum(axis=2).min(axis=1)
        left = [row for row in range(12) if row not in chosen[:number]]
        assert distance[chosen[number]] == pytest.approx(max(distance[left]))


def test_no_points() -> None:
    assert farthest_points(np.empty((0, 3)), 4) == []


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
