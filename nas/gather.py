"""The measurements of a target that a calibration learns from: the database's, and those of packs that go with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import inf

from hw_models.measurements import AGREEMENT, WIDEST, Measurement, MeasurementError, list_packs, load_pack
from nas.errors import UsageError
from nas.measure.methods import check_one_method, methods_of
from nas.measure.peace import peace_s, taken_at_peace
from nas.measure.records import MeasurementStore
from nas.measure.timing import CALM
from nas.progress import Narrator


def gather(target: str, measured: MeasurementStore, narrator: Narrator, batch: int = 1) -> list[Measurement]:
    """A target's measurements at a batch: the database's, then those of packs that it does not have.

    Those of other batches, of a slower machine (`nas.measure.peace`), or that are hardly known
    (`Measurement.is_sharp`), are left out, which is said. Packs of other software or methods than the database's, or of
    a faster machine, are left out, and so are their values where the database disagrees; both are said. Raises
    UsageError when the database itself mixes software or methods.
    """
    own = measured.of(target)
    _check_software(own, measured.url)
    check_one_method(own, measured.url)
    believed = taken_at_peace(own)
    if slow := len(own) - len(believed):
        narrator.warn(
            f"{slow} of {len(own)} measurements of {target} were taken while the machine was slower than it can be and "
            "are left out; the `nas measure` that took them takes them again"
        )
    own, others = _of_batch(_sharp(believed, narrator), batch)
    found = {record.thing: record for record in own}
    for name in list_packs():
        pack, more = _of_batch(_sharp(_pack(name, target), narrator), batch)
        others += more
        if pack and (reason := _why_not(pack, own)):
            narrator.warn(f"the pack {name} is left out: {reason}")
        else:
            _add(found, pack, name, narrator)
    if others:
        counts = Counter(record.batch for record in {record.thing: record for record in others}.values())
        listed = ", ".join(f"{count} at batch {other}" for other, count in sorted(counts.items()))
        narrator.say(f"measurements of other batches are left out: {listed} (a calibration is of one: --batch)")
    return list(found.values())


def _pack(name: str, target: str) -> list[Measurement]:
    """What a pack has of the target. Raises UsageError for a pack that cannot be read."""
    try:
        return [record for record in load_pack(name) if record.target == target]
    except MeasurementError as error:
        raise UsageError(str(error)) from error


def _why_not(pack: Sequence[Measurement], own: Sequence[Measurement]) -> str:
    """Why a pack does not go with the database's own measurements of its target; "" when it does."""
    if not own:
        return ""
    target, theirs, ours = pack[0].target, pack[0].software, own[0].software
    if theirs != ours:
        return (
            f"it was measured with {theirs}, the database's measurements of {target} with {ours}: times of different "
            "software do not mix"
        )
    if CALM * peace_s(pack) < peace_s(own) < inf:
        return (
            f"it was measured on a machine {peace_s(own) / peace_s(pack):.2g} times as fast as the database's "
            f"measurements of {target}; if it is the same machine, measure again when nothing else runs on it"
        )
    by, our_by = methods_of(pack), methods_of(own)
    if our_by and by.keys() - our_by.keys():
        return (
            f"its blocks were timed by {', '.join(map(repr, by))}, the database's of {target} by "
            f"{', '.join(map(repr, our_by))}, and times of different methods do not mix"
        )
    return ""


def _add(
    found: dict[tuple[object, ...], Measurement], pack: Sequence[Measurement], name: str, narrator: Narrator
) -> None:
    """Add a pack's measurements of what is not `found` yet, and say where it contradicts."""
    contradicted = []
    for record in pack:
        before = found.setdefault(record.thing, record)
        low, high = sorted((before.latency_s, record.latency_s))
        if high - low > AGREEMENT * high:
            contradicted.append(record)
    if contradicted:
        first = contradicted[0]
        narrator.warn(
            f"{len(contradicted)} measurements of the pack {name} are more than {AGREEMENT:.0%} off the database's "
            f"({first.subject} in {first.precision} first): the database's are used"
        )


def _sharp(records: Sequence[Measurement], narrator: Narrator) -> list[Measurement]:
    """Those that are known well enough to learn from."""
    known = [record for record in records if record.is_sharp]
    if dull := len(records) - len(known):
        narrator.say(
            f"{dull} of {len(records)} times of {records[0].target} are left out: known to no better than {WIDEST:.0%} "
            "either way"
        )
    return known


def _of_batch(records: Sequence[Measurement], batch: int) -> tuple[list[Measurement], list[Measurement]]:
    """(records of the batch, the others)."""
    own = [record for record in records if record.batch == batch]
    return own, [record for record in records if record.batch != batch]


def _check_software(records: Sequence[Measurement], url: str) -> None:
    counts = Counter(record.software for record in records)
    if len(counts) > 1:
        listed = ", ".join(f"{count} with {name}" for name, count in counts.items())
        raise UsageError(
            f"measurements of {records[0].target} in {url} come from different software ({listed}): they do not mix; "
            "measure or import again with --replace"
        )
