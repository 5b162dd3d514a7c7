"""Attention by stripes of queries: never dearer, never more traffic, and only where its scores do not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw_models import CostReport, Op, Target, Tensor, Workload, estimate, load_target

TARGET = load_target("npu_40tops")


def _attention(heads: int, queries: int, keys: int, width: int, bits: int = 8, other_reader: bool = False) -> Workload:
    """q, k, v -> softmax(q k) v, as a trace writes it: a transpose of the values stands before the second product."""
    dtype = f"int{bits}"
    shapes = {
        "q": (1, heads, queries, width),
        "k": (1, heads, width, keys),
        "v": (1, keys, heads, width),
        "scores": (1, heads, queries, keys),
        "weights": (1, heads, queries, keys),
        "values": (1, heads, keys, width),
        "out": (1, heads, queries, width),
        "mean": (1, heads, queries, 1),
    }
    names = list(shapes)[: 8 if other_reader else 7]
    tensors = tuple(Tensor(name, shapes[name], dtype) for name in names)
    at = {name: index for index, name in enumerate(names)}

    def op(name: str, kind: str, inputs: str, output: str, **more: object) -> Op:
        read = tuple(at[word] for word in inputs.split())
        reads = tuple(tensors[index].elements for index in read)
        return Op(name, name, kind, read, (at[output],), (), reads, **more)  # type: ignore[arg-type]

    ops = [
        op("attn.matmul", "matmul", "q k", "scores", gemm=(heads, queries, keys, width)),
        op("attn.softmax", "softmax", "scores", "weights", extent=keys),
        op("attn.transpose", "transpose", "v", "values"),
        op("attn.matmul_1", "matmul", "weights values", "out", gemm=(heads, queries, width, keys)),
    ]
    if other_reader:
        ops.append(op("attn.mean", "reduce", "weights", "mean", function="mean", extent=keys))
    outputs = (at["out"], at["mean"]) if other_reader else (at["out"],)
    return Workload("net", tensors, tuple(ops), (0, 1, 2), outputs, input_shapes=(tensors[0].shape,))


def _device(capacity: int, fused: bool, launch_s: float = 0.0) -> Target:
    return replace(
        TARGET,
        memory=replace(TARGET.memory, onchip_bytes=capacity),
        overhead=replace(TARGET.overhead, attention_fusion=fused, launch_s=launch_s),
    )


def _row(report: CostReport, name: str) -> dict[str, object]:
    return next(row for row in report.rows if row["name"].endswith(name))


@given(
    st.integers(1, 8),
    st.sampled_from([49, 196, 1024]),
    st.sampled_from([49, 300, 1024]),
    st.sampled_from([16, 64]),
    st.sampled_from([8, 16]),
    st.sampled_from([20_000, 200_000, 2_000_000, 10**9]),
    st.sampled_from([0.0, 1e-6]),
)
def test_never_adds_traffic_or_time(
    heads: int, queries: int, keys: int, width: int, bits: int, capacity: int, launch_s: float
) -> None:
    workload = _attention(heads, queries, keys, width, bits)
    fused, plain = (estimate(workload, _device(capacity, choice, launch_s)) for choice in (True, False))
    assert fused.latency_s <= plain.latency_s * (1 + 1e-12)
    assert fused.dram_bytes <= plain.dram_bytes * (1 + 1e-12)
    assert fused.macs == plain.macs
    if fused.latency_s < plain.latency_s:
        assert _row(fused, "softmax")["stripes"] > 1


def test_scores_never_leave_the_chip() -> None:
    """Operands and result cross once, and nothing else does; the transposed values stay on chip."""
    heads, tokens, width = 8, 4096, 40
    workload = _attention(heads, tokens, tokens, width)
    fused, plain = (estimate(workload, _device(8_000_000, choice)) for choice in (True, False))
    operand, scores = heads * tokens * width, heads * tokens * tokens
    assert fused.dram_bytes == pytest.approx(4 * operand, rel=1e-3)
    assert plain.dram_bytes >= 4 * scores
    assert _row(fused, "softmax")["dram_bytes"] == 0
    live = 2 * scores / _row(fused, "softmax")["stripes"]  # type: ignore[operator]
    assert live <= 8_000_000 * TARGET.memory.activation_fraction


def test_nothing_changes_where_scores_fit_or_somebody_else_reads_them() -> None:
    fitting = _attention(3, 196, 196, 64)
    assert estimate(fitting, _device(8_000_000, True)).rows == estimate(fitting, _device(8_000_000, False)).rows
    shared = _attention(8, 1024, 1024, 64, other_reader=True)
    assert estimate(shared, _device(1_000_000, True)).rows == estimate(shared, _device(1_000_000, False)).rows
