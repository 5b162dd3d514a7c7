"""What a network costs on a target: searched architectures part by part, any timm model, exported folders, ONNX files.

Tracing and costing are remembered per distinct part, so that a search costs a new candidate by look-up.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hw_models import CostReport, PartCost, Target, Workload, combine, estimate_part
from hw_models.npu import matrix_precision
from hw_models.population import FIGURES
from nas.bits import PRECISIONS, part_precisions, put_precision
from nas.errors import UsageError
from nas.files import write_whole
from nas.trace import TraceError, trace_module
from search_spaces.architecture import Architecture
from search_spaces.parts import NetworkPart, network_parts

if TYPE_CHECKING:
    from nas.latency import TargetLatency

CSV_COLUMNS = ("model", "input_size", "precision")
_INTERVAL = ("latency_low_s", "latency_high_s")

_workloads: dict[tuple[Any, ...], Workload] = {}
_part_costs: dict[tuple[Any, ...], PartCost] = {}


def cost_architecture(
    arch: Architecture,
    target: Target,
    num_classes: int,
    in_chans: int = 3,
    *,
    batch: int = 1,
    precision: str | None = None,
) -> CostReport:
    """Cost of one inference of a searched network: the sum over its sub-blocks plus global terms.

    precision: None for the architecture's own bits, or one precision for the whole network, such as "fp16".
    """
    network = list(network_parts(arch, num_classes, in_chans))
    names = [part.name for part in network]
    costs = part_costs(network, arch, target, batch=batch, precision=precision)
    return combine(
        costs,
        target,
        names=names,
        model=arch.key,
        precision=precision or _policy_name(arch),
        input_shape=(batch, in_chans, arch.resolution, arch.resolution),
        warnings=target_warnings(target),
    )


def part_costs(
    network: Sequence[NetworkPart],
    arch: Architecture,
    target: Target,
    *,
    batch: int = 1,
    precision: str | None = None,
) -> list[PartCost]:
    """Cost of every part, remembered by (part, precision, incoming bits, place at an end of the network,
    target).
    """
    if precision is None:
        precisions = part_precisions([part.name for part in network], arch)
    else:
        precisions = [(precision, 0)] * len(network)
    last = len(network) - 1
    costs = []
    for position, (part, (own, input_bits)) in enumerate(zip(network, precisions, strict=True)):
        ends = (position == 0, position == last)
        costs.append(_part_cost(part, batch, own, input_bits or None, ends, target))
    return costs


def _part_cost(
    part: NetworkPart,
    batch: int,
    precision: str,
    input_bits: int | None,
    ends: tuple[bool, bool],
    target: Target,
) -> PartCost:
    key = (part.spec, batch, precision, input_bits, ends, target)
    if key not in _part_costs:
        workload = put_precision(part_workload(part, batch), precision, input_bits)
        _part_costs[key] = estimate_part(workload, target, ends)
    return _part_costs[key]


def part_workload(part: NetworkPart, batch: int = 1) -> Workload:
    """The traced workload of a part, without number formats; each distinct part is traced once per
    process.
    """
    key = (part.spec, batch)
    if key not in _workloads:
        with torch.device("meta"):
            module = part.build()
        _workloads[key] = trace_module(module, [(batch, *part.input_shape[1:])], part.name)
    return _workloads[key]


def _policy_name(arch: Architecture) -> str:
    policies = dict.fromkeys(str(block.bits) for stage in arch.stages for block in stage.blocks)
    return "+".join(policies)


def target_warnings(target: Target) -> list[str]:
    """What a reader of any figure for this target must know."""
    guesses = sum(source.startswith("estimated") for source in target.sources.values())
    if not guesses:
        return []
    return [f"{guesses} of {len(target.sources)} values of target {target.name} are estimates"]


def cost_model(
    name_or_folder: str | Path,
    target: Target,
    input_size: int | None = None,
    precision: str | None = None,
    batch: int = 1,
    reparameterize: bool = False,
) -> CostReport:
    """Cost of a timm model by name, of an exported folder, or of an ONNX file.

    input_size: side of the square image in pixels, default the model's own; of an ONNX file only what it leaves open.
    precision: one of `nas.bits.PRECISIONS`; default the network's own bits for a folder and for an ONNX file with
        quantizers, w8a8 for everything else.
    batch: images per inference; all figures are for the whole batch.
    reparameterize: merge the training-time branches of a timm model (RepVGG, FastViT, ...) first, as
        deployment does.
    Raises UsageError for an unknown model, a folder without a usable config.json, an ONNX file that is not one, an
    impossible size, precision or batch, and for a model that cannot be traced.
    """
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    if batch < 1 or (input_size is not None and input_size < 1):
        raise UsageError(f"batch and input size must be positive, but got batch {batch} and input size {input_size}")
    folder = Path(name_or_folder)
    try:
        if is_onnx(name_or_folder):
            return _cost_onnx(folder, target, input_size, precision, batch)
        if folder.is_dir() and ((folder / "config.json").is_file() or not _is_timm(str(name_or_folder))):
            return _cost_folder(folder, target, input_size, precision, batch)
        return _cost_timm(str(name_or_folder), target, input_size, precision or "w8a8", batch, reparameterize)
    except TraceError as error:
        raise UsageError(str(error)) from error


def _cost_folder(folder: Path, target: Target, input_size: int | None, precision: str | None, batch: int) -> CostReport:
    config_path = folder / "config.json"
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        section = config["nas"]
        arch = Architecture.from_dict(section["architecture"])
        num_classes, in_chans = int(section["num_classes"]), int(section["in_chans"])
    except OSError as error:
        raise UsageError(f"{config_path}: {error.strerror or error}; name a folder that nas export wrote") from error
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(f"{config_path} does not describe a searched network ({reason}); export it again") from error
    if input_size is not None:
        arch = replace(arch, resolution=input_size)
    report = cost_architecture(arch, target, num_classes, in_chans, batch=batch, precision=precision)
    return replace(report, model=str(folder))


def is_onnx(name: str | Path) -> bool:
    """Whether a model is named by a file: by its ending, or because there is one."""
    return str(name).endswith(".onnx") or Path(name).is_file()


def _cost_onnx(path: Path, target: Target, input_size: int | None, precision: str | None, batch: int) -> CostReport:
    own, notes = _onnx(path, input_size, batch)
    quantized = bool(own.tensors[0].dtype)
    if precision is not None or not quantized:
        workload = put_precision(own, precision or "w8a8")
        label = precision or "w8a8"
    else:
        workload = own
        rates = target.matrix.rates
        label = "+".join(dict.fromkeys(matrix_precision(own, op, rates) for op in own.ops if op.gemm)) + " (quantizers)"
    return combine(
        [estimate_part(workload, target)],
        target,
        model=str(path),
        precision=label,
        input_shape=workload.input_shapes[0],
        warnings=[*target_warnings(target), *_folded_work(workload), *notes],
    )


def onnx_workload(path: Path, input_size: int | None = None, batch: int = 1) -> Workload:
    """The traced workload of an ONNX file, remembered as long as the file is not written again. Raises as
    `trace_onnx`.
    """
    return _onnx(path, input_size, batch)[0]


def _onnx(path: Path, input_size: int | None, batch: int) -> tuple[Workload, tuple[str, ...]]:
    stamp = path.stat() if path.is_file() else None
    return _traced_onnx(path, input_size, batch, (stamp.st_mtime_ns, stamp.st_size) if stamp else None)


@lru_cache(maxsize=256)
def _traced_onnx(
    path: Path, input_size: int | None, batch: int, stamp: tuple[int, int] | None
) -> tuple[Workload, tuple[str, ...]]:
    from nas.onnx_trace import trace_with_notes  # onnx is loaded for those who name such a file

    return trace_with_notes(path, input_size, batch)


@lru_cache(maxsize=4096)
def _cost_timm(
    name: str, target: Target, input_size: int | None, precision: str, batch: int, reparameterize: bool
) -> CostReport:
    workload = timm_workload(name, input_size, batch, reparameterize)
    part = estimate_part(put_precision(workload, precision), target)
    return combine(
        [part],
        target,
        model=name,
        precision=precision,
        input_shape=workload.input_shapes[0],
        warnings=[*target_warnings(target), *_folded_work(workload)],
    )


def _folded_work(workload: Workload) -> list[str]:
    if not workload.folded_macs:
        return []
    return [f"{workload.folded_macs} macs work on constants alone and are done once, when it is compiled"]


@lru_cache(maxsize=256)
def timm_workload(name: str, input_size: int | None = None, batch: int = 1, reparameterize: bool = False) -> Workload:
    """The traced workload of a timm model. Raises UsageError for an unknown name and TraceError as
    `trace_module`.
    """
    model = timm_model(name, input_size, "cpu" if reparameterize else "meta")
    channels, height, width = model.default_cfg["input_size"]  # type: ignore[index]
    if reparameterize:  # merging computes with weights, so they must exist
        from timm.utils import reparameterize_model

        model = reparameterize_model(model)
    if input_size is not None:
        height = width = input_size
    return trace_module(model, [(batch, channels, height, width)], name)


def timm_model(name: str, input_size: int | None, device: str) -> nn.Module:
    """A timm model in evaluation mode with fresh weights. Raises UsageError for an unknown name or size."""
    import timm

    check_timm_name(name)
    with torch.device(device):
        if input_size is not None:
            try:
                return timm.create_model(name, img_size=input_size).eval()
            except TypeError:
                pass  # a network without a fixed size takes no img_size
            except (ValueError, AssertionError, RuntimeError) as error:
                raise UsageError(f"{name} cannot be built at input size {input_size}: {error}") from error
        return timm.create_model(name).eval()


def check_timm_name(name: str) -> None:
    """Raises UsageError, with the nearest name, when timm has no such model."""
    import timm

    if not _is_timm(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see timm.list_models()"
        raise UsageError(f"{name!r} is neither a folder, an ONNX file nor a timm model; {hint}")


def _is_timm(name: str) -> bool:
    import timm

    return bool(timm.is_model(name.split(".")[0]))


def cost_csv(
    models: str | Path, target: Target, out: str | Path | None = None, latency: TargetLatency | None = None
) -> list[dict[str, Any]]:
    """Cost of many models: a CSV with columns model, input_size, precision (the last two may be empty) to a
    CSV.

    latency: calibrated, which then takes the cost model's place, with the ends of its interval in two more columns.
    Returns one dict per row: the three columns, FIGURES, `violations` and `error`; a model
    that cannot be costed has empty figures and says why in `error`. Writes the same to `out`, whole or not at
    all.
    Raises UsageError when the file cannot be read or its columns are wrong, NasError when `out` cannot be written.
    """
    figures = (*FIGURES, *(_INTERVAL if latency is not None else ()))
    rows = [_cost_row(row, target, figures, latency) for row in _read_models(Path(models))]
    if out is not None:
        stream = io.StringIO()
        writer = csv.DictWriter(stream, [*CSV_COLUMNS, *figures, "violations", "error"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(Path(out), stream.getvalue())
    return rows


def _read_models(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = [column.strip() for column in reader.fieldnames or ()]
            if missing := [column for column in CSV_COLUMNS if column not in columns]:
                needed = ", ".join(CSV_COLUMNS)
                raise UsageError(f"{path}: missing column {', '.join(missing)}; the first line needs {needed}")
            reader.fieldnames = columns
            return [{column: (row[column] or "").strip() for column in CSV_COLUMNS} for row in reader]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}; name a CSV file") from error


def _cost_row(
    row: dict[str, str], target: Target, names: Sequence[str], latency: TargetLatency | None
) -> dict[str, Any]:
    figures: dict[str, Any] = dict.fromkeys((*names, "violations", "error"), "")
    try:
        size = int(row["input_size"]) if row["input_size"] else None
    except ValueError:
        return row | figures | {"error": f"input_size must be a whole number of pixels, but is {row['input_size']!r}"}
    try:
        report = cost_model(row["model"], target, size, row["precision"] or None)
    except UsageError as error:
        return row | figures | {"error": str(error)}
    found = report.summary() | ({} if latency is None else latency.summary(report.parts))
    figures |= {key: found[key] for key in names}
    return row | figures | {"violations": "; ".join(str(violation) for violation in report.violations)}
