"""Whether the machine was at peace when something was timed, by the sentinel's times that measurements have kept.

A measurement keeps the shortest time of the sentinel (`nas.measure.timing`), a small kernel, that was known by then. A
folder that begins on a busy machine takes the busy machine for one at peace: its times agree with each other, and all
are too long. What tells is a sentinel that is faster later, or that was faster when the target's pack was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from hw_models.measurements import Measurement, list_packs, load_pack
from nas.measure import timing
from nas.progress import Narrator


def peace_s(records: Sequence[Measurement]) -> float:
    """The sentinel's time at peace, from measurements of one device; infinite where none has it."""
    return min(map(_sentinel_s, records), default=inf)


def taken_at_peace(records: Sequence[Measurement], own_s: float = inf) -> list[Measurement]:
    """Those of one device that were not taken while the machine was slower than it can be, by more than `timing.CALM`.

    own_s: the sentinel's time at peace as this process has seen it.
    """
    best_s = min(own_s, peace_s(records))
    return [record for record in records if not _was_slow(record, best_s)]


def warn_of_a_slow_machine(target: str, own_s: float, narrator: Narrator) -> None:
    """Say so where the sentinel's time at peace, `own_s`, is longer than when the target's pack was measured."""
    shipped_s = peace_s(load_pack(target)) if target in list_packs() else inf
    if own_s > timing.CALM * shipped_s:
        narrator.warn(
            f"a small kernel takes {own_s / shipped_s:.2g} times as long as when the pack {target} was measured, and "
            "all times may be as much too long: stop what else runs here, or name another --target if it is no such "
            "machine"
        )


def _sentinel_s(record: Measurement) -> float:
    return float(record.condition().get("sentinel_s", inf))


def _was_slow(record: Measurement, best_s: float) -> bool:
    seen_s = _sentinel_s(record)
    return seen_s != inf and seen_s > timing.CALM * best_s
