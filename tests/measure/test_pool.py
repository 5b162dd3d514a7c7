"""Graphs opened in real worker processes: compiled there, timed from here, and what happens when one dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pool_opener import BrokenOpener, CpuOpener, DyingOpener, SlowToForget
from torch import nn

from nas.errors import NasError
from nas.measure.cuda import allow_many_graphs, compiled, first_lines, slowest_first, usual_workers
from nas.measure.jobs import Graph
from nas.measure.pool import Here, Pool
from nas.measure.worker import LostError, NoRoomError, Opener
from nas.subjects import Subject

_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    made = Pool(CpuOpener(), 2)
    yield made
    made.close()


def test_compiled_in_workers_and_timed_one_at_a_time(pool: Pool) -> None:
    told = []
    opened = pool.open(["linear 1", "quick 1", "quick 2"], update=lambda done, total: told.append((done, total)))
    assert not opened.failed
    assert sorted(told) == [(1, 3), (2, 3), (3, 3)]
    assert (opened.runners["linear 1"].times_s(3) > 0).sum() == 3
    homes = {int(opened.runners[thing].times_s(1)[0]) for thing in ("quick 1", "quick 2")}
    assert os.getpid() not in homes
    pool.forget()


def test_what_cannot_be_opened_says_why_and_harms_nothing(pool: Pool) -> None:
    opened = pool.open(["fails 3", "raises 4", "big", "quick 5"])
    assert str(opened.failed["fails 3"]) == "cannot be compiled: 3"
    assert str(opened.failed["raises 4"]) == "RuntimeError: not foreseen: 4"
    assert isinstance(opened.failed["big"], NoRoomError)
    assert list(opened.runners) == ["quick 5"]
    pool.forget()


def test_a_worker_that_dies_takes_one_graph_with_it(pool: Pool) -> None:
    opened = pool.open(["quick 1", "quick 2", "kills", "quick 3", "quick 4"])
    assert "SIGKILL" in str(opened.failed.pop("kills"))
    assert not opened.failed
    assert sorted(opened.runners) == ["quick 1", "quick 2", "quick 3", "quick 4"]
    for runner in opened.runners.values():
        assert runner.times_s(2).shape == (2,)
    pool.forget()


@pytest.mark.parametrize("number", [13, 14])
def test_a_device_that_fails_while_timing_loses_what_its_worker_has(pool: Pool, number: int) -> None:
    opened = pool.open([f"quick {number}", "quick 2", "quick 3"])
    with pytest.raises(LostError, match=r"illegal memory|SIGKILL") as caught:
        opened.runners[f"quick {number}"].times_s(1)
    assert f"quick {number}" in caught.value.things
    assert caught.value.timed == f"quick {number}"
    for thing in {"quick 2", "quick 3"} - set(caught.value.things):
        opened.runners[thing].times_s(1)
    for thing in caught.value.things:
        with pytest.raises(LostError) as again:
            opened.runners[thing].times_s(1)
        assert again.value.timed is None
    pool.forget()
    assert list(pool.open(["quick 6"]).runners) == ["quick 6"]
    pool.forget()


def test_a_worker_that_was_killed_while_it_waited_is_replaced(pool: Pool) -> None:
    opened = pool.open(["quick 1", "quick 2"])
    process = int(opened.runners["quick 1"].times_s(1)[0])
    _kill(process)
    with pytest.raises(LostError, match="is gone") as caught:
        opened.runners["quick 1"].times_s(1)
    assert caught.value.timed is None, "nothing was asked of it when it ended"
    pool.forget()
    opened = pool.open(["quick 3", "quick 4"])
    assert not opened.failed
    assert sorted(opened.runners) == ["quick 3", "quick 4"]
    pool.forget()


def test_workers_lost_since_the_last_opening_take_nothing_of_the_next(pool: Pool) -> None:
    worker = int(pool.open(["quick 1"]).runners["quick 1"].times_s(1)[0])
    _kill(worker)  # nobody has asked it since
    assert not pool.open(["quick 2", "quick 5"]).failed
    with pytest.raises(LostError, match="SIGKILL"):
        pool.open(["quick 14"]).runners["quick 14"].times_s(1)
    opened = pool.open(["quick 3", "quick 4"])
    assert not opened.failed
    assert sorted(opened.runners) == ["quick 3", "quick 4"]
    pool.forget()


def test_what_is_let_go_of_is_free_when_forgetting_returns(tmp_path: Path) -> None:
    slow = Pool(SlowToForget(tmp_path), 2)
    slow.open(["quick 1", "quick 2"])
    slow.forget()
    assert len(list(tmp_path.iterdir())) >= 1
    slow.close()


def test_the_time_that_is_up_ends_the_opening(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.measure.pool.GRACE_S", 0.2)
    monkeypatch.setattr("nas.measure.pool.POLL_S", 0.1)
    pool.open(["quick 1", "quick 2"])  # both have started
    begin = time.monotonic()
    opened = pool.open(["sleeps 60", "quick 7", "sleeps 61", "quick 8"], until=begin + 1.0)
    assert time.monotonic() - begin < 20
    assert list(opened.runners) == ["quick 7"] or not opened.runners  # 61 took the worker of 7 with it
    assert not opened.failed
    pool.forget()


def test_what_is_not_kept_is_opened_all_the_same(pool: Pool) -> None:
    opened = pool.open(["quick 1", "fails 2"], keep=False)
    assert not opened.runners
    assert list(opened.failed) == ["fails 2"]


@pytest.mark.parametrize(("opener", "said"), [(BrokenOpener(), "no such device here"), (DyingOpener(), "status 3")])
def test_a_machine_on_which_no_worker_starts_is_said(opener: Opener, said: str) -> None:
    broken = Pool(opener, 2)
    with pytest.raises(NasError, match=said):
        broken.open(["quick 1", "quick 2", "quick 3"])
    broken.close()


def test_this_process_is_a_pool_too() -> None:
    here = Here(CpuOpener())
    opened = here.open(["quick 1", "fails 2", "big"])
    assert opened.runners["quick 1"].times_s(1)[0] == os.getpid()
    assert len(opened.failed) == 2
    assert not here.open(["quick 3"], until=time.monotonic() - 1).runners
    told = []
    here.open(["quick 1", "fails 2", "quick 3"], keep=False, update=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


_PARENT = """
import signal, sys, time
from nas.measure.pool import Pool
from pool_opener import CpuOpener
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started all this with it ignored
pool = Pool(CpuOpener(), 2)
opened = pool.open(["quick 1", "quick 2"])
print(*{int(runner.times_s(1)[0]) for runner in opened.runners.values()}, flush=True)
pool.open(["sleeps 60", "sleeps 60 "])
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(sent: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT],
        env=os.environ | {"PYTHONPATH": f"{_ROOT}:{_ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    workers = [int(word) for word in parent.stdout.readline().split()]
    assert workers
    time.sleep(0.5)  # both are busy now
    parent.send_signal(sent)
    parent.wait(20)
    parent.stdout.close()
    patience = time.monotonic() + 20
    while any(map(_is_alive, workers)) and time.monotonic() < patience:
        time.sleep(0.1)
    assert not any(map(_is_alive, workers))


_MAIN = """
import torch._inductor.config  # as benchmarks that measure have it: each worker imports this file before all else
from nas.measure.pool import Pool
from pool_opener import CpuOpener

if __name__ == "__main__":
    pool = Pool(CpuOpener(), 1)
    print(int(pool.open(["compilers"]).runners["compilers"].times_s(1)[0]))
    pool.close()
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_worker_compiles_by_itself_whatever_was_imported_before(tmp_path: Path) -> None:
    (tmp_path / "measures.py").write_text(_MAIN)
    environment = os.environ | {"PYTHONPATH": f"{_ROOT}:{_ROOT / 'tests'}", "TORCHINDUCTOR_COMPILE_THREADS": "7"}
    command = [sys.executable, str(tmp_path / "measures.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=110)
    assert done.stdout == "1\n", done.stderr[-1000:]


def _kill(worker: int) -> None:
    """Returns when its last thread has ended, and with it its end of the pipe."""
    os.kill(worker, signal.SIGKILL)
    for child in multiprocessing.active_children():
        if child.pid == worker:
            child.join(20)


def _is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_every_chain_is_compiled_and_not_just_the_first_eight() -> None:
    made = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        made.append(graph)
        return graph.forward

    torch.compiler.reset()
    allow_many_graphs()
    for width in range(4, 16):
        chain = torch.compile(nn.Sequential(nn.Linear(width, width)), backend=backend, dynamic=False, fullgraph=True)
        with torch.no_grad():
            chain(torch.zeros(1, width))
            with torch.compiler.set_stance("fail_on_recompile"):
                chain(torch.zeros(1, width))
    assert len(made) == 12
    torch.compiler.reset()


class _Breaks(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if bool(x.sum() > 0) else x - 1


def test_what_torch_cannot_compile_whole_is_an_error_in_one_line() -> None:
    with pytest.raises(Exception, match=r"(?i)data-dependent|graph break|unsupported") as caught:
        compiled(_Breaks())(torch.zeros(2))
    assert "\n" not in first_lines(caught.value)
    torch.compiler.reset()


def test_what_compiles_longest_is_begun_first() -> None:
    network, block = Subject("resnet18", "network", 224), Subject("block:1", "block", 56)
    graphs = [Graph(block, "fp16", 1, 1), Graph(block, "fp16", 64, 3), Graph(network, "fp16", 1, 1)]
    graphs.append(Graph(network, "fp16", 64, 1))
    assert [graphs.index(graph) for graph in slowest_first(graphs)] == [3, 2, 1, 0]
    assert usual_workers() >= 1
