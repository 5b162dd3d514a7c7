"""Costing searched architectures, timm models, exported folders and lists of models."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from hw_models import Target, estimate, load_target
from nas.bits import put_precision
from nas.cost import cost_architecture, cost_csv, cost_model
from nas.cost_report import comparison_table, cost_table
from nas.errors import NasError, UsageError
from nas.trace import trace_module
from search_spaces import load_space
from search_spaces.architecture import Architecture, BlockBits
from search_spaces.network import build_network, fold


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("npu_40tops")


def _architectures(preset: str, count: int) -> list[Architecture]:
    space = load_space("metaformer", preset=preset)
    rng = np.random.default_rng(7)
    return [space.decode(space.sample(rng)) for _ in range(count)]


@pytest.mark.parametrize("arch", _architectures("small", 6) + _architectures("mobile", 2), ids=str)
def test_sum_of_parts_equals_the_whole_network(arch: Architecture, target: Target) -> None:
    """Second way: the folded network, traced in one piece and cut into segments by the memory model."""
    shape = (1, 3, arch.resolution, arch.resolution)
    network = fold(build_network(arch, 10)).to("meta")
    whole = estimate(put_precision(trace_module(network, [shape]), "w8a8"), target)
    parts = cost_architecture(arch, target, 10, precision="w8a8")
    assert parts.latency_s == pytest.approx(whole.latency_s, rel=1e-9)
    assert parts.energy_j == pytest.approx(whole.energy_j, rel=1e-9)
    assert parts.dram_bytes == whole.dram_bytes
    assert parts.peak_onchip_bytes == whole.peak_onchip_bytes
    assert parts.weight_bytes == whole.weight_bytes
    assert (parts.macs, parts.params) == (whole.macs, whole.params)
    assert [row["name"] for row in parts.rows] == [row["name"] for row in whole.rows]


def test_architecture_bits_change_cost_in_the_right_direction(target: Target) -> None:
    arch = _architectures("mobile", 1)[0]

    def cost(bits: str) -> dict[str, float]:
        stages = tuple(
            replace(stage, blocks=tuple(replace(block, bits=BlockBits.parse(bits)) for block in stage.blocks))
            for stage in arch.stages
        )
        return cost_architecture(replace(arch, stages=stages), target, 10).summary()

    narrow, plain, wide = cost("w4a8"), cost("w8a8"), cost("w8a16")
    assert narrow["weight_bytes"] < plain["weight_bytes"] == wide["weight_bytes"]
    assert narrow["latency_s"] <= plain["latency_s"] < wide["latency_s"]
    assert narrow["energy_j"] < plain["energy_j"] < wide["energy_j"]
    assert plain["peak_onchip_bytes"] < wide["peak_onchip_bytes"]


def test_costing_again_takes_no_tracing(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    arch = _architectures("mobile", 1)[0]
    first = cost_architecture(arch, target, 10)
    monkeypatch.setattr("nas.cost.trace_module", lambda *args: pytest.fail("traced again"))
    assert cost_architecture(arch, target, 10) == first


def _folder(path: Path, arch: Architecture) -> Path:
    section = {"architecture": arch.to_dict(), "num_classes": 10, "in_chans": 3}
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"architecture": "x", "nas": section}), encoding="utf-8")
    return path


def test_exported_folder_costs_what_the_study_said(tmp_path: Path, target: Target) -> None:
    arch = _architectures("small", 3)[-1]
    exported = cost_model(_folder(tmp_path / "net", arch), target)
    study = cost_architecture(arch, target, 10)
    assert exported.summary() == study.summary()
    assert cost_model(str(tmp_path / "net"), target, input_size=arch.resolution * 2).macs > study.macs


def test_folder_without_architecture_is_one_clear_line(tmp_path: Path, target: Target) -> None:
    with pytest.raises(UsageError, match=r"config\.json: No such file"):
        cost_model(tmp_path, target)
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}', encoding="utf-8")
    with pytest.raises(UsageError, match=r"does not describe a searched network \(no key 'nas'\)"):
        cost_model(tmp_path, target)


def test_report_is_json_with_the_promised_keys(target: Target) -> None:
    data = json.loads(cost_model("resnet18", target).to_json())
    promised = "latency_s energy_j macs params dram_bytes peak_onchip_bytes weight_bytes ops warnings violations"
    assert set(promised.split()) <= set(data)
    assert data["macs"] == 1_814_073_344
    assert data["params"] == 11_689_512
    assert data["weight_bytes"] == pytest.approx(11.7e6, rel=0.02)
    assert data["violations"] == []
    assert any("estimates" in warning for warning in data["warnings"])


def test_sizes_batches_and_precisions(target: Target) -> None:
    base = cost_model("resnet18", target)
    assert cost_model("resnet18", target, input_size=112).macs < base.macs / 3
    assert cost_model("resnet18", target, batch=4).macs == 4 * base.macs
    assert cost_model("resnet18", target, batch=4).latency_s < 4 * base.latency_s
    assert cost_model("resnet18", target, precision="fp16").weight_bytes == pytest.approx(
        2 * base.weight_bytes, rel=0.01
    )
    assert cost_model("vit_tiny_patch16_224", target, input_size=160).input_shape == (1, 3, 160, 160)


def test_precision_the_device_lacks_is_a_violation(target: Target) -> None:
    report = cost_model("resnet18", target, precision="fp32")
    assert [str(violation) for violation in report.violations] == [
        "precision fp32 is not among w8a8, w4a8, w8a16, w4a16, w16a16, fp16 at conv1"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name_or_folder": "resnet5"}, "did you mean 'resnet50'"),
        ({"name_or_folder": "resnet18", "precision": "int8"}, "unknown precision 'int8'"),
        ({"name_or_folder": "resnet18", "input_size": 0}, "must be positive"),
        ({"name_or_folder": "resnet18", "batch": -1}, "must be positive"),
        ({"name_or_folder": "vit_tiny_patch16_224", "input_size": 5}, "vit_tiny_patch16_224 cannot be"),
    ],
)
def test_bad_requests_are_one_clear_line(arguments: dict[str, object], message: str, target: Target) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        cost_model(target=target, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_csv_in_csv_out(tmp_path: Path, target: Target) -> None:
    models, out = tmp_path / "models.csv", tmp_path / "out.csv"
    models.write_text("model,input_size,precision\nresnet18,,w8a8\nresnet18,112,\nnope,224,w8a8\nresnet18,big,w8a8\n")
    rows = cost_csv(models, target, out)
    with out.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["model"] for row in written] == ["resnet18", "resnet18", "nope", "resnet18"]
    assert float(written[0]["latency_s"]) == rows[0]["latency_s"] == cost_model("resnet18", target).latency_s
    assert float(written[1]["latency_s"]) < float(written[0]["latency_s"])
    assert "neither a folder, an ONNX file nor a timm model" in written[2]["error"]
    assert "whole number" in written[3]["error"]


def test_csv_with_wrong_columns_is_refused(tmp_path: Path, target: Target) -> None:
    models = tmp_path / "models.csv"
    models.write_text("name,size\nresnet18,224\n")
    with pytest.raises(UsageError, match="missing column model, input_size, precision"):
        cost_csv(models, target)
    with pytest.raises(UsageError, match="cannot read"):
        cost_csv(tmp_path / "none.csv", target)
    models.write_text("model,input_size,precision\n")
    with pytest.raises(NasError, match="cannot write"):
        cost_csv(models, target, tmp_path)
    assert list(tmp_path.iterdir()) == [models]


def test_what_does_not_fit_stands_first(target: Target) -> None:
    report = cost_model("resnet18", load_target("coral_usb"), precision="w16a16")
    console = Console(width=180, record=True, file=io.StringIO())
    console.print(cost_table(report, rows=5))
    first = console.export_text().splitlines()[0]
    said = "not feasible on coral_usb: precision w16a16 is not among w8a8 at conv1; take one that the device has"
    assert first == said
    assert not cost_model("resnet18", target, precision="w16a16").violations


def test_tables_show_bounds_notes_and_the_slowest(target: Target) -> None:
    console = Console(width=180, record=True, file=io.StringIO())
    report = cost_model("resnet18", target)
    console.print(cost_table(report, rows=5), comparison_table([report, cost_model("resnet50", target)]))
    text = console.export_text()
    for expected in (
        "What bounds the time",
        "The 5 slowest of",
        "agreement with silicon",
        "estimates",
        "x2.",
    ):
        assert expected in text
