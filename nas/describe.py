"""Lists of what there is, as plain data: spaces, targets, studies."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from nas.errors import UsageError
from nas.problem import find_target, space_of
from nas.spec import STUDIES, SpaceSpec, list_studies
from nas.store import Store, StudyRecord
from nas.units import BYTES, format_quantity
from search_spaces.menu import MENU
from search_spaces.metaformer import SPACES


def describe_spaces(name: str | None, preset: str | None, granularity: str) -> list[dict[str, Any]]:
    """One entry per space and preset; of the named space only `preset`, by default its first. Without a name, `preset`
    of the spaces that have it.

    `choices` are open; `closed`: what else a gene can be opened to by `space.choices`, gene -> values.
    `mixers`: those offered by default. `menu`: all there are, with group, kernels and bounds.

    Raises UsageError when it does not exist.
    """
    asked: list[tuple[str, str]]
    if name is not None:
        asked = [(name, preset or (SPACES[name].presets[0] if name in SPACES else ""))]
    else:
        asked = [(one, each) for one in sorted(SPACES) for each in SPACES[one].presets if preset in (None, each)]
        if not asked:
            known = dict.fromkeys(each for builder in SPACES.values() for each in builder.presets)
            raise UsageError(f"no space has a preset {preset!r}; there are presets {', '.join(known)}")
    spaces = [space_of(SpaceSpec(name=one, preset=each, granularity=granularity)) for one, each in asked]
    menu = {name: asdict(facts) for name, facts in MENU.items()}
    return [
        {
            **space.to_dict(),
            "closed": space.closed,
            "mixers": list(space.mixers),
            "size": space.size,
            "menu": menu,
        }
        for space in spaces
    ]


def describe_targets() -> list[dict[str, Any]]:
    """Name, title, kind, precisions and sizes of every accelerator that ships. peak_macs_per_s: at the fastest one."""
    from hw_models import list_targets

    shipped = {name: find_target(name) for name in list_targets()}
    return [
        {
            "name": name,
            "title": target.title,
            "kind": target.kind,
            "peak_macs_per_s": target.matrix.peak_macs_per_s * max(target.matrix.rates.values()),
            "onchip_bytes": target.memory.onchip_bytes,
            "dram_bytes_per_s": target.memory.dram_bytes_per_s,
            "precisions": list(target.matrix.rates),
        }
        for name, target in shipped.items()
    ]


def target_lines(described: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line per target: name, kind, operations a second at its fastest, memory on chip and bandwidth behind it."""
    rows = [
        (
            target["name"],
            target["kind"],
            f"{2 * target['peak_macs_per_s'] / 1e12:.3g} TOPS",
            f"{format_quantity(target['onchip_bytes'], BYTES)} on chip",
            f"{format_quantity(target['dram_bytes_per_s'], BYTES)}/s",
            f"{target['title']} ({', '.join(target['precisions'])})",
        )
        for target in described
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = (False, False, True, True, True)
    return [
        "  ".join(
            [
                *(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row[:-1], widths[:-1], right, strict=True)),
                row[-1],
            ]
        )
        for row in rows
    ]


def describe_target(name_or_path: str) -> dict[str, Any]:
    """A target's prose, and every value with its source. Raises UsageError."""
    target = find_target(name_or_path)
    content = asdict(target)
    values = []
    for key, source in target.sources.items():
        values.append({"key": key, "value": _value_at(content, key), "source": source})
    prose = {key: content[key] for key in ("name", "title", "description", "kind", "stack", "accuracy")}
    return {**prose, "values": values}


def _value_at(content: dict[str, Any], key: str) -> Any:
    """The value of "section.key"; ABSENT for an entry that the target declares to lack."""
    from hw_models.target import ABSENT

    section, name, *entry = key.split(".", 2)
    value = content[section][name]
    return value.get(entry[0], ABSENT) if entry else value


def describe_studies(folder: Path, url: str | None) -> dict[str, list[dict[str, Any]]]:
    """`shipped`: the study files that come with the program. `studies`: those in the storage, newest
    first; `wanted` is None for a study of another version of the program.
    """
    shipped = [{"name": name, "about": _first_comment(STUDIES / f"{name}.toml")} for name in list_studies()]
    try:
        store = Store(folder, url)
    except UsageError:
        if url is not None or (folder / "nas.db").exists():
            raise
        return {"shipped": shipped, "studies": []}
    studies = [
        {
            "name": record.name,
            "config": record.config,
            "trials": store.count_trials(record.name),
            "wanted": _wanted(record),
            "touched_at": record.touched_at,
        }
        for record in store.studies()
    ]
    store.close()
    return {"shipped": shipped, "studies": studies}


def _wanted(record: StudyRecord) -> int | None:
    """Trials wanted in all; None for a study whose settings another version wrote."""
    try:
        return record.spec.search.trials
    except UsageError:
        return None


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""


def version() -> str:
    """The installed version; of a source tree that is not installed, what its pyproject.toml says."""
    try:
        return metadata.version("nas")
    except metadata.PackageNotFoundError:
        project = Path(__file__).resolve().parent.parent / "pyproject.toml"
        return f"{tomllib.loads(project.read_text())['project']['version']} (source tree)"
