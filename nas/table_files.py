"""Tables on disk: whole or absent, for exactly the program, target and space that made them.

A file that cannot be read, or is not what its name says, is made anew: nothing is lost but time.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import hw_models
import search_spaces
from hw_models import Target
from hw_models.population import COLUMNS
from nas.errors import NasError
from nas.files import write_whole
from search_spaces.space import SearchSpace

Rows = tuple[NDArray[np.int64], NDArray[np.float64]]
"""(codes [rows], figures [rows, len(COLUMNS)]) of one table."""


@lru_cache(maxsize=1)
def code_version() -> str:
    """Hash of every source that a cost passes through, and of torch, whose tracing they build on."""
    digest = hashlib.sha256(torch.__version__.encode())
    folders = [Path(str(package.__file__)).parent for package in (hw_models, search_spaces)]
    sources = [source for folder in folders for source in sorted(folder.rglob("*.py"))]
    sources += [
        Path(__file__).with_name(f"{name}.py") for name in ("aten", "bits", "meta_results", "part_rows", "trace")
    ]
    for source in sources:
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()


class TableFile:
    """The file of the tables of one space on one target in `folder`."""

    def __init__(self, folder: Path, space: SearchSpace, target: Target, num_classes: int, in_chans: int) -> None:
        described = {choice.name: list(choice.values) for choice in space.choices}
        content = (
            space.to_dict(), described, target.content(), num_classes, in_chans, COLUMNS, code_version()
        )  # fmt: skip
        self.identity = hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()
        self.path = folder / f"{space.name}_{target.name}_{self.identity[:16]}.npz"

    def read(self) -> dict[str, Rows]:
        """Table name -> its rows; empty when there is no file, or none that can be used."""
        try:
            with np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False) as stored:
                if str(stored["identity"]) != self.identity:
                    return {}
                names = [name.removesuffix(":codes") for name in stored.files if name.endswith(":codes")]
                tables = {name: (stored[f"{name}:codes"], stored[f"{name}:rows"]) for name in names}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return {}
        sound = all(
            codes.ndim == 1 and rows.shape == (len(codes), len(COLUMNS)) and np.isfinite(rows).all()
            for codes, rows in tables.values()
        )
        return tables if sound else {}

    def add(self, tables: Mapping[str, Rows]) -> None:
        """Add rows to what the file has by now, which another process may have written meanwhile.

        A folder that cannot be written costs only the time of the next run, so it is not an error.
        """
        try:
            with self._alone():
                known = self.read()
                merged = known | {name: _union(known.get(name), rows) for name, rows in tables.items()}
                stream = io.BytesIO()
                arrays: dict[str, Any] = {"identity": np.array(self.identity)}
                for name, (codes, rows) in merged.items():
                    arrays |= {f"{name}:codes": codes, f"{name}:rows": rows}
                np.savez(stream, **arrays)
                write_whole(self.path, stream.getvalue())
        except (OSError, NasError):
            return

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One writer at a time; the kernel lets go of the lock however the process ends."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with (self.path.parent / ".lock").open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _union(old: Rows | None, new: Rows) -> Rows:
    if old is None:
        return new
    fresh = ~np.isin(new[0], old[0])
    return np.concatenate([old[0], new[0][fresh]]), np.concatenate([old[1], new[1][fresh]])
