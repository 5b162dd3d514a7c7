"""Quantities that people type ('2ms', '4MB', '80%') to SI base units, and back when shown."""

from __future__ import annotations

import re

SECONDS = "seconds"
JOULES = "joules"
BYTES = "bytes"
COUNT = "count"
FRACTION = "fraction"

UNITS: dict[str, dict[str, float]] = {
    SECONDS: {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
    JOULES: {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "nJ": 1e-9},
    BYTES: {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    COUNT: {"": 1, "K": 1e3, "M": 1e6, "G": 1e9},
    FRACTION: {"": 1.0, "%": 0.01},
}
"""Quantity -> unit as written -> factor to the base unit. Case matters: mJ is not MJ."""

_SHOWN: dict[str, tuple[str, ...]] = {
    SECONDS: ("s", "ms", "us", "ns"),
    JOULES: ("J", "mJ", "uJ", "nJ"),
    BYTES: ("GB", "MB", "KB", "B"),
    COUNT: ("G", "M", "K", ""),
    FRACTION: ("%",),
}


def parse_quantity(text: str, quantity: str) -> float:
    """Value of `text` in the base unit of `quantity` (a key of UNITS).

    Raises ValueError when the number cannot be read, or the unit is unknown or missing.
    """
    units = UNITS[quantity]
    known = ", ".join(unit for unit in units if unit)
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-zµ%]*)\s*", text)
    if match is None:
        raise ValueError(f"{text.strip()!r} is not a number with a unit (units of {quantity}: {known})")
    number, unit = float(match[1]), match[2].replace("µ", "u")
    if unit not in units:
        problem = f"unit {unit!r} is unknown" if unit else f"{text.strip()!r} has no unit"
        raise ValueError(f"{problem}; write one of {known}")
    if quantity == FRACTION and number * units[unit] > 1:
        raise ValueError(f"{text.strip()!r} is more than 100%; write it as 0.8 or 80%")
    return number * units[unit]


def shown_unit(largest: float, quantity: str) -> str:
    """The unit in which `largest` reads best (between 1 and 1000 where there is one)."""
    units = _SHOWN[quantity]
    return next((unit for unit in units if abs(largest) >= UNITS[quantity][unit]), units[-1])


def format_quantity(value: float, quantity: str, unit: str | None = None) -> str:
    """Four significant digits with the unit: '1.234 ms'. `unit` fixes the unit, for columns of a table."""
    unit = shown_unit(value, quantity) if unit is None else unit
    number = f"{value / UNITS[quantity][unit]:.4g}"
    return f"{number}{unit}" if unit in ("", "%") else f"{number} {unit}"
