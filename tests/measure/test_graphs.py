"""Graphs as they are timed: what is in them does not depend on what else this process has made."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from timm.layers import set_fused_attn, use_fused_attn

from nas.measure.graphs import write_graph
from nas.subjects import named_subject


@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_written_out_whatever_timm_is_set_to_and_the_setting_stays(tmp_path: Path, fused: bool) -> None:
    before = use_fused_attn()
    set_fused_attn(fused)
    try:
        graph = tmp_path / "graph.onnx"
        write_graph(graph, named_subject("test_vit"), "fp32")
        assert use_fused_attn() == fused
    finally:
        set_fused_attn(before)
    operators = [node.op_type for node in onnx.load(graph).graph.node]
    assert operators.count("Softmax") == 6
    assert operators.count("MatMul") == 6 * 6
    assert "Sqrt" not in operators, "torch's own attention computes its scale in the graph"
