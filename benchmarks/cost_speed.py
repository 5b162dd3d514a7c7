"""How fast costing is: one cold network, the same again, and a population. Run: python -m benchmarks.cost_speed"""

from __future__ import annotations

import json
import platform
import time

import numpy as np

from hw_models import load_target
from nas.cost import cost_model
from nas.population import PopulationCost
from search_spaces import load_space

POPULATION = 1_000_000


def network_seconds(name: str) -> dict[str, float]:
    """Seconds to trace and cost a timm model for the first time in this process, and once more."""
    target = load_target("npu_40tops")
    start = time.perf_counter()
    cost_model(name, target)
    cold = time.perf_counter()
    cost_model(name, target)
    return {"cold_s": cold - start, "again_s": time.perf_counter() - cold}


def population_rate(granularity: str, repeats: int = 5) -> dict[str, float]:
    """Architectures per second, all figures at once, once the blocks are known (two values of every choice)."""
    space = load_space("metaformer", granularity=granularity)
    rng = np.random.default_rng(0)
    columns = [rng.integers(0, min(2, len(choice.values)), POPULATION) for choice in space.choices]
    genes = np.stack(columns, axis=1).astype(np.int32)
    population = PopulationCost(space, load_target("npu_40tops"), num_classes=10)
    start = time.perf_counter()
    population.cost(genes)
    first = time.perf_counter() - start
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        population.cost(genes)
        best = min(best, time.perf_counter() - start)
    return {"first_s": first, "architectures_per_s": POPULATION / best}


def main() -> None:
    import timm  # noqa: F401  (its import is not part of a cold network)

    network_seconds("resnet10t")  # torch loads parts of itself on first use
    result = {
        "machine": platform.processor() or platform.machine(),
        "resnet50": network_seconds("resnet50"),
        "mobilenetv4_hybrid_medium": network_seconds("mobilenetv4_hybrid_medium"),
        "population, a gene per stage": population_rate("stage"),
        "population, a gene per block": population_rate("block"),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
