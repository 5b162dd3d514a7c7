"""The latency that steers a search, of one image: a target's newest calibration at batch 1 where it has one, else the
cost model's; and it says which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.errors import UsageError
from nas.progress import Narrator
from nas.spec import StudySpec
from nas.units import SECONDS, format_quantity

if TYPE_CHECKING:
    from hw_models import CostReport, PartCost, Target
    from hw_models.calibration import CalibratedLatency
    from nas.calibrations import Stored

PLAIN = "none"
"""Name, in a study's settings, of the cost model without calibration."""

UNCALIBRATED = "uncalibrated: as the cost model predicts it, not measured"


def uncalibrated(target: str) -> str:
    """What is said of a latency on a target without calibration, and the command that makes one."""
    return f"{UNCALIBRATED} (`{calibrate_command(target)}`)"


def calibrate_command(target: str) -> str:
    """For a target by its name."""
    from hw_models.target_file import target_argument

    return f"nas calibrate --target {target_argument(target)}"


@dataclass(frozen=True)
class TargetLatency:
    """A target's calibrated latency. risk: as in `SearchSpec`."""

    stored: Stored
    model: CalibratedLatency
    risk: float | None

    @classmethod
    def of(cls, stored: Stored, target: Target, risk: float | None = None) -> TargetLatency:
        """Raises UsageError for a calibration of other figures of the target, or of another version."""
        try:
            return cls(stored, stored.calibration.model(target), risk)
        except ValueError as error:
            raise UsageError(str(error)) from error

    @property
    def identity(self) -> str:
        """What of it decides a figure."""
        return f"{self.stored.calibration.identity} {self.risk}"

    def summary(self, parts: Sequence[PartCost]) -> dict[str, Any]:
        """Entries of a cost summary: what replaces the cost model's latency, its interval, and where it is from."""
        seconds = self.model.network_s(parts)
        low_s, high_s = self.model.interval(seconds)
        shown_s = float(seconds[0]) if self.risk is None else self.model.upper(seconds, self.risk)
        return {
            "latency_s": shown_s,
            "latency_expected_s": float(seconds[0]),
            "latency_low_s": low_s,
            "latency_high_s": high_s,
            "calibration": self.about,
        }

    @property
    def about(self) -> str:
        kind = f"calibration {self.stored.name}: {self.stored.calibration.about}"
        return kind if self.risk is None else f"{kind}; shown is what {self.risk:.0%} of latencies stay below"


def target_latency(target: Target, folder: Path, url: str | None, name: str | None = None) -> TargetLatency | None:
    """A target's latency by the calibration of that name (`PLAIN`: none), by default its newest; None without one.

    Raises UsageError for a name that is not known and for a calibration that is no longer right.
    """
    found, _ = _find((name,) if name else (), {target.name: target}, folder, url)
    return TargetLatency.of(found[target.name], target) if target.name in found else None


def calibrated(
    spec: StudySpec, targets: Mapping[str, Target], folder: Path, url: str | None, narrator: Narrator
) -> tuple[StudySpec, dict[str, TargetLatency]]:
    """(the spec with the calibrations it uses by name, target name -> calibrated latency).

    Raises UsageError when a named calibration is missing, or a risk is asked for without one.
    """
    risk, wanted = spec.search.risk, spec.search.calibrations
    found, batches = _find(wanted, targets, folder, url)
    latencies = {}
    for name in targets:
        stored = found.get(name)
        if stored is None:
            if risk is not None:
                raise UsageError(
                    f"--risk needs to know how far the latency of {name} is off: run `{calibrate_command(name)}` first"
                )
            narrator.say(f"latency on {name} is {uncalibrated(name)}")
            if batches.get(name):
                listed = ", ".join(map(str, batches[name]))
                narrator.say(f"its calibration at batch {listed} is not used: a search's latency is of one image")
            continue
        try:
            latencies[name] = TargetLatency.of(stored, targets[name], risk)
        except UsageError as error:
            begun = (
                f"calibration {stored.name}, which this study began with, is of other figures of {name}, or of another "
                f"version of this program: restore the target's file, use that version, or search again"
            )
            raise UsageError(begun if wanted else str(error)) from error
        if risk is not None and risk > (most := latencies[name].model.most_risk):
            raise UsageError(
                f"the {stored.calibration.about} tell of a risk up to {floor(1000 * most) / 1000:g}, not of {risk:g}: "
                "give a smaller --risk, or measure more"
            )
        narrator.say(f"latency on {name}: {latencies[name].about}")
        if stored.misorders:
            without = " ".join([f"--calibration {PLAIN}"] * len(targets))
            narrator.warn(
                f"calibration {stored.name} orders held-out measurements worse than the cost model does: look at its "
                f"report (`{calibrate_command(name)}`), or go on without: {without}"
            )
    names = tuple(latencies[name].stored.name if name in latencies else PLAIN for name in targets)
    return replace(spec, search=replace(spec.search, calibrations=names)), latencies


def _find(
    wanted: Sequence[str], targets: Mapping[str, Target], folder: Path, url: str | None
) -> tuple[dict[str, Stored], dict[str, list[int]]]:
    """(target name -> calibration: those named, or the newest; target name -> other batches it is calibrated at).

    Makes no database where there is none. Raises UsageError for a named one that is not of one image.
    """
    if wanted and len(wanted) != len(targets):
        raise UsageError(
            f"search.calibrations must name one a target, or '{PLAIN}': there are {len(targets)} targets, but "
            f"{len(wanted)} calibrations"
        )
    if all(name == PLAIN for name in wanted) and wanted:
        return {}, {}
    if url is None and not (folder / "nas.db").exists():
        if wanted:
            raise UsageError(f"no calibration {wanted[0]!r}: there is no database in {folder}; see `nas calibrate`")
        return {}, {}
    from nas.calibrations import CalibrationStore
    from nas.store import Store

    with closing(Store(folder, url, create=True)) as store:
        calibrations = CalibrationStore(store)
        if wanted:
            pairs = zip(targets, wanted, strict=True)
            named = {target: calibrations.named(name) for target, name in pairs if name != PLAIN}
            for target, stored in named.items():
                if stored.calibration.target != target:
                    raise UsageError(
                        f"calibration {stored.name} is of {stored.calibration.target}, not of {target}: name another"
                    )
                if stored.calibration.batch != 1:
                    raise UsageError(
                        f"calibration {stored.name} is of {stored.calibration.batch} images at once, but a search's "
                        "latency is of one: name one that `nas calibrate` makes at --batch 1"
                    )
            return named, {}
        newest = {target: calibrations.newest(target) for target in targets}
        batches = {target: calibrations.batches(target) for target in targets}
    return {target: stored for target, stored in newest.items() if stored is not None}, batches


def describe(report: CostReport, summary: Mapping[str, Any]) -> CostReport:
    """A cost report with the latency of a cost summary, and in `accuracy` where that is from."""
    if "calibration" not in summary:
        return replace(report, accuracy=f"{UNCALIBRATED}; {report.accuracy}")
    return replace(
        report,
        latency_s=summary["latency_s"],
        latency_low_s=summary["latency_low_s"],
        latency_high_s=summary["latency_high_s"],
        calibration=summary["calibration"],
        accuracy=f"{interval_text(summary)}; {summary['calibration']}",
    )


def interval_text(summary: Mapping[str, Any]) -> str:
    low, high = (format_quantity(summary[key], SECONDS) for key in ("latency_low_s", "latency_high_s"))
    return f"90 percent interval {low} to {high}"


def latency_claims(costs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the latencies of a trial's costs are, a line per target."""
    lines = []
    for target, summary in costs.items():
        if "calibration" in summary:
            lines.append(
                f"Latency on {target} is predicted by {summary['calibration']}; e.g. {interval_text(summary)}."
            )
        else:
            lines.append(f"Latency on {target} is {uncalibrated(target)}.")
    return lines
