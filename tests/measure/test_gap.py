"""The efficiency gap: which blocks, what is made of times, and what is said without a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hw_models import load_target
from nas.errors import UsageError
from nas.measure.gap import MIXERS, WAYS, Gap, blocks_with_kernel, gap_row, gap_text, measure_gap
from nas.measure.replay import read_state
from nas.progress import Narrator
from nas.subjects import Subject

_TARGET = load_target("h200")


@pytest.fixture(scope="module")
def subjects() -> list[Subject]:
    return blocks_with_kernel("metaformer", "small", _TARGET, 3, "fp16", 0)


def test_blocks_are_of_mixers_with_a_kernel(subjects: list[Subject]) -> None:
    assert len(subjects) == 3
    assert len(set(subjects)) == 3
    mixers = [subject.record("any", "fp16", 1.0).described()["arguments"]["mixer"] for subject in subjects]
    assert len(set(mixers)) == 3  # mixers take turns
    for subject in subjects:
        assert subject.record("any", "fp16", 1.0).described()["arguments"]["mixer"] in MIXERS


def test_a_ratio_is_of_times_taken_in_the_same_turn(subjects: list[Subject]) -> None:
    drift = np.linspace(1, 1.1, 15)  # touches all three alike
    slices = np.stack([4e-5 * drift, 2e-5 * drift, 1e-5 * drift])
    row = gap_row(subjects[0], _TARGET, "fp16", 64, slices, 0.001, "a tile")
    assert (row.ratio, row.ratio_low, row.ratio_high) == pytest.approx((2.0, 2.0, 2.0))
    assert row.eager_s > row.compiled_s > row.fused_s
    assert row.model_ratio >= 1.0  # fusing is taken where it is faster only
    assert 0 < row.peak_s <= row.model_fused_s
    text = gap_text(Gap("h200", "fp16", 64, (row,), {}, {}))
    assert "2.00 (2.00 to 2.00)" in text
    assert "median of 1 blocks" in text


def test_a_time_that_spreads_is_left_out(subjects: list[Subject]) -> None:
    slices = np.tile(np.linspace(1e-5, 3e-5, 15), (len(WAYS), 1))
    with pytest.raises(Exception, match="eager spreads over 50% of its median"):
        gap_row(subjects[0], _TARGET, "fp16", 64, slices, 0.001, "a tile")


def test_what_nvidia_smi_says() -> None:
    found = read_state("1980, 1980, 3201, 41, 120.53\n")
    assert found == pytest.approx(
        {
            "clock_hz": 1.98e9,
            "clock_most_hz": 1.98e9,
            "memory_clock_hz": 3.201e9,
            "temperature_c": 41,
            "power_w": 120.53,
        }
    )
    assert read_state("345, [N/A], 3201, 30, [Not Supported]") == pytest.approx(
        {"clock_hz": 3.45e8, "memory_clock_hz": 3.201e9, "temperature_c": 30}
    )
    assert read_state("") == {}


@pytest.mark.parametrize(
    ("asked", "said"), [({"precisions": ["w8a8"]}, "fp32, fp16, bf16, not 'w8a8'"), ({"budget": 0}, "must be positive")]
)
def test_what_cannot_be_asked_for(asked: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        measure_gap(Narrator(quiet=True), **asked)  # type: ignore[arg-type]


def test_no_gpu_is_one_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UsageError, match=r"no CUDA device.*on a machine with an NVIDIA GPU"):
        measure_gap(Narrator(quiet=True))
