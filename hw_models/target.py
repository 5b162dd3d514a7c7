"""A device as data: frozen dataclasses, and the strict loader of the TOML files that describe devices.

Every value in a file is a table `{ value = ..., source = "..." }`. A value that no document gives is an
estimate, and its source then begins with "estimated" and says why. All values are in SI base units. A file
may say `like = "another target"` and give only what differs; everything else, sources included, is then that
target's.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hw_models.workload import MATRIX_KINDS, OP_KINDS

TARGETS_FOLDER = Path(__file__).parent / "targets"
DATAFLOWS = ("weight_stationary", "output_stationary", "input_stationary")


class TargetError(ValueError):
    """A target that does not exist, or a target file that is not right; one line with file, key and cure."""


def _value(
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field with the bounds the loader checks: low <= value <= high, value > above, value in choices."""
    return field(metadata={"low": low, "high": high, "above": above, "choices": choices})


def _table(*, low: float | None = None, high: float | None = None, above: float | None = None) -> Any:
    """As `_value` for every entry of a mapping; left out of the hash, so that sections can key a cache."""
    return field(hash=False, metadata={"low": low, "high": high, "above": above, "choices": ()})


@dataclass(frozen=True)
class MatrixEngine:
    """Cores of `rows` x `columns` multipliers each; rows hold the reduction, columns the output channels.

    positions: output positions one core computes side by side (1: a systolic or a plain dot-product array).
    reduction: "channels" when a row takes one input channel and kernel taps follow each other in time,
        "im2col" when rows take any part of kernel x channels.
    tile_load_cycles: cycles to bring the next stationary tile into a core; hidden behind computing when
        double_buffered_tiles.
    depthwise_channels, depthwise_taps: channels and kernel taps per cycle and core of a depthwise path; 0
        when there is none and depthwise convolution runs block-diagonally on the array.
    rates: precision -> speed relative to one multiply-accumulate per multiplier and cycle; a precision that
        is not listed cannot run.
    """

    cores: int = _value(low=1, high=1e5)
    rows: int = _value(low=1, high=1e5)
    columns: int = _value(low=1, high=1e5)
    positions: int = _value(low=1, high=1e5)
    clock_hz: float = _value(low=1e6, high=1e11)
    dataflow: str = _value(choices=DATAFLOWS)
    reduction: str = _value(choices=("channels", "im2col"))
    tile_load_cycles: float = _value(low=0, high=1e6)
    double_buffered_tiles: bool = _value()
    depthwise_channels: int = _value(low=0, high=1e6)
    depthwise_taps: int = _value(low=0, high=1e4)
    rates: Mapping[str, float] = _table(above=0, high=64)

    @property
    def peak_macs_per_s(self) -> float:
        """At the precision of rate 1."""
        return self.cores * self.rows * self.columns * self.positions * self.clock_hz


@dataclass(frozen=True)
class VectorUnit:
    """Everything that is not a matrix product. `lanes` elements of `lane_bits` bits go through at once.

    cycles_per_element: op kind, or function of an op (which then wins over its kind), -> cycles one lane
        spends on an element; "requantize" is added for
        integer arithmetic and concatenation. Softmax, norms and reductions count input elements, pooling counts window
        elements, others output elements.
    fused: functions that the output path of the matrix engine applies at full rate, at no cost.
    """

    lanes: int = _value(low=1, high=1e6)
    lane_bits: int = _value(low=4, high=64)
    clock_hz: float = _value(low=1e6, high=1e11)
    cycles_per_element: Mapping[str, float] = _table(low=0, high=1e4)
    fused: tuple[str, ...] = _value()


@dataclass(frozen=True)
class Memory:
    """On-chip memory, and "dram": whatever memory behind it weights and spilled activations stream from.

    activation_fraction: share of on-chip bytes that activations may take; the rest buffers weights.
    boundary_fraction: a tensor between two segments of the network stays on chip iff it takes at most this
        share of the bytes for activations.
    resident_weight_bytes: on-chip bytes that may hold weights from one inference to the next; 0 when weights
        are always streamed. residency: "whole" when a network that does not fit is streamed entirely,
        "partial" when only the excess is. spill: whether activations may go to dram.
    """

    onchip_bytes: int = _value(low=1, high=1e12)
    activation_fraction: float = _value(above=0, high=1)
    boundary_fraction: float = _value(low=0, high=1)
    onchip_bytes_per_s: float = _value(above=0, high=1e16)
    resident_weight_bytes: int = _value(low=0, high=1e12)
    residency: str = _value(choices=("whole", "partial"))
    dram_bytes: int = _value(low=0, high=1e14)
    dram_bytes_per_s: float = _value(above=0, high=1e15)
    dram_efficiency: float = _value(above=0, high=1)
    dram_burst_bytes: int = _value(low=1, high=1e5)
    spill: bool = _value()

    @property
    def activation_bytes(self) -> float:
        return self.onchip_bytes * self.activation_fraction

    @property
    def weight_buffer_bytes(self) -> float:
        """On-chip bytes that buffer streamed weights; never less than one burst."""
        return max(self.onchip_bytes - self.activation_bytes, float(self.dram_burst_bytes))


@dataclass(frozen=True)
class Energy:
    """Joules per event, and the power that is drawn whether anything happens or not."""

    mac_j: Mapping[str, float] = _table(low=0, high=1e-6)
    vector_element_j: float = _value(low=0, high=1e-6)
    onchip_byte_j: float = _value(low=0, high=1e-6)
    dram_byte_j: float = _value(low=0, high=1e-6)
    static_w: float = _value(low=0, high=1e4)


@dataclass(frozen=True)
class Overhead:
    """What a network pays besides its ops. link_bytes_per_s: bus to the host; 0 when the memory is shared.

    fusion: "pointwise" when the compiler joins pointwise ops to the op before them, "none" when every op is a
        launch.
    """

    launch_s: float = _value(low=0, high=1)
    network_s: float = _value(low=0, high=10)
    link_bytes_per_s: float = _value(low=0, high=1e13)
    fusion: str = _value(choices=("pointwise", "none"))


@dataclass(frozen=True)
class Legality:
    """What the device can run at all. unsupported: op kinds or functions it cannot; groups: "any", or
    "depthwise" when a convolution has one group or as many as input channels. depthwise_kernels: sides
    allowed; empty for any side.
    """

    max_kernel: int = _value(low=1, high=1e4)
    depthwise_kernels: tuple[int, ...] = _value(low=1, high=1e4)
    max_stride: int = _value(low=1, high=1e4)
    max_dilation: int = _value(low=1, high=1e4)
    groups: str = _value(choices=("any", "depthwise"))
    unsupported: tuple[str, ...] = _value()


@dataclass(frozen=True)
class Target:
    """A device. sources: "section.key" -> where that value comes from."""

    name: str
    title: str
    description: str
    accuracy: str
    matrix: MatrixEngine
    vector: VectorUnit
    memory: Memory
    energy: Energy
    overhead: Overhead
    legality: Legality
    sources: Mapping[str, str] = field(hash=False)


_SECTIONS: Mapping[str, type] = {
    "matrix": MatrixEngine,
    "vector": VectorUnit,
    "memory": Memory,
    "energy": Energy,
    "overhead": Overhead,
    "legality": Legality,
}
_TEXTS = ("title", "description", "accuracy")
_REQUIRED_CYCLES = {kind: meaning for kind, meaning in OP_KINDS.items() if kind not in MATRIX_KINDS}
_REQUIRED_CYCLES["requantize"] = "bringing an integer operand of arithmetic or concatenation to another scale"


def list_targets() -> list[str]:
    """Names of the devices that come with the package, in alphabetical order."""
    return sorted(path.stem for path in TARGETS_FOLDER.glob("*.toml"))


def load_target(name_or_path: str | Path) -> Target:
    """A device by its name, or from a TOML file (anything that ends in `.toml` or holds a slash is a file).

    Raises TargetError when there is no such device or file, and when the file has a missing, unknown,
    duplicated or impossible key.
    """
    text = str(name_or_path)
    if text.endswith(".toml") or "/" in text:
        path = Path(text)
    else:
        path = TARGETS_FOLDER / f"{text}.toml"
        if text not in list_targets():
            near = difflib.get_close_matches(text, list_targets(), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(list_targets())}"
            raise TargetError(f"unknown target {text!r}; {hint} (a file of your own must end in .toml)")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TargetError(
            f"target file {text}: {error.strerror or error}; name a readable TOML file"
        ) from error
    except UnicodeDecodeError as error:
        raise TargetError(f"target file {text}: not UTF-8 text; name a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise TargetError(f"target file {text}: {_toml_problem(path, error)}") from error
    return parse_target(data, path.stem, text)


def _inherit(where: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tables of a file completed by those of the target it is like, whose sources then name that
    target.
    """
    parent = data["like"]
    if not isinstance(parent, str) or parent not in list_targets():
        raise TargetError(f"{where}: like must name one of {', '.join(list_targets())}, but is {parent!r}")
    parent_data = tomllib.loads((TARGETS_FOLDER / f"{parent}.toml").read_text(encoding="utf-8"))
    if "like" in parent_data:
        parent_data = dict(_inherit(where, parent_data))
    return _merge({key: value for key, value in data.items() if key != "like"}, parent_data, parent)


def _merge(own: Mapping[str, Any], parent: Mapping[str, Any], name: str) -> dict[str, Any]:
    merged = dict(own)
    for key, value in parent.items():
        if key not in own:
            merged[key] = _attribute(value, name)
        elif isinstance(value, Mapping) and isinstance(own[key], Mapping) and "source" not in value:
            merged[key] = _merge(own[key], value, name)
    return merged


def _attribute(value: Any, name: str) -> Any:
    """Sources of inherited values, with the name of the target they come from."""
    if not isinstance(value, Mapping):
        return value
    if "source" not in value:
        return {key: _attribute(inner, name) for key, inner in value.items()}
    source = str(value["source"])
    inherited = source if source.startswith("estimated: as ") else f"estimated: as {name} ({source})"
    return {**value, "source": inherited}


def _toml_problem(path: Path, error: tomllib.TOMLDecodeError) -> str:
    """What is wrong, with the text of the line, because tomllib names a duplicated key only by its place."""
    line = getattr(error, "lineno", None)
    if line is None:
        place = str(error).partition("at line ")[2].partition(",")[0]
        line = int(place) if place.isdigit() else None
    lines = path.read_text(encoding="utf-8").splitlines()
    shown = f": {lines[line - 1].strip()!r}" if line and line <= len(lines) else ""
    duplicated = "overwrite" in str(error) or "twice" in str(error) or "Duplicate" in str(error)
    problem = "a key is given twice" if duplicated else "not valid TOML"
    return f"{problem} ({error}){shown}; keep one valid line per key"


def parse_target(data: Mapping[str, Any], name: str, file: str = "") -> Target:
    """A target from the tables of its TOML file; `file` is named in errors. Raises TargetError."""
    where = f"target file {file or name}"
    if "like" in data:
        data = _inherit(where, data)
    _check_keys(where, "", data, (*_TEXTS, *_SECTIONS))
    texts = {}
    for key in _TEXTS:
        if not isinstance(data[key], str) or not data[key].strip():
            raise TargetError(f"{where}: {key} must be a non-empty text, but is {data[key]!r}")
        texts[key] = data[key].strip()
    sources: dict[str, str] = {}
    sections = {
        section: _parse_section(where, section, kind, data[section], sources)
        for section, kind in _SECTIONS.items()
    }
    target = Target(name=name, **texts, **sections, sources=sources)
    _check_tables(where, target)
    return target


def _parse_section(where: str, section: str, kind: type, table: Any, sources: dict[str, str]) -> Any:
    if not isinstance(table, Mapping):
        raise TargetError(f"{where}: {section} must be a table, but is {table!r}")
    _check_keys(where, section, table, tuple(entry.name for entry in fields(kind)))
    values = {}
    for entry in fields(kind):
        key, raw = f"{section}.{entry.name}", table[entry.name]
        if str(entry.type).startswith("Mapping"):
            if not isinstance(raw, Mapping) or not raw:
                raise TargetError(f"{where}: {key} must be a table with at least one entry, but is {raw!r}")
            values[entry.name] = {
                item: _parse_value(where, f"{key}.{item}", "float", entry.metadata, value, sources)
                for item, value in raw.items()
            }
        else:
            values[entry.name] = _parse_value(where, key, str(entry.type), entry.metadata, raw, sources)
    return kind(**values)


def _parse_value(
    where: str, key: str, kind: str, bounds: Mapping[str, Any], raw: Any, sources: dict[str, str]
) -> Any:
    if not isinstance(raw, Mapping):
        raise TargetError(
            f'{where}: {key} must be written {{ value = {raw!r}, source = "where it comes from" }}'
        )
    _check_keys(where, key, raw, ("value", "source"))
    if not isinstance(raw["source"], str) or not raw["source"].strip():
        raise TargetError(f"{where}: {key} needs a source: a document, or 'estimated: ' and the reason")
    sources[key] = raw["source"].strip()
    value = raw["value"]
    if kind.startswith("tuple"):
        if not isinstance(value, list):
            raise TargetError(f"{where}: {key} must be a list, but is {value!r}")
        inner = "int" if "int" in kind else "str"
        return tuple(_check_scalar(where, key, inner, bounds, item) for item in value)
    return _check_scalar(where, key, kind, bounds, value)


def _check_scalar(where: str, key: str, kind: str, bounds: Mapping[str, Any], value: Any) -> Any:
    if kind in ("str", "bool"):
        if type(value).__name__ != kind:
            raise TargetError(
                f"{where}: {key} must be a {'text' if kind == 'str' else 'true or false'}, but is {value!r}"
            )
        if bounds["choices"] and value not in bounds["choices"]:
            raise TargetError(
                f"{where}: {key} must be one of {', '.join(bounds['choices'])}, but is {value!r}"
            )
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or (kind == "int" and value != int(value)):
        raise TargetError(
            f"{where}: {key} must be a {'whole ' if kind == 'int' else ''}number, but is {value!r}"
        )
    low, high, above = bounds["low"], bounds["high"], bounds["above"]
    if low is not None and value < low:
        raise TargetError(f"{where}: {key} must be at least {low:g}, but is {value!r}")
    if above is not None and value <= above:
        raise TargetError(f"{where}: {key} must be greater than {above:g}, but is {value!r}")
    if high is not None and value > high:
        raise TargetError(
            f"{where}: {key} must be at most {high:g}, but is {value!r}; units are SI base units"
        )
    return int(value) if kind == "int" else float(value)


def _check_keys(where: str, section: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    prefix = f"{section}." if section else ""
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(known)}"
            raise TargetError(f"{where}: unknown key {prefix}{key}; {hint}")
    for key in known:
        if key not in table:
            raise TargetError(f"{where}: missing key {prefix}{key}; add it (npu_40tops.toml shows every key)")


def _check_tables(where: str, target: Target) -> None:
    """Rules that concern several values at once."""
    for kind, meaning in _REQUIRED_CYCLES.items():
        if kind not in target.vector.cycles_per_element:
            raise TargetError(
                f"{where}: missing key vector.cycles_per_element.{kind}; add the cycles of {meaning}"
            )
    for precision in target.matrix.rates:
        if precision not in target.energy.mac_j:
            raise TargetError(
                f"{where}: missing key energy.mac_j.{precision}; matrix.rates has this precision"
            )
    if bool(target.matrix.depthwise_channels) != bool(target.matrix.depthwise_taps):
        raise TargetError(
            f"{where}: matrix.depthwise_channels and matrix.depthwise_taps must both be 0 or both be positive"
        )
