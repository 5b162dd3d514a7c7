"""What was measured, in lines for a person."""

from __future__ import annotations

from hw_models.measurements import Measurement
from nas.measure.session import Outcome
from nas.units import SECONDS, format_quantity


def measured_text(outcome: Outcome, where: str = "") -> str:
    """One line per measurement, then what is left to do. where: options that lead to the same database."""
    lines = [_line(record) for record in outcome.measured]
    done = f"{len(outcome.measured)} measured"
    if outcome.known:
        done += f", {outcome.known} known before"
    if outcome.left:
        done += f", {outcome.left} left: the same command goes on"
    lines.append(done)
    if outcome.measured:
        lines.append(f"all of them: nas measure export --target {outcome.measured[0].target}{where}")
    return "\n".join(lines)


def _line(record: Measurement) -> str:
    what = record.subject
    if record.kind == "block":
        described = record.described()
        arguments = described["arguments"]
        mixer = arguments.get("mixer", "")
        kernel = arguments.get("kernel", "") or ""
        what = f"{mixer or described['part']}{kernel if mixer else ''} {described['channels']}x{record.input_size}"
    latency, low, high = (format_quantity(value, SECONDS) for value in (record.latency_s, record.low_s, record.high_s))
    return f"{what:<40} {record.precision:<5} {latency:>10}  ({low} to {high})"
