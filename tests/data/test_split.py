"""Splits: disjoint, complete, stratified, deterministic."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.data.split import first_of_each_class, split_by_path, split_off

LABELS = st.lists(st.integers(2, 30), min_size=2, max_size=6).flatmap(
    lambda counts: st.permutations([label for label, count in enumerate(counts) for _ in range(count)])
)


@given(LABELS, st.integers(0, 5))
def test_split_off_is_a_stratified_partition(labels, seed):
    labels = np.array(labels)
    count = len(labels) // 4
    rest, part = split_off(labels, count, seed)
    assert sorted([*rest, *part]) == list(range(len(labels)))
    for label, total in enumerate(np.bincount(labels)):
        inside = int((labels[part] == label).sum())
        assert 1 <= inside < total
        assert abs(inside - total * count / len(labels)) <= 1


def test_split_off_follows_the_seed():
    labels = np.arange(200) % 4
    first, again, other = (split_off(labels, 40, seed)[1] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@given(LABELS)
def test_split_by_path_takes_the_lowest_hashes_of_each_class(labels):
    labels = np.array(labels)
    paths = [f"class{label}/{index}.png" for index, label in enumerate(labels)]
    rest, part = split_by_path(paths, labels, 0.2)
    assert sorted([*rest, *part]) == list(range(len(labels)))
    digests = [hashlib.sha256(path.encode()).hexdigest() for path in paths]
    for label in range(labels.max() + 1):
        chosen = [digests[row] for row in part if labels[row] == label]
        left = [digests[row] for row in rest if labels[row] == label]
        assert chosen
        assert left
        assert max(chosen) < min(left)


def test_split_by_path_keeps_its_images_when_files_are_listed_in_another_order():
    paths = [f"a/{index}.png" for index in range(20)] + [f"b/{index}.png" for index in range(20)]
    labels = np.repeat([0, 1], 20)
    _, part = split_by_path(paths, labels, 0.2)
    order = np.random.default_rng(0).permutation(40)
    _, shuffled = split_by_path([paths[row] for row in order], labels[order], 0.2)
    assert {paths[row] for row in part} == {paths[order[row]] for row in shuffled}


@pytest.mark.parametrize(("limit", "counts"), [(1, [1, 0, 0]), (5, [2, 2, 1]), (9, [4, 2, 3]), (100, [10, 2, 5])])
def test_limit_takes_the_classes_in_turn(limit, counts):
    labels = np.array([0] * 10 + [1] * 2 + [2] * 5)
    rows = first_of_each_class(labels, limit)
    assert np.bincount(labels[rows], minlength=3).tolist() == counts
    assert rows.tolist() == sorted(rows)
