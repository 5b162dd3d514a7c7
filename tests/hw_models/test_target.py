"""The strict loader of target files."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from hw_models import Target, TargetError, list_targets, load_target
from hw_models.target_file import TARGETS_FOLDER, parse_target


@pytest.fixture
def tables() -> dict[str, Any]:
    return tomllib.loads((TARGETS_FOLDER / "npu_40tops.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", list_targets())
def test_every_target_loads_and_every_value_has_a_source(name: str) -> None:
    target = load_target(name)
    assert isinstance(target, Target)
    assert target.name == name
    assert all(len(source) > 10 for source in target.sources.values())
    assert target.accuracy
    assert hash(target) == hash(load_target(name))


def test_reference_device_has_forty_tops() -> None:
    matrix = load_target("npu_40tops").matrix
    assert 2 * matrix.peak_macs_per_s == pytest.approx(40e12, rel=0.03)


def test_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(TargetError, match="did you mean 'npu_40tops'"):
        load_target("npu_40top")


def test_a_file_beside_is_what_a_bare_name_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_npu.toml").write_text('like = "npu_40tops"')
    with pytest.raises(TargetError, match=r"unknown target 'my_npu'; did you mean the file my_npu\.toml\?"):
        load_target("my_npu")


@pytest.mark.parametrize("key", ["depthwise_start_cycles", "gather_cycles", "integer_ragged"])
def test_a_key_whose_meaning_changed_says_what_replaced_it(key: str) -> None:
    with pytest.raises(TargetError, match=rf"unknown key runtime\.{key}; it is \w+_cycles now"):
        parse_target({"like": "npu_40tops", "runtime": {key: {"value": 1, "source": "measured"}}}, "mine")


def test_missing_file_is_named() -> None:
    with pytest.raises(TargetError, match=r"nowhere/x\.toml: No such file"):
        load_target("nowhere/x.toml")


def test_user_file_loads(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text((TARGETS_FOLDER / "npu_40tops.toml").read_text(encoding="utf-8"), encoding="utf-8")
    assert load_target(path).name == "mine"


@pytest.mark.parametrize("name", ["h200@batch64", "my@npu"])
def test_a_name_like_those_of_calibrations_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.toml"
    path.write_text((TARGETS_FOLDER / "npu_40tops.toml").read_text(encoding="utf-8"), encoding="utf-8")
    cure = name.replace("@", "_")
    with pytest.raises(TargetError, match=f"{name}.toml: a target's name must not hold '@'.*call it '{cure}'"):
        load_target(path)


def test_duplicated_key_is_shown(tmp_path: Path) -> None:
    text = (TARGETS_FOLDER / "npu_40tops.toml").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("cores"))
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(line, f"{line}\n{line}"), encoding="utf-8")
    with pytest.raises(TargetError, match=r"given twice.*cores"):
        load_target(path)


def test_missing_key_is_named(tables: dict[str, Any]) -> None:
    del tables["memory"]["onchip_bytes"]
    with pytest.raises(TargetError, match=r"missing key memory\.onchip_bytes"):
        parse_target(tables, "mine")


def test_unknown_key_gets_a_suggestion(tables: dict[str, Any]) -> None:
    tables["memory"]["onchip_byte"] = tables["memory"]["onchip_bytes"]
    with pytest.raises(TargetError, match=r"unknown key memory\.onchip_byte; did you mean memory\.onchip_bytes"):
        parse_target(tables, "mine")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "at least 1"),
        (0, "at least 1"),
        (1e30, "SI base units"),
        (1.5, "whole number"),
        (True, "whole number"),
        ("8 MB", "whole number"),
        (float("nan"), "whole number"),
        (float("inf"), "whole number"),
    ],
)
def test_impossible_value_is_named(tables: dict[str, Any], value: Any, message: str) -> None:
    tables["memory"]["onchip_bytes"]["value"] = value
    with pytest.raises(TargetError, match=rf"memory\.onchip_bytes must be .*{message}"):
        parse_target(tables, "mine")


def test_value_without_source_is_refused(tables: dict[str, Any]) -> None:
    tables["matrix"]["cores"] = 4
    with pytest.raises(TargetError, match=r"matrix\.cores must be written \{ value = 4, source"):
        parse_target(tables, "mine")
    tables["matrix"]["cores"] = {"value": 4, "source": " "}
    with pytest.raises(TargetError, match=r"matrix\.cores needs a source"):
        parse_target(tables, "mine")


def test_rate_without_energy_is_refused(tables: dict[str, Any]) -> None:
    tables["matrix"]["rates"]["w4a4"] = {"value": 2.0, "source": "test of the loader"}
    with pytest.raises(TargetError, match=r"missing key energy\.mac_j\.w4a4"):
        parse_target(tables, "mine")


@pytest.mark.parametrize("section", ["run_elements", "stream_bytes_per_s"])
def test_an_unknown_kind_of_access_is_refused(tables: dict[str, Any], section: str) -> None:
    tables["memory"][section]["colunm"] = {"value": 64, "source": "test of the loader"}
    with pytest.raises(TargetError, match=rf"memory\.{section}\.colunm is no .*known: "):
        parse_target(tables, "mine")


@pytest.mark.parametrize(
    ("section", "table", "message"),
    [
        ("overhead", "start_s", "no family of kernels that has one; known: dense, "),
        ("overhead", "serial_s", "no family of kernels that has one; known: dense, "),
        ("runtime", "unfit_s", "no such window; known: outsized.channel, "),
    ],
)
def test_a_later_table_need_not_be_there_and_lists_what_it_may_hold(
    tables: dict[str, Any], section: str, table: str, message: str
) -> None:
    tables[section].pop(table, None)
    without = parse_target(tables, "mine")
    tables[section][table] = {}
    assert parse_target(tables, "mine") == without
    assert table not in without.content()  # studies and calibrations of before such tables go on
    assert table in load_target("h200").content()
    tables[section][table] = {"convolution": {"value": 1e-6, "source": "test of the loader"}}
    with pytest.raises(TargetError, match=rf"{section}\.{table}\.convolution is {message}"):
        parse_target(tables, "mine")


def test_missing_vector_op_is_named(tables: dict[str, Any]) -> None:
    del tables["vector"]["cycles_per_element"]["softmax"]
    with pytest.raises(TargetError, match=r"vector\.cycles_per_element\.softmax"):
        parse_target(tables, "mine")


def test_wrong_choice_lists_the_right_ones(tables: dict[str, Any]) -> None:
    tables["matrix"]["dataflow"]["value"] = "row_stationary"
    with pytest.raises(TargetError, match="weight_stationary, output_stationary"):
        parse_target(tables, "mine")


def test_a_target_like_another_gives_only_what_differs() -> None:
    text = """
    like = "npu_40tops"
    title = "half as wide"
    [matrix]
    cores = { value = 5, source = "half of npu_40tops" }
    [matrix.rates]
    w4a4 = { value = 2.0, source = "estimated: twice the int8 rate" }
    [energy.mac_j]
    w4a4 = { value = 1e-13, source = "estimated: half of w8a8" }
    """
    base, target = load_target("npu_40tops"), parse_target(tomllib.loads(text), "narrow")
    assert (target.matrix.cores, target.matrix.rows) == (5, base.matrix.rows)
    assert target.matrix.rates == {**base.matrix.rates, "w4a4": 2.0}
    assert target.memory == base.memory
    assert target.sources["matrix.cores"] == "half of npu_40tops"
    assert target.sources["matrix.rows"].startswith("estimated: as npu_40tops (")


def test_like_nothing_known_and_unknown_keys_are_refused(tables: dict[str, Any]) -> None:
    with pytest.raises(TargetError, match=r"like must name a target that comes with nas, .* did you mean 'npu_40tops'"):
        parse_target({"like": "npu_40top", "title": "x"}, "mine")
    with pytest.raises(TargetError, match=r"unknown key matrix\.core; did you mean matrix\.cores"):
        parse_target({"like": "npu_40tops", "title": "x", "matrix": {"core": {"value": 1, "source": "x"}}}, "mine")


NARROW = """
like = "npu_40tops"
title = "int8 only"
[matrix.rates]
w8a16 = { absent = true, source = "8-bit integers only (data sheet)" }
"""


def test_an_inherited_precision_is_taken_out_with_a_source() -> None:
    base, target = load_target("npu_40tops"), parse_target(tomllib.loads(NARROW), "narrow")
    assert target.matrix.rates.keys() == base.matrix.rates.keys() - {"w8a16"}
    assert target.energy.mac_j.keys() == target.matrix.rates.keys()
    assert target.sources["matrix.rates.w8a16"] == "8-bit integers only (data sheet)"
    assert "energy.mac_j.w8a16" not in target.sources


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"absent": True}, r"missing key matrix\.rates\.w8a16\.source"),
        ({"absent": True, "source": " "}, r"matrix\.rates\.w8a16 needs a source"),
        ({"absent": False, "source": "x"}, r"w8a16\.absent can only be true"),
        ({"absent": True, "value": 1.0, "source": "x"}, r"unknown key matrix\.rates\.w8a16\.value"),
    ],
)
def test_an_absence_without_reason_is_refused(entry: dict[str, Any], message: str) -> None:
    data = tomllib.loads(NARROW)
    data["matrix"]["rates"]["w8a16"] = entry
    with pytest.raises(TargetError, match=message):
        parse_target(data, "mine")


def test_only_entries_of_tables_can_be_absent(tables: dict[str, Any]) -> None:
    gone = {"absent": True, "source": "test of the loader"}
    tables["matrix"]["cores"] = gone
    with pytest.raises(TargetError, match=r"unknown key matrix\.cores\.absent"):
        parse_target(tables, "mine")


def test_a_table_keeps_at_least_one_entry(tables: dict[str, Any]) -> None:
    tables["matrix"]["rates"] = {"w8a8": {"absent": True, "source": "test of the loader"}}
    with pytest.raises(TargetError, match=r"every entry of matrix\.rates is absent"):
        parse_target(tables, "mine")


# What each device computes in: a statement of its own beside the files, so that an inherited rate cannot creep in.
PRECISIONS = {
    "apple_a14": "fp16 w8a16 w4a16",
    "ax630c": "w8a8 w8a16 w16a16",
    "ax650n": "w8a8 w8a16 w16a16",
    "coral_dev_board": "w8a8",
    "coral_usb": "w8a8",
    "epyc_zen3_core": "w8a8 fp16 fp32",
    "epyc_zen5_core": "w8a8 fp16 fp32",
    "ethos_u85_2048": "w8a8 w8a16 w16a16",
    "ethos_u85_2048_dedicated": "w8a8 w8a16 w16a16",
    "h100": "w8a8 fp16 fp32",
    "h200": "w8a8 fp16 fp32",
    "hailo10h": "w8a8 w4a8 w16a16",
    "hailo8": "w8a8 w4a8 w16a16",
    "hailo8l": "w8a8 w4a8 w16a16",
    "i9_10940x": "w8a8 fp16 fp32",
    "jetson_agx_orin": "w8a8 fp16 fp32",
    "mcu_320kb": "w8a8 w4a8 w8a16",
    "rk3588": "w8a8 w16a16 fp16",
    "rtx_4090": "w8a8 fp16 fp32",
    "sl1680": "w8a8 w16a16 fp16",
}
EVERY_PRECISION = "w8a8 w4a8 w8a16 w4a16 w16a16 fp16"


@pytest.mark.parametrize("name", list_targets())
def test_a_device_computes_in_its_own_precisions(name: str) -> None:
    assert set(load_target(name).matrix.rates) == set(PRECISIONS.get(name, EVERY_PRECISION).split())


def test_a_file_that_is_called_like_another_device_is_refused(tmp_path: Path) -> None:
    """Calibrations, packs and other devices' factors are known by a target's name."""
    text = (TARGETS_FOLDER / "hailo8.toml").read_text(encoding="utf-8")
    (tmp_path / "hailo8.toml").write_text(text, encoding="utf-8")
    assert load_target(tmp_path / "hailo8.toml") == load_target("hailo8")
    (tmp_path / "hailo8.toml").write_text('like = "npu_40tops"', encoding="utf-8")
    with pytest.raises(TargetError, match=r"hailo8 is a target that comes with nas.*such as my_hailo8\.toml"):
        load_target(tmp_path / "hailo8.toml")


@pytest.mark.parametrize(
    ("key", "words", "said"),
    [
        ("legality.unsupported", ["gelu", "softmaxx"], "has 'softmaxx', which is neither an op kind .* 'softmax'"),
        ("legality.unsupported", ["reduce.meen"], "'reduce.meen'"),
        ("legality.unsupported", ["all"], "'all'"),
        ("runtime.float_ops", ["norms"], "did you mean 'norm'"),
    ],
)
def test_words_that_name_no_op_are_refused(tmp_path: Path, key: str, words: list[str], said: str) -> None:
    section, name = key.split(".")
    text = f'like = "npu_40tops"\n[{section}]\n{name} = {{ value = {words!r}, source = "data sheet" }}\n'
    (tmp_path / "my.toml").write_text(text.replace("'", '"'), encoding="utf-8")
    with pytest.raises(TargetError, match=said):
        load_target(tmp_path / "my.toml")


def test_what_is_inherited_says_so(tmp_path: Path) -> None:
    """Descriptions of the parent, and sources that speak of it, would be taken for the file's own."""
    (tmp_path / "my.toml").write_text('like = "npu_40tops"', encoding="utf-8")
    target, parent = load_target(tmp_path / "my.toml"), load_target("npu_40tops")
    assert parent.description not in target.description
    assert "npu_40tops" in target.description
    assert target.sources.keys() == parent.sources.keys()
    assert all(source.startswith("estimated: as npu_40tops (") for source in target.sources.values())
    grandchild = load_target("hailo8l")  # of one that is itself like another
    assert not any(source.count("estimated: as npu_40tops (") > 1 for source in grandchild.sources.values())
