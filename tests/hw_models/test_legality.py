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
        max_strided_kernel=7,
        strided_dilation=False,
        groups="depthwise",
        unsupported=("gelu", "softmax"),
    )
    return replace(base, legality=limits)


@pytest.mark.parametrize(
    ("window", "function", "expected"),
    [
        (Window((3, 3)), "relu", []),
        (Window((17, 17)), "", [("kernel of convolution at conv", 17, 16)]),
        (Window((3, 3), stride=(5, 5)), "", [("stride of convolution at conv", 5, 4)]),
        (Window((8, 8), stride=(8, 8)), "", []),  # patches: a linear layer on rearranged pixels
        (Window((3, 3), dilation=(3, 3)), "", [("dilation at conv", 3, 2)]),
        (Window((9, 9), stride=(2, 2)), "", [("kernel of strided convolution at conv", 9, 7)]),
        (
            Window((3, 3), stride=(2, 2), dilation=(2, 2)),
            "",
            [("stride and dilation together are not supported at conv", 1, 0)],
        ),
        (Window((5, 5), groups=64), "", []),
        (Window((7, 7), groups=64), "", [("depthwise kernel at conv", 7, 5)]),
        (Window((3, 3), groups=8), "", [("channels per group at conv", 8, 1)]),
        (Window((1, 1), groups=8), "", [("channels per group at conv", 8, 1)]),
        (Window((2, 2), (2, 2), groups=8), "", [("channels per group at conv", 8, 1)]),
        (Window((4, 4), (4, 4), groups=64), "", [("depthwise kernel at conv", 4, 3)]),
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


def test_sides_of_dense_kernels_and_numbers_of_groups(strict: Target) -> None:
    limits = replace(strict.legality, conv_kernels=(1, 3, 5, 7), groups="any", max_groups=4)
    device = replace(strict, legality=limits)
    (violation,) = estimate(_conv(Window((4, 4))), device).violations
    assert (violation.what, violation.value, violation.bound) == ("dense kernel at conv", 4, 3)
    (violation,) = estimate(_conv(Window((3, 3), groups=8)), device).violations
    assert (violation.what, violation.value, violation.bound) == ("groups of convolution at conv", 8, 4)


def _two_maps(kind: str, function: str, shapes: tuple[tuple[int, ...], ...], **fields: object) -> Workload:
    """One op that reads maps of all shapes but the last, which it writes."""
    tensors = tuple(Tensor(f"t{number}", shape, "int8") for number, shape in enumerate(shapes))
    inputs = tuple(range(len(shapes) - 1))
    reads = tuple(tensors[index].elements for index in inputs)
    op = Op("op", "op", kind, inputs, (len(inputs),), (), reads, function, **fields)
    return Workload("one op", tensors, (op,), inputs, (len(inputs),))


def test_windows_of_pooling_extents_and_alignment(strict: Target) -> None:
    limits = replace(
        strict.legality, max_pool_kernel=3, max_extent=1024, concat_alignment=16, unsupported=("pool.avg",)
    )
    device = replace(strict, legality=limits)

    def found(workload: Workload) -> list[tuple[str, float, float]]:
        return [(item.what, item.value, item.bound) for item in estimate(workload, device).violations]

    maps = ((1, 32, 40, 40), (1, 32, 20, 20))
    window = Window((4, 4), (2, 2))
    assert found(_two_maps("pool", "max", maps, window=window)) == [("pooling window at op", 4, 3)]
    assert found(_two_maps("pool", "avg", maps, window=Window((2, 2), (2, 2)))) == [
        ("pool.avg is not supported at op", 1, 0)
    ]
    mean = ((1, 32, 40, 40), (1, 32))
    assert found(_two_maps("reduce", "mean", mean, extent=1600)) == [
        ("elements that reduce combines at op", 1600, 1024)
    ]
    joined = ((1, 20, 8, 8), (1, 32, 8, 8), (1, 52, 8, 8))
    assert found(_two_maps("copy", "concat", joined)) == [("channels of a concatenated tensor at op", 20, 16)]
    along_width = ((1, 20, 8, 8), (1, 20, 8, 8), (1, 20, 8, 16))
    assert found(_two_maps("copy", "concat", along_width)) == []


def _product(*dtypes: str) -> Workload:
    """A product of two activations of 32 x 32."""
    tensors = tuple(Tensor(f"t{number}", (32, 32), dtype) for number, dtype in enumerate((*dtypes, "int8")))
    op = Op("mm", "mm", "matmul", (0, 1), (2,), (), (1024, 1024), gemm=(1, 32, 32, 32))
    return Workload("one product", tensors, (op,), (0, 1), (2,))


def test_unequal_activations_are_multiplied_at_the_greater_width() -> None:
    hailo, coral = load_target("hailo8"), load_target("coral_usb")
    assert "w8a16" not in hailo.matrix.rates
    assert estimate(_product("int8", "int16"), hailo).violations == []
    demands = [violation.what for violation in estimate(_product("int8", "int16"), coral).violations]
    assert demands == ["matmul is not supported at mm", "precision w8a16 is not among w8a8 at mm"]


@pytest.mark.parametrize("precision", ["int4", "int16"])
def test_the_edge_tpu_runs_nothing_but_eight_bits(precision: str) -> None:
    target = load_target("coral_usb")
    workload = _conv(Window((3, 3)))
    assert estimate(workload, target).violations == []
    changed = workload.with_dtypes(
        {1: precision} if precision == "int4" else {0: precision, 2: precision, 3: precision}
    )
    (violation,) = estimate(changed, target).violations
    assert violation.what.startswith("precision w4a8" if precision == "int4" else "precision w8a16")


LIMITS = [
    ("apple_a14", Window((3, 3), dilation=(2, 2)), "dilation", "fp16"),
    ("ethos_u85_2048", Window((5, 5), stride=(4, 4)), "stride of convolution", "int8"),
    ("rk3588", Window((33, 33)), "kernel of convolution", "int8"),
    ("coral_usb", Window((3, 3), groups=4), "channels per group", "int8"),
    ("npu_40tops", Window((17, 17)), "kernel of convolution", "int8"),
    ("sl1680", Window((3, 3), stride=(2, 2), dilation=(2, 2)), "stride and dilation together", "int8"),
]


@pytest.mark.parametrize(("name", "window", "demand", "dtype"), LIMITS, ids=[row[0] for row in LIMITS])
def test_a_device_says_its_own_limits(name: str, window: Window, demand: str, dtype: str) -> None:
    (violation,) = estimate(_conv(window, dtype=dtype), load_target(name)).violations
    assert violation.what.startswith(demand)
    assert estimate(_conv(Window((3, 3)), dtype=dtype), load_target(name)).violations == []


def test_worst_demand_of_a_kind_is_reported_once(strict: Target) -> None:
    small, large = _conv(Window((17, 17))), _conv(Window((31, 31)))
    second = replace(large.ops[0], name="worse", inputs=(2,), outputs=(3,))
    workload = replace(small, ops=(small.ops[0], second), outputs=(3,))
    (violation,) = estimate(workload, strict).violations
    assert (violation.what, violation.value) == ("kernel of convolution at worse", 31)


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
