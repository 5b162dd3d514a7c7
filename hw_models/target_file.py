"""The strict loader of the TOML files that describe devices.

Every value in a file is a table `{ value = ..., source = "..." }`. A value that no document gives is an
estimate, and its source then begins with "estimated" and says why. All values are in SI base units. A file
may say `like = "another target"` and give only what differs; everything else, sources included, is then that
target's, but for `stack`, which is unknown until the file names it. What the other target has and this one lacks, a
precision for instance, is taken out again by `w8a16 = { absent = true, source = "..." }`.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from hw_models.kernel import FAMILIES, SUMMING
from hw_models.target import (
    KINDS,
    LATER_TABLES,
    RUNS,
    STREAMS,
    UNFIT,
    UNKNOWN_STACK,
    Energy,
    Legality,
    MatrixEngine,
    Memory,
    Overhead,
    Runtime,
    Target,
    VectorUnit,
)
from hw_models.target_text import TEXTS
from hw_models.workload import DTYPE_BITS, FUNCTIONS, MATRIX_KINDS, OP_KINDS

TARGETS_FOLDER = Path(__file__).parent / "targets"


class TargetError(ValueError):
    """A target that does not exist, or a target file that is not right; one line with file, key and cure."""


_SECTIONS: Mapping[str, type] = {
    "matrix": MatrixEngine,
    "vector": VectorUnit,
    "memory": Memory,
    "energy": Energy,
    "overhead": Overhead,
    "runtime": Runtime,
    "legality": Legality,
}
_MAY_BE_EMPTY = frozenset({"memory.stream_bytes_per_s"}) | {
    f"{section}.{table}" for section, tables in LATER_TABLES.items() for table in tables
}
_REQUIRED_CYCLES = {kind: meaning for kind, meaning in OP_KINDS.items() if kind not in MATRIX_KINDS}
_REQUIRED_CYCLES["operand"] = "bringing the second operand of a product of two activations into the order of weights"
_REQUIRED_CYCLES["requantize"] = "bringing an integer operand of arithmetic or concatenation to another scale"


def list_targets() -> list[str]:
    """Names of the devices that come with the package, in alphabetical order."""
    return sorted(path.stem for path in TARGETS_FOLDER.glob("*.toml"))


def target_argument(name: str) -> str:
    """What to say for `--target`: the name of a device that comes with the package, else the file that is called so."""
    return name if name in list_targets() else f"{name}.toml"


def load_target(name_or_path: str | Path) -> Target:
    """A device by its name, or from a TOML file (anything that ends in `.toml` or holds a slash is a file).

    Raises TargetError when there is no such device or file, when the file has a missing, unknown, duplicated or
    impossible key, and when it is called like another device that comes with the package.
    """
    text = str(name_or_path)
    if text.endswith(".toml") or "/" in text:
        path = Path(text)
    else:
        path = TARGETS_FOLDER / f"{text}.toml"
        if text not in list_targets():
            raise TargetError(f"unknown target {text!r}; {_hint(text)} (a file of your own must end in .toml)")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TargetError(f"target file {text}: {error.strerror or error}; name a readable TOML file") from error
    except UnicodeDecodeError as error:
        raise TargetError(f"target file {text}: not UTF-8 text; name a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise TargetError(f"target file {text}: {_toml_problem(path, error)}") from error
    target = parse_target(data, path.stem, text)
    if path.parent != TARGETS_FOLDER and target.name in list_targets() and _differs(target):
        raise TargetError(
            f"target file {text}: {target.name} is a target that comes with nas, and what is known of it is not true "
            f"of this one; call the file otherwise, such as my_{target.name}.toml"
        )
    return target


def _differs(target: Target) -> bool:
    """From the target of its name that comes with the package."""
    return load_target(target.name).content() != target.content()


def _hint(name: str) -> str:
    """Of a device that does not come with the package: a file beside, a near miss, or all that there are."""
    if Path(f"{name}.toml").is_file():
        return f"did you mean the file {name}.toml?"
    near = difflib.get_close_matches(name, list_targets(), n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(list_targets())}"


def check_target_name(name: str, where: str) -> None:
    """Raises TargetError for a name with an "@": before that stands an objective ("latency@h200"), and behind it the
    batch of a calibration ("h200@batch64"). where: what gave the name.
    """
    if "@" in name:
        cure = name.replace("@", "_")
        raise TargetError(
            f"{where}: a target's name must not hold '@', which parts a target from the batch of its calibrations, but "
            f"is {name!r}; call it {cure!r}"
        )


def _inherit(where: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tables of a file completed by those of the target it is like, whose sources then name that
    target.
    """
    parent = data["like"]
    if not isinstance(parent, str) or parent not in list_targets():
        raise TargetError(
            f"{where}: like must name a target that comes with nas, but is {parent!r}; {_hint(str(parent))}"
        )
    parent_data = tomllib.loads((TARGETS_FOLDER / f"{parent}.toml").read_text(encoding="utf-8"))
    if "like" in parent_data:
        parent_data = dict(_inherit(where, parent_data))
    # A likeness is no kinship, no claim, and no description.
    parent_data = {
        **parent_data,
        "stack": UNKNOWN_STACK,
        "accuracy": f"not compared with measurements; like {parent}",
        "description": f"as {parent}, but for what its own file says",
    }
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
    inherited = source if source.startswith(_inherited_before()) else f"estimated: as {name} ({source})"
    return {**value, "source": inherited}


@cache
def _inherited_before() -> tuple[str, ...]:
    """How a source begins that names the target it comes from already."""
    return tuple(f"estimated: as {known} (" for known in list_targets())


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
    check_target_name(name, where)
    if "like" in data:
        data = _inherit(where, data)
    _check_keys(where, "", data, (*TEXTS, *_SECTIONS))
    texts = {}
    for key in TEXTS:
        if not isinstance(data[key], str) or not data[key].strip():
            raise TargetError(f"{where}: {key} must be a non-empty text, but is {data[key]!r}")
        texts[key] = data[key].strip()
    sources: dict[str, str] = {}
    sections = {
        section: _parse_section(where, section, kind, data[section], sources) for section, kind in _SECTIONS.items()
    }
    if texts["kind"] not in KINDS:
        raise TargetError(f"{where}: kind must be one of {', '.join(KINDS)}, but is {texts['kind']!r}")
    target = Target(name=name, **texts, **sections, sources=sources)
    _check_tables(where, target)
    return _without_idle_energies(target)


def _without_idle_energies(target: Target) -> Target:
    """Energies only of the precisions that the device has: an inherited one goes with its rate."""
    idle = target.energy.mac_j.keys() - target.matrix.rates.keys()
    mac_j = {precision: value for precision, value in target.energy.mac_j.items() if precision not in idle}
    sources = {key: source for key, source in target.sources.items() if key.removeprefix("energy.mac_j.") not in idle}
    return replace(target, energy=replace(target.energy, mac_j=mac_j), sources=sources)


def _parse_section(where: str, section: str, kind: type, table: Any, sources: dict[str, str]) -> Any:
    if not isinstance(table, Mapping):
        raise TargetError(f"{where}: {section} must be a table, but is {table!r}")
    table = {later: {} for later in LATER_TABLES.get(section, ())} | dict(table)
    _check_keys(where, section, table, tuple(entry.name for entry in fields(kind)))
    values = {}
    for entry in fields(kind):
        key, raw = f"{section}.{entry.name}", table[entry.name]
        if str(entry.type).startswith("Mapping"):
            if not isinstance(raw, Mapping) or not (raw or key in _MAY_BE_EMPTY):
                raise TargetError(f"{where}: {key} must be a table with at least one entry, but is {raw!r}")
            values[entry.name] = _parse_table(where, key, entry.metadata, raw, sources)
        else:
            values[entry.name] = _parse_value(where, key, str(entry.type), entry.metadata, raw, sources)
    return kind(**values)


def _parse_table(
    where: str, key: str, bounds: Mapping[str, Any], table: Mapping[str, Any], sources: dict[str, str]
) -> dict[str, float]:
    """The entries of a table, without those that are declared absent, whose sources are kept."""
    entries = {}
    for item, raw in table.items():
        if isinstance(raw, Mapping) and "absent" in raw:
            _check_keys(where, f"{key}.{item}", raw, ("absent", "source"))
            if raw["absent"] is not True:
                raise TargetError(f"{where}: {key}.{item}.absent can only be true; an entry that is there has a value")
            _keep_source(where, f"{key}.{item}", raw, sources)
        else:
            entries[item] = _parse_value(where, f"{key}.{item}", "float", bounds, raw, sources)
    if not entries and key not in _MAY_BE_EMPTY:
        raise TargetError(f"{where}: every entry of {key} is absent; give at least one value")
    return entries


def _keep_source(where: str, key: str, raw: Mapping[str, Any], sources: dict[str, str]) -> None:
    if not isinstance(raw["source"], str) or not raw["source"].strip():
        raise TargetError(f"{where}: {key} needs a source: a document, or 'estimated: ' and the reason")
    sources[key] = raw["source"].strip()


def _parse_value(where: str, key: str, kind: str, bounds: Mapping[str, Any], raw: Any, sources: dict[str, str]) -> Any:
    if not isinstance(raw, Mapping):
        raise TargetError(f'{where}: {key} must be written {{ value = {raw!r}, source = "where it comes from" }}')
    _check_keys(where, key, raw, ("value", "source"))
    _keep_source(where, key, raw, sources)
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
            raise TargetError(f"{where}: {key} must be one of {', '.join(bounds['choices'])}, but is {value!r}")
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or (kind == "int" and value != int(value)):
        raise TargetError(f"{where}: {key} must be a {'whole ' if kind == 'int' else ''}number, but is {value!r}")
    low, high, above = bounds["low"], bounds["high"], bounds["above"]
    if low is not None and value < low:
        raise TargetError(f"{where}: {key} must be at least {low:g}, but is {value!r}")
    if above is not None and value <= above:
        raise TargetError(f"{where}: {key} must be greater than {above:g}, but is {value!r}")
    if high is not None and value > high:
        raise TargetError(f"{where}: {key} must be at most {high:g}, but is {value!r}; units are SI base units")
    return int(value) if kind == "int" else float(value)


_RENAMED = {
    "runtime.depthwise_start_cycles": "it is float_start_cycles now, and integer_start_cycles in integers",
    "runtime.gather_cycles": "it is gather_channel_cycles now, for each input channel of a group, not for a group",
    "runtime.integer_ragged": "it is integer_ragged_cycles now, cycles a tap and channel, not a factor",
}
"""Keys of earlier versions -> what is said of them: what replaced them is measured otherwise."""


def _check_keys(where: str, section: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    prefix = f"{section}." if section else ""
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(known)}"
            raise TargetError(f"{where}: unknown key {prefix}{key}; {_RENAMED.get(f'{prefix}{key}', hint)}")
    for key in known:
        if key not in table:
            raise TargetError(
                f"{where}: missing key {prefix}{key}; add it, or begin with like = 'npu_40tops', whose values stand "
                "for what is missing"
            )


def _check_words(where: str, target: Target) -> None:
    """Op kinds, functions or both, in values that list some: a word that is none would do nothing."""
    runtime = target.runtime
    lists = {f"runtime.{name}": getattr(runtime, name) for name in ("float_ops", "split", "joins", "float_joins")}
    for key, words in (lists | {"legality.unsupported": target.legality.unsupported}).items():
        for word in words:
            kind, dot, function = word.partition(".")
            whole = word in OP_KINDS or word in FUNCTIONS or (dot and kind in OP_KINDS and function in FUNCTIONS)
            if not whole and not (word == "all" and key == "runtime.joins"):
                near = difflib.get_close_matches(word, [*OP_KINDS, *sorted(FUNCTIONS)], n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"op kinds are {', '.join(OP_KINDS)}"
                raise TargetError(f"{where}: {key} has {word!r}, which is neither an op kind nor a function; {hint}")


def _check_tables(where: str, target: Target) -> None:
    """Rules that concern several values at once."""
    _check_words(where, target)
    for kind, meaning in _REQUIRED_CYCLES.items():
        if kind not in target.vector.cycles_per_element:
            raise TargetError(f"{where}: missing key vector.cycles_per_element.{kind}; add the cycles of {meaning}")
    for run in RUNS:
        if run not in target.memory.run_elements:
            raise TargetError(f"{where}: missing key memory.run_elements.{run}; add the elements its accesses find")
    for run in target.memory.run_elements:
        if run not in RUNS:
            raise TargetError(f"{where}: memory.run_elements.{run} is no kind of access; known: {', '.join(RUNS)}")
    for stream in target.memory.stream_bytes_per_s:
        if stream not in STREAMS:
            raise TargetError(f"{where}: memory.stream_bytes_per_s.{stream} is no stream; known: {', '.join(STREAMS)}")
    for window in target.runtime.unfit_s:
        if window not in UNFIT:
            raise TargetError(f"{where}: runtime.unfit_s.{window} is no such window; known: {', '.join(UNFIT)}")
    for table, families in {"start_s": FAMILIES, "serial_s": SUMMING}.items():
        for family in getattr(target.overhead, table):
            if family not in families:
                raise TargetError(
                    f"{where}: overhead.{table}.{family} is no family of kernels that has one; known: "
                    f"{', '.join(families)}"
                )
    for precision in target.matrix.rates:
        if precision not in target.energy.mac_j:
            raise TargetError(f"{where}: missing key energy.mac_j.{precision}; matrix.rates has this precision")
    for dtype in target.memory.weight_compression:
        if dtype not in DTYPE_BITS:
            raise TargetError(
                f"{where}: memory.weight_compression.{dtype} is no number format; known: {', '.join(DTYPE_BITS)}"
            )
    if bool(target.matrix.accumulator_bytes) != bool(target.matrix.input_buffer_bytes):
        raise TargetError(
            f"{where}: matrix.accumulator_bytes and matrix.input_buffer_bytes must both be 0 or both be positive"
        )
    if bool(target.matrix.depthwise_channels) != bool(target.matrix.depthwise_taps):
        raise TargetError(
            f"{where}: matrix.depthwise_channels and matrix.depthwise_taps must both be 0 or both be positive"
        )
