"""Front and hypervolume against brute force, and their algebra."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.pareto import as_minimisation, front_mask, hypervolume

# A coarse grid makes ties and duplicates, where such code goes wrong.
points_of = {d: st.lists(st.tuples(*[st.integers(0, 5)] * d), min_size=1, max_size=8) for d in (1, 2, 3, 4, 5)}
any_points = st.integers(1, 5).flatmap(points_of.__getitem__)


def counted_volume(points: list[tuple[int, ...]], reference: int) -> int:
    """Unit cells of the grid that some point dominates: hypervolume by its definition."""
    cells = itertools.product(range(reference), repeat=len(points[0]))
    return sum(any(all(p <= c for p, c in zip(point, cell, strict=True)) for point in points) for cell in cells)


@given(any_points)
def test_hypervolume_equals_brute_force(points):
    assert hypervolume(points, [6] * len(points[0])) == counted_volume(points, 6)
    assert hypervolume(points, [3] * len(points[0])) == counted_volume(points, 3)


@given(any_points)
def test_front_equals_its_definition(points):
    def dominates(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    wanted = [not any(dominates(other, point) for other in points) for point in points]
    assert front_mask(points).tolist() == wanted


@given(any_points, st.randoms(use_true_random=False))
def test_order_changes_nothing(points, random):
    shuffled = random.sample(points, len(points))
    front = {point for point, keep in zip(points, front_mask(points), strict=True) if keep}
    assert front == {point for point, keep in zip(shuffled, front_mask(shuffled), strict=True) if keep}
    reference = [6] * len(points[0])
    assert hypervolume(points, reference) == hypervolume(shuffled, reference)


@given(points_of[3], st.tuples(*[st.integers(0, 7)] * 3))
def test_another_point_never_shrinks_hypervolume(points, point):
    assert hypervolume([*points, point], [6] * 3) >= hypervolume(points, [6] * 3)


def test_the_input_is_left_alone():
    points = np.array([[2.0, 1.0], [1.0, 2.0], [3.0, 3.0]])
    points.setflags(write=False)
    assert front_mask(points).tolist() == [True, True, False]
    assert hypervolume(points, [4.0, 4.0]) == 8.0
    assert as_minimisation(points, ["maximize", "minimize"])[0].tolist() == [-2.0, 1.0]


def test_nothing_covers_nothing():
    assert hypervolume(np.empty((0, 2)), [1.0, 1.0]) == 0.0
    assert hypervolume([[2.0, 2.0]], [1.0, 1.0]) == pytest.approx(0.0)
