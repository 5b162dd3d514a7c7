"""What number formats are worth on a GPU: blocks of the space in fp16, bf16, int8 and fp32, beside the cost model.

    python -m benchmarks.gpu_precisions --dir FOLDER --measure --minutes 2      # on the GPU; it needs no database
    python -m benchmarks.gpu_precisions --dir FOLDER --out studies/results      # the study, anywhere

FOLDER is one of `benchmarks.gpu_pack`: its blocks are taken in their order, those of which every matrix product has an
int8 kernel in torch (`nas.measure.int8`). In w8a8 a block holds the roundings before its products.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_pack import DESIGN
from benchmarks.packs import TimesFile, export, load_jobs, measure
from benchmarks.provenance import measured_on, provenance, write_result
from hw_models import load_target
from hw_models.measurements import Measurement
from nas.errors import NasError
from nas.measure.int8 import quantize_
from nas.measure.jobs import Job
from nas.subjects import Subject, measured_workload

PRECISIONS = ("fp16", "bf16", "w8a8", "fp32")

COLUMNS = (
    "what", "macs", "fp16_us", "spread", "bf16/fp16", "w8a8/fp16", "fp32/fp16", "model bf16/fp16", "model w8a8/fp16",
    "model fp32/fp16",
)  # fmt: skip


def chosen(folder: Path, count: int) -> list[Subject]:
    """The first blocks of the space in the folder's order that can be multiplied in int8."""
    found = []
    for subject in dict.fromkeys(job.subject for job in load_jobs(folder, DESIGN)):
        if subject.kind != "block" or json.loads(subject.description)["part"] != "MetaFormerBlock":
            continue
        try:
            quantize_(subject.build()[0])
        except NasError:
            continue
        found.append(subject)
        if len(found) == count:
            break
    return found


def rows_of(subjects: Sequence[Subject], times: Sequence[Measurement], batch: int) -> list[dict[str, Any]]:
    """A row per block that was timed in every format: ratios of measured times, and of the cost model's."""
    from nas.calibrate import record_units  # which needs a database
    from nas.measure.gap import described

    target = load_target(DESIGN.target)
    known = {(record.subject, record.precision): record for record in times if record.batch == batch}
    rows = []
    for subject in subjects:
        records = [known.get((subject.name, precision)) for precision in PRECISIONS]
        own = [record for record in records if record is not None]
        if len(own) < len(PRECISIONS):
            continue
        first = own[0]
        row: dict[str, Any] = {"what": described(subject), "macs": measured_workload(first).macs, "block": subject.name}
        row |= {"fp16_us": 1e6 * first.latency_s, "spread": max(record.spread_s / record.latency_s for record in own)}
        seconds = [float(record_units(record, target).seconds.sum()) for record in own]
        for record, predicted_s in zip(own[1:], seconds[1:], strict=True):
            row[f"{record.precision}/fp16"] = record.latency_s / first.latency_s
            row[f"model {record.precision}/fp16"] = predicted_s / seconds[0]
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--measure", action="store_true", help="time what the folder lacks")
    parser.add_argument("--minutes", type=float, help="when to stop, opening of graphs included")
    parser.add_argument("--workers", type=int, help="processes that compile [default: processors less 2]")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, help="of the study")
    parser.add_argument("--export", type=Path, help="write the pack with these times behind its own")
    args = parser.parse_args()
    subjects = chosen(args.dir, args.blocks)
    jobs = [Job(subject, precision, args.batch) for subject in subjects for precision in PRECISIONS]
    if args.measure:
        from nas.measure.cuda import CudaDevice

        measure(jobs, CudaDevice(args.workers), DESIGN.target, args.dir, args.minutes, prepare_only=False)
    if args.export is not None:
        every = dict.fromkeys([*load_jobs(args.dir, DESIGN), *jobs])
        export(list(every), DESIGN, args.dir, args.export)
    if args.out is not None:
        times = TimesFile(args.dir).of(DESIGN.target)
        rows = rows_of(subjects, times, args.batch)
        result = {
            "what": f"the same blocks of metaformer in four number formats at batch {args.batch}, compiled",
            **provenance(),
            **measured_on(times[-1]),
            "sample": f"{len(rows)} blocks, the first of the pack's design of which every product has an int8 kernel",
        }
        result |= {
            f"median {kind}{precision}/fp16": float(np.median([row[f"{kind}{precision}/fp16"] for row in rows]))
            for precision in PRECISIONS[1:]
            for kind in ("", "model ")
        }
        write_result(args.out / "gpu_precisions", result | {"blocks": rows}, columns=COLUMNS, rows="blocks")


if __name__ == "__main__":
    main()
