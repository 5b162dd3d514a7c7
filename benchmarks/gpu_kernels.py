"""Which kernels a compiled network runs on a GPU, and how long each takes: what the target h200 is described by.

    python -m benchmarks.gpu_kernels --dir FOLDER --profile kernels.txt          # on the GPU; it needs no database
    python -m benchmarks.gpu_kernels --read kernels.txt --out studies/results    # the study, anywhere

FOLDER is one of `benchmarks.gpu_pack`. Of some of its blocks and networks, at batch 1 and 64 in fp16, every kernel is
listed as torch's profiler sees it in one run without a CUDA graph, beside what the pack says of the same thing as a
CUDA graph. A second table has the blocks of the pack whose predicted time depends on what the target says of windows
without a fast kernel and of norms over many elements: measured, and predicted with and without it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_pack import DESIGN
from benchmarks.packs import load_jobs
from benchmarks.provenance import measured_on, provenance, write_result
from hw_models import load_target
from hw_models.measurements import Measurement, load_pack

SUBJECTS = (
    "mobilenetv2_100", "block:18df7d0825a9", "block:8fc209a4a4bd", "block:97016de99994", "block:50d49f704d39",
    "block:f99005a8803c", "arch:ffee1fa031eab897", "arch:ebd3c8b98216cc5c",
)  # fmt: skip
"""Of the pack: a network of timm, five blocks of different mixers, the first two networks drawn from the space."""

SORTS = {
    "loops": "^triton_",
    "copies": "tensorTransform|elementwise_kernel|^Memset|^Memcpy",
    "depthwise": "conv2d_c1|depthwise|grouped_direct|convolve_common_engine",
    "products": "",
}
"""Sort of kernel -> what its name holds; the first that fits. Products are all the rest, of whichever library."""

WARM_UP_RUNS = 5


@dataclass(frozen=True)
class Profile:
    """Kernels of one run of a subject: microseconds and names."""

    subject: str
    batch: int
    kernels: tuple[tuple[float, str], ...]

    def text(self) -> str:
        lines = [f"{microseconds:.1f} {name}" for microseconds, name in self.kernels]
        return "\n".join([f"## {self.subject} {self.batch}", *lines, ""])


def read_profiles(text: str) -> list[Profile]:
    """Inverse of `Profile.text`, of several."""
    found = []
    for piece in text.split("## ")[1:]:
        head, *lines = (line for line in piece.splitlines() if line.strip())
        subject, batch = head.split()[:2]
        kernels = tuple((float(line.split()[0]), line.split(maxsplit=1)[1]) for line in lines)
        found.append(Profile(subject, int(batch), kernels))
    return found


def sort_of(kernel: str) -> str:
    return next(sort for sort, words in SORTS.items() if re.search(words, kernel))


def profile(folder: Path, path: Path) -> None:
    """Run every subject under torch's profiler, and write what it saw."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from nas.measure.cuda import DTYPES, allow_many_graphs, compiled, on_gpu, random_image, require_cuda
    from nas.measure.graphs import randomize_

    require_cuda()
    allow_many_graphs()
    subjects = {job.subject.name: job.subject for job in load_jobs(folder, DESIGN)}
    with path.open("w", encoding="utf-8") as out:
        for name in SUBJECTS:
            module, shape = subjects[name].build()
            module = on_gpu(randomize_(module, 0), DTYPES["fp16"])
            for precision, batch in DESIGN.formats:
                image = random_image((batch, *shape[1:]), DTYPES[precision])
                run = compiled(module)
                with torch.no_grad():
                    for _ in range(WARM_UP_RUNS):
                        run(image)
                    torch.cuda.synchronize()
                    with profiler(activities=[ProfilerActivity.CUDA]) as seen:
                        run(image)
                        torch.cuda.synchronize()
                events = [event for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
                kernels = tuple((float(event.device_time), str(event.name)) for event in events)
                out.write(Profile(name, batch, kernels).text())


def records() -> dict[tuple[str, int], Measurement]:
    """(subject, batch) -> what the pack says of it in fp16."""
    every = (*load_pack(DESIGN.target), *load_pack(f"{DESIGN.target}_networks"))
    return {(record.subject, record.batch): record for record in every if record.precision == "fp16"}


def row_of(one: Profile, graph_us: float) -> dict[str, Any]:
    """A subject at a batch: its kernels by sort, in number and microseconds, beside its time as a graph."""
    times = {sort: [us for us, name in one.kernels if sort_of(name) == sort] for sort in SORTS}
    row: dict[str, Any] = {"subject": one.subject, "batch": one.batch, "kernels": len(one.kernels)}
    row |= {"sum_us": sum(us for us, _ in one.kernels), "graph_us": graph_us}
    for sort, own in times.items():
        row |= {sort: len(own), f"{sort}_us": sum(own), f"{sort}_shortest_us": min(own, default=None)}
    return row | {"all": [list(kernel) for kernel in one.kernels]}


def study(profiles: Sequence[Profile]) -> dict[str, Any]:
    """All profiles, and what is typical of kernels at batch 1."""
    pack = records()
    single = [kernel for one in profiles if one.batch == 1 for kernel in one.kernels]
    return {
        "what": "kernels of compiled blocks and networks on a GPU, as torch's profiler saw one run of each in fp16",
        **provenance(),
        **measured_on(pack[profiles[0].subject, 1]),
        "sample": "one run each, launched one by one: single kernels scatter, those between copies take up to a fifth "
        "longer than in a graph, and the compiler chose between forms of its loops beside other work",
        **{
            f"median of {sort} at batch 1, us": float(np.median([us for us, name in single if sort_of(name) == sort]))
            for sort in SORTS
        },
        "profiles": [row_of(one, 1e6 * pack[one.subject, one.batch].latency_s) for one in profiles],
    }


def special_cases() -> dict[str, Any]:
    """Blocks whose time depends on `Runtime.unfit_s` or on the sums of norms: measured, predicted with and without."""
    from nas.calibrate import record_units  # which needs a database

    target = load_target(DESIGN.target)
    serial_s = {family: per for family, per in target.overhead.serial_s.items() if family != "norm"}
    plain = {
        "windows": replace(target, runtime=replace(target.runtime, unfit_s={})),
        "norms": replace(target, overhead=replace(target.overhead, serial_s=serial_s)),
    }
    rows = []
    for record in records().values():
        if record.kind != "block":
            continue
        found = 1e6 * record_units(record, target).seconds.sum()
        for what, without in plain.items():
            less = 1e6 * record_units(record, without).seconds.sum()
            if found > 1.02 * less:
                rows.append(
                    _named(record)
                    | {"batch": record.batch, "depends on": what, "measured_us": 1e6 * record.latency_s}
                    | {"without_us": float(less), "with_us": float(found)}
                )
    return {
        "what": "blocks of the pack in fp16 whose predicted time depends on runtime.unfit_s (windows) or on "
        "overhead.serial_s.norm (norms): measured, predicted without it, predicted with it; uncalibrated",
        **provenance(),
        **measured_on(next(iter(records().values()))),
        "blocks": sorted(rows, key=lambda row: (row["depends on"], row["batch"], row["what"])),
    }


def _named(record: Measurement) -> dict[str, Any]:
    """A block in words: where it is from, and the map it reads."""
    part = record.described()
    arguments = part["arguments"]
    words = (arguments.get("model", arguments.get("mixer", part["part"])), arguments.get("module", ""))
    return {
        "block": record.subject,
        "what": " ".join(words).strip(),
        "channels": part["channels"],
        "size": part["size"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, help="folder of benchmarks.gpu_pack")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="profile on this GPU, and write FILE")
    parser.add_argument("--read", type=Path, metavar="FILE", help="make the study of what was profiled")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    args = parser.parse_args()
    if args.profile is not None:
        profile(args.dir, args.profile)
    if args.read is not None:
        result = study(read_profiles(args.read.read_text(encoding="utf-8")))
        columns = [column for column in result["profiles"][0] if column != "all"]
        write_result(args.out / f"{DESIGN.target}_kernels", result, columns=columns, rows="profiles")
        result = special_cases()
        write_result(args.out / f"{DESIGN.target}_windows", result, columns=list(result["blocks"][0]), rows="blocks")


if __name__ == "__main__":
    main()
