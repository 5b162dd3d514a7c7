"""Exports one network as a folder that has checked itself."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hw_models import CostReport
from nas.accuracy import Accuracy, Kind, image_batches, measure, predict, spread_rows
from nas.data.bundle import DataBundle, ImageSource
from nas.errors import NasError
from nas.export.card import Findings, card
from nas.export.folder import QDQ_FILE, whole_folder
from nas.export.macs import count_macs
from nas.export.onnx_files import write_float_onnx, write_qdq_onnx
from nas.export.timm_package import write_timm_package
from nas.export.verify import (
    EQUAL_PREDICTIONS,
    FLOAT_TOLERANCE,
    OnnxRunner,
    compare_quantized,
    difference,
    reload_in_timm,
)
from nas.quantize import Prepared
from search_spaces.architecture import Architecture

_COMPARED_IMAGES = 16
"""Validation images on which float logits are compared."""


def model_name(arch: Architecture) -> str:
    """Name of the exported network: of its Python module and in timm's registry."""
    return f"nas_metaformer_{arch.key[:8]}"


def export_network(
    prepared: Prepared,
    arch: Architecture,
    bundle: DataBundle,
    costs: Mapping[str, CostReport],
    out: Path,
    *,
    selected_by: Accuracy | None = None,
    kind: Kind = "one-shot",
    provenance: Mapping[str, Any] | None = None,
    val_images: int | None = None,
    batch_size: int = 64,
    force: bool = False,
) -> Path:
    """Write the folder `out` of a chosen network, verify it, and return its absolute path.

    The folder holds NAME.py, config.json and model.safetensors (timm), model.onnx (float), model_qdq.onnx (at
    the bit policy of `arch`), calibration.safetensors, cost.json and README.md. It appears whole or not at all.

    prepared: the network as it was scored (`Evaluator.prepare(arch)`, or `nas.quantize.restore`).
    costs: target name -> `nas.cost.cost_architecture(arch, target, ...)`; the predictions that the card shows.
    selected_by: the accuracy that chose it. kind: whose weights these are, for the figures measured here.
    provenance: JSON-able pairs for config.json and the card, such as study, trial, metrics.
    val_images: how many validation images to verify on, evenly spread; None for all.
    Raises UsageError when `out` exists without `force`; NasError when the disk refuses, or when what was
    written does not compute what `prepared` computes.
    """
    name = model_name(arch)
    shape = (1, bundle.in_chans, arch.resolution, arch.resolution)
    provenance = dict(provenance or {}) | {"data": bundle.name}
    calibration = prepared.calibration
    identity = calibration.identity() | {"key": calibration.key}
    section = {
        "architecture": arch.to_dict(),
        "num_classes": bundle.num_classes,
        "in_chans": bundle.in_chans,
        "targets": list(costs),
        "provenance": provenance,
        "calibration": identity,
        "costs": {target: report.summary() for target, report in costs.items()},
    }
    with whole_folder(out, force=force) as folder:
        try:
            write_timm_package(folder, name, prepared.folded, arch, bundle, section)
            (folder / "calibration.safetensors").write_bytes(calibration.to_bytes())
            reports = {target: report.to_dict() for target, report in costs.items()}
            (folder / "cost.json").write_text(json.dumps(reports, indent=2) + "\n", encoding="utf-8")
            write_float_onnx(folder / "model.onnx", prepared.folded, shape)
            write_qdq_onnx(folder / QDQ_FILE, prepared.quantized, shape)
            findings = _verify(folder, name, prepared, bundle.val, shape, selected_by, kind, val_images, batch_size)
        except SafetensorError as error:
            raise NasError(f"cannot write {out} ({error}); free some space or use another folder") from error
        _add_to_config(folder, findings.to_dict())
        origin = provenance | {f"calibration {key}": value for key, value in identity.items()}
        text = card(name, arch, bundle.num_classes, bundle.in_chans, costs, findings, origin)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return out.absolute()


def _verify(
    folder: Path,
    name: str,
    prepared: Prepared,
    val: ImageSource,
    shape: tuple[int, ...],
    selected_by: Accuracy | None,
    kind: Kind,
    val_images: int | None,
    batch_size: int,
) -> Findings:
    """Compare every file with the network. Raises NasError that names the first one beyond tolerance."""
    resolution = shape[-1]
    rows = spread_rows(len(val), len(val) if val_images is None else val_images)
    count = len(rows)
    images = val.batch(spread_rows(len(val), _COMPARED_IMAGES), resolution)
    ours = predict(prepared.folded, [images])
    with tempfile.TemporaryDirectory(prefix="nas-export-") as scratch:
        reload_difference = difference(ours, reload_in_timm(folder, name, images, Path(scratch)))
    onnx_difference = difference(ours, OnnxRunner(folder / "model.onnx")(images))
    for what, found in (("timm", reload_difference), ("model.onnx", onnx_difference)):
        if not found <= FLOAT_TOLERANCE:
            raise NasError(
                f"{name} as loaded by {what} differs from the network by {found:.1e} of the largest logit, more than "
                f"{FLOAT_TOLERANCE:.0e}; nothing was exported"
            )
    agreement = compare_quantized(
        prepared.quantized, folder / QDQ_FILE, image_batches(val, rows, resolution, batch_size), kind, "val"
    )
    if not agreement.within_tolerance:
        raise NasError(
            f"model_qdq.onnx of {name} predicts {agreement.equal:.1%} of {count} validation images like the quantized "
            f"network ({EQUAL_PREDICTIONS:.0%} wanted), top-1 {agreement.onnx.top1:.2%} against "
            f"{agreement.torch.top1:.2%}; nothing was exported"
        )
    return Findings(
        selected_by=selected_by,
        floating=measure(prepared.folded, image_batches(val, rows, resolution, batch_size), kind, "val"),
        agreement=agreement,
        macs=count_macs(prepared.folded, shape),
        reload_difference=reload_difference,
        onnx_difference=onnx_difference,
        compared=len(images),
    )


def _add_to_config(folder: Path, findings: Mapping[str, Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["nas"]["metrics"] = findings
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
