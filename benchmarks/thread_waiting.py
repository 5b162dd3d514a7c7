"""Training steps of the quickstart's supernet by how torch's threads wait for each other, alone and beside another
process that wants a core: python -m benchmarks.thread_waiting [--rounds 4] [--out studies/results/thread_waiting]

Each way runs in a process of its own, since the runtime of OpenMP reads its settings once; ways take turns. A step's
time is the median of a process' steps behind the first ones, a way's that of its rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.provenance import provenance, write_result
from cli import wait_politely

WAYS = ("sleep at once", "look, then sleep (nas)", "look long (default of GNU's OpenMP)")
STEPS, WARM_UP_STEPS = 24, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("studies/results/thread_waiting"))
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(step_s(options.way))
        return
    rows = []
    for others in (0, 1):
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        with busy(others):
            for _ in range(options.rounds):
                for way in WAYS:
                    times[way].append(apart(way))
        base = statistics.median(times[WAYS[1]])
        for way in WAYS:
            taken = statistics.median(times[way])
            low, high = min(times[way]), max(times[way])
            row = {"way": way, "busy": others, "step_s": taken, "lowest_s": low, "highest_s": high}
            rows.append({**row, "ratio_to_nas": taken / base})
            print(rows[-1], flush=True)
    what = "single-path training steps of the quickstart's supernet; busy: processes beside it that want a core each"
    result = {"what": what, **provenance(), "rounds": options.rounds, "ways": rows}
    write_result(options.out, result, list(rows[0]), "ways")


def apart(way: str) -> float:
    """`step_s` in a new process."""
    unset = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    words = [sys.executable, "-m", "benchmarks.thread_waiting", "--way", way]
    done = subprocess.run(words, env=unset, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def step_s(way: str) -> float:
    """Median seconds of a training step in this process, which must not have loaded torch yet."""
    if way == WAYS[0]:
        os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0")
    elif way == WAYS[1]:
        wait_politely()
    from nas.problem import pose
    from nas.spec import load_spec
    from nas.train import train_supernet

    _, spec = load_spec("quickstart")
    train = dataclasses.replace(spec.train, steps=WARM_UP_STEPS + STEPS, single_path_share=1.0)
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        problem = pose(spec, Path(folder))

        def note(done: int, total: int, loss: float) -> None:
            ends.append(time.perf_counter())

        train_supernet(problem.space, problem.data, train, Path(folder), progress=note)
    return float(np.median(np.diff(ends[WARM_UP_STEPS:])))


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that do nothing, all the time."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
