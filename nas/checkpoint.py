"""Checkpoints: safetensors files with a JSON header, written whole or not at all, checked when read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from nas.errors import NasError


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write `tensors` and `header` (JSON-able) to `path`, replacing what was there in one move.

    The header gains `digest`, a SHA-256 over names, shapes and bytes. Raises NasError when the file cannot be written.
    """
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = json.dumps({**header, "digest": _digest(plain)}, sort_keys=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(plain, part, metadata={"nas": content})
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except Exception as error:  # safetensors raises its own class for a full disk
        with suppress(OSError):
            part.unlink()
        raise NasError(f"cannot write {path}: {_reason(error)}; free some space or choose another folder") from error


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors on the CPU, header) of a file that `save_checkpoint` wrote.

    Raises NasError when the file is cut short, changed, or something else.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            content = (file.metadata() or {}).get("nas")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        header = json.loads(content) if content is not None else None
    except Exception as error:
        raise NasError(f"{path} cannot be read ({_reason(error)}); delete it to make it anew") from error
    if not isinstance(header, dict) or header.get("digest") != _digest(tensors):
        raise NasError(f"{path} is damaged or was changed (its digest does not match); delete it to make it anew")
    return tensors, header


def load_header(path: Path) -> dict[str, Any]:
    """The header alone, quickly; whether the tensors are whole is not looked at. Raises NasError for another file."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["nas"])
    except Exception as error:
        raise NasError(f"{path} cannot be read ({_reason(error)}); delete it to make it anew") from error
    return dict(header)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(-1).numpy().tobytes())
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
