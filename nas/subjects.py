"""What a measurement is of: (kind, name, description) -> the module, and the workload the cost model reads.

A block, or any other part of a network, is described by what builds it: its class, the map it reads and its
keyword arguments.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hw_models import Workload
from hw_models.measurements import Measurement
from nas.cost import check_timm_name, part_workload, timm_workload
from nas.errors import UsageError
from nas.trace import TraceError, trace_module
from search_spaces.architecture import Architecture
from search_spaces.layers import ConvNorm
from search_spaces.network import Head, MetaFormerBlock, Stem, build_network, fold, fold_
from search_spaces.parts import NetworkPart

PART_CLASSES: dict[str, type[nn.Module]] = {cls.__name__: cls for cls in (Stem, ConvNorm, MetaFormerBlock, Head)}
"""Classes a measured part may have."""


def canonical(description: dict[str, Any]) -> str:
    """One text per description: sorted keys, no spaces."""
    return json.dumps(description, sort_keys=True, separators=(",", ":"))


def describe_part(part: NetworkPart) -> str:
    """The description of a part of a network: JSON."""
    name, channels, size, *arguments = part.spec
    return canonical({"part": name, "channels": channels, "size": size, "arguments": dict(arguments)})


def describe_architecture(arch: Architecture, num_classes: int, in_chans: int = 3) -> str:
    """The description of a whole network drawn from a space: JSON."""
    return canonical({"architecture": arch.to_dict(), "num_classes": num_classes, "in_chans": in_chans})


def part_key(description: str) -> str:
    """The name under which a described part is measured."""
    return "block:" + hashlib.sha256(description.encode()).hexdigest()[:12]


def described_part(description: str) -> NetworkPart:
    """The part that a description describes. Raises UsageError when it describes none."""
    try:
        data = json.loads(description)
        cls, channels, size = PART_CLASSES[data["part"]], int(data["channels"]), int(data["size"])
        arguments = dict(data["arguments"])
        spec = (data["part"], channels, size, *sorted(arguments.items()))
        with torch.device("meta"):
            cls(**arguments)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{description[:80]!r} does not describe a block ({error}); measure it again") from error

    def build() -> nn.Module:
        return fold_(nn.Sequential(cls(**arguments)))[0].eval()  # type: ignore[index]

    return NetworkPart(part_key(description), spec, build, (1, channels, size, size))


def described_network(description: str, resolution: int | None = None) -> tuple[Architecture, int, int]:
    """(architecture, classes, input channels) of a network drawn from a space. Raises UsageError."""
    try:
        data = json.loads(description)
        if resolution is not None:
            data["architecture"]["resolution"] = resolution
        return Architecture.from_dict(data["architecture"]), int(data["num_classes"]), int(data["in_chans"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{description[:80]!r} does not describe a network ({error}); measure it again") from error


@lru_cache(maxsize=4096)
def measured_workload(record: Measurement) -> Workload:
    """What was measured, traced, without number formats (put them on with `nas.bits.put_precision`).

    Raises UsageError for an unknown timm name, a folder without a network, a description that describes nothing.
    """
    try:
        if record.kind == "block":
            return part_workload(described_part(record.description), record.batch)
        if record.description:
            arch, num_classes, in_chans = described_network(record.description, record.input_size)
        elif (Path(record.subject) / "config.json").is_file():
            arch, num_classes, in_chans = exported_network(Path(record.subject), record.input_size)
        else:
            return timm_workload(record.subject, record.input_size, record.batch)
        with torch.device("meta"):
            network = fold(build_network(arch, num_classes, in_chans, device="meta"))
        shape = (record.batch, in_chans, arch.resolution, arch.resolution)
        return trace_module(network, [shape], record.subject)
    except TraceError as error:
        raise UsageError(str(error)) from error


def exported_network(folder: Path, resolution: int | None = None) -> tuple[Architecture, int, int]:
    """(architecture, classes, input channels) of a folder that `nas export` wrote. Raises UsageError."""
    try:
        section = json.loads((folder / "config.json").read_text(encoding="utf-8"))["nas"]
        description = {name: section[name] for name in ("architecture", "num_classes", "in_chans")}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{folder} is not a folder that `nas export` wrote ({error}); name one") from error
    return described_network(json.dumps(description), resolution)


def check_subject(record: Measurement) -> None:
    """Raises UsageError unless the record's model is known: a timm name, an exported folder, or described."""
    if record.kind == "block":
        if not record.description:
            raise UsageError(
                f"block {record.subject!r} has no description; keep the column that `nas measure plan` wrote"
            )
        described_part(record.description)
    elif record.description:
        described_network(record.description)
    elif (Path(record.subject) / "config.json").is_file():
        exported_network(Path(record.subject))
    else:
        check_timm_name(record.subject)
