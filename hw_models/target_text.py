"""A target as the text of its TOML file: what `load_target` reads back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from hw_models.target import Target

TEXTS = ("title", "description", "accuracy", "kind", "stack")


def target_text(target: Target) -> str:
    """Every value with its source, nothing inherited: the file stands by itself."""
    lines = [f"{name} = {json.dumps(getattr(target, name), ensure_ascii=False)}" for name in TEXTS]
    for section, values in ((entry.name, getattr(target, entry.name)) for entry in fields(target)):
        if not is_dataclass(values):
            continue
        lines += ["", f"[{section}]"]
        tables = []
        for entry in fields(values):
            value, key = getattr(values, entry.name), f"{section}.{entry.name}"
            if isinstance(value, Mapping):
                tables.append(f"\n[{key}]")
                tables += [_line(item, inner, target.sources[f"{key}.{item}"]) for item, inner in value.items()]
                tables += [
                    f"{_key(name.removeprefix(f'{key}.'))} = {{ absent = true, source = {json.dumps(source)} }}"
                    for name, source in target.sources.items()
                    if name.startswith(f"{key}.") and name.removeprefix(f"{key}.") not in value
                ]
            else:
                lines.append(_line(entry.name, value, target.sources[key]))
        lines += tables
    return "\n".join(lines) + "\n"


def _line(key: str, value: Any, source: str) -> str:
    shown = list(value) if isinstance(value, tuple) else value
    return f"{_key(key)} = {{ value = {json.dumps(shown)}, source = {json.dumps(source, ensure_ascii=False)} }}"


def _key(name: str) -> str:
    return name if name.replace("_", "").isalnum() and name.isascii() else json.dumps(name)
