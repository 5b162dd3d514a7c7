"""What weight sharing costs: a supernet beside the plain networks that are extracted from it.

python -m benchmarks.supernet_speed [--rounds 15] [--out studies/results/supernet_speed]

Shared and plain take turns in one process, so that whatever else the machine does meets both. Ratios are of medians;
their interval is that of 2,000 bootstrap samples of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.provenance import provenance, write_result
from search_spaces.architecture import Architecture
from search_spaces.metaformer import load_space
from search_spaces.space import SearchSpace
from search_spaces.supernet import Supernet

BATCH, CLASSES, DRAWN = 64, 10, 200


def by_size(space: SearchSpace) -> dict[str, Architecture]:
    """Smallest, median and largest in parameters of `DRAWN` networks drawn from `space`."""
    rng = np.random.default_rng(0)
    supernet = Supernet(space, CLASSES)
    drawn = [space.decode(space.sample(rng)) for _ in range(DRAWN)]
    ordered = sorted(drawn, key=lambda arch: sum(p.numel() for p in supernet.subnet(arch).parameters()))
    return {"small": ordered[0], "median": ordered[DRAWN // 2], "large": ordered[-1]}


def seconds(work: Callable[[], Any]) -> float:
    """CPU time: with one thread that of an idle core, whatever else the machine does."""
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(name: str, shared: Callable[[], Any], plain: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Seconds of both, in turns, and their ratio with its 95 percent interval. The first round is a warm-up."""
    pairs = []
    for number in range(rounds + 1):
        first, second = (shared, plain) if number % 2 else (plain, shared)
        times = {first: seconds(first), second: seconds(second)}
        pairs.append((times[shared], times[plain]))
    times = np.array(pairs[1:])
    picks = np.random.default_rng(0).integers(0, rounds, (2000, rounds))
    medians = np.median(times[picks], axis=1)
    low, high = np.quantile(medians[:, 0] / medians[:, 1], [0.025, 0.975])
    ours, theirs = np.median(times, axis=0)
    return {
        "what": name,
        "shared_s": float(ours),
        "plain_s": float(theirs),
        "ratio": float(ours / theirs),
        "interval": f"{low:.3f} to {high:.3f}",
        "rounds": rounds,
    }


def forward(supernet: Supernet, name: str, arch: Architecture, rounds: int) -> dict[str, Any]:
    x = images(arch)
    network = supernet.subnet(arch)
    with torch.inference_mode():
        return compare(f"forward, {name}", lambda: supernet(x, arch), lambda: network(x), rounds)


def training_step(supernet: Supernet, archs: Sequence[Architecture], rounds: int) -> dict[str, Any]:
    """Four networks forward and backward, and one optimizer step, beside four steps of plain networks."""
    supernet.train()
    networks = [supernet.subnet(arch) for arch in archs]
    labels = torch.arange(BATCH) % CLASSES
    batches = [images(arch) for arch in archs]
    of_supernet = torch.optim.AdamW(supernet.parameters(), lr=1e-4)
    of_networks = [torch.optim.AdamW(network.parameters(), lr=1e-4) for network in networks]

    def shared() -> None:
        of_supernet.zero_grad(set_to_none=True)
        for x, arch in zip(batches, archs, strict=True):
            F.cross_entropy(supernet(x, arch), labels).backward()
        of_supernet.step()

    def plain() -> None:
        for x, network, optimizer in zip(batches, networks, of_networks, strict=True):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(network(x), labels).backward()
            optimizer.step()

    out = compare("training step of four networks", shared, plain, rounds)
    supernet.eval()
    return out


def images(arch: Architecture) -> Tensor:
    x = torch.randn(BATCH, 3, arch.resolution, arch.resolution, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last)


def switching(supernet: Supernet, space: SearchSpace, before: int) -> dict[str, float]:
    """Medians and worst over 200 networks that the supernet has not run.

    "switch": to find its pieces, which is all that a training step does; "ready": to cut its weights out besides, as
    inference does. "first": in a new supernet. "new": after `before` other networks, as a training has run in its first
    half. "again": the same network once more, after the others. "extract": to make the plain network.
    """
    rng = np.random.default_rng(1)
    drawn = [space.decode(space.sample(rng)) for _ in range(before + 200)]
    switch = [seconds(lambda arch=arch: supernet.pieces(arch)) for arch in drawn]  # type: ignore[misc]
    new = drawn[-200:]
    again = [seconds(lambda arch=arch: supernet.pieces(arch)) for arch in new[-50:]]  # type: ignore[misc]
    ready = [seconds(lambda arch=arch: supernet.ready(arch)) for arch in new[-50:]]  # type: ignore[misc]
    extract = [seconds(lambda arch=arch: supernet.subnet(arch)) for arch in new[-50:]]  # type: ignore[misc]
    out = {}
    timed = {
        "switch, first": switch[:20],
        "switch, new": switch[-200:],
        "switch, again": again,
        "ready, again": ready,
        "extract": extract,
    }
    for what, times in timed.items():
        out |= {f"{what}, median": statistics.median(times), f"{what}, 95th of 100": float(np.quantile(times, 0.95))}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--mixers", default="core", help="names or groups, comma-separated")
    parser.add_argument("--before", type=int, default=1500, help="networks run before switching is timed")
    parser.add_argument("--out", type=Path, default=Path("studies/results/supernet_speed"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    space = load_space("metaformer", options.preset, mixers=options.mixers.split(","))
    supernet = Supernet(space, CLASSES).eval()
    figures = switching(supernet, space, options.before)
    archs = by_size(space)
    rows = [forward(supernet, name, arch, options.rounds) for name, arch in archs.items()]
    rng = np.random.default_rng(2)
    step = [archs["large"], archs["small"], *(space.decode(space.sample(rng)) for _ in range(2))]
    rows.append(training_step(supernet, step, max(5, options.rounds // 2)))
    result = {
        "what": f"supernet beside plain networks, batch {BATCH}, one thread, preset {options.preset}, "
        f"small, median and large in parameters of {DRAWN} networks",
        **provenance(),
        "mixers": ", ".join(space.mixers),
        "remark": "switch: 'first' in a new supernet, 'new' a network never run after "
        f"{options.before} others, 'again' one run before; 'ready': switched and its weights cut out for inference; "
        "all times are CPU time of one thread",
        **{key: f"{value * 1e3:.3g} ms" for key, value in figures.items()},
        "networks": rows,
    }
    write_result(options.out, result, ("what", "shared_s", "plain_s", "ratio", "interval", "rounds"))
    print(options.out.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
