"""How our Ethos-U85 targets agree with the cycles that Arm's compiler Vela estimates. An estimate against another.

Run: python -m benchmarks.vela --data FOLDER [--out studies/results]
FOLDER holds `vela_5_2_estimates.csv` (columns config, case, op_cycles, npu_cycles, sram_cycles, dram_cycles). A case is
one layer or a few, here rebuilt and costed by the engine; a configuration is a memory mode, and a target.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.provenance import provenance
from hw_models import Workload, estimate_part, load_target
from nas.bits import put_precision
from nas.errors import UsageError
from nas.trace import trace_module

AGREES = 0.25
CONFIGS = {
    "u85_2048_SharedSram": "ethos_u85_2048",
    "u85_2048_DedicatedSram384": "ethos_u85_2048_dedicated",
}
"""Configuration -> target."""


class _Apply(nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(*inputs)


def _conv(channels: int, out: int, kernel: int, groups: int = 1) -> nn.Module:
    return nn.Conv2d(channels, out, kernel, padding=kernel // 2, groups=groups, bias=False)


def _mbconv() -> nn.Module:
    return nn.Sequential(_conv(64, 256, 1), nn.ReLU(), _conv(256, 256, 3, 256), nn.ReLU(), _conv(256, 64, 1))


_MAP, _WIDE = (1, 64, 56, 56), (1, 96, 56, 56)
CASES: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]]]] = {
    "add_56x56x64": (lambda: _Apply(torch.add), [_MAP, _MAP]),
    "bmm_196x64x196": (lambda: _Apply(torch.matmul), [(1, 196, 64), (1, 64, 196)]),
    "bmm6_196x64x196": (lambda: _Apply(torch.matmul), [(6, 196, 64), (6, 64, 196)]),
    "conv3x3": (lambda: _conv(64, 64, 3), [_MAP]),
    "dw3x3": (lambda: _conv(96, 96, 3, 96), [_WIDE]),
    "dw7x7": (lambda: _conv(96, 96, 7, 96), [_WIDE]),
    "fc196x384x384": (lambda: nn.Linear(384, 384, bias=False), [(196, 384)]),
    "gelu_196x1536": (nn.GELU, [(196, 1536)]),
    "hswish_196x1536": (nn.Hardswish, [(196, 1536)]),
    "logistic_196x1536": (nn.Sigmoid, [(196, 1536)]),
    "mbconv56": (_mbconv, [_MAP]),
    "mm196x196x64_as_conv": (lambda: nn.Linear(64, 196, bias=False), [(196, 64)]),
    "mm196x384x384_as_conv": (lambda: nn.Linear(384, 384, bias=False), [(196, 384)]),
    "pw1x1": (lambda: _conv(64, 256, 1), [_MAP]),
    "softmax_6x196x196": (lambda: nn.Softmax(-1), [(6, 196, 196)]),
    "transpose_196x384": (lambda: _Apply(lambda x: x.permute(1, 0).contiguous()), [(196, 384)]),
    "transpose_196x6x64": (lambda: _Apply(lambda x: x.permute(1, 0, 2).contiguous()), [(196, 6, 64)]),
}
"""Case without its "_i16" -> module and the shapes it reads."""


@dataclass(frozen=True)
class Row:
    """One case. vela, ours: cycles at 1 GHz. bound: what Vela says limits it."""

    config: str
    case: str
    vela: float
    ours: float
    ratio: float
    agrees: bool
    bound: str


def case_workload(case: str) -> Workload:
    """A case as a workload; int16 activations where its name says so. Raises UsageError for an unknown case."""
    name = case.removesuffix("_i16")
    if name not in CASES:
        raise UsageError(f"unknown case {case!r} in the estimates of Vela; known: {', '.join(CASES)}")
    build, shapes = CASES[name]
    with torch.device("meta"):
        module = build()
    return put_precision(trace_module(module, shapes), "w8a16" if case != name else "w8a8")


def compare(path: Path) -> list[Row]:
    """Every row of the file that a target here stands for. Raises UsageError for a file that is not such a table."""
    rows = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["config"] not in CONFIGS:
                    continue
                cost = estimate_part(case_workload(row["case"]), load_target(CONFIGS[row["config"]]))
                vela, ours = float(row["op_cycles"]), cost.latency_s[1] * 1e9
                limits = {name: float(row[f"{name}_cycles"]) for name in ("npu", "sram", "dram")}
                bound = max(limits, key=lambda name: limits[name])
                agrees = abs(ours / vela - 1) <= AGREES
                rows.append(Row(row["config"], row["case"], vela, ours, ours / vela, agrees, bound))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; give its folder by --data") from error
    except (KeyError, ValueError) as error:
        raise UsageError(f"{path} does not have the columns of vela_5_2_estimates.csv ({error})") from error
    return rows


def markdown(rows: Sequence[Row], meta: dict[str, str]) -> str:
    lines = [
        "# Ethos-U85-2048: our cycles beside those of Vela 5.2.0",
        "",
        "Vela is the vendor's compiler, and its cycles are its own estimate, not silicon. A row agrees when ours lies",
        f"within {AGREES:.0%}. Array geometry, bursts, clocks and port widths of the targets are from Vela's source;",
        "values marked 'estimated from Vela' in the target files were set with these rows in view.",
        "",
    ]
    for config in CONFIGS:
        chosen = [row for row in rows if row.config == config]
        lines.append(f"- {config}: {sum(row.agrees for row in chosen)} of {len(chosen)} rows agree")
    lines += [
        f"- together: {sum(row.agrees for row in rows)} of {len(rows)}",
        "",
        "What disagrees: where feature maps lie in DRAM, Vela counts every block of a transpose in full, also where it",
        "hangs over the edge of the map, and so reads a map up to 19 times (transposes, and the first of the 29 ops of",
        "softmax); it stages an input in SRAM at the cost of an op of its own (mm196x384x384); it runs mbconv56 in",
        "stripes of three rows, which need fewer blocks than ours of the whole map. The passes of a softmax follow",
        "each other; here it is one op whose transfers hide behind its computing.",
        "",
        "| mode | case | Vela | ours | ratio | agrees | Vela's bound |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.config.removeprefix('u85_2048_')} | {row.case} | {row.vela:.0f} | {row.ours:.0f} | {row.ratio:.2f} | "
        f"{'yes' if row.agrees else 'no'} | {row.bound} |"
        for row in rows
    ]
    lines += ["", "## Provenance", ""] + [f"- {name}: {value}" for name, value in meta.items()]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vela", description="Compare cycles with Vela's")
    parser.add_argument("--data", type=Path, required=True, help="folder of vela_5_2_estimates.csv")
    parser.add_argument("--out", type=Path, default=Path("studies/results"), help="where vela.json and .md go")
    options = parser.parse_args(arguments)
    rows = compare(options.data / "vela_5_2_estimates.csv")
    meta = provenance() | {"command": "python -m benchmarks.vela --data FOLDER"}
    options.out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"_meta": meta, "rows": [asdict(row) for row in rows]}
    (options.out / "vela.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (options.out / "vela.md").write_text(markdown(rows, meta), encoding="utf-8")
    print(f"{sum(row.agrees for row in rows)} of {len(rows)} rows within {AGREES:.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
