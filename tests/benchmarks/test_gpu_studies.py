"""What the studies of a GPU make of what was measured on one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import gpu_kernels, gpu_precisions
from benchmarks.gpu_kernels import Profile, read_profiles, row_of, sort_of
from hw_models.measurements import load_pack
from nas.subjects import Subject

RESULTS = Path(__file__).parents[2] / "studies/results"


def test_a_profile_is_read_as_it_was_written() -> None:
    profiles = [
        Profile("block:1", 1, ((1.2, "triton_poi_fused_add_0"), (38.2, "void cudnn::cnn::conv2d<int, float>(a b)"))),
        Profile("lcnet_100", 64, ((0.9, "Memset (Device)"),)),
    ]
    assert read_profiles("".join(one.text() for one in profiles)) == profiles


@pytest.mark.parametrize(
    ("kernel", "sort"),
    [
        ("triton_per_fused__softmax_1", "loops"),
        ("nvjet_sm90_hsh_16x64_64x16_2x4_h_bz_TNN", "products"),
        ("sm80_xmma_fprop_implicit_gemm_indexed", "products"),
        ("sm90_xmma_depthwise_convolution_fprop_tiling", "depthwise"),
        ("conv2d_c1_k1_nhwc", "depthwise"),
        ("void tensorTransformGeneric<__half>", "copies"),
        ("Memset (Device)", "copies"),
    ],
)
def test_a_kernel_is_sorted_by_its_name(kernel: str, sort: str) -> None:
    assert sort_of(kernel) == sort


def test_a_row_counts_every_kernel_once() -> None:
    row = row_of(Profile("x", 1, ((1.0, "triton_a"), (2.0, "triton_b"), (4.0, "nvjet"), (8.0, "Memset"))), 20.0)
    assert {sort: row[sort] for sort in gpu_kernels.SORTS} == {"loops": 2, "copies": 1, "depthwise": 0, "products": 1}
    assert sum(row[f"{sort}_us"] for sort in gpu_kernels.SORTS) == row["sum_us"] == 15.0
    assert (row["loops_shortest_us"], row["depthwise_shortest_us"]) == (1.0, None)


def test_a_compiled_graph_takes_what_its_kernels_take() -> None:
    """There is nothing between kernels, so h200 has a start of each kernel and none of a network. Launched one by one
    they take a little longer.
    """
    rows = json.loads((RESULTS / "h200_kernels.json").read_text())["profiles"]
    known = gpu_kernels.records()
    for row in rows:
        assert row["graph_us"] == pytest.approx(1e6 * known[row["subject"], row["batch"]].latency_s)
        assert 0.94 * row["graph_us"] < row["sum_us"] < 1.31 * row["graph_us"]


def test_special_cases_are_nearer_with_what_the_target_says_of_them() -> None:
    rows = json.loads((RESULTS / "h200_windows.json").read_text())["blocks"]
    assert {row["depends on"] for row in rows} == {"windows", "norms"}
    for what in ("windows", "norms"):
        own = [row for row in rows if row["depends on"] == what]
        errors = [[abs(math.log(row[key] / row["measured_us"])) for row in own] for key in ("without_us", "with_us")]
        assert sum(errors[1]) < 0.8 * sum(errors[0])


def test_formats_are_compared_block_by_block() -> None:
    known = {(one.subject, one.precision): one for one in load_pack("h200") if one.batch == 64}
    names = [name for name, precision in known if precision == "w8a8"]
    assert len(names) == 10
    records = [record for (name, _), record in known.items() if name in names]
    first = known[names[0], "fp16"]
    subjects = [Subject(one.subject, one.kind, one.input_size, one.description) for one in records]
    rows = gpu_precisions.rows_of(list(dict.fromkeys(subjects)), records, 64)
    assert [row["block"] for row in rows] == list(dict.fromkeys(record.subject for record in records))
    row = next(row for row in rows if row["block"] == first.subject)
    assert row["fp16_us"] == pytest.approx(1e6 * first.latency_s)
    for precision in ("bf16", "w8a8", "fp32"):
        assert row[f"{precision}/fp16"] == pytest.approx(known[first.subject, precision].latency_s / first.latency_s)
    assert row["model bf16/fp16"] == 1.0  # the cost model has one format of 16 bits
    lacking = [record for record in records if record != known[names[0], "w8a8"]]
    assert len(gpu_precisions.rows_of(list(dict.fromkeys(subjects)), lacking, 64)) == 9
