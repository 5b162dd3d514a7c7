"""How fast a population is costed once its blocks are known, and how long the tables take to fill.

Beside it, in the same run, the least such a look-up can take: numpy gathering 18 blocks x 8 metrics per architecture
and adding them up. Run: python -m benchmarks.population_speed [--out studies/results/population_speed]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.provenance import provenance, write_result
from hw_models import Target, estimate_part, load_target
from hw_models.calibration import CalibratedLatency, measured_calibration
from hw_models.factors import FactorPrior
from hw_models.families import part_units
from hw_models.population import CHUNK
from hw_models.samples import Samples
from nas.bits import put_precision
from nas.cost import cost_architecture, part_costs, part_workload
from nas.measure.design import part_pool
from nas.population import PopulationCost
from search_spaces import load_space
from search_spaces.parts import network_parts
from search_spaces.space import SearchSpace

POPULATION = 1_000_000
BLOCKS, METRICS, ROWS = 18, 8, 1000
CHECKED = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="Write OUT.json and OUT.md.")
    parser.add_argument("--target", default="npu_40tops")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--few", action="store_true", help="A few values of every choice: tables fill in seconds.")
    options = parser.parse_args()
    target = load_target(options.target)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            _stagewise(target, Path(folder), options.threads, options.repeats, options.few),
            _blockwise(target, options.threads, options.repeats),
            _calibrated(target, options.threads, options.repeats),
        ]
    result = {
        **provenance(),
        "target": target.name,
        "architectures": POPULATION,
        "threads": options.threads,
        "load": f"{os.getloadavg()[0]:.1f} at the end (other work slows what is measured)",
        "space": f"metaformer/small, {FEW if options.few else 'all its values'}; a gene per block, and calibrated: "
        f"{FEW}",
        "calibrated": "latencies of a calibration on ten made-up measurements; its error is beside that calibration's "
        "own path",
        "gather": f"numpy taking {BLOCKS} rows of {METRICS} float64 per architecture from tables of {ROWS} rows and "
        "adding them, same threads and chunks, measured between the others",
        "networks": rows,
    }
    print(json.dumps(result, indent=2))
    if options.out is not None:
        write_result(options.out, result, list(rows[0]))


NOT_FILLED = dict.fromkeys(("fill_s", "fill_cpu_s", "from_disk_s"))
FEW = {"resolution": [32, 64], "norm": ["batchnorm"], "mixer": ["dwconv3", "pool"], "activation": ["relu"]}


def _stagewise(target: Target, folder: Path, threads: int, repeats: int, few: bool) -> dict[str, Any]:
    """The default space, with every row its networks can need; then the tables again from disk."""
    space = load_space("metaformer", choices=FEW if few else None)
    population = PopulationCost(space, target, 10, folder=folder, workers=threads, threads=threads)
    before, start = _cpu_seconds(), time.perf_counter()
    population.fill()
    fill_s, fill_cpu_s = time.perf_counter() - start, _cpu_seconds() - before
    start = time.perf_counter()
    population = PopulationCost(space, target, 10, folder=folder, workers=threads, threads=threads)
    from_disk_s = time.perf_counter() - start
    filled = {"fill_s": fill_s, "fill_cpu_s": fill_cpu_s, "from_disk_s": from_disk_s}
    return _rates("a gene per stage", space, population, target, threads, repeats) | filled


def _blockwise(target: Target, threads: int, repeats: int) -> dict[str, Any]:
    """Genes of every block of its own, at two resolutions, so that its tables fill in seconds."""
    space = load_space("metaformer", granularity="block", choices=FEW)
    population = PopulationCost(space, target, 10, threads=threads)
    return _rates("a gene per block", space, population, target, threads, repeats) | NOT_FILLED


def _calibrated(target: Target, threads: int, repeats: int) -> dict[str, Any]:
    """With a calibration's latencies: it tabulates its residual like everything else."""
    space = load_space("metaformer", choices=FEW)
    latency = _made_up_calibration(space, target)
    population = PopulationCost(space, target, 10, latency=latency, threads=threads)
    name = "a gene per stage, calibrated"
    return _rates(name, space, population, target, threads, repeats, latency) | NOT_FILLED


def _made_up_calibration(space: SearchSpace, target: Target) -> CalibratedLatency:
    """Of ten blocks whose latency is made up: what a look-up takes does not depend on it."""
    workloads = [part_workload(part) for part in part_pool(space, 10, 0, 10, 3)[:10]]
    parts = [estimate_part(put_precision(workload, "w8a8"), target, (False, False)) for workload in workloads]
    units = [part_units(part, 0.0) for part in parts]
    samples = Samples.of(units, [2 * one.seconds.sum() for one in units])
    calibration, _ = measured_calibration(target, "made up", samples, FactorPrior.of_cost_model())
    return calibration.model(target)


def _rates(
    name: str,
    space: SearchSpace,
    population: PopulationCost,
    target: Target,
    threads: int,
    repeats: int,
    latency: CalibratedLatency | None = None,
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    columns = [rng.integers(0, len(choice.values), POPULATION) for choice in space.choices]
    genes = np.stack(columns, axis=1).astype(np.int32)
    figures = population.cost(genes)  # also makes the rows that are missing
    tables = [rng.random((ROWS, METRICS)) for _ in range(BLOCKS)]
    index = rng.integers(0, ROWS, (BLOCKS, POPULATION)).astype(np.int32)
    ours, bare = [], []
    for _ in range(repeats):  # taking turns, so that what else runs on the machine meets both
        ours.append(_seconds(lambda: population.cost(genes)))
        bare.append(_seconds(lambda: _gather(tables, index, threads)))
    errors = []
    for row in range(CHECKED):
        genome = {choice.name: choice.values[gene] for choice, gene in zip(space.choices, genes[row], strict=True)}
        architecture = space.decode(genome)
        single = cost_architecture(architecture, target, 10).summary()
        if latency is not None:
            parts = part_costs(list(network_parts(architecture, 10)), architecture, target)
            single["latency_s"] = latency.latency(parts).seconds
        errors += [abs(figures[key][row] / single[key] - 1) for key in ("latency_s", "energy_j", "peak_onchip_bytes")]
    return {
        "genes": name,
        "rows": population.rows_known,
        "architectures_per_s": POPULATION / min(ours),
        "median_per_s": POPULATION / float(np.median(ours)),
        "bare_gather_per_s": POPULATION / min(bare),
        "share_of_bare_gather": min(bare) / min(ours),
        "largest_relative_error": max(errors),
    }


def _gather(tables: list[np.ndarray], index: np.ndarray, threads: int) -> list[np.ndarray]:
    def piece(start: int) -> np.ndarray:
        rows = index[:, start : start + CHUNK]
        total = tables[0].take(rows[0], axis=0)
        taken = np.empty_like(total)
        for table, row in zip(tables[1:], rows[1:], strict=True):
            np.take(table, row, axis=0, out=taken, mode="clip")
            total += taken
        return total

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(piece, range(0, index.shape[1], CHUNK)))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _cpu_seconds() -> float:
    """Processor seconds of this process and of those it has waited for."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


if __name__ == "__main__":
    main()
