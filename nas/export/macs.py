"""Multiply-accumulates of a network, counted three ways."""

from __future__ import annotations

import copy
import warnings
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas.trace import trace_module

_FVCORE_MATRIX_OPS = ("conv", "linear", "matmul", "addmm", "bmm", "einsum")
"""What fvcore counts and we do too; it also counts norms, and no pooling."""


@dataclass(frozen=True)
class MacCounts:
    """macs of one image. trace: this program's; torch: FlopCounterMode / 2; fvcore: its matrix operators only."""

    trace: int
    torch: int
    fvcore: int

    @property
    def equal(self) -> bool:
        return self.trace == self.torch == self.fvcore

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def count_macs(network: nn.Module, input_shape: tuple[int, ...]) -> MacCounts:
    """Count the macs of `network` in evaluation mode for one input of `input_shape`."""
    on_meta = copy.deepcopy(network).to("meta").eval()
    counter = FlopCounterMode(display=False)
    # On a real device the counter would miss fused attention.
    with counter, torch.no_grad():
        on_meta(torch.empty(input_shape, device="meta"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore is built on torch.jit, which warns that it is old
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(copy.deepcopy(network).eval(), torch.zeros(input_shape))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        by_operator = analysis.by_operator()
    fvcore = sum(int(count) for name, count in by_operator.items() if name in _FVCORE_MATRIX_OPS)
    return MacCounts(trace_module(network, [input_shape]).macs, counter.get_total_flops() // 2, fvcore)
