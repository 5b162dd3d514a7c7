"""Memory of training a supernet, computed without a GPU or measured on one.

    python -m benchmarks.supernet_memory
    python -m benchmarks.supernet_memory --measure --out studies/results/supernet_memory_h200

--measure takes the training step itself (bf16 autocast, gradients, clipping, AdamW) for each of the networks and reads
the most that torch had allocated and reserved, beside the computed figure, and how long the step took. The result is
written anew after each network.

Method: the supernet is built on the meta device, where tensors have shapes and no storage. Parameters, gradients and
the two AdamW moments are counted in float32. Activations are what autograd keeps of one forward pass of the step's
network (`torch.autograd.graph.saved_tensors_hooks`): every storage once, sliced copies of weights among them, the
shared weights not. In a sandwich step networks run one after the other, each backward before the next forward, so the
peak is that of the network which keeps most. "bf16" is a pass with weights and images in bfloat16: what autocast keeps,
but for the few operations that it leaves in float32. Work space and the allocator's slack are not in it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.provenance import provenance, write_result
from nas.group import Group
from nas.recipe import Batch, make_optimizer, update
from nas.spec import TrainSpec
from nas.train import learn
from search_spaces.architecture import Architecture
from search_spaces.metaformer import load_space
from search_spaces.space import SearchSpace
from search_spaces.supernet import Supernet

GIB = 2**30
BYTES_OF_WEIGHT = 4 * 4
"""The weight, its gradient and two moments of AdamW, in float32."""


def saved_bytes(supernet: Supernet, arch: Architecture, batch: int, dtype: torch.dtype) -> int:
    """Bytes that autograd keeps between forward and backward of `arch`, weights of the supernet itself left out."""
    supernet = supernet.to(dtype)
    own = {value.untyped_storage()._cdata for value in supernet.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in own:
            kept[key] = tensor  # held, so that no storage takes the place of another
        return tensor

    x = torch.empty(batch, 3, arch.resolution, arch.resolution, device="meta", dtype=dtype)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = supernet(x.contiguous(memory_format=torch.channels_last), arch)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del logits
    return total


def largest(space: SearchSpace, word: str, elsewhere: str) -> Architecture:
    """The largest network with mixer `word` wherever it may stand, and `elsewhere` in the stages where it may not."""
    genome = {choice.name: choice.values[-1] for choice in space.choices}
    genome |= {"norm": "layernorm", "activation": "gelu"}
    for stage in range(4):
        gene = f"stage{stage + 1}.mixer"
        genome[gene] = word if word in space[gene].values else elsewhere
    return space.decode(genome)


class Measured:
    """Training steps of a supernet on the current GPU."""

    def __init__(self, space: SearchSpace, classes: int, batch: int) -> None:
        self._supernet = Supernet(space, classes).cuda().train()
        self._weights = list(self._supernet.parameters())
        self._spec = TrainSpec(batch_size=batch)
        self._optimizer = make_optimizer(self._supernet, self._spec)
        images = torch.randn(batch, 3, space.max_resolution, space.max_resolution, device="cuda")
        labels = torch.randint(0, classes, (batch,), device="cuda")
        self._batch = Batch(images.contiguous(memory_format=torch.channels_last), labels, batch)
        for parameter in self._weights:  # the moments of all weights, as after some hundred steps
            parameter.grad = torch.zeros_like(parameter)
        self._step([])

    def row(self, arch: Architecture) -> dict[str, Any]:
        """The second of two steps: libraries have then chosen their kernels."""
        torch.cuda.empty_cache()
        for _ in range(2):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            begin = time.perf_counter()
            self._step([arch])
            torch.cuda.synchronize()
            seconds = time.perf_counter() - begin
        return {
            "measured_bf16_GiB": torch.cuda.max_memory_allocated() / GIB,
            "reserved_bf16_GiB": torch.cuda.max_memory_reserved() / GIB,
            "step_s": seconds,
        }

    def _step(self, networks: list[Architecture]) -> None:
        if networks:
            learn(self._supernet, networks, self._batch, self._spec, None)
        update(self._weights, self._optimizer, self._spec, 0, Group(0, 1, torch.device("cuda")))


def result_of(
    rows: list[dict[str, Any]], options: argparse.Namespace, space: SearchSpace, parameters: int, is_measured: bool
) -> dict[str, Any]:
    """All that is known after some of the networks."""
    worst = max(rows, key=lambda row: row["peak_bf16_GiB"])
    how = "measured" if is_measured else "computed, not measured"
    return {
        "what": f"memory of a training step, batch {options.batch}, {space.max_resolution} px, {how}",
        "space": f"metaformer/{options.preset}, mixers {options.mixers}",
        **provenance(),
        "parameters": parameters,
        "weights, gradients, AdamW moments": f"{parameters * BYTES_OF_WEIGHT / GIB:.2f} GiB in float32",
        "peak": f"{worst['peak_bf16_GiB']:.1f} GiB in bf16 ({worst['mixer']}), "
        f"{max(row['peak_fp32_GiB'] for row in rows):.1f} GiB in fp32; one 80 GB GPU has 74.5 GiB",
        **measured_facts(rows),
        "method": " ".join((__doc__ or "").split("Method: ")[1].split()),
        "networks": rows,
    }


def measured_facts(rows: list[dict[str, Any]]) -> dict[str, str]:
    """What a result says of measured rows; nothing where there are none."""
    if "reserved_bf16_GiB" not in rows[0]:
        return {}
    worst = max(rows, key=lambda row: row["reserved_bf16_GiB"])
    allocated = max(row["measured_bf16_GiB"] for row in rows)
    return {
        "gpu": torch.cuda.get_device_name(),
        "measured": f"{allocated:.1f} GiB allocated, {worst['reserved_bf16_GiB']:.1f} GiB reserved ({worst['mixer']}) "
        "in bf16 autocast; one 80 GB GPU has 74.5 GiB",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="take the steps on the current GPU")
    parser.add_argument("--words", help="only these words of --mixers, separated by commas (dwconv7,mhsa)")
    parser.add_argument("--preset", default="mobile")
    parser.add_argument("--mixers", default="first")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("studies/results/supernet_memory"))
    options = parser.parse_args()
    space = load_space(
        "metaformer",
        options.preset,
        mixers=options.mixers.split(","),
        choices={"resolution": [max(load_space("metaformer", options.preset)["resolution"].values)]},
    )
    with torch.device("meta"):
        supernet = Supernet(space, options.classes).train()
    parameters = sum(parameter.numel() for parameter in supernet.parameters())
    fixed = parameters * BYTES_OF_WEIGHT
    measured = Measured(space, options.classes, options.batch) if options.measure else None
    rows: list[dict[str, Any]] = []
    everywhere = [str(word) for word in space["stage1.mixer"].values]
    late = [str(word) for word in space["stage4.mixer"].values if word not in everywhere]
    wanted = options.words.split(",") if options.words else (*everywhere, *late)
    for word in (word for word in (*everywhere, *late) if word in wanted):
        heaviest = max(rows, key=lambda row: row["peak_bf16_GiB"])["mixer"] if word in late else word
        heaviest = heaviest.split(" ")[0]
        arch = largest(space, word, heaviest)
        row: dict[str, Any] = {"mixer": word if word == heaviest else f"{heaviest} then {word}"}
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            saved = saved_bytes(supernet, arch, options.batch, dtype)
            row |= {f"activations_{name}_GiB": saved / GIB, f"peak_{name}_GiB": (saved + fixed) / GIB}
        if measured is not None:
            row |= measured.row(arch)
        rows.append(row)
        print(row, flush=True)
        write_result(options.out, result_of(rows, options, space, parameters, measured is not None), list(rows[0]))
    print(options.out.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
