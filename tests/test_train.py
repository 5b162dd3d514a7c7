"""Supernet training: fair, repeatable, resumable, never mixed up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch

from nas.checkpoint import load_checkpoint, save_checkpoint
from nas.data.load import load_data
from nas.errors import NasError, UsageError
from nas.files import sole_user
from nas.spec import StudySpec, TrainSpec, override
from nas.train import sandwich, supernet_identity, train_supernet
from search_spaces.metaformer import load_space

SPACE = load_space("metaformer", choices={"resolution": [24, 32], "depth": [1, 2]})
SPEC = TrainSpec(steps=6, single_path_share=1 / 3, batch_size=8, warmup_steps=2, checkpoint_every=2)


@pytest.fixture(scope="module")
def bundle():
    return load_data("procedural:train=200,val=40", resolution=32)


def weights(trained) -> dict[str, torch.Tensor]:
    return trained.supernet.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_interrupted_training_ends_with_the_same_weights(bundle, tmp_path):
    spec = replace(SPEC, ema=0.9, drop_path=0.2, mixup=0.2, cutmix=1.0, distillation="alpha", small_warmup_share=0.5)
    whole = train_supernet(SPACE, bundle, spec, tmp_path / "whole", device="cpu")

    def interrupt(done: int, total: int, loss: float) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_supernet(SPACE, bundle, spec, tmp_path / "cut", progress=interrupt, device="cpu")
    steps = []
    cut = train_supernet(
        SPACE, bundle, spec, tmp_path / "cut", progress=lambda *args: steps.append(args[0]), device="cpu"
    )
    assert steps == [4, 5, 6], "no step is done twice"
    assert same(weights(whole), weights(cut))
    assert sorted(path.name for path in cut.path.parent.iterdir()) == [".lock", "supernet.safetensors"]


def test_killed_training_goes_on_from_its_last_checkpoint(bundle, tmp_path):
    spec = replace(SPEC, steps=8)
    script = f"""
from pathlib import Path
from nas.data.load import load_data
from nas.spec import TrainSpec
from nas.train import train_supernet
from search_spaces.metaformer import load_space
space = load_space("metaformer", choices={{"resolution": [24, 32], "depth": [1, 2]}})
train_supernet(space, load_data("procedural:train=200,val=40", resolution=32), {spec!r}, Path({str(tmp_path)!r}),
               progress=lambda *args: print(args[0], flush=True), device="cpu")
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "5":
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    steps = []
    trained = train_supernet(SPACE, bundle, spec, tmp_path, progress=lambda *args: steps.append(args[0]), device="cpu")
    assert steps[0] in (5, 6, 7), "from the last checkpoint, not from the start"
    assert same(weights(trained), weights(train_supernet(SPACE, bundle, spec, tmp_path / "whole", device="cpu")))


def test_a_finished_supernet_is_reused_and_equal(bundle, tmp_path):
    first = train_supernet(SPACE, bundle, SPEC, tmp_path, device="cpu")
    second = train_supernet(SPACE, bundle, SPEC, tmp_path, device="cpu")
    assert (first.reused, second.reused) == (False, True)
    assert same(weights(first), weights(second))


def test_identity_follows_space_data_and_budget_but_not_bits(bundle):
    base = supernet_identity(SPACE, bundle, SPEC)
    assert supernet_identity(SPACE.restrict({"bits": ["w8a8"]}), bundle, SPEC) == base
    assert supernet_identity(SPACE, bundle, replace(SPEC, checkpoint_every=50)) == base
    others = {
        supernet_identity(SPACE.restrict({"activation": ["relu"]}), bundle, SPEC),
        supernet_identity(load_space("metaformer", "mobile"), bundle, SPEC),
        supernet_identity(SPACE, load_data("procedural:train=200,val=40", resolution=32, seed=1), SPEC),
        supernet_identity(SPACE, bundle, replace(SPEC, steps=7)),
        supernet_identity(SPACE, bundle, replace(SPEC, seed=1)),
    }
    assert base not in others
    assert len(others) == 5


def test_every_mixer_is_trained_equally_often():
    counts: dict[str, Counter] = {}
    spec = replace(SPEC, steps=3 * 14)
    for step in range(spec.steps):
        for arch in sandwich(SPACE, spec, step):
            genome = SPACE.encode(arch)
            for gene, value in genome.items():
                if gene.endswith("mixer"):
                    counts.setdefault(gene, Counter())[value] += 1
    for gene, counter in counts.items():
        assert set(counter) == set(SPACE[gene].values)
        assert max(counter.values()) - min(counter.values()) <= 1, gene


def test_sandwich_holds_the_largest_and_the_smallest_sizes():
    largest, smallest, *rest = sandwich(SPACE, SPEC, 5)
    assert len(rest) == SPEC.subnets
    for arch, end in ((largest, -1), (smallest, 0)):
        genome = SPACE.encode(arch)
        for gene in ("resolution", "stage1.width", "stage3.depth", "stage4.expansion"):
            assert genome[gene] == SPACE[gene].values[end]


def test_single_paths_can_have_random_sizes_and_are_fair_all_the_same():
    spec = replace(SPEC, steps=42, single_path_share=1.0, single_path_sizes="random")
    genomes = [SPACE.encode(arch) for step in range(spec.steps) for arch in sandwich(SPACE, spec, step)]
    assert len(genomes) == spec.steps
    assert len({genome["stage1.width"] for genome in genomes}) == len(SPACE["stage1.width"].values)
    words = Counter(genome["stage1.mixer"] for genome in genomes)
    assert max(words.values()) - min(words.values()) <= 1


def test_without_fairness_mixers_are_drawn():
    spec = replace(SPEC, steps=42, single_path_share=0.0, fairness=False)
    words = [SPACE.encode(arch)["stage1.mixer"] for step in range(spec.steps) for arch in sandwich(SPACE, spec, step)]
    counts = Counter(words)
    assert max(counts.values()) - min(counts.values()) > 1


def test_small_sizes_come_later_when_asked_for():
    spec = replace(SPEC, steps=40, single_path_share=0.0, small_warmup_share=0.5)
    widths = SPACE["stage4.width"].values
    smallest = [min(SPACE.encode(a)["stage4.width"] for a in sandwich(SPACE, spec, step)) for step in range(spec.steps)]
    assert smallest[0] == widths[-1]
    assert smallest == sorted(smallest, reverse=True)
    assert set(smallest[20:]) == {widths[0]}


@pytest.mark.parametrize(
    ("key", "value"),
    [("distillation", "beta"), ("single_path_sizes", "small"), ("ema", 1.0), ("drop_path", -0.1), ("mixup", -1.0)],
)
def test_training_options_that_cannot_be_are_one_line(key, value):
    with pytest.raises(UsageError, match=rf"{key} .*must hold in \[train\]"):
        override(StudySpec(), {f"train.{key}": value})


def test_images_mixed_in_pairs_want_an_even_batch():
    with pytest.raises(UsageError, match="an even batch_size with mixup or cutmix"):
        override(StudySpec(), {"train.mixup": 0.2, "train.batch_size": 63})


def test_a_damaged_supernet_is_refused_by_name(bundle, tmp_path):
    trained = train_supernet(SPACE, bundle, SPEC, tmp_path, device="cpu")
    whole = trained.path.read_bytes()
    trained.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NasError, match=r"supernet.safetensors cannot be read.*delete it"):
        train_supernet(SPACE, bundle, SPEC, tmp_path, device="cpu")
    changed = bytearray(whole)
    changed[-5] ^= 0x40
    trained.path.write_bytes(bytes(changed))
    with pytest.raises(NasError, match="damaged or was changed"):
        train_supernet(SPACE, bundle, SPEC, tmp_path, device="cpu")


def test_a_supernet_of_another_identity_is_refused(bundle, tmp_path):
    trained = train_supernet(SPACE, bundle, SPEC, tmp_path, device="cpu")
    other = supernet_identity(SPACE, bundle, replace(SPEC, seed=1))
    home = tmp_path / "supernets" / other
    home.mkdir()
    trained.path.rename(home / "supernet.safetensors")
    with pytest.raises(NasError, match=f"holds supernet {trained.identity}, not {other}"):
        train_supernet(SPACE, bundle, replace(SPEC, seed=1), tmp_path, device="cpu")


def test_two_trainings_of_one_supernet_do_not_meet(bundle, tmp_path):
    home = tmp_path / "supernets" / supernet_identity(SPACE, bundle, SPEC)
    with sole_user(home, "supernet"), pytest.raises(NasError, match="is in use by process"):
        train_supernet(SPACE, bundle, SPEC, tmp_path, device="cpu")


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    save_checkpoint(path, {"a": torch.ones(3)}, {"kind": "first"})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(NasError, match="No space left on device; free some space"):
        save_checkpoint(path, {"a": torch.zeros(3)}, {"kind": "second"})
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]
    tensors, header = load_checkpoint(path)
    assert header["kind"] == "first"
    assert torch.equal(tensors["a"], torch.ones(3))


def test_divergence_is_said(bundle, tmp_path):
    with pytest.raises(NasError, match=r"diverged at step .* lower train.learning_rate"):
        train_supernet(SPACE, bundle, replace(SPEC, learning_rate=1e30), tmp_path, device="cpu")


def test_progress_is_called_once_a_step(bundle, tmp_path):
    calls: list[tuple[int, int, float]] = []
    train_supernet(SPACE, bundle, SPEC, tmp_path, progress=lambda *args: calls.append(args), device="cpu")
    assert [call[:2] for call in calls] == [(n, 6) for n in range(1, 7)]
    assert all(isinstance(call[2], float) for call in calls)
