"""How fast the machine was when something was timed: a sentinel's time at peace, as measurements have kept it.

A folder that begins on a busy machine takes the busy machine for one at peace: all its times spread little, and all are
too long. What tells is a sentinel that is faster later, or that was faster when the target's pack was measured.
"""

from __future__ import annotations

from collections.abc import Sequence

from hw_models.measurements import Measurement, list_packs, load_pack
from nas.measure.timing import CALM
from nas.progress import Narrator


def best_s(records: Sequence[Measurement]) -> float:
    """The sentinel's time at peace, from measurements of one device; infinite where none has it."""
    return min(map(sentinel_s, records), default=float("inf"))


def sentinel_s(record: Measurement) -> float:
    return float(record.condition().get("sentinel_s", float("inf")))


def taken_at_peace(records: Sequence[Measurement]) -> list[Measurement]:
    """Without those that were taken while the sentinel's time at peace passed for longer than others have seen it by
    more than the factor CALM."""
    most = CALM * best_s(records)
    return [record for record in records if not most < sentinel_s(record) < float("inf")]


def warn_of_a_slow_machine(target: str, own_s: float, narrator: Narrator) -> None:
    """Say so where the sentinel's time at peace, `own_s`, is longer than when the target's pack was measured."""
    shipped_s = best_s(load_pack(target)) if target in list_packs() else float("inf")
    if own_s > CALM * shipped_s:
        narrator.warn(
            f"a small kernel takes {own_s / shipped_s:.2g} times as long as when the pack {target} was measured: other "
            f"programs or guests have this machine, or it is not a {target}; its times would be too long"
        )
