"""Populations by look-up against the single-network path."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hw_models import Target, load_target
from hw_models.population import FIGURES
from nas.cost import cost_architecture
from nas.population import PopulationCost, genes_of
from search_spaces import load_space


def _targets() -> list[Target]:
    base = load_target("npu_40tops")
    memory = replace(base.memory, resident_weight_bytes=200_000)
    link = replace(base.overhead, link_bytes_per_s=1e9)
    tight = replace(base.memory, spill=False, onchip_bytes=50_000)
    return [
        replace(base, memory=tight, legality=replace(base.legality, unsupported=("layernorm",))),
        base,
        replace(base, memory=memory, overhead=link),
        replace(base, memory=replace(memory, residency="partial")),
        replace(base, memory=replace(memory, residency="nested", onchip_bytes=50_000, cached_share=0.4)),
    ]


@pytest.mark.parametrize("granularity", ["stage", "block"])
@pytest.mark.parametrize("target", _targets(), ids=["limited", "streamed", "resident", "partial", "nested"])
def test_equals_the_single_network_path(granularity: str, target: Target) -> None:
    space = load_space("metaformer", granularity=granularity, choices={"resolution": [32, 48], "expansion": [2.0, 3.0]})
    rng = np.random.default_rng(3)
    genomes = [space.sample(rng) for _ in range(20)]
    figures = PopulationCost(space, target, 10).cost(genes_of(space, genomes))
    for index, genome in enumerate(genomes):
        single = cost_architecture(space.decode(genome), target, 10).summary()
        for name in FIGURES:
            assert figures[name][index] == pytest.approx(single[name], rel=1e-9), name
        assert figures["legal"][index] == (not single["violations"])
    if not target.memory.spill:
        assert set(figures["legal"]) == {True, False}


def test_order_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    space = load_space("metaformer", choices={"resolution": [32], "mixer": ["pool", "dwconv3"], "norm": ["batchnorm"]})
    rng = np.random.default_rng(4)
    genes = genes_of(space, [space.sample(rng) for _ in range(50)])
    whole = PopulationCost(space, load_target("npu_40tops"), 10).cost(genes)
    monkeypatch.setattr("nas.population.CHUNK", 7)
    reversed_pieces = PopulationCost(space, load_target("npu_40tops"), 10).cost(genes[::-1])
    for name in FIGURES:
        np.testing.assert_allclose(reversed_pieces[name][::-1], whole[name], rtol=1e-12)


def test_empty_population_and_wrong_genes() -> None:
    space = load_space("metaformer")
    population = PopulationCost(space, load_target("npu_40tops"), 10)
    genes = np.zeros((0, len(space.choices)), dtype=np.int32)
    assert len(population.cost(genes)["latency_s"]) == 0
    with pytest.raises(ValueError, match="must have shape"):
        population.cost(np.zeros((2, 3), dtype=np.int32))
    with pytest.raises(ValueError, match="outside its choice"):
        population.cost(np.full((1, len(space.choices)), 99, dtype=np.int32))


@pytest.mark.parametrize("network", [0, 63, 64, 129])
@pytest.mark.parametrize("gene", [-1, 99])
def test_every_gene_is_checked(network: int, gene: int) -> None:
    space = load_space("metaformer")
    for choice in (0, len(space.choices) - 1):
        genes = np.zeros((130, len(space.choices)), dtype=np.int32)
        genes[network, choice] = gene
        with pytest.raises(ValueError, match="outside its choice"):
            PopulationCost(space, load_target("npu_40tops"), 10).cost(genes)


def test_threads_and_other_integers_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    space = load_space("metaformer", choices={"resolution": [32], "mixer": ["pool"], "norm": ["batchnorm"]})
    rng = np.random.default_rng(5)
    genes = genes_of(space, [space.sample(rng) for _ in range(30)])
    alone = PopulationCost(space, load_target("npu_40tops"), 10).cost(genes)
    monkeypatch.setattr("nas.population.CHUNK", 4)
    together = PopulationCost(space, load_target("npu_40tops"), 10, threads=2).cost(genes.astype(np.int64))
    for name, figures in alone.items():
        np.testing.assert_array_equal(together[name], figures)


def test_rows_made_in_several_processes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    space = load_space("metaformer", choices={"resolution": [32, 64], "mixer": ["pool", "dwconv3"]})
    rng = np.random.default_rng(6)
    genes = genes_of(space, [space.sample(rng) for _ in range(40)])
    alone = PopulationCost(space, load_target("npu_40tops"), 10).cost(genes)
    monkeypatch.setattr("nas.part_rows.ALONE", 10)
    monkeypatch.setattr("nas.part_rows.BATCH", 4)
    together = PopulationCost(space, load_target("npu_40tops"), 10, workers=2).cost(genes)
    for name, figures in alone.items():
        np.testing.assert_array_equal(together[name], figures)


def test_an_interrupt_leaves_undone_what_nobody_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    space = load_space("metaformer", choices={"resolution": [32], "mixer": ["pool", "dwconv3"]})
    rng = np.random.default_rng(7)
    genes = genes_of(space, [space.sample(rng) for _ in range(40)])
    monkeypatch.setattr("nas.part_rows.ALONE", 10)
    monkeypatch.setattr("nas.part_rows.BATCH", 4)
    asked: list[Future[object]] = []

    class Pool(ProcessPoolExecutor):
        def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
            asked.append(super().submit(*args, **kwargs))
            return asked[-1]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nas.part_rows.ProcessPoolExecutor", Pool)
    monkeypatch.setattr("nas.part_rows.trace_module", interrupted)  # in this process only
    with pytest.raises(KeyboardInterrupt):
        PopulationCost(space, load_target("npu_40tops"), 10, workers=2).cost(genes)
    assert len(asked) > 10
    assert sum(one.cancelled() for one in asked) >= len(asked) - 4
    assert not multiprocessing.active_children()
