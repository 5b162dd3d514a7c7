"""The next measurements worth most: new ones, in a table that can be taken in, with the command that times them."""

from __future__ import annotations

import pytest
from made_up_device import TARGET, made_records, put

from hw_models import list_targets, load_pack, load_target
from hw_models.measurements import read_measurements
from nas.errors import UsageError
from nas.measure.plan import write_plan
from nas.measure.wanted import read_wanted
from nas.progress import Narrator
from nas.suggest import suggest_measurements, suggestion_csv, suggestion_text


@pytest.fixture(scope="module")
def records():
    return made_records()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, records):
    return put(tmp_path_factory.mktemp("measured"), records)


def test_suggestions_are_new_and_can_be_taken_in(folder, tmp_path, records):
    rows = suggest_measurements(TARGET, 5, folder, None, preset="small")
    assert len({row["model"] for row in rows}) == 5
    assert not {row["model"] for row in rows} & {record.subject for record in records}
    table = tmp_path / "next.csv"
    table.write_text(suggestion_csv([row | {"latency_ms": 1.0} for row in rows]))
    assert [record.subject for record in read_measurements(table, TARGET)] == [r["model"] for r in rows]
    assert [(subject.name, *form) for subject, *form in read_wanted(table)] == [(r["model"], "w8a8", 1) for r in rows]
    assert "--csv next.csv" in suggestion_text(rows, TARGET)
    with pytest.raises(UsageError, match="at least 1"):
        suggest_measurements(TARGET, 0, folder, None)


def test_what_a_pack_has_is_not_suggested(tmp_path):
    """The first without measurements of one's own is worth less than it would be if the pack were not there."""
    pack = [record for record in load_pack("epyc_zen3_core") if record.is_sharp]
    rows = suggest_measurements("epyc_zen3_core", 8, tmp_path, None, precisions=("fp32",))
    assert not {row["model"] for row in rows} & {record.subject for record in pack}
    assert rows[0]["uncertainty"] < 0.5


def test_suggestions_are_of_one_batch(tmp_path, records):
    where = put(tmp_path, records)
    rows = suggest_measurements(TARGET, 2, where, None, preset="small", batch=64)
    assert {row["batch"] for row in rows} == {64}
    table = tmp_path / "next.csv"
    table.write_text(suggestion_csv(rows))
    assert [batch for _, _, batch in read_wanted(table)] == [64, 64]
    for said in (suggestion_text(rows, TARGET, table), suggestion_text(rows, TARGET)):
        assert "Next: leave out --batch 64: npu_40tops is timed from the files of `nas measure plan`" in said
        assert "--device" not in said
    with pytest.raises(UsageError, match="asks for batch 64: the files of a plan are of one image"):
        write_plan(TARGET, tmp_path / "plan", Narrator(quiet=True), wanted=table)
    table.write_text(table.read_text().replace(",64,", ",0,"))
    with pytest.raises(UsageError, match="line 2: batch must be a positive whole number, but is '0'"):
        read_wanted(table)


def test_suggestions_are_timed_on_what_the_target_is(folder, tmp_path):
    """A processor of a kind that `nas measure` runs on is timed here, a board from files, and either may be what is
    unknown.
    """
    rows = suggest_measurements(TARGET, 1, folder, None, preset="small")
    table = tmp_path / "next.csv"
    for name in list_targets():
        device = {"cpu": "cpu", "gpu": "cuda"}.get(load_target(name).kind)
        lines = suggestion_text(rows, name, table, " --dir here").splitlines()[2:]
        here = f"nas measure --device {device} --from {table} --target {name} --dir here"
        assert [here in line for line in lines if "--device" in line] == [True] * (device is not None), lines
        is_met = name in {"epyc_zen3_core", "epyc_zen5_core", "h100", "h200"}
        plan = f"nas measure plan --from {table} --target {name} --out"
        assert [plan in line for line in lines if "plan" in line] == [True] * (not is_met), lines
        (at_64,) = suggestion_text([row | {"batch": 64} for row in rows], name, table).splitlines()[2:]
        assert ("--device" in at_64, "leave out --batch" in at_64) == (device is not None, device is None)


def test_a_suggestion_in_an_unknown_precision_is_refused(tmp_path):
    with pytest.raises(UsageError, match="unknown precision 'w3a3'; known: fp32"):
        suggest_measurements(TARGET, 3, tmp_path, None, precisions=("w8a8", "w3a3"))
