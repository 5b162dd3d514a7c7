"""Two processes with half a batch each end where one process with the whole batch does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.checkpoint import load_checkpoint
from nas.data import load_data
from nas.group import Group
from nas.spec import TrainSpec
from nas.train import sandwich, train_supernet
from search_spaces.metaformer import load_space

CHOICES = {"resolution": [24], "depth": [1], "mixer": ["dwconv3", "pool"], "expansion": [2.0]}
SPEC = TrainSpec(steps=3, single_path_share=1 / 3, batch_size=10, warmup_steps=1, subnets=1, ema=0.9, mixup=0.3)
SCRIPT = """
import sys
from pathlib import Path
from nas.data import load_data
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


def started(rank: int, port: int, folder: str, spec: TrainSpec) -> subprocess.Popen:
    torchrun = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    code = SCRIPT.format(choices=CHOICES, spec=spec, folder=folder)
    environment = os.environ | torchrun | {"LOCAL_RANK": str(rank)}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes_equal_one_with_the_joint_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [started(rank, port, str(tmp_path / "two"), SPEC) for rank in range(2)]
    said = [process.communicate(timeout=380)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(said[0].splitlines()) == 1 + SPEC.steps
    assert len(said[1].splitlines()) == 1, "only the first process speaks"
    space, data = load_space("metaformer", choices=CHOICES), load_data("procedural:train=200,val=40", resolution=24)
    one = train_supernet(space, data, SPEC, tmp_path / "one", device="cpu").supernet
    less = train_supernet(space, data, replace(SPEC, steps=2), tmp_path / "less", device="cpu").supernet
    two = deepcopy(one)
    tensors, header = load_checkpoint(next((tmp_path / "two").glob("supernets/*/supernet.safetensors")))
    two.load_state_dict(tensors)
    assert header["step"] == SPEC.steps
    images = data.val.batch(np.arange(40), 24)
    # With the statistics of the batch: a bias before BatchNorm has no gradient but rounding, which Adam scales up.
    for arch in sandwich(space, SPEC, 2):
        with torch.no_grad():
            logits = [supernet.train()(images, arch) for supernet in (one, two, less)]
        assert torch.allclose(logits[0], logits[1], rtol=0, atol=1e-3 * float(logits[0].abs().max()))
        assert not torch.allclose(logits[0], logits[2], rtol=0, atol=1e-2 * float(logits[0].abs().max()))
