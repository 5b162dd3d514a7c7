"""What a measurement is of: (kind, name, description) -> the module, and the workload the cost model reads.

A block, or any other part of a network, is described by what builds it: its class, the map it reads and its
keyword arguments.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hw_models import PartCost, Target, Workload, estimate_part
from hw_models.measurements import OWN, PRECISIONS, Measurement
from nas.bits import costed_precision, put_precision
from nas.cost import check_timm_name, is_onnx, onnx_workload, part_costs, part_workload, timm_model, timm_workload
from nas.errors import UsageError
from nas.timm_parts import TimmPart
from nas.trace import TraceError, trace_module
from search_spaces.architecture import Architecture
from search_spaces.layers import ConvNorm
from search_spaces.mixers import MIXERS
from search_spaces.network import Head, MetaFormerBlock, build_network, fold
from search_spaces.parts import NetworkPart, folded, network_parts
from search_spaces.stems import Stem


@dataclass(frozen=True)
class Subject:
    """Something to measure, before it has been: the naming fields of a `Measurement`."""

    name: str
    kind: str
    input_size: int
    description: str = ""

    @property
    def must_fuse(self) -> bool:
        """Whether its graph is as intended only without operators by themselves that others take in: so it is of our
        own blocks, while a timm block may well have a norm or an activation before its first convolution.
        """
        return self.kind == "block" and json.loads(self.description)["part"] != TimmPart.__name__

    def record(self, target: str, precision: str, latency_s: float, **more: Any) -> Measurement:
        """The measurement of it."""
        return Measurement(
            target=target,
            subject=self.name,
            kind=self.kind,
            input_size=self.input_size,
            precision=precision,
            latency_s=latency_s,
            description=self.description,
            **more,
        )

    def build(self) -> tuple[nn.Module, tuple[int, int, int, int]]:
        """(module in evaluation mode as it is deployed, input shape of one image). Raises UsageError."""
        if self.kind == "block":
            part = described_part(self.description)
            return part.build(), part.input_shape
        if self.description or is_exported(self.name):
            arch, num_classes, in_chans = self._architecture()
            return fold(build_network(arch, num_classes, in_chans)), (1, in_chans, arch.resolution, arch.resolution)
        from timm.utils import reparameterize_model

        model = timm_model(self.name, self.input_size, "cpu")
        channels = int(model.default_cfg["input_size"][0])  # type: ignore[index]
        return reparameterize_model(model), (1, channels, self.input_size, self.input_size)

    def _architecture(self) -> tuple[Architecture, int, int]:
        if self.description:
            return described_network(self.description, self.input_size)
        return exported_network(Path(self.name), self.input_size)


def part_subject(part: NetworkPart) -> Subject:
    """A part of a network drawn from a space."""
    description = describe_part(part)
    return Subject(part_key(description), "block", part.input_shape[-1], description)


def architecture_subject(arch: Architecture, num_classes: int, in_chans: int = 3) -> Subject:
    """A whole network drawn from a space."""
    description = describe_architecture(arch, num_classes, in_chans)
    return Subject(f"arch:{arch.key}", "network", arch.resolution, description)


def named_subject(name_or_folder: str, input_size: int | None = None) -> Subject:
    """A timm model or an exported folder; its own input size if none is given. Raises UsageError."""
    if is_exported(name_or_folder):
        arch, _, _ = exported_network(Path(name_or_folder))
        return Subject(str(Path(name_or_folder).resolve()), "network", input_size or arch.resolution)
    check_timm_name(name_or_folder)
    if input_size is None:
        input_size = int(timm_model(name_or_folder, None, "meta").default_cfg["input_size"][-1])  # type: ignore[index]
    return Subject(name_or_folder, "network", input_size)


def is_exported(name: str) -> bool:
    """Whether it is a folder with the config.json of an exported network."""
    return (Path(name) / "config.json").is_file()


MIXERS_PACKAGE = "search_spaces.mixers"

PART_CLASSES: dict[str, type[nn.Module]] = {
    cls.__name__: cls for cls in (Stem, ConvNorm, MetaFormerBlock, Head, TimmPart)
}
"""Classes a measured part may have."""


def canonical(description: dict[str, Any]) -> str:
    """One text per description: sorted keys, no spaces."""
    return json.dumps(description, sort_keys=True, separators=(",", ":"))


def describe_part(part: NetworkPart) -> str:
    """The description of a part of a network: JSON."""
    name, source, channels, size, *arguments = part.spec
    data = {"part": name, "channels": channels, "size": size, "arguments": dict(arguments)}
    ours = not source or source.startswith(MIXERS_PACKAGE)  # a plugin's names its text
    return canonical(data if ours else data | {"source": source})


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
        mixer = MIXERS.get(str(arguments.get("mixer")))
        source = str(data.get("source", mixer.__module__ if mixer else ""))
        spec = (data["part"], source, channels, size, *sorted(arguments.items()))
        with torch.device("meta"):
            cls(**arguments)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{description[:80]!r} does not describe a block ({error}); measure it again") from error

    build = folded(lambda: cls(**arguments))
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
        elif is_onnx(record.subject):
            return onnx_workload(Path(record.subject), record.input_size, record.batch)
        elif is_exported(record.subject):
            arch, num_classes, in_chans = exported_network(Path(record.subject), record.input_size)
        else:
            return timm_workload(record.subject, record.input_size, record.batch, reparameterize=True)
        with torch.device("meta"):
            network = fold(build_network(arch, num_classes, in_chans, device="meta"))
        shape = (record.batch, in_chans, arch.resolution, arch.resolution)
        return trace_module(network, [shape], record.subject)
    except TraceError as error:
        raise UsageError(str(error)) from error


def measured_parts(record: Measurement, target: Target) -> list[PartCost]:
    """A measured network as the cost model has it on a target, at the precision it was measured in.

    Raises UsageError as `measured_workload`, and when it has no bits of its own to be measured at.
    """
    if record.precision != OWN:
        workload = put_precision(measured_workload(record), costed_precision(record.precision))
        return [estimate_part(workload, target)]
    if is_onnx(record.subject):
        return [estimate_part(measured_workload(record), target)]
    arch, num_classes, in_chans = own_architecture(record)
    return part_costs(list(network_parts(arch, num_classes, in_chans)), arch, target, batch=record.batch)


def own_architecture(record: Measurement) -> tuple[Architecture, int, int]:
    """(architecture, classes, input channels) of a measured network of a space. Raises UsageError for any other."""
    if record.kind == "network" and record.description:
        return described_network(record.description, record.input_size)
    if record.kind == "network" and is_exported(record.subject):
        return exported_network(Path(record.subject), record.input_size)
    raise UsageError(
        f"{record.subject} has no bits of its own: precision {OWN!r} is for what `nas export` wrote and for ONNX files "
        f"with quantizers; name one of {', '.join(PRECISIONS)}"
    )


def exported_network(folder: Path, resolution: int | None = None) -> tuple[Architecture, int, int]:
    """(architecture, classes, input channels) of a folder that `nas export` wrote. Raises UsageError."""
    try:
        section = json.loads((folder / "config.json").read_text(encoding="utf-8"))["nas"]
        description = {name: section[name] for name in ("architecture", "num_classes", "in_chans")}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{folder} is not a folder that `nas export` wrote ({error}); name one") from error
    return described_network(json.dumps(description), resolution)


def check_subject(record: Measurement) -> None:
    """Raises UsageError unless the record's model is known: a timm name, a folder or ONNX file, or described."""
    if record.kind == "block":
        if not record.description:
            raise UsageError(
                f"block {record.subject!r} has no description; keep the column that `nas measure plan` wrote"
            )
        described_part(record.description)
    elif record.description:
        described_network(record.description)
    elif is_onnx(record.subject):
        workload = measured_workload(record)
        if record.precision == OWN and not workload.tensors[0].dtype:
            raise UsageError(f"{record.subject} has no quantizers, so no bits of its own; name its precision")
    elif is_exported(record.subject):
        exported_network(Path(record.subject))
    else:
        check_timm_name(record.subject)
        if record.precision == OWN:
            own_architecture(record)
