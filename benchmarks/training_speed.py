"""Training steps of networks alone, with and without torch.compile: python -m benchmarks.training_speed

A network of median macs of each preset is trained by `nas.standalone` on generated images, on the GPU where there is
one (bf16 autocast), else on the processor. A step is timed from the end of the one before, after warm-up steps in which
torch.compile works; `first_s` is what those took. `pays_after` is the number of steps after which compiling has paid.
"""

from __future__ import annotations

import argparse
import time
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.provenance import provenance, write_result
from nas.cost import part_workload
from nas.data.bundle import DataBundle
from nas.data.load import load_data
from nas.spec import TrainSpec
from nas.standalone import train_alone
from search_spaces import load_space
from search_spaces.architecture import Architecture
from search_spaces.parts import network_parts

CASES = {"small": (32, 64), "mobile": (160, 128)}
"""Preset -> resolution in pixels, batch size."""

WARM_UP_STEPS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="timed steps")
    parser.add_argument("--out", type=Path, default=Path("studies/results/training_speed"))
    options = parser.parse_args()
    rows = []
    for preset, (resolution, batch) in CASES.items():
        space = load_space("metaformer", preset, choices={"resolution": [resolution]})
        data = load_data(f"procedural:size={resolution},train=2000", resolution=resolution)
        arch, macs = median_network([space.decode(space.sample(np.random.default_rng(seed))) for seed in range(51)])
        row: dict[str, Any] = {"preset": preset, "network": str(arch), "macs": macs, "batch": batch}
        for way, compiled in (("eager", False), ("compiled", True)):
            spec = TrainSpec(steps=WARM_UP_STEPS + options.steps, batch_size=batch, compile=compiled)
            row |= {f"{way}_{key}": value for key, value in timed(arch, data, spec).items()}
        row["ratio"] = row["eager_step_s"] / row["compiled_step_s"]
        saved_s, spent_s = row["eager_step_s"] - row["compiled_step_s"], row["compiled_first_s"] - row["eager_first_s"]
        row["pays_after"] = spent_s / saved_s if saved_s > 0 else inf
        rows.append(row)
        print(row, flush=True)
    on = torch.cuda.get_device_name() if torch.cuda.is_available() else "processor"
    result = {"what": f"seconds of a training step on {on}", **provenance(), "networks": rows}
    write_result(options.out, result, list(rows[0]))


def median_network(drawn: list[Architecture]) -> tuple[Architecture, int]:
    """That of median macs, and these."""
    macs = [sum(part_workload(part).macs for part in network_parts(arch, 10, 3)) for arch in drawn]
    middle = int(np.argsort(macs)[len(macs) // 2])
    return drawn[middle], macs[middle]


def timed(arch: Architecture, data: DataBundle, spec: TrainSpec) -> dict[str, float]:
    """first_s: of the warm-up steps. step_s: median of the steps after them."""
    begin = time.perf_counter()
    stamps: list[float] = []
    torch.compiler.reset()
    train_alone(arch, data, spec, progress=lambda done, total, loss: stamps.append(time.perf_counter()))
    return {
        "first_s": stamps[WARM_UP_STEPS - 1] - begin,
        "step_s": float(np.median(np.diff(stamps[WARM_UP_STEPS - 1 :]))),
    }


if __name__ == "__main__":
    main()
