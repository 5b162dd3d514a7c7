"""Blocks as one kernel: equal to the block in torch, in Triton's interpreter; compiled for an H100 or H200.

Triton decides at its import whether kernels are interpreted, so each runs in an interpreter of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nas.errors import UsageError
from nas.measure.triton_blocks import MOST_CHANNELS, PADDING, fused_block
from search_spaces.network import MetaFormerBlock, fold_

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is for Linux")

# (mixer, kernel, channels, expansion, activation, side, batch): sides that tiles divide and do not, channels that are
# a power of two and not, hidden channels beyond one slice.
CASES: list[tuple[Any, ...]] = [
    ("identity", 0, 16, 4, "gelu", 4, 1),
    ("identity", 0, 24, 1.5, "starrelu", 5, 2),
    ("dwconv", 3, 40, 1, "gelu", 7, 1),
    ("convfirst", 0, 16, 3, "hardswish", 4, 1),
    ("convfirst", 0, 40, 1, "gelu", 5, 2),
    ("fused_mbconv", 3, 24, 2, "starrelu", 5, 1),
    ("mbconv", 3, 16, 3, "relu", 4, 1),
    ("mbconv", 5, 24, 1, "hardswish", 5, 1),
]

_RUN = """
import json, sys
import torch
from nas.measure.gap import largest_error
from nas.measure.triton_blocks import Tile, fused_block
from tests_blocks import made

found = []
for case in json.loads(sys.argv[1]):
    *block, side, batch = case
    for dtype in (torch.float32, torch.float16):
        one = made(*block).to(dtype)
        image = torch.randn(batch, block[2], side, side, generator=torch.Generator().manual_seed(1))
        image = image.to(dtype).to(memory_format=torch.channels_last)
        fused = fused_block(one)
        before = image.clone()
        fused.tile = Tile(4, 4, 32, 4, 2) if dtype == torch.float32 else Tile(2, 8, 16, 4, 2)
        found.append(largest_error(fused, one, image))
        assert torch.equal(before, image)
print(json.dumps(found))
"""

_COMPILE = """
import json, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from nas.measure import triton_kernels
from nas.measure.triton_blocks import fused_block
from tests_blocks import made

for case in json.loads(sys.argv[1]):
    fused = fused_block(made(*case).half())
    kernel, tile = getattr(triton_kernels, fused.kernel), fused.tiles()[0]
    constants = fused.cut(tile)
    def kind(name):
        return "constexpr" if name in constants else "*fp16" if name.endswith("_ptr") else "i32"
    signature = {name: kind(name) for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name.endswith("_ptr")}
    done = compile(
        ASTSource(kernel, signature, {n: constants[n] for n in kernel.arg_names if n in constants}, aligned),
        target=GPUTarget("cuda", 90, 32), options={"num_warps": tile.warps, "num_stages": tile.stages},
    )
    assert len(done.asm["cubin"]) > 0
    assert done.metadata.shared <= 227 * 1024, done.metadata.shared  # what a program may have on compute capability 9.0
    assert "mma" in done.asm["ptx"], "no tensor cores"
print("compiled")
"""

_MADE = """
import torch
from torch import nn
from nas.measure.graphs import randomize_
from search_spaces.network import MetaFormerBlock, fold_

def made(mixer, kernel, dim, expansion, activation):
    block = randomize_(MetaFormerBlock(dim, mixer, kernel, expansion, "batchnorm", activation, dim), 0)
    return fold_(nn.Sequential(block))[0].eval().to(memory_format=torch.channels_last)
"""


def _python(tmp_path: Path, code: str, cases: list[tuple[Any, ...]], *, interpret: bool) -> str:
    (tmp_path / "tests_blocks.py").write_text(_MADE)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]),
        "TRITON_INTERPRET": "1" if interpret else "0",
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    command = [sys.executable, "-W", "ignore", "-c", code, json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_fused_block_computes_what_its_block_does(tmp_path: Path) -> None:
    errors = json.loads(_python(tmp_path, _RUN, CASES, interpret=True))
    assert len(errors) == 2 * len(CASES)
    for case, exact, half in zip(CASES, errors[::2], errors[1::2], strict=True):
        assert exact <= 1e-6, case
        assert 0 < half <= 2e-3, case  # some roundings of 16-bit floats


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    cases = [case[:5] for case in (CASES[1], CASES[2], CASES[4], CASES[5], CASES[7])]
    assert _python(tmp_path, _COMPILE, cases, interpret=False) == "compiled"


def _block(mixer: str = "dwconv", kernel: int = 3, dim: int = 16, **more: object) -> nn.Module:
    arguments = {"expansion": 2, "norm": "batchnorm", "activation": "relu", "role_width": dim} | more
    return fold_(nn.Sequential(MetaFormerBlock(dim, mixer, kernel, **arguments)))[0].eval()  # type: ignore[arg-type, index]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mixer": "mhsa", "kernel": 0, "dim": 32}, "no fused kernel for the token mixer SelfAttention"),
        ({"norm": "layernorm"}, "a norm that does not fold"),
        ({"gate": "se"}, "with this channel mixer"),
        ({"mixer": "mbconv", "gate": "se"}, "a gate needs the whole map"),
        ({"channel_mixer": "dwconv_ffn"}, "with this channel mixer"),
        ({"mixer": "mbconv", "activation": "starrelu"}, "activations of this MBConv differ"),
        ({"dim": MOST_CHANNELS + 8}, f"at most {MOST_CHANNELS} fit"),
    ],
)
def test_a_block_without_a_kernel_is_said(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        fused_block(_block(**arguments))  # type: ignore[arg-type]


def test_other_modules_have_no_kernel() -> None:
    with pytest.raises(UsageError, match="only blocks"):
        fused_block(nn.Conv2d(8, 8, 1))


def test_weights_are_padded_with_zeros() -> None:
    block = _block("convfirst", 0, 24)
    fused = fused_block(block)
    assert fused.expand.shape == (1, 32, PADDING)
    assert fused.expand[0, :24, :48].T.equal(block.token_mixer.expand.conv.weight.flatten(1))
    assert fused.expand.count_nonzero() <= 24 * 48
    assert fused.conv.shape == (9, 2, 16, 16)
    assert fused.conv.count_nonzero() <= 9 * 24 * 8


def test_a_map_in_another_order_is_refused() -> None:
    with pytest.raises(UsageError, match="channels-last"):
        fused_block(_block())(torch.zeros(1, 16, 8, 8))
