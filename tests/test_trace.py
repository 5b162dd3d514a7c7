"""Tracing against torch's own counter, and what tracing must see, must not see, and must refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hw_models import Workload, estimate, load_target
from hw_models.workload import FUNCTIONS
from nas import aten
from nas.bits import put_precision
from nas.trace import TraceError, trace_module
from search_spaces.layers import MatMul

TIMM_MODELS = (
    "resnet50",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "caformer_s18",
    "poolformer_s12",
    "fastvit_t8",
    "mobilenetv4_hybrid_medium",
    "densenet121",
    "efficientvit_b1",
    "levit_128s",
)


def _counted_macs(module: nn.Module, shape: tuple[int, ...]) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(torch.empty(shape, device="meta"))
    return counter.get_total_flops() // 2


def _trace(module: nn.Module, *shapes: tuple[int, ...]) -> Workload:
    return trace_module(module.to("meta").eval(), shapes)


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_macs_and_params_equal_torch(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    shape = (1, *model.default_cfg["input_size"])
    workload = trace_module(model, [shape], name)
    assert workload.macs + workload.folded_macs == _counted_macs(model, shape)
    assert workload.params == sum(parameter.numel() for parameter in model.parameters())
    assert len({op.name for op in workload.ops}) == len(workload.ops)


def test_batch_multiplies_macs() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224").eval()
    one, four = (trace_module(model, [(batch, 3, 224, 224)]).macs for batch in (1, 4))
    assert four == 4 * one


def test_convolutions_need_no_layout_change() -> None:
    with torch.device("meta"):
        for name in ("resnet18", "convnext_atto", "poolformer_s12"):
            kinds = {op.kind for op in trace_module(timm.create_model(name).eval(), [(1, 3, 224, 224)]).ops}
            assert kinds.isdisjoint({"transpose", "copy", "gather"}), name


class _Tokens(nn.Module):
    """A convolution, a linear layer on its positions, and a convolution again."""

    def __init__(self, in_order: bool) -> None:
        super().__init__()
        self.before, self.mix, self.after = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Conv2d(8, 4, 1)
        self.over_positions = nn.Identity() if in_order else nn.Linear(36, 36)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        tokens = self.over_positions(x.flatten(2)).transpose(1, 2)
        return self.after(self.mix(tokens).transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("in_order", "transposes"), [(True, 0), (False, 2)])
def test_maps_stay_channels_last_through_convolutions(in_order: bool, transposes: int, batch: int) -> None:
    """Tokens of a map lie in memory as it does; a product over positions needs them turned, and back."""
    workload = _trace(_Tokens(in_order), (batch, 3, 8, 8))
    assert sum(op.kind == "transpose" for op in workload.ops) == transposes


def test_products_whose_reduction_lies_across_memory_are_transposed_first() -> None:
    class Linear(nn.Module):
        """The state of linear attention: keys and values summed over tokens."""

        def forward(self, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            return keys.transpose(1, 2) @ values

    kinds = [op.kind for op in _trace(Linear(), (4, 50, 16), (4, 50, 16)).ops]
    assert kinds == ["transpose", "matmul"]


def test_a_role_is_of_the_product_not_of_what_is_moved_for_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.state = MatMul(role="accumulator")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.state(x.transpose(1, 2), x)

    workload = _trace(Net(), (4, 50, 16))
    assert [workload.tensors[op.outputs[0]].role for op in workload.ops] == ["", "accumulator"]


def test_heads_are_split_by_transposes(monkeypatch: pytest.MonkeyPatch) -> None:
    # timm's default; measuring parts of timm's networks turns it off for the rest of the process
    monkeypatch.setattr("timm.layers.config._USE_FUSED_ATTN", 1)
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224").eval()
    block = [op for op in trace_module(model, [(1, 3, 224, 224)]).ops if op.name.startswith("blocks.0.attn")]
    assert [op.kind for op in block] == [
        "linear",
        "transpose",
        "transpose",
        "matmul",
        "softmax",
        "transpose",
        "matmul",
        "transpose",
        "linear",
    ]


class _Attention(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


def test_fused_attention_is_written_out() -> None:
    workload = _trace(_Attention(), (4, 10, 16))
    assert [op.kind for op in workload.ops] == ["matmul", "softmax", "matmul"]
    assert workload.macs == 2 * 4 * 10 * 10 * 16
    assert workload.ops[1].extent == 10


def test_producers_consumers_and_slices() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left, right = self.conv(x).chunk(2, dim=1)
            return left * right.sigmoid()

    workload = _trace(Net(), (1, 4, 6, 6))
    conv, sigmoid, product = workload.ops
    assert workload.consumers[conv.outputs[0]] == (1, 2)
    assert workload.producers[product.inputs[0]] == 0
    assert sigmoid.reads == (4 * 36,)
    assert workload.tensors[conv.outputs[0]].elements == 8 * 36
    assert workload.outputs == product.outputs


@pytest.mark.parametrize("square", [lambda x: x**2, torch.square, lambda x: x * x, lambda x: x.pow(2)])
def test_a_square_is_a_product_of_two_maps(square: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Not a constant a channel, which a convolution takes in for nothing."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return square(self.conv(x))

    conv, product = _trace(Net(), (1, 4, 6, 6)).ops
    assert (conv.kind, product.kind, product.function) == ("conv", "elementwise", "mul")


def test_work_in_place_makes_a_new_tensor() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Hardswish(inplace=True))
    workload = _trace(net, (1, 3, 5, 5))
    assert [op.inputs for op in workload.ops[1:]] == [op.outputs for op in workload.ops[:-1]]


def test_constants_are_folded() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.empty(9, 4))
            self.mlp = nn.Linear(4, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.mlp(self.table)

    workload = _trace(Biased(), (1, 9, 6))
    assert [op.kind for op in workload.ops] == ["elementwise"]
    assert (workload.macs, workload.folded_macs) == (0, 9 * 4 * 6)


def test_roles_reach_their_tensor() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.state = MatMul(role="accumulator")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.state(x, x.transpose(1, 2)).relu()

    workload = _trace(Net(), (2, 5, 7))
    product, relu = workload.ops
    assert (product.name, product.role) == ("state", "accumulator")
    assert workload.tensors[product.outputs[0]].role == "accumulator"
    assert workload.tensors[relu.outputs[0]].role == ""


def test_the_module_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trace_module(model, [(1, 3, 8, 8)])
    assert model.training
    assert not model[0]._forward_hooks
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_unknown_op_is_named_with_its_place() -> None:
    class Sorts(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sort(dim=1).values

    with pytest.raises(TraceError, match=r"aten::sort at 0.*nas/aten\.py"):
        trace_module(nn.Sequential(Sorts()), [(1, 4)])


def test_control_flow_on_values_is_one_clear_line() -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(TraceError, match=r"Branches cannot be traced on the meta device") as caught:
        trace_module(Branches(), [(1, 4)])
    assert "\n" not in str(caught.value)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(TraceError, match="must be positive"):
        trace_module(nn.ReLU(), [(1, 0, 4)])
    with pytest.raises(TraceError, match="cannot be traced"):
        trace_module(nn.Linear(3, 4), [(1, 5)])


def test_a_module_that_nobody_registered_has_the_role_of_the_one_that_calls_it() -> None:
    class Outer(nn.Module):
        role = "accumulator"

        def __init__(self) -> None:
            super().__init__()
            self.hidden = [nn.Linear(4, 4)]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.hidden[0](x)
            return out

    with torch.device("meta"):
        workload = trace_module(nn.Sequential(Outer()).eval(), [(1, 4)])
    assert [(op.role, op.module) for op in workload.ops] == [("accumulator", "0")]


def test_functions_are_those_that_targets_may_name() -> None:
    tables = (
        aten.ACTIVATIONS,
        aten.ARITHMETIC,
        aten.REDUCTIONS,
        aten.POOLS,
        aten.ADAPTIVE_POOLS,
        aten.COPIES,
        aten.ALIASES,
    )
    assert set().union(*(table.values() for table in tables)) <= FUNCTIONS


def test_sampling_at_points_is_told_from_resizing() -> None:
    """Devices lack it that resize."""

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            grid = x[:, :2].permute(0, 2, 3, 1)
            return nn.functional.grid_sample(x, grid, align_corners=False)

    report = estimate(put_precision(_trace(Net(), (1, 4, 6, 6)), "w8a8"), load_target("ethos_u85_2048"))
    assert any("grid_sample is not supported" in violation.what for violation in report.violations)
