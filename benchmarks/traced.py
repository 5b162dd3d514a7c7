"""Traced workloads of timm models on disk, so that a study of thousands of networks traces each of them once.

A file per (model, input size), compressed JSON, without number formats and at batch 1. The folder is a cache: it may be
deleted at any time, and must be when tracing itself has changed.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from hw_models.workload import Op, Tensor, Window, Workload
from nas.cost import timm_workload
from nas.files import write_whole


def traced(name: str, input_size: int | None, folder: Path) -> Workload:
    """The workload of a timm model at batch 1, from the folder if it is there. Raises as `timm_workload`."""
    path = folder / f"{name}_{input_size or 'default'}.json.gz"
    if path.is_file():
        return from_json(gzip.decompress(path.read_bytes()))
    workload = timm_workload.__wrapped__(name, input_size)  # not remembered: thousands of them fill the memory
    write_whole(path, gzip.compress(to_json(workload), 4))
    return workload


def to_json(workload: Workload) -> bytes:
    """Everything but what can be derived."""
    data = _given(workload) | {
        "tensors": [_given(tensor) for tensor in workload.tensors],
        "ops": [_given(op) | ({"window": _given(op.window)} if op.window else {}) for op in workload.ops],
    }
    return json.dumps(data, separators=(",", ":")).encode()


def from_json(content: bytes) -> Workload:
    """Inverse of `to_json`."""
    data = json.loads(content)
    data["tensors"] = tuple(Tensor(**_tuples(tensor)) for tensor in data["tensors"])
    data["ops"] = tuple(
        Op(**(_tuples(op) | ({"window": Window(**_tuples(op["window"]))} if "window" in op else {})))
        for op in data["ops"]
    )
    return Workload(**_tuples(data))


def _given(value: Any) -> dict[str, Any]:
    """Fields that differ from their default."""
    pairs = ((field, getattr(value, field.name)) for field in fields(value))
    return {field.name: given for field, given in pairs if field.default is MISSING or given != field.default}


def _tuples(data: dict[str, Any]) -> dict[str, Any]:
    return {key: _tuple(value) for key, value in data.items()}


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value
