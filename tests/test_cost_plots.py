"""The pictures of a cost report are written, and refuse what they cannot draw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hw_models import load_target
from nas.cost import cost_model
from nas.cost_plots import plot_cost
from nas.errors import UsageError


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_pictures_are_written(tmp_path: Path, suffix: str) -> None:
    target = load_target("npu_40tops")
    path = tmp_path / f"cost{suffix}"
    plot_cost(cost_model("caformer_s18", target, precision="w8a16"), target, path)
    assert path.stat().st_size > 10_000


def test_nothing_to_draw_and_nowhere_to_write(tmp_path: Path) -> None:
    target = load_target("npu_40tops")
    report = cost_model("resnet18", target)
    with pytest.raises(UsageError, match="no matrix work"):
        plot_cost(replace(report, rows=[]), target, tmp_path / "cost.png")
    with pytest.raises(UsageError, match="cannot write"):
        plot_cost(report, target, tmp_path / "nowhere" / "cost.png")
    with pytest.raises(UsageError, match="cannot write"):
        plot_cost(report, target, tmp_path / "cost.docx")
