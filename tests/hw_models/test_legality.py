"""What a device cannot do is a value with the gap, and never stops the estimate."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hw_models import Op, Target, Tensor, Window, Workload, estimate, load_target


def _conv(window: Window, channels: int = 64, side: int = 28, dtype: str = "int8", function: str = "") -> Workload:
    """One convolution that keeps the number of channels, and perhaps an activation behind it."""
    per_group = channels // window.groups
    taps = window.kernel[0] * window.kernel[1]
    shape = (1, channels, side, side)
    tensors = [
        Tensor("x", shape, dtype),
        Tensor("w", (channels, per_group, *window.kernel), dtype, constant=True),
        Tensor("y", shape, dtype),
        Tensor("z", shape, dtype),
    ]
    elements = tensors[0].elements
    gemm = (window.groups, side * side, per_group, taps * per_group)
    ops = [Op("conv", "conv", "conv", (0,), (2,), (1,), (elements,), gemm=gemm, window=window)]
    if function:
        ops.append(Op("act", "act", "activation", (2,), (3,), (), (elements,), function))
    return Workload("one convolution", tuple(tensors), tuple(ops), (0,), ops[-1].outputs)


@pytest.fixture
def strict() -> Target:
    """The reference device with the limits of AMD's DPUCVDX8H, and depthwise as the only grouping."""
    base = load_target("npu_40tops")
    limits = replace(
        base.legality,
        max_kernel=16,
        depthwise_kernels=(3, 5),
        max_stride=4,
        max_dilation=2,
        groups="depthwise",
        unsupported=("gelu", "softmax"),
    )
    return replace(base, legality=limits)


@pytest.mark.parametrize(
    ("window", "function", "expected"),
    [
        (Window((3, 3)), "relu", []),
        (Window((17, 17)), "", [("kernel of conv at conv", 17, 16)]),
        (Window((3, 3), stride=(5, 5)), "", [("stride of conv at conv", 5, 4)]),
        (Window((8, 8), stride=(8, 8)), "", []),  # patches: a linear layer on rearranged pixels
        (Window((3, 3), dilation=(3, 3)), "", [("dilation at conv", 3, 2)]),
        (Window((5, 5), groups=64), "", []),
        (Window((7, 7), groups=64), "", [("depthwise kernel at conv", 7, 5)]),
        (Window((3, 3), groups=8), "", [("channels per group at conv", 8, 1)]),
        (Window((3, 3)), "gelu", [("gelu is not supported at act", 1, 0)]),
    ],
)
def test_demands_beyond_a_limit(
    strict: Target, window: Window, function: str, expected: list[tuple[str, float, float]]
) -> None:
    report = estimate(_conv(window, function=function), strict)
    found = [(violation.what, violation.value, violation.bound) for violation in report.violations]
    assert found == expected
    assert all(violation.excess > 0 for violation in report.violations)
    assert report.latency_s > 0


def test_precision_that_is_not_there(strict: Target) -> None:
    (violation,) = estimate(_conv(Window((3, 3)), dtype="fp32"), strict).violations
    assert str(violation) == "precision fp32 is not among w8a8, w4a8, w8a16, w4a16, w16a16, fp16 at conv"


def test_worst_demand_of_a_kind_is_reported_once(strict: Target) -> None:
    small, large = _conv(Window((17, 17))), _conv(Window((31, 31)))
    second = replace(large.ops[0], name="worse", inputs=(2,), outputs=(3,))
    workload = replace(small, ops=(small.ops[0], second), outputs=(3,))
    (violation,) = estimate(workload, strict).violations
    assert (violation.what, violation.value) == ("kernel of conv at worse", 31)


def test_microcontroller_says_how_much_memory_is_missing() -> None:
    target = load_target("mcu_320kb")
    assert estimate(_conv(Window((3, 3)), channels=16, side=28), target).violations == []
    (violation,) = estimate(_conv(Window((3, 3)), channels=64, side=56), target).violations
    assert violation.what == "peak on-chip memory"
    assert violation.value >= 2 * 64 * 56 * 56
    assert violation.bound == 327_680
    assert violation.excess == violation.value - violation.bound


def test_weights_larger_than_the_memory_behind_the_chip() -> None:
    target = load_target("mcu_320kb")
    report = estimate(_conv(Window((3, 3)), channels=512, side=8), target)
    assert [violation.what for violation in report.violations] == ["memory behind the chip"]
