"""The comparison with Vela's estimates: made-up rows, and the published table where its folder is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.vela import CASES, CONFIGS, case_workload, compare, main
from nas.errors import UsageError

HEAD = "config,case,sub_ops,op_cycles,npu_cycles,sram_cycles,dram_cycles,macs\n"


def test_cases_are_what_their_names_say() -> None:
    assert case_workload("conv3x3").macs == 115_605_504
    assert case_workload("dw7x7").macs == 14_751_744
    assert case_workload("bmm6_196x64x196").macs == 6 * 196 * 64 * 196
    assert case_workload("fc196x384x384").macs == 28_901_376
    wide = case_workload("conv3x3_i16")
    assert {wide.tensors[index].dtype for index in (*wide.inputs, *wide.outputs)} == {"int16"}


def test_rows_of_known_configurations_are_compared(tmp_path: Path) -> None:
    text = HEAD + "u85_2048_SharedSram,dw7x7,1,65577,65577,59400,9375,14751744\n"
    (tmp_path / "vela_5_2_estimates.csv").write_text(text + "u65_512_SharedSram,dw7x7,1,1,1,0,0,0\n")
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    (row,) = json.loads((tmp_path / "out" / "vela.json").read_text())["rows"]
    assert (row["config"], row["case"], row["bound"]) == ("u85_2048_SharedSram", "dw7x7", "npu")
    assert row["agrees"] == (abs(row["ratio"] - 1) <= 0.25)
    assert "| SharedSram | dw7x7 | 65577 |" in (tmp_path / "out" / "vela.md").read_text()


def test_bad_tables_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "vela_5_2_estimates.csv"
    with pytest.raises(UsageError, match="--data"):
        compare(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="does not have the columns"):
        compare(path)
    path.write_text(HEAD + "u85_2048_SharedSram,conv9x9,1,1,1,1,1,1\n")
    with pytest.raises(UsageError, match="unknown case 'conv9x9'"):
        compare(path)


@pytest.mark.slow
def test_published_rows(published: Callable[[str], Path]) -> None:
    rows = compare(published("vela_5_2_estimates.csv"))
    assert {row.config for row in rows} == set(CONFIGS)
    assert {row.case.removesuffix("_i16") for row in rows} == set(CASES)
    assert sum(row.agrees for row in rows) >= 0.8 * len(rows)
