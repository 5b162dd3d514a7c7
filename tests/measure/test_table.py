"""Tables of a board come in with one clear line for everything wrong, plans come back, and exports are imports."""

from __future__ import annotations

import csv
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from hw_models.measurements import measurements_csv, read_measurements
from nas.errors import UsageError
from nas.measure.design import part_pool
from nas.measure.jobs import CHAINED, LED
from nas.measure.methods import method_of, methods_of
from nas.measure.plan import COLUMNS, TABLE, write_plan
from nas.measure.records import MeasurementStore
from nas.measure.table import export_measurements, import_measurements
from nas.measure.wanted import read_wanted
from nas.progress import Narrator
from nas.store import Store
from nas.subjects import part_subject
from nas.suggest import suggestion_csv
from search_spaces import load_space
from search_spaces.parts import NetworkPart

_HEAD = "model,input_size,precision,latency_ms,runtime,runtime_version"


def _table(folder: Path, *lines: str) -> Path:
    path = folder / "board.csv"
    path.write_text("\n".join([_HEAD, *lines]) + "\n")
    return path


def test_a_table_comes_in_and_goes_out_the_same(tmp_path: Path) -> None:
    path = _table(tmp_path, "resnet18,224,w8a8,1.5,SDK,2.0", "mobilenetv2_100,192,w8a8,0.5,SDK,2.0")
    done = import_measurements(path, "my_npu", tmp_path, None)
    assert (done.target, len(done.records), done.replaced) == ("my_npu", 2, 0)
    (tmp_path / "out.csv").write_text(export_measurements(tmp_path, None, "my_npu"))
    again = read_measurements(tmp_path / "out.csv")
    assert sorted(again, key=str) == sorted(done.records, key=str)
    assert import_measurements(tmp_path / "out.csv", "my_npu", tmp_path, None).replaced == 2
    assert len(export_measurements(tmp_path, None).splitlines()) == 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("resnet19,224,w8a8,1.5,SDK,2.0", "line 3: 'resnet19' is neither"),
        ("resnet18,224,w8a8,1.6,SDK,2.1", "from SDK 2.0 and from SDK 2.1"),
        ("resnet18,224,w8a8,-1,SDK,2.0", "line 3: latency_ms must be positive"),
        ("mobilenetv2_100,224,w8a8,9,SDK,2.0", "lines 2 and 3 disagree"),
    ],
)
def test_a_wrong_line_leaves_nothing_behind(tmp_path: Path, line: str, said: str) -> None:
    path = _table(tmp_path, "mobilenetv2_100,224,w8a8,1.5,SDK,2.0", line)
    with pytest.raises(UsageError, match=r"board\.csv") as caught:
        import_measurements(path, "my_npu", tmp_path, None)
    assert said in str(caught.value)
    with pytest.raises(UsageError, match="no measurements"):
        export_measurements(tmp_path, None)


def test_a_table_in_another_encoding_is_said(tmp_path: Path) -> None:
    path = tmp_path / "board.csv"
    path.write_bytes(f"{_HEAD}\nr\u00e9seau,224,w8a8,1,SDK,2\n".encode("latin-1"))
    with pytest.raises(UsageError, match="it is not UTF-8 text; name a CSV file saved in UTF-8"):
        import_measurements(path, "my_npu", tmp_path, None)


@pytest.mark.parametrize("target", ["h200@batch64", "h200@batch64.toml"])
def test_times_of_a_target_named_like_a_calibration_are_refused(tmp_path: Path, target: str) -> None:
    table = _table(tmp_path, "resnet18,224,w8a8,1.5,SDK,2.0")
    with pytest.raises(UsageError, match=r"--target h200@batch64.*must not hold '@'.*call it 'h200_batch64'"):
        import_measurements(table, target, tmp_path, None)
    assert not (tmp_path / "nas.db").exists()


def test_another_version_is_refused_or_replaces(tmp_path: Path) -> None:
    import_measurements(_table(tmp_path, "resnet18,224,w8a8,1.5,SDK,2.0"), "my_npu", tmp_path, None)
    newer = _table(tmp_path, "resnet34,224,w8a8,2.5,SDK,2.1")
    with pytest.raises(UsageError, match=r"SDK 2\.0, these are from SDK 2\.1: times of different software do not mix"):
        import_measurements(newer, "my_npu", tmp_path, None)
    assert import_measurements(newer, "my_npu", tmp_path, None, replace_other=True).dropped == 1
    text = export_measurements(tmp_path, None, "my_npu")
    assert "resnet34" in text
    assert "resnet18" not in text


def _planned(folder: Path, narrator: Narrator | None = None, **more: int) -> Path:
    asked = {"blocks": 2, "networks": 1} | more
    return write_plan("npu_40tops", folder / "plan", narrator or Narrator(quiet=True), preset="small", **asked)


def _fill(plan: Path, times: dict[str, str]) -> None:
    with (plan / TABLE).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row["latency_ms"] = next((time for word, time in times.items() if word in row["file"]), "")
    with (plan / TABLE).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_plan_is_timed_filled_in_and_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nas.measure.design.POOL", 30)
    plan = _planned(tmp_path, Narrator())
    said = re.search(r"(\d+) ONNX files, some (\d+) MB", capsys.readouterr().err)
    assert said is not None
    sizes = [path.stat().st_size / 1e6 for path in plan.rglob("*.onnx")]
    assert int(said[1]) == len(sizes)
    assert float(said[2]) == pytest.approx(sum(sizes), rel=0.15, abs=1)
    with (plan / TABLE).open(newline="") as stream:
        files = [row["file"] for row in csv.DictReader(stream)]
    assert len(files) == 5
    for file in (file for file in files if file.startswith("blocks/")):
        graph = onnx.load(str(plan / file)).graph
        assert graph.node[0].op_type == "Conv"  # as `nas measure` times a block
        assert next(value for value in graph.initializer if value.name == graph.node[0].input[1]).dims[2:] == [1, 1]
    for file in files:
        for path in (plan / file, plan / file.replace(".onnx", "-qdq.onnx")):
            onnx.checker.check_model(onnx.load(str(path)))
    assert f"nas measure import {TABLE} --target npu_40tops" in (plan / "README.md").read_text()
    with pytest.raises(UsageError, match="holds no measurements"):
        import_measurements(plan / TABLE, "npu_40tops", tmp_path, None)

    with pytest.raises(UsageError, match="exists"):
        _planned(tmp_path)

    _fill(plan, {"-x1": "0.5", "-x3": "0.9", "networks": "4"})
    done = import_measurements(plan / TABLE, "npu_40tops", tmp_path, None)
    blocks = [record for record in done.records if record.kind == "block"]
    assert [record.latency_s for record in blocks] == pytest.approx([0.2e-3] * 2)
    assert {method_of(record) for record in blocks} == {LED}
    assert [record.latency_s for record in done.records if record.kind == "network"] == [pytest.approx(4e-3)]

    for times, said in (
        ({"-x1": "0.9", "-x3": "0.5"}, "no longer than the single block"),
        ({"-x3": "0.5"}, "the single block has none"),
        ({"-x1": "0.5"}, "the chain of 3 has none"),
    ):
        _fill(plan, times)
        with pytest.raises(UsageError, match=said):
            import_measurements(plan / TABLE, "npu_40tops", tmp_path, None)
    _fill(plan, {"networks": "4"})
    assert len(import_measurements(plan / TABLE, "npu_40tops", tmp_path, None).empty) == 4
    text = (plan / TABLE).read_text().replace('""dim""', '""dmi""')
    (plan / TABLE).write_text(text)
    _fill(plan, {"-x1": "0.5", "-x3": "0.9"})
    with pytest.raises(UsageError, match=r"does not describe a block|was changed"):
        import_measurements(plan / TABLE, "npu_40tops", tmp_path, None)


def _old_plan(plan: Path) -> None:
    """As a plan's table named blocks before they were led."""
    text = (plan / TABLE).read_text()
    (plan / TABLE).write_text(text.replace(" x1 led", "").replace(" x3 led", " x3"))


def test_blocks_timed_in_different_ways_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.measure.design.POOL", 30)
    plan = _planned(tmp_path)
    _fill(plan, {"-x1": "0.5", "-x3": "0.9", "networks": "4"})
    led = (plan / TABLE).read_text()
    _old_plan(plan)
    old = import_measurements(plan / TABLE, "npu_40tops", tmp_path, None).records
    assert methods_of(old) == {CHAINED: 2}
    (plan / TABLE).write_text(led)
    said = f"has 2 blocks timed by '{CHAINED}', these are timed by '{LED}': .* drop the old ones with --replace"
    with pytest.raises(UsageError, match=said):
        import_measurements(plan / TABLE, "npu_40tops", tmp_path, None)
    assert import_measurements(plan / TABLE, "npu_40tops", tmp_path, None, replace_other=True).dropped == 2
    with closing(Store(tmp_path)) as opened:
        known = MeasurementStore(opened).of("npu_40tops")
    assert methods_of(known) == {LED: 2}
    assert sum(record.kind == "network" for record in known) == 1  # networks are timed in one way

    table = tmp_path / "both.csv"
    table.write_text(measurements_csv([*known, replace(old[-1], input_size=old[-1].input_size + 1)]))
    with pytest.raises(UsageError, match=r"both\.csv were timed in different ways \(2 by '.*', 1 by"):
        import_measurements(table, "npu_40tops", tmp_path, None)


def test_another_number_of_copies_is_said_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.measure.design.POOL", 30)
    plan = _planned(tmp_path)
    _fill(plan, {"-x1": "0.5", "-x3": "0.9"})
    (plan / TABLE).write_text((plan / TABLE).read_text().replace(" x3 led", " x5 led"))
    with pytest.raises(UsageError, match=r"line \d+: block:\w+ x5 led is 5 copies"):
        import_measurements(plan / TABLE, "npu_40tops", tmp_path, None)


def _suggestions(folder: Path, **change: str) -> Path:
    """Two suggested blocks; `change` puts other cells into the second line."""
    part = [part for part in part_pool(load_space("metaformer", "small"), 12, 0, 10, 3) if is_block(part)][:2]
    rows = [dict.fromkeys(COLUMNS, "") for _ in part]
    for row, one in zip(rows, part, strict=True):
        subject = part_subject(one)
        row |= {"model": subject.name, "kind": "block", "input_size": str(subject.input_size), "batch": "1"}
        row |= {"precision": "w8a8", "description": subject.description}
    rows[1] |= change
    path = folder / "next.csv"
    path.write_text(suggestion_csv(rows))
    return path


def is_block(part: NetworkPart) -> bool:
    return part.spec[0] == "MetaFormerBlock"


def test_suggestions_become_files_to_time(tmp_path: Path) -> None:
    table = _suggestions(tmp_path, precision="fp16")
    plan = write_plan("npu_40tops", tmp_path / "plan", Narrator(quiet=True), wanted=table)
    with (plan / TABLE).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["precision"] for row in rows] == ["w8a8", "w8a8", "fp16", "fp16"]
    assert len(list(plan.rglob("*-qdq.onnx"))) == 2
    assert all((plan / row["file"]).is_file() for row in rows)
    _fill(plan, {"-x1": "0.5", "-x3": "0.9"})
    assert len(import_measurements(plan / TABLE, "npu_40tops", tmp_path, None).records) == 2
    with pytest.raises(UsageError, match="go without --from"):
        write_plan("npu_40tops", tmp_path / "other", Narrator(quiet=True), wanted=table, blocks=3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "block:000000000000"}, "line 3: block:000000000000 at .* is not what its descr"),
        ({"input_size": "7"}, "line 3: block:.* at 7 is not what its description says"),
        ({"kind": "network", "model": "resnet18"}, "line 3: resnet18 is a network, not a block"),
        ({"precision": "int3"}, "line 3: unknown precision 'int3'"),
        ({"description": "{}"}, "line 3: '{}' does not describe a block"),
    ],
)
def test_a_wrong_suggestion_is_said_with_its_line(tmp_path: Path, change: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_wanted(_suggestions(tmp_path, **change))


def test_another_table_is_no_suggestion(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="line 1: missing column kind, description"):
        read_wanted(_table(tmp_path, "resnet18,224,w8a8,1.5,SDK,2.0"))
    with pytest.raises(UsageError, match=r"cannot read .*no\.csv"):
        read_wanted(tmp_path / "no.csv")
    (tmp_path / "none.csv").write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(UsageError, match="names nothing to time"):
        read_wanted(tmp_path / "none.csv")
