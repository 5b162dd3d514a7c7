"""Optimizer steps worked out by hand: what is clipped, decayed, distilled, averaged, and in which order images come."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import randomize, small_architecture
from torch import nn

from nas.data.bundle import ArrayPixels, DataBundle, ImageSource, LabelledPixels
from nas.data.load import load_data
from nas.group import Group
from nas.losses import alpha_divergence
from nas.recipe import Batch, make_optimizer, schedule, training_batch, update
from nas.spec import TrainSpec
from nas.standalone import train_alone
from nas.teacher import Teacher
from nas.train import learn, train_supernet
from search_spaces.architecture import NORMS
from search_spaces.metaformer import load_space
from search_spaces.network import build_network
from search_spaces.supernet import Supernet

ALONE = Group(0, 1, torch.device("cpu"))
SPEC = TrainSpec(steps=4, batch_size=8, warmup_steps=1)
SPACE = load_space("metaformer", mixers=["pool", "dwconv"], choices={"resolution": [24, 32], "depth": [1]})
ENDS = [SPACE.decode({choice.name: choice.values[end] for choice in SPACE.choices}) for end in (-1, 0, 0)]
"""Architectures of a step: the largest, which teaches, and the smallest, twice."""


@pytest.fixture(scope="module")
def bundle():
    return load_data("procedural:train=160,val=40", resolution=32)


@pytest.mark.parametrize(
    ("clip_norm", "networks", "length"), [(1.0, 1, 1.0), (1.0, 3, 3.0), (0.5, 2, 1.0), (20.0, 1, 13.0), (0.0, 1, 13.0)]
)
def test_a_step_is_as_long_as_clip_norm_lets_it_be(clip_norm, networks, length):
    """Gradients (3, 4) and 12 have a norm of 13 together; plain descent, as Adam's first step has no length."""
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([first, second], lr=9.0)
    spec = replace(SPEC, learning_rate=0.1, clip_norm=clip_norm, steps=10, warmup_steps=4)
    first.grad, second.grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
    update([first, second], optimizer, spec, 1, ALONE, networks)
    rate = 0.1 * 2 / 4  # the second of four steps of warming up
    expected = -rate * length / 13 * torch.tensor([3.0, 4.0, 12.0])
    torch.testing.assert_close(torch.cat((first, second)).detach(), expected)
    assert first.grad is second.grad is None


def test_gradients_are_clipped_at_the_norm_per_network_of_the_step(bundle, tmp_path, monkeypatch):
    bounds: list[float] = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda weights, bound: bounds.append(bound))
    spec = replace(SPEC, steps=2, clip_norm=0.5, single_path_share=0.5, subnets=1)
    train_supernet(SPACE, bundle, spec, tmp_path, device="cpu")
    assert bounds == [0.5, 1.5]
    train_alone(ENDS[1], bundle, spec, "cpu")
    assert bounds[2:] == [0.5, 0.5]


def model_of(name: str) -> nn.Module:
    if name == "supernet":
        return Supernet(load_space("metaformer", choices={"norm": list(NORMS), "depth": [1]}), 5)
    arch = small_architecture([("dwconv", 3), ("mhsa", 0)], norm=name, activation="starrelu", stages=1)
    return build_network(arch, 5)


@pytest.mark.parametrize("name", [*NORMS, "supernet"])
def test_matrices_and_kernels_decay_and_nothing_else(name):
    """Without a gradient, AdamW multiplies what decays by 1 - learning rate x decay, and leaves the rest alone."""
    model = randomize(model_of(name))
    decaying = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    before = {key: tensor.detach().clone() for key, tensor in model.named_parameters()}
    spec = replace(SPEC, learning_rate=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    update(list(model.parameters()), make_optimizer(model, spec), spec, 0, ALONE)
    after = dict(model.named_parameters())
    assert decaying
    assert not before.keys() - after.keys()
    for key, tensor in before.items():
        left = 1 - 0.1 * schedule(0, spec.steps, spec.warmup_steps) * 0.5 if key in decaying else 1.0
        torch.testing.assert_close(after[key].detach(), tensor * left, msg=key)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("distillation", "taught"), [("kl", False), ("kl", True), ("alpha", False), ("none", False)])
def test_the_largest_network_of_a_step_teaches_the_others(distillation, taught):
    """Half of what the others learn is of the labels, half of the largest network's predictions, which stand still."""
    supernet = randomize(Supernet(SPACE, 12)).double().train()
    draw = torch.Generator().manual_seed(0)
    images, labels = torch.randn(4, 3, 32, 32, generator=draw, dtype=torch.float64), torch.arange(4)
    linear = randomize(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 12))).double()
    teacher = Teacher(linear, None, torch.tensor(1.0), torch.tensor(0.0))
    spec = replace(SPEC, distillation=distillation, label_smoothing=0.2)
    shown = learn(supernet, ENDS, Batch(images, labels, 8), spec, teacher if taught else None)
    ours = gradients(supernet)
    supernet.zero_grad(set_to_none=True)

    targets = 0.8 * F.one_hot(labels, 12) + 0.2 / 12
    losses = []
    for number, arch in enumerate(ENDS):
        seen = F.interpolate(images, (arch.resolution,) * 2, mode="bilinear", antialias=True)
        logits = supernet(images if arch.resolution == 32 else seen, arch)
        loss = -(targets * logits.log_softmax(1)).sum(1)
        if number == 0:
            largest = logits.detach().softmax(1)
            if taught:
                loss = (loss - (teacher(images) * logits.log_softmax(1)).sum(1)) / 2
        elif distillation == "kl":
            loss = (loss - (largest * logits.log_softmax(1)).sum(1)) / 2
        elif distillation == "alpha":  # which has a test of its own
            loss = (loss + alpha_divergence(logits, largest)) / 2
        losses.append(loss.sum() / 8)  # of a joint batch of 8 images
    sum(losses).backward()
    assert shown == pytest.approx(float(losses[0].detach()), rel=1e-5)
    expected = gradients(supernet)
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def numbered(count: int) -> DataBundle:
    """Images that are known by their grey, which no shift or mirror changes."""
    pixels = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 1, 8, 8)).copy()
    labels = np.arange(count, dtype=np.int64) % 10
    source = ImageSource(
        lambda: LabelledPixels(ArrayPixels(pixels), labels), None, tuple("abcdefghij"), 1, 8, (0.0,), (1 / 255,)
    )
    return DataBundle("numbered", "0", source, source, source)


def epochs(spec: TrainSpec, count: int, steps_each: int) -> list[list[list[int]]]:
    """[epoch][step]: numbers of the images, least first."""
    bundle = numbered(count)
    steps = []
    for step in range(3 * steps_each):
        batch = training_batch(bundle, spec, 8, step, ALONE)
        numbers = batch.images[:, 0, 0, 0].round().long()
        assert torch.equal(batch.labels, numbers % 10), "labels go with their images"
        steps.append(sorted(numbers.tolist()))
    return [steps[start : start + steps_each] for start in range(0, len(steps), steps_each)]


def test_every_epoch_shows_every_image_once_in_an_order_of_its_own():
    passes = epochs(SPEC, 40, 5)
    for batches in passes:
        assert Counter(number for batch in batches for number in batch) == Counter(range(40))
    assert len({str(batches) for batches in passes}) == 3
    assert epochs(SPEC, 40, 5) == passes
    assert epochs(replace(SPEC, seed=1), 40, 5) != passes


def test_what_does_not_fill_a_batch_waits_for_another_epoch():
    passes = epochs(SPEC, 43, 5)
    left_out = [set(range(43)) - {number for batch in batches for number in batch} for batches in passes]
    assert [len(numbers) for numbers in left_out] == [3, 3, 3]
    assert left_out[0] != left_out[1], "others each time"


def test_a_network_trained_alone_is_the_average_of_its_weights(bundle):
    spec = replace(SPEC, ema=0.15)
    torch.manual_seed(spec.seed)
    start = build_network(ENDS[1], bundle.num_classes)
    expected = {name: p.detach().clone().double() for name, p in start.named_parameters()}
    last: dict[str, torch.Tensor] = {}

    def follow(done: int, network: nn.Module) -> None:
        decay = min(0.15, done / (9 + done))  # 1/10, then 2/11, of which 0.15 is less
        for name, parameter in network.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach().double()
        last.update({name: tensor.clone() for name, tensor in network.state_dict().items()})

    kept = train_alone(ENDS[1], bundle, spec, "cpu", after_step=follow).state_dict()
    for name, tensor in kept.items():
        if name in expected:
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-7)
        else:
            assert torch.equal(tensor, last[name]), name
    assert not torch.equal(kept["head.fc.weight"], last["head.fc.weight"])


def test_a_supernet_is_the_average_of_its_weights(bundle, tmp_path):
    """After one step: a tenth of the first weights, the rest those that the step leaves."""
    spec = replace(SPEC, steps=1, learning_rate=0.1)
    torch.manual_seed(spec.seed)
    first = dict(Supernet(SPACE, bundle.num_classes).named_parameters())
    plain, averaged = (
        dict(train_supernet(SPACE, bundle, replace(spec, ema=ema), tmp_path, device="cpu").supernet.named_parameters())
        for ema in (0.0, 0.9)
    )
    assert any(not torch.equal(plain[name], first[name]) for name in first)
    for name, tensor in averaged.items():
        torch.testing.assert_close(tensor, 0.1 * first[name] + 0.9 * plain[name], rtol=1e-5, atol=1e-6)
