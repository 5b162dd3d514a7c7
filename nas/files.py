"""Files that are whole or absent, and a folder that one process at a time may work in."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nas.errors import NasError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `path` so that a reader, a crash or a full disk never meets half of it. Raises NasError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):  # also where the folder may not even be looked into
            part.unlink()
        raise NasError(f"cannot write {path} ({error.strerror}); free some space or use another folder") from error


def kept_path(path: Path, folder: Path) -> str:
    """`path` as records in `folder` have it: relative to it where it lies below, so that the folder can be moved."""
    path, folder = path.resolve(), folder.resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def found_path(kept: str, folder: Path) -> Path:
    """Where the file of `kept_path` lies now. Records were absolute once: such a file is also looked for in `folder`,
    in the place that it had in the folder before that was moved (supernets/IDENTITY/..., trainings/IDENTITY/...).
    """
    path = folder / kept
    moved = folder.joinpath(*path.parts[-3:])
    return moved if not path.exists() and moved.exists() else path


@contextmanager
def sole_user(folder: Path, what: str) -> Iterator[None]:
    """Hold `folder` for this process; the kernel lets go of it however the process ends.

    Raises NasError that names the other process when there is one, or when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("a+")
    except OSError as error:
        raise NasError(f"cannot write {folder} ({error.strerror}); name a writable folder with --dir") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            user = stream.read().strip() or "another process"
            raise NasError(f"{what} is in use by {user}; wait for it, stop it, or name another with --study") from error
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        yield
