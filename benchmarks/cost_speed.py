"""How fast costing is: one cold network, the same again, and a population. Run: python -m benchmarks.cost_speed"""

from __future__ import annotations

import json
import platform
import time

import numpy as np

from hw_models import Target, estimate_part, load_target
from hw_models.calibration import CalibratedLatency, measured_calibration
from hw_models.factors import FactorPrior
from hw_models.families import part_units
from hw_models.samples import Samples
from nas.bits import put_precision
from nas.cost import cost_model, part_workload
from nas.measure.design import part_pool
from nas.population import PopulationCost
from search_spaces import load_space
from search_spaces.space import SearchSpace

POPULATION = 1_000_000


def network_seconds(name: str) -> dict[str, float]:
    """Seconds to trace and cost a timm model for the first time in this process, and once more."""
    target = load_target("npu_40tops")
    start = time.perf_counter()
    cost_model(name, target)
    cold = time.perf_counter()
    cost_model(name, target)
    return {"cold_s": cold - start, "again_s": time.perf_counter() - cold}


def population_rate(granularity: str, repeats: int = 5, *, is_calibrated: bool = False) -> dict[str, float]:
    """Architectures per second, all figures at once, once the blocks are known (two values of every choice).

    is_calibrated: with latencies of a calibration by ten made-up measurements instead of the cost model's.
    """
    space = load_space("metaformer", granularity=granularity)
    rng = np.random.default_rng(0)
    columns = [rng.integers(0, min(2, len(choice.values)), POPULATION) for choice in space.choices]
    genes = np.stack(columns, axis=1).astype(np.int32)
    target = load_target("npu_40tops")
    latency = made_up_calibration(space, target) if is_calibrated else None
    population = PopulationCost(space, target, num_classes=10, latency=latency)
    start = time.perf_counter()
    population.cost(genes)
    first = time.perf_counter() - start
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        population.cost(genes)
        best = min(best, time.perf_counter() - start)
    return {"first_s": first, "architectures_per_s": POPULATION / best}


def made_up_calibration(space: SearchSpace, target: Target) -> CalibratedLatency:
    """Of ten blocks whose latency is made up: what a look-up takes does not depend on it."""
    workloads = [part_workload(part) for part in part_pool(space, 10, 0, 10, 3)[:10]]
    parts = [estimate_part(put_precision(workload, "w8a8"), target, (False, False)) for workload in workloads]
    units = [part_units(part, 0.0) for part in parts]
    samples = Samples.of(units, [2 * one.seconds.sum() for one in units])
    calibration, _ = measured_calibration(target.name, "made up", samples, FactorPrior.of_cost_model())
    return calibration.model(target)


def main() -> None:
    import timm  # noqa: F401  (its import is not part of a cold network)

    network_seconds("resnet10t")  # torch loads parts of itself on first use
    result = {
        "machine": platform.processor() or platform.machine(),
        "resnet50": network_seconds("resnet50"),
        "mobilenetv4_hybrid_medium": network_seconds("mobilenetv4_hybrid_medium"),
        "population, a gene per stage": population_rate("stage"),
        "population, a gene per block": population_rate("block"),
        "population, a gene per stage, calibrated": population_rate("stage", is_calibrated=True),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
