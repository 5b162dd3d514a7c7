"""How far architectures differ on the embedded data set: stand-alone accuracies of networks drawn from the space.

    python -m benchmarks.default_data --count 10 --out studies/results

Writes default_data.json and default_data.md with commit, date, machine and command.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.provenance import provenance, write_result
from nas.accuracy import Accuracy, image_batches, measure
from nas.data.load import load_data
from nas.spec import load_spec
from nas.standalone import train_alone
from search_spaces.metaformer import load_space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10, help="architectures drawn")
    parser.add_argument("--steps", type=int, help="optimizer steps a network; those of the quickstart if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    args = parser.parse_args()

    _, spec = load_spec("quickstart")
    choices = {gene: list(values) for gene, values in spec.space.choices.items()}
    space = load_space(spec.space.name, spec.space.preset, choices=choices)
    budget = replace(spec.train, steps=args.steps or spec.train.steps)
    bundle = load_data(spec.data.source, resolution=space.max_resolution, seed=spec.data.seed)
    rng = np.random.default_rng(args.seed)
    rows = []
    for _ in range(args.count):
        arch = space.decode(space.sample(rng))
        start = time.perf_counter()
        network = train_alone(arch, bundle, budget)
        batches = image_batches(bundle.val, np.arange(len(bundle.val)), arch.resolution, 250)
        accuracy: Accuracy = measure(network, batches, "stand-alone", "val")
        seconds = time.perf_counter() - start
        rows.append({"architecture": str(arch), **accuracy.to_dict(), "train_s": round(seconds, 1)})
        print(f"{accuracy.top1:.3f}  {seconds:.0f} s  {arch}", flush=True)
    top1 = [row["top1"] for row in rows]
    result = {
        "what": "float stand-alone top-1 on the embedded data set, networks drawn uniformly from the quickstart space",
        **provenance(),
        "budget": {"steps": budget.steps, "batch_size": budget.batch_size},
        "chance": 1 / bundle.num_classes,
        "best": max(top1),
        "worst": min(top1),
        "spread_points": 100 * (max(top1) - min(top1)),
        "networks": rows,
    }
    write_result(args.out / "default_data", result, columns=("top1", "stderr", "samples", "train_s", "architecture"))
    print(f"spread {result['spread_points']:.1f} points, {min(top1):.3f} to {max(top1):.3f}")


if __name__ == "__main__":
    main()
