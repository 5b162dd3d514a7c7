"""How blocks were timed: times of two methods mean different things, so one target holds those of one.

A block's time is what it adds to a network. What its graph pays besides (the call, the reorders of its map at either
end) depends on what stands around it, and so does the layout that its kernels choose: see `nas.measure.jobs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hw_models.measurements import Measurement
from nas.errors import UsageError
from nas.measure.jobs import Job, is_chained
from nas.measure.records import MeasurementStore

UNNAMED = "no method that is named"


def method_of(record: Measurement) -> str | None:
    """How a block was timed that fits behind itself; None for networks and other parts, which are timed in one way."""
    if record.kind != "block" or not is_chained(record.described()):
        return None
    return str(record.condition().get("method") or UNNAMED)


def methods_of(records: Iterable[Measurement]) -> dict[str, int]:
    """Method -> number of blocks, in the order in which they occur."""
    counts: dict[str, int] = {}
    for record in records:
        method = method_of(record)
        if method is not None:
            counts[method] = counts.get(method, 0) + 1
    return counts


def check_one_method(records: Sequence[Measurement], where: str) -> None:
    """Raises UsageError when blocks of one target were timed by several methods."""
    counts = methods_of(records)
    if len(counts) > 1:
        listed = ", ".join(f"{count} by {method!r}" for method, count in counts.items())
        raise UsageError(
            f"blocks of {records[0].target} in {where} were timed in different ways ({listed}), which do not mix: "
            "measure or import again with --replace, or give one a target name of its own"
        )


def refuse_other_methods(store: MeasurementStore, target: str, methods: Iterable[str], *, replace: bool) -> int:
    """Blocks that are to come, timed by `methods`, do not join blocks of the target that were timed otherwise.

    replace: drop those instead; returns how many. Raises UsageError otherwise.
    """
    new = set(methods)
    if not new:
        return 0
    others = [record for record in store.of(target) if (method_of(record) or next(iter(new))) not in new]
    if others and replace:
        store.drop(others)
    elif others:
        raise UsageError(
            f"{target} has {len(others)} blocks timed by {method_of(others[0])!r}, these are timed by "
            f"{', '.join(sorted(repr(method) for method in new))}: times of different methods do not mix; drop the old "
            "ones with --replace, or name another --target"
        )
    return len(others)


def methods_asked(jobs: Iterable[Job]) -> set[str]:
    """The methods by which the chained blocks among jobs will be timed."""
    return {job.method for job in jobs if job.is_chained}
