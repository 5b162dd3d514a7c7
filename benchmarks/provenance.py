"""Where a figure comes from: commit, date, machine, command; and how results are written."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hw_models.measurements import Measurement


def provenance() -> dict[str, str]:
    """Commit, date, machine, versions and command of this run."""
    import torch

    from nas.measure.device import commit

    return {
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "command": " ".join(["python -m benchmarks." + Path(sys.argv[0]).stem, *map(_placeless, sys.argv[1:])]),
    }


def measured_on(record: Measurement) -> dict[str, str]:
    """Runtime, processor, date and commit of measurements, of which `record` is one, taken as CUDA graphs."""
    processor = record.condition().get("processor", "a GPU")
    return {
        "runtime": f"{record.runtime} {record.runtime_version}, CUDA graphs",
        "measured on": f"{processor}, {record.date[:10]}, commit {record.commit}",
    }


def _placeless(word: str) -> str:
    """An absolute path, also behind `--name=`, says nothing to who repeats the command elsewhere."""
    name, equals, value = word.rpartition("=")
    return name + equals + "FOLDER" if Path(value).is_absolute() else word


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write_result(path: Path, result: dict[str, Any], columns: Sequence[str], rows: str = "networks") -> None:
    """`path`.json with everything, `path`.md with the head and a table of `columns` of `result[rows]`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    lines = [f"# {path.name}", ""]
    lines += [f"- {key}: {value}" for key, value in result.items() if key != rows]
    lines += ["", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in result[rows]]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
