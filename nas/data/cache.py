"""Decoded images on disk, so that the next run starts at once. A lost or damaged file costs only time."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from nas.data.decode import Decoded

_FORMAT = 1


def cache_key(content: dict[str, Any]) -> str:
    """Name of the cached result of decoding `content`; another Pillow may decode to other bytes."""
    text = json.dumps([_FORMAT, PIL.__version__, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_cached(folder: Path, key: str) -> Decoded | None:
    """What `write_cached` stored, or None when it is absent or damaged (each array has a checksum)."""
    try:
        # Opened here: given a path, np.load leaves a file open that it finds damaged.
        with (folder / f"{key}.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            images = arrays["images"] if facts["kept"] else None
            good = arrays["good"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return Decoded(images, good, tuple((row, reason) for row, reason in facts["bad"]), facts["in_chans"])


def write_cached(folder: Path, key: str, decoded: Decoded) -> None:
    """Store whole or not at all. Raises OSError when the disk is full or the folder not writable."""
    facts = {"kept": decoded.images is not None, "bad": decoded.bad, "in_chans": decoded.in_chans}
    facts_bytes = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    images = decoded.images if decoded.images is not None else np.empty(0, np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{key}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as file:
            np.savez(file, facts=facts_bytes, good=decoded.good, images=images)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / f"{key}.npz")
    finally:
        temporary.unlink(missing_ok=True)
