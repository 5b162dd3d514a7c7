"""Two processes with half a batch each end where one process with the whole batch does, killed or not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.checkpoint import load_checkpoint
from nas.data.load import load_data
from nas.group import Group
from nas.spec import TrainSpec
from nas.train import sandwich, train_supernet
from search_spaces.metaformer import load_space

CHOICES = {"resolution": [24], "depth": [1], "mixer": ["dwconv3", "pool"], "expansion": [2.0]}
SPEC = TrainSpec(steps=3, seed=1, single_path_share=1 / 3, batch_size=10, warmup_steps=1, subnets=1, ema=0.9, mixup=0.3)
SCRIPT = """
import sys
from pathlib import Path
from nas.data.load import load_data
from nas.spec import TrainSpec
from nas.train import train_supernet
from search_spaces.metaformer import load_space
space = load_space("metaformer", choices={choices!r})
data = load_data("procedural:train=200,val=40", resolution=24)
trained = train_supernet(space, data, {spec!r}, Path({folder!r}), device="cpu",
                         progress=lambda *at: print(*at, flush=True))
print(trained.path)
"""


@given(st.integers(1, 40), st.integers(1, 6))
def test_shares_make_up_the_batch_and_keep_mirrored_rows_together(count, size):
    shares = [Group(rank, size, torch.device("cpu")).share(count) for rank in range(size)]
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(count))
    for share in shares:
        assert np.array_equal(np.sort(count - 1 - share), share)


def started(folder: Path, spec: TrainSpec) -> list[subprocess.Popen]:
    """Two processes as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = SCRIPT.format(choices=CHOICES, spec=spec, folder=str(folder))
    command = [sys.executable, "-W", "error::FutureWarning", "-c", code]
    torchrun = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    return [
        subprocess.Popen(
            command, env=torchrun | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]


def ended(processes: list[subprocess.Popen]) -> list[list[str]]:
    """The lines that each has said. Both must have ended well."""
    said = [process.communicate(timeout=380)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return said


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> tuple[Path, list[list[str]]]:
    """Checkpoint of what two processes have trained, and what they said."""
    folder = tmp_path_factory.mktemp("two")
    said = ended(started(folder, SPEC))
    return next(folder.glob("supernets/*/supernet.safetensors")), said


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes_equal_one_with_the_joint_batch(together, tmp_path):
    path, said = together
    assert len(said[0]) == 1 + SPEC.steps
    assert len(said[1]) == 1, "only the first process speaks"
    space, data = load_space("metaformer", choices=CHOICES), load_data("procedural:train=200,val=40", resolution=24)
    one = train_supernet(space, data, SPEC, tmp_path / "one", device="cpu").supernet
    less = train_supernet(space, data, replace(SPEC, steps=2), tmp_path / "less", device="cpu").supernet
    two = deepcopy(one)
    tensors, header = load_checkpoint(path)
    two.load_state_dict(tensors)
    assert header["step"] == SPEC.steps
    images = data.val.batch(np.arange(40), 24)
    # With the statistics of the batch: a bias before BatchNorm has no gradient but rounding, which Adam scales up.
    for arch in sandwich(space, SPEC, 2):
        with torch.no_grad():
            logits = [supernet.train()(images, arch) for supernet in (one, two, less)]
        assert torch.allclose(logits[0], logits[1], rtol=0, atol=1e-3 * float(logits[0].abs().max()))
        assert not torch.allclose(logits[0], logits[2], rtol=0, atol=1e-2 * float(logits[0].abs().max()))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_killed_processes_end_with_the_same_weights(together, tmp_path):
    often = replace(SPEC, checkpoint_every=1)
    processes = started(tmp_path, often)
    try:
        while not list(tmp_path.glob("supernets/*/checkpoint.safetensors")):
            assert [process.poll() for process in processes] == [None, None]
            time.sleep(0.005)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    said = ended(started(tmp_path, often))
    assert said[0][0].split()[0] in ("2", "3"), "the first step is not done twice"
    (ours,) = tmp_path.glob("supernets/*/supernet.safetensors")
    tensors, whole = load_checkpoint(ours)[0], load_checkpoint(together[0])[0]
    assert all(torch.equal(tensors[name], tensor) for name, tensor in whole.items())
