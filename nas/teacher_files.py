"""What the word of a teacher (`nas.teacher.load_teacher` reads it) names on this machine: its files and their content.
Needs no torch.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from nas.errors import UsageError

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


def full_teacher(word: str) -> str:
    """`word` with the folder or the FILE of NAME:FILE made absolute; the name of a timm model is left as it is.

    Raises UsageError when the folder or the file is not there.
    """
    name, colon, file = word.partition(":")
    if Path(word).is_dir():
        return str(Path(word).resolve())
    if colon:
        _require(Path(file), word)
        return f"{name}:{Path(file).resolve()}"
    if "/" in word:
        raise _absent(Path(word), word)
    return word


def teacher_identity(word: str) -> str:
    """Sixteen hexadecimal digits of all that `word` names in files, wherever they lie; a bare name is its own identity.

    A folder is its configuration and weights; NAME:FILE is the name and the weights. Raises UsageError when one is not
    there.
    """
    name, colon, file = word.partition(":")
    if Path(word).is_dir():
        paths, parts = [Path(word) / _CONFIG, Path(word) / _WEIGHTS], []
    elif colon:
        paths, parts = [Path(file)], [name]
    else:
        return word
    for path in paths:
        _require(path, word)
        parts.append(_content(path.resolve(), path.stat().st_mtime_ns, path.stat().st_size))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _require(path: Path, word: str) -> None:
    if not path.is_file():
        raise _absent(path, word)


def _absent(path: Path, word: str) -> UsageError:
    return UsageError(
        f"there is no {path}, which the teacher {word!r} needs; put it back, or give a folder that nas export wrote, "
        "or NAME:FILE.safetensors"
    )


@lru_cache(maxsize=64)
def _content(path: Path, mtime_ns: int, size: int) -> str:
    """SHA-256 of a file; read once as long as it is not written again."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
