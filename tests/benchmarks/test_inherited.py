"""The space that is left near the best networks of a search, and gaps over several seeds."""

from __future__ import annotations

import numpy as np
import pytest
from small_study import small_spec

from benchmarks.inherited import gaps, values_of_best
from nas.problem import space_of
from nas.search import run_search
from nas.spec import override


def test_the_best_networks_and_nothing_else_are_left(tmp_path):
    spec = small_spec(search_objectives=["top1", "params"], space_choices={"resolution": [24]}, search_trials=12)
    study = run_search(spec, tmp_path)
    best = sorted(study.front, key=lambda trial: -(trial.top1 or 0.0))[:2]
    narrow = space_of(override(spec, values_of_best(study, 2)).space)
    genomes = [narrow.encode(trial.architecture) for trial in best]
    for choice in narrow.choices:
        assert set(choice.values) == {genome[choice.name] for genome in genomes}, choice.name


def test_gaps_are_means_over_seeds():
    points = [0.5, 1.5, 2.5]
    rows = [{"variant": "narrow", "gap_points": gap} for gap in points] + [{"variant": "whole", "gap_points": 3.0}]
    error = np.std(points, ddof=1) / np.sqrt(3)
    assert gaps(rows) == f"narrow: 1.50 ± {error:.2f} points, 3 seeds; whole: 3.00 points, 1 seeds"
    assert error == pytest.approx(0.577, abs=1e-3)
