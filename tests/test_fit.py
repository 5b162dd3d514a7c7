"""`nas targets fit`: from a CSV of measured networks to a target file that works everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import cli
from hw_models import load_pack, load_target
from hw_models.fit import with_values
from hw_models.measurements import measurements_csv
from nas.cost import cost_model
from nas.errors import UsageError
from nas.fit import fit_target_file

MODELS = ("test_vit", "resnet10t", "mobilenetv3_small_050", "convnext_atto")
TRUTH = {"matrix.rates.w8a8": 0.4, "vector.clock_hz": 3e8, "overhead.launch_s": 4e-6}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latencies of a device that is the reference device with other values."""
    device = with_values(load_target("npu_40tops"), TRUTH)
    lines = ["model,input_size,precision,latency_ms"]
    for model in MODELS:
        for size in (160, 224):
            latency_s = cost_model(model, device, size).latency_s
            lines.append(f"{model},{size},w8a8,{latency_s * 1e3:.6g}")
    path = tmp_path_factory.mktemp("fit") / "measured.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_blocks_are_no_networks(tmp_path: Path) -> None:
    """As `nas measure export` writes them: their times hold no start of a network."""
    blocks = [record for record in load_pack("epyc_zen3_core") if record.kind == "block"][:9]
    (tmp_path / "m.csv").write_text(measurements_csv(blocks))
    with pytest.raises(UsageError, match=r"m\.csv has 9 times of single blocks, block:.* first"):
        fit_target_file(tmp_path / "m.csv", "epyc_zen3_core", tmp_path / "my.toml")
    assert not (tmp_path / "my.toml").exists()


def test_the_file_predicts_what_was_measured(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "my_npu.toml"
    run = CliRunner().invoke(cli, ["targets", "fit", str(table), "--like", "npu_40tops", "--out", str(out), "--json"])
    assert run.exit_code == 0, run.output
    summary = json.loads(run.output)
    assert summary["errors"]["before"]["median"] > 0.2
    assert summary["errors"]["after"]["median"] < 0.05
    assert summary["errors"]["held_out"]["median"] < 0.1
    target = load_target(out)
    assert target.name == "my_npu"
    assert target.sources["matrix.rates.w8a8"].startswith("fitted from measured.csv, 8 networks")
    assert target.sources["matrix.rows"] == load_target("npu_40tops").sources["matrix.rows"]
    assert "median error" in target.accuracy
    for row in summary["networks"][:2]:
        cost = cost_model(row["model"], target, 160 if row is summary["networks"][0] else 224)
        assert cost.latency_s == pytest.approx(row["after_s"], rel=1e-6)
    shown = CliRunner().invoke(cli, ["targets", "show", str(out)])
    assert "fitted from measured.csv" in shown.output
    with pytest.raises(UsageError, match=r"my_npu\.toml exists; .*--force"):
        fit_target_file(table, "npu_40tops", out)
    written = out.read_text()
    run = CliRunner().invoke(cli, ["targets", "fit", str(table), "--like", "npu_40tops", "--out", str(out), "--force"])
    assert run.exit_code == 0, run.output
    assert out.read_text() == written
    for words in ("determined", "left out", "measurements are few", "Next: nas cost MODEL --target"):
        assert words in run.output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model,precision,latency_ms\nresnet18,w8a8,1\n", r"line 1: missing column input_size"),
        ("model,input_size,precision,latency\nresnet18,224,w8a8,1\n", r"rename 'latency' to the one that is its unit"),
        ("model,input_size,precision,latency_ms\nresnet18,224,w8a8,fast\n", r"line 2: latency_ms must be a number"),
        ("model,input_size,precision,latency_ms\nresnet18,224,w8a8,0\n", r"line 2: latency_ms must be positive"),
        ("model,input_size,precision,latency_ms\nresnet5,224,w8a8,1\n", r"line 2: .*did you mean 'resnet50'"),
        ("model,input_size,precision,latency_ms\nresnet18,224,fp32,1\n", r"fp32, which npu_40tops does not have"),
        ("model,input_size,precision,latency_ms\nno.onnx,224,w8a8,1\n", r"line 2: cannot read no\.onnx"),
        (
            "target,model,input_size,precision,latency_ms\na,resnet18,224,w8a8,1\nb,resnet18,224,w8a8,1\n",
            r"several targets \(a, b\)",
        ),
        ("", r"line 1 is empty; a table needs model, input_size, precision"),
    ],
)
def test_bad_tables_are_one_clear_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        fit_target_file(tmp_path / "m.csv", "npu_40tops", tmp_path / "out.toml")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.toml").exists()


def test_bad_names_are_one_clear_line(table: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown target 'npu_40top'; did you mean 'npu_40tops'"):
        fit_target_file(table, "npu_40top", tmp_path / "out.toml")
    with pytest.raises(UsageError, match=r"out\.txt must end in \.toml"):
        fit_target_file(table, "npu_40tops", tmp_path / "out.txt")
    with pytest.raises(UsageError, match=r"x@batch64\.toml: a target's name must not hold '@'"):
        fit_target_file(table, "npu_40tops", tmp_path / "x@batch64.toml")
    assert not (tmp_path / "x@batch64.toml").exists()
    with pytest.raises(UsageError, match=r"cannot read .*absent\.csv"):
        fit_target_file(tmp_path / "absent.csv", "npu_40tops", tmp_path / "out.toml")
