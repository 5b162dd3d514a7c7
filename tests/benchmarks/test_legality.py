"""Legality of what ran: made-up rows, and the published table where its folder is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.legality import judge, main, read, wrong
from nas.errors import UsageError

HEAD = "device,precision,batch,timm_name,input_res,latency_ms,fps,metric_kind,runtime,compute_unit\n"
ELITE = "Qualcomm Snapdragon X Elite CRD"


def _table(folder: Path, *rows: str) -> Path:
    path = folder / "npu_published.csv"
    path.write_text(HEAD + "\n".join(rows) + "\n")
    return path


def test_rows_that_left_the_accelerator_are_named(tmp_path: Path) -> None:
    path = _table(
        tmp_path,
        f"{ELITE},fp16,1,resnet18,64,2.0,,latency,a,NPU",
        f"{ELITE},w8a8,1,resnet18,64,1.0,,latency,a,NPU",
        f"{ELITE},w8a16,1,resnet18,64,7.0,,latency,a,NPU",
        "STM32MP257F-DK2,int8,1,resnet18,64,7.0,,latency,a,%NPU 3.13 %GPU 96.87",
        f"{ELITE},fp16,1,,64,2.0,,latency,a,NPU",
    )
    rows = {row.precision: row.left for row in read(path)}
    assert rows["fp16"] == rows["w8a8"] == ""
    assert rows["w8a16"].startswith("3.5 times")
    assert "%GPU 96.87" in rows["int8"]


def test_what_a_target_objects_to_is_wrong_only_if_it_stayed(tmp_path: Path) -> None:
    path = _table(
        tmp_path,
        "Coral USB Accelerator,int8,1,resnet10t,64,2.0,,latency,a,Edge TPU",
        "Coral USB Accelerator,int8,1,test_vit,,2.0,,latency,a,Edge TPU",
        "Coral USB Accelerator,fp16,1,resnet10t,64,2.0,,latency,b,%NPU 1 %GPU 99",
        "Nobody's NPU,int8,1,resnet10t,64,2.0,,latency,a,NPU",
    )
    verdicts = judge(read(path))
    (bad,) = wrong(verdicts)
    assert bad.row.model == "test_vit"
    assert any("norm" in violation for violation in bad.violations or ())
    assert [verdict.problem for verdict in verdicts if verdict.violations is None] == ["no target"]
    main(["--data", str(tmp_path), "--out", str(tmp_path)])
    text = (tmp_path / "legality.md").read_text()
    assert "| coral_usb | 2 | 1 |" in text
    assert "runs on %NPU 1 %GPU 99" in text
    assert len(json.loads((tmp_path / "legality.json").read_text())["verdicts"]) == 4


def test_bad_tables_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--data"):
        read(tmp_path / "npu_published.csv")
    (tmp_path / "npu_published.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="does not have the columns"):
        read(tmp_path / "npu_published.csv")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_published_rows(published: Callable[[str], Path]) -> None:
    verdicts = judge(read(published("npu_published.csv")))
    assert sum(verdict.violations is not None for verdict in verdicts) > 500
    assert [str(verdict.row) for verdict in wrong(verdicts)] == []
    assert any("vit_base" in verdict.row.model and verdict.row.left for verdict in verdicts)
