"""The measurement record and its CSV: round trips, units, and every way a table can be wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw_models.measurements import (
    PRECISIONS,
    Measurement,
    MeasurementError,
    list_packs,
    load_pack,
    measurements_csv,
    parse_measurements,
    read_measurements,
)

_texts = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)
_seconds = st.floats(min_value=1e-8, max_value=1e3)


@st.composite
def records(draw: st.DrawFn) -> Measurement:
    latency_s = draw(_seconds)
    return Measurement(
        target="board",
        subject=draw(_texts),
        kind=draw(st.sampled_from(["network", "block"])),
        input_size=draw(st.integers(1, 4096)),
        precision=draw(st.sampled_from(PRECISIONS)),
        latency_s=latency_s,
        batch=draw(st.integers(1, 512)),
        description=draw(st.sampled_from(["", json.dumps({"part": "a,b", "arguments": {"dim": 8}})])),
        spread_s=draw(_seconds),
        low_s=latency_s / 2,
        high_s=latency_s * 2,
        repeats=draw(st.integers(0, 999)),
        runtime="ONNX Runtime",
        runtime_version="1.31.0",
        conditions=json.dumps({"threads": draw(st.integers(1, 8))}),
        date="2026-01-01",
        commit="abc1234",
    )


@given(st.lists(records(), min_size=1, max_size=8, unique_by=lambda record: record.identity))
def test_csv_gives_the_same_records_back(rows: list[Measurement]) -> None:
    assert parse_measurements(measurements_csv(rows), "x.csv") == rows
    assert [Measurement.from_dict(row.to_dict()) for row in rows] == rows


@given(records())
def test_units_are_converted(row: Measurement) -> None:
    seconds = []
    for unit, factor in (("latency_s", 1.0), ("latency_ms", 1e3), ("latency_us", 1e6)):
        text = f"model,input_size,precision,{unit}\nresnet18,224,fp32,{row.latency_s * factor!r}\n"
        seconds.append(parse_measurements(text, "x.csv", "board")[0].latency_s)
    assert seconds == pytest.approx([row.latency_s] * 3)


def test_a_users_table_needs_four_columns(tmp_path: Path) -> None:
    path = tmp_path / "board.csv"
    path.write_text("\ufeffmodel, input_size ,precision,latency_ms\nresnet18,224,int8,1.5\n\nresnet18,224,FP32,3\n")
    first, second = read_measurements(path, "my_npu")
    assert (first.target, first.kind, first.precision, first.batch) == ("my_npu", "network", "w8a8", 1)
    assert (first.latency_s, second.precision) == (pytest.approx(1.5e-3), "fp32")


def test_repetitions_that_agree_are_kept_once_the_last_one() -> None:
    text = "model,input_size,precision,latency_ms\nresnet18,224,fp32,1.00\nresnet18,224,fp32,1.05\n"
    assert [row.latency_s for row in parse_measurements(text, "x", "board")] == [pytest.approx(1.05e-3)]


def test_repetitions_may_not_drift_apart() -> None:
    rows = "".join(f"resnet18,224,fp32,{1.09**step:.6f}\n" for step in range(5))
    with pytest.raises(MeasurementError, match="lines 2 and 4 disagree"):
        parse_measurements("model,input_size,precision,latency_ms\n" + rows, "x", "board")


_HEAD = "model,input_size,precision,latency_ms"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1 is empty; a table needs model, input_size, precision"),
        (f"{_HEAD.replace(',', ';')}\nresnet18;224;fp32;3", "separated by commas, not by semicolons"),
        (f"{_HEAD}\nresnet18,224,fp32,1e9", "line 2: latency_ms of 1e9 is 1e+06 s, which no inference takes"),
        (f"{_HEAD}\nresnet18,224,fp32,1e-9", "is the unit right?"),
        ("name,ms\nresnet18,3", "line 1: missing column model"),
        ("model,input_size,precision\nresnet18,224,fp32", "needs one of latency_s, latency_ms, latency_us"),
        ("model,input_size,precision,latency\nresnet18,224,fp32,3", "rename 'latency'"),
        ("model,input_size,precision,latency_ms,latency_s\nresnet18,224,fp32,3,3", "contradict each other"),
        ("model,model,input_size,precision,latency_ms\na,a,224,fp32,3", "column model is there twice"),
        (f"{_HEAD},bacth\nresnet18,224,fp32,3,1", "unknown column 'bacth'; did you mean 'batch'?"),
        (f"{_HEAD}\nresnet18,224,fp32,-3", "line 2: latency_ms must be positive, but is -3"),
        (f"{_HEAD}\nresnet18,224,fp32,0", "line 2: latency_ms must be positive, but is 0"),
        (f"{_HEAD}\nresnet18,224,fp32,nan", "line 2: latency_ms must be a number"),
        (f"{_HEAD}\nresnet18,224,fp32,", "line 2: latency_ms must be a number"),
        (f"{_HEAD}\nresnet18,224,fp32,3 ms", "line 2: latency_ms must be a number, but is '3 ms'"),
        (f"{_HEAD}\nresnet18,big,fp32,3", "line 2: input_size must be a whole number, but is 'big'"),
        (f"{_HEAD}\nresnet18,0,fp32,3", "line 2: input_size and batch must be positive"),
        (f"{_HEAD}\nresnet18,224,int9,3", "line 2: unknown precision 'int9'; known: fp32"),
        (f"{_HEAD}\n,224,fp32,3", "line 2: a measurement needs the name of a model"),
        (f"{_HEAD}\nresnet18,224,fp32", "line 2: 3 cells, but the first line has 4 columns"),
        (f"{_HEAD}\nresnet18,224,fp32,3\nresnet18,224,fp32,4", "lines 2 and 3 disagree about resnet18 at 224"),
        (f"{_HEAD},target\nresnet18,224,fp32,3,other", "the target is 'other', but --target says 'board'"),
        (f"{_HEAD},kind\nresnet18,224,fp32,3,layer", "kind must be 'network' or 'block', but is 'layer'"),
        (f"{_HEAD},conditions\nresnet18,224,fp32,3,hot", "conditions must be JSON, but is 'hot'"),
        (
            f"{_HEAD},runtime,runtime_version\nresnet18,224,fp32,3,ORT,1.30\nresnet34,224,fp32,3,ORT,1.31",
            "measurements of board come from ORT 1.30 and from ORT 1.31; keep one",
        ),
        (_HEAD, "holds no measurements"),
        (f'{_HEAD}\n"resnet18,224,fp32,3', "not CSV"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str, said: str) -> None:
    with pytest.raises(MeasurementError) as caught:
        parse_measurements(text, "board.csv", "board")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("board.csv")


def test_a_table_must_say_which_device() -> None:
    with pytest.raises(MeasurementError, match="--target"):
        parse_measurements(f"{_HEAD}\nresnet18,224,fp32,3", "board.csv")


def test_a_check_is_reported_with_its_line() -> None:
    def refuse(record: Measurement) -> None:
        raise ValueError(f"no model {record.subject}")

    with pytest.raises(MeasurementError, match=r"^board.csv line 2: no model resnet18$"):
        parse_measurements(f"{_HEAD}\nresnet18,224,fp32,3", "board.csv", "board", refuse)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="No such file"):
        read_measurements(tmp_path / "none.csv", "board")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MeasurementError, match="name a CSV file"):
        read_measurements(tmp_path / "binary.csv", "board")


def test_bounds_must_hold_the_median() -> None:
    with pytest.raises(MeasurementError, match="low_s <= latency_s <= high_s"):
        Measurement("board", "a", "network", 8, "fp32", latency_s=3.0, low_s=1.0, high_s=2.0)
    with pytest.raises(MeasurementError, match="low_s <= latency_s <= high_s"):
        Measurement("board", "a", "network", 8, "fp32", latency_s=3.0, low_s=4.0)


def test_a_time_is_sharp_when_its_interval_is_narrow_or_unknown() -> None:
    known = Measurement("board", "a", "network", 8, "fp32", latency_s=1.0)
    assert known.is_sharp
    assert replace(known, low_s=0.81, high_s=1.2).is_sharp
    assert not replace(known, low_s=0.79, high_s=1.2).is_sharp


@pytest.mark.parametrize("name", [*list_packs(), *list_packs(held_out=True)])
def test_packs_are_whole(name: str) -> None:
    rows = load_pack(name)
    assert all(row.runtime_version and row.date and row.commit and row.repeats for row in rows)
    assert all(row.low_s <= row.latency_s <= row.high_s for row in rows)
    assert parse_measurements(measurements_csv(rows), name) == rows


def test_held_out_networks_are_not_among_what_calibrates() -> None:
    seen = {row.thing for name in list_packs() for row in load_pack(name)}
    assert all(row.thing not in seen for name in list_packs(held_out=True) for row in load_pack(name))
    assert not set(list_packs()) & set(list_packs(held_out=True))


def test_no_pack_of_that_name() -> None:
    with pytest.raises(MeasurementError, match="known"):
        load_pack("nonesuch")
