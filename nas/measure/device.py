"""The machine at hand: its processor, the target that describes it, and the state it is in while it measures."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nas.errors import UsageError

KNOWN_CPUS = {("AuthenticAMD", "25"): "epyc_zen3_core", ("AuthenticAMD", "26"): "epyc_zen5_core"}
"""(vendor, family) of /proc/cpuinfo -> the target that describes one core of it."""


def processor() -> dict[str, str]:
    """What /proc/cpuinfo says of the first processor; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def cpu_target(threads: int) -> str:
    """The built-in target of this machine's processor. Raises UsageError when there is none."""
    facts = processor()
    name = KNOWN_CPUS.get((facts.get("vendor_id", ""), facts.get("cpu family", "")))
    if name is None or threads != 1:
        what = facts.get("model name", "this processor")
        raise UsageError(
            f"no target describes {what} with {threads} thread{'s' * (threads > 1)}: name one with --target, a "
            "built-in one (`nas targets`) or a TOML file of your own"
        )
    return name


@contextmanager
def pinned(threads: int) -> Iterator[list[int]]:
    """Hold this process to `threads` processors, the last ones, which interrupts visit least. Yields them.

    Raises UsageError when there are not that many.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield []
        return
    before = os.sched_getaffinity(0)
    if not 1 <= threads <= len(before):
        raise UsageError(f"--threads must be 1 to {len(before)} on this machine, but is {threads}")
    chosen = sorted(before)[-threads:]
    os.sched_setaffinity(0, chosen)
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, before)


def state(processors: Sequence[int]) -> dict[str, Any]:
    """Clock, governor, temperature and load, each where it can be read. SI units; temperatures in degrees Celsius."""
    found: dict[str, Any] = {}
    first = processors[0] if processors else 0
    folder = Path(f"/sys/devices/system/cpu/cpu{first}/cpufreq")
    if (hertz := _number(folder / "scaling_cur_freq")) is not None:
        found["clock_hz"] = hertz * 1e3
    elif "cpu MHz" in (facts := processor()):
        found["clock_nominal_hz"] = float(facts["cpu MHz"]) * 1e6
    if (governor := _text(folder / "scaling_governor")) is not None:
        found["governor"] = governor
    zones = (_number(zone) for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*/temp")))
    if temperatures := [value / 1e3 for value in zones if value is not None]:
        found["temperature_c"] = max(temperatures)
    if hasattr(os, "getloadavg"):
        found["load_1min"] = round(os.getloadavg()[0], 2)
    return found


COMMIT = "NAS_COMMIT"
"""Environment variable that says which commit the source is of, for a machine where it lies without its repository."""


@cache
def commit() -> str:
    """Of this program: what NAS_COMMIT says, `git describe` where git tracks its source, else its version."""
    if os.environ.get(COMMIT):
        return os.environ[COMMIT]
    source = Path(__file__).resolve()
    git = ["git", "-C", str(source.parent)]
    with suppress(OSError):  # no git on this machine
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", source.name], capture_output=True, check=False)
        if not tracked.returncode:
            described = [*git, "describe", "--always", "--dirty"]
            said = subprocess.run(described, capture_output=True, text=True, check=False).stdout.strip()
            if said:
                return said
    try:
        return f"nas {version('nas')}"
    except PackageNotFoundError:
        return "nas, not installed"


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _number(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None
