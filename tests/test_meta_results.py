"""Results made directly on the meta device against torch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor

from hw_models import Workload
from nas.meta_results import in_map_order, meta_result
from nas.trace import trace_module

aten = torch.ops.aten


def _maps(*shape: int) -> list[Tensor]:
    """The same shape in the orders a feature map can have, and with a gap."""
    plain = torch.empty(shape, device="meta")
    last = plain.to(memory_format=torch.channels_last) if len(shape) == 4 else plain.transpose(-1, -2)
    return [plain, last, torch.empty(*shape[:-1], shape[-1] + 1, device="meta")[..., :-1]]


def _same(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


@pytest.mark.parametrize("shape", [(1, 8, 6, 6), (2, 8, 1, 1), (1, 1, 4, 4), (2, 5, 8)])
@pytest.mark.parametrize("op", [aten.add.Tensor, aten.mul.Tensor, aten.maximum.default, aten.div.Tensor])
def test_pointwise_results_are_torchs(shape: tuple[int, ...], op: Callable[..., Tensor]) -> None:
    answered = 0
    for first in _maps(*shape):
        for second in _maps(*shape):
            made = meta_result(op.overloadpacket.__name__, (first, second), {})  # type: ignore[attr-defined]
            if made is not None:
                answered += 1
                assert _same(made, op(first, second)), (first.stride(), second.stride())
    assert answered


SMALL = [(), (6,), (8, 1, 1), (1, 8, 1, 1), (2, 8, 1, 1), (2, 1, 6, 6), (6, 1), (1, 1, 1, 6)]


@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("op", [aten.add.Tensor, aten.mul.Tensor])
def test_results_with_a_spread_operand_are_torchs(shape: tuple[int, ...], op: Callable[..., Tensor]) -> None:
    smalls = _maps(*shape)[:2] if len(shape) == 4 else [torch.empty(shape, device="meta")]
    for first in _maps(2, 8, 6, 6)[:2]:
        for second in smalls:
            made = meta_result(op.overloadpacket.__name__, (first, second), {})  # type: ignore[attr-defined]
            real = op(torch.empty_like(first, device="cpu"), torch.empty_like(second, device="cpu"))
            assert made is not None
            assert _same(made, real), (first.stride(), second.stride())


def test_in_place_results_are_the_operand() -> None:
    value = torch.empty(1, 8, 6, 6, device="meta")
    assert meta_result("relu_", (value,), {}) is value
    assert meta_result("add_", (value, 1.0), {}) is value


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize(("kernel", "padding", "dilation"), [(1, 0, 1), (3, 1, 1), (5, 2, 1), (3, 2, 2)])
def test_convolutions_are_torchs(stride: int, groups: int, kernel: int, padding: int, dilation: int) -> None:
    weight = torch.empty(16, 8 // groups, kernel, kernel, device="meta")
    sizes = ([stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], groups)
    last = _maps(2, 8, 9, 7)[1]
    real = aten.convolution.default(
        torch.empty_like(last, device="cpu"), torch.empty_like(weight, device="cpu"), None, *sizes
    )
    for data in _maps(2, 8, 9, 7)[:2]:
        made = meta_result("convolution", (data, weight, None, *sizes), {})
        assert _same(made, real)
        slow = in_map_order("convolution", (data, weight), aten.convolution.default(data, weight, None, *sizes))
        assert _same(slow, real)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("roll", ([1, 2], [2, 3])),
        ("pixel_shuffle", (2,)),
        ("reflection_pad2d", ([1, 1, 1, 1],)),
        ("replication_pad2d", ([1, 1, 1, 1],)),
        ("channel_shuffle", (2,)),
    ],
)
def test_orders_that_meta_forgets_are_those_of_a_processor(name: str, sizes: tuple[object, ...]) -> None:
    op = getattr(aten, name).default
    for data in _maps(2, 8, 4, 6)[:2]:
        real = op(torch.empty_like(data, device="cpu"), *sizes)
        assert _same(in_map_order(name, (data, *sizes), op(data, *sizes)), real), data.stride()


def test_layer_norms_are_torchs() -> None:
    data, weight = torch.empty(2, 5, 8, device="meta"), torch.empty(8, device="meta")
    arguments = (data, [8], weight, weight, 1e-5)
    for made, torchs in zip(
        meta_result("native_layer_norm", arguments, {}), aten.native_layer_norm.default(*arguments), strict=True
    ):
        assert _same(made, torchs)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("add", (torch.empty(3, device="meta"), torch.empty(2, 3, device="meta"))),
        ("add", (torch.empty(2, 1, 3, device="meta"), torch.empty(2, 3, 1, device="meta"))),
        ("add", (torch.empty(3, device="meta"), torch.empty(3, device="meta", dtype=torch.int64))),
        ("eq", (torch.empty(3, device="meta"), torch.empty(3, device="meta"))),
        ("softmax", (torch.empty(3, device="meta"), 0)),
        ("native_layer_norm", (torch.empty(2, 8, 5, device="meta").transpose(1, 2), [8], None, None, 1e-5)),
    ],
)
def test_the_rest_is_left_to_torch(name: str, args: tuple[object, ...]) -> None:
    assert meta_result(name, args, {}) is None


@pytest.mark.parametrize(
    "name", ["mobilenetv3_small_050", "efficientvit_b0", "vit_tiny_patch16_224", "convnext_atto", "starnet_s1"]
)
def test_traces_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def traced() -> Workload:
        with torch.device("meta"):
            model = timm.create_model(name).eval()
        return trace_module(model, [(1, *model.default_cfg["input_size"])])

    quick = traced()
    monkeypatch.setattr("nas.trace.meta_result", lambda *_: None)
    assert traced() == quick
