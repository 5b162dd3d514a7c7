"""What a step is made of: losses, averages, dropped branches, timm's augmentation; all by seed and step."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_networks import small_architecture

from nas.averaging import Average
from nas.data.augment import augment
from nas.data.load import load_data
from nas.data.mixing import _rand_augment, check_rand_augment, mixed, rand_augmented
from nas.errors import UsageError
from nas.group import Group
from nas.losses import alpha_divergence, kl, label_loss
from nas.recipe import dropped_paths, schedule, training_batch
from nas.spec import TrainSpec
from search_spaces.network import build_network

ALONE = Group(0, 1, torch.device("cpu"))
SPEC = TrainSpec(steps=4, batch_size=8, warmup_steps=1)


@pytest.fixture(scope="module")
def bundle():
    return load_data("procedural:train=200,val=40", resolution=16)


def probabilities(seed: int, temperature: float = 1.0) -> torch.Tensor:
    return (
        temperature * torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ).softmax(1)


def test_kl_has_the_gradient_of_the_kl_divergence():
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    teacher = probabilities(0)
    (ours,) = torch.autograd.grad(kl(logits, teacher).sum(), logits)
    divergence = torch.nn.functional.kl_div(logits.log_softmax(1), teacher, reduction="sum")
    (theirs,) = torch.autograd.grad(divergence, logits)
    assert torch.allclose(ours, theirs)


@pytest.mark.parametrize("alpha", [-1.0, 1.0])
def test_alpha_divergence_has_the_gradient_of_the_greater_of_its_two(alpha):
    """Against the definition, differentiated as it stands; probabilities so near that nothing is clipped."""
    logits = probabilities(1, 0.2).log().requires_grad_()
    p = probabilities(2, 0.2)

    def divergence(q: torch.Tensor, alpha: float) -> torch.Tensor:
        if alpha == 1.0:
            return (p * (p / q).log()).sum(1)
        return ((q * (p / q) ** alpha).sum(1) - 1) / (alpha * (alpha - 1))

    q = logits.softmax(1)
    both = torch.stack([divergence(q, -1.0), divergence(q, 1.0)])
    greater = both.argmax(0) == (0 if alpha < 0 else 1)
    assert greater.any(), "both signs occur among the images"
    (ours,) = torch.autograd.grad(alpha_divergence(logits, p)[greater].sum(), logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(divergence(q, alpha)[greater].sum(), logits)
    assert torch.allclose(ours, theirs, atol=1e-9)


def test_alpha_divergence_is_bounded_where_the_network_is_certain_and_wrong():
    logits = torch.tensor([[30.0, 0.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(alpha_divergence(logits, torch.tensor([[0.0, 0.5, 0.5]])).sum(), logits)
    assert torch.isfinite(gradient).all()
    assert float(gradient.abs().max()) <= 5.0


def test_labels_as_classes_and_as_smoothed_probabilities_give_one_loss():
    logits, labels = torch.randn(6, 5), torch.arange(6) % 5
    smoothed = torch.nn.functional.one_hot(labels, 5) * 0.9 + 0.1 / 5
    assert torch.allclose(label_loss(logits, labels, 0.1), label_loss(logits, smoothed, 0.1), atol=1e-6)


def test_average_equals_the_recursion_written_out():
    layer = torch.nn.Linear(3, 2)
    average = Average(layer, 0.5)
    expected = layer.weight.detach().clone().double()
    for step in range(5):
        torch.nn.init.normal_(layer.weight)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * layer.weight.detach().double()
        average.add(layer, step)
    assert torch.allclose(average.tensors["weight"].double(), expected, atol=1e-6)


def test_dropped_paths_leave_out_branches_in_training_and_nothing_afterwards():
    arch = small_architecture([("dwconv", 3), ("dwconv", 3)])
    network = build_network(arch, 5).train()
    x = torch.randn(64, 3, 16, 16)
    stem = network.stem(x)
    block = network.stages[0].blocks[1]  # the last sum of a stage is left out most
    before = block(stem)
    torch.manual_seed(0)
    with dropped_paths(network, 0.9):
        changed = block(stem)
        network.eval()
        assert torch.equal(block(stem), block(stem))
        network.train()
    assert not torch.allclose(changed, before)
    assert torch.allclose(block(stem), before), "the hooks are gone"
    with dropped_paths(network, 0.0):
        assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_share_of_a_batch_is_that_part_of_the_joint_batch(bundle):
    spec = replace(SPEC, mixup=0.4, cutmix=1.0, rand_augment="rand-m5-n1")
    whole = training_batch(bundle, spec, 16, 3, ALONE)
    for rank in range(2):
        group = Group(rank, 2, torch.device("cpu"))
        part, rows = training_batch(bundle, spec, 16, 3, group), torch.from_numpy(group.share(8))
        assert part.joint == 8
        assert torch.allclose(part.images, whole.images[rows], atol=1e-6)
        assert torch.allclose(part.labels, whole.labels[rows])


@pytest.mark.parametrize("extra", [{}, {"mixup": 0.2}, {"cutmix": 1.0}, {"rand_augment": "rand-m7-n2-mstd0.5"}])
def test_batches_follow_from_seed_and_step_and_leave_global_generators_alone(bundle, extra):
    spec = replace(SPEC, **extra)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 (it is what must not be touched)
    expected = random.random(), np.random.rand()  # noqa: NPY002
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    first = training_batch(bundle, spec, 16, 2, ALONE)
    assert (random.random(), np.random.rand()) == expected  # noqa: NPY002
    again, other = training_batch(bundle, spec, 16, 2, ALONE), training_batch(bundle, spec, 16, 3, ALONE)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)


def test_images_whose_mirror_image_is_of_another_class_are_not_mirrored(bundle):
    """Against all shifts of the image itself: mirrored ones are among those of its mirror image."""
    still = load_data("procedural:train=200,val=40", resolution=16, flip=False)
    assert still.identity != bundle.identity
    order = np.random.default_rng((SPEC.seed, 0, 2)).permutation(len(bundle.train))
    plain = bundle.train.batch(np.sort(order[:8]), 16)

    def shifted(images: torch.Tensor) -> list[torch.Tensor]:
        wide = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="reflect")
        return [wide[:, :, y : y + 16, x : x + 16] for y in range(5) for x in range(5)]

    def mirrored(batch: torch.Tensor) -> int:
        near = [
            torch.stack([(batch - s).abs().amax((1, 2, 3)) for s in shifted(i)]).amin(0) for i in (plain, plain.flip(3))
        ]
        return int((near[1] < near[0]).sum())

    assert mirrored(training_batch(still, SPEC, 16, 0, ALONE).images) == 0
    assert 0 < mirrored(training_batch(bundle, SPEC, 16, 0, ALONE).images) < 8


def test_every_two_classes_are_mixed_though_a_folder_lies_class_by_class(bundle):
    order = np.argsort(bundle.train.labels, kind="stable")
    rows = order if bundle.train.rows is None else bundle.train.rows[order]
    sorted_bundle = replace(bundle, train=replace(bundle.train, rows=rows))
    labels = sorted_bundle.train.labels
    assert (np.diff(labels) >= 0).all()
    spec, met = replace(SPEC, mixup=1.0, batch_size=len(labels) // 2 * 2, label_smoothing=0.0), set()
    for step in range(4):
        for target in training_batch(sorted_bundle, spec, 16, step, ALONE).labels.numpy():
            met.add(tuple(np.flatnonzero(target > 1e-6)))
    pairs = {pair for pair in met if len(pair) == 2}
    assert len(pairs) > 0.9 * 12 * 11 / 2, "sorted rows met 12 neighbours of the mirror image's class"


def test_without_mixing_a_batch_is_read_in_the_order_of_its_rows(bundle):
    batch = training_batch(bundle, SPEC, 16, 0, ALONE)
    order = np.random.default_rng((SPEC.seed, 0, 2)).permutation(len(bundle.train))
    assert batch.labels.tolist() == bundle.train.labels[np.sort(order[:8])].tolist()


def test_mixup_mixes_images_and_labels_alike():
    images = torch.stack([torch.full((3, 4, 4), float(n)) for n in range(4)])
    out, target = mixed(images, torch.arange(4), 4, 1.0, 0.0, 0.0, (0, 1))
    share = target[0, 0]  # of the image itself; the rest is its mirror's, image 3
    assert 0 < share < 1
    assert torch.allclose(out[0], torch.full((3, 4, 4), float(3 * (1 - share))), atol=1e-5)
    assert torch.allclose(target.sum(1), torch.ones(4))
    assert torch.equal(images[1], torch.full((3, 4, 4), 1.0)), "the input is left as it was"


def test_rand_augment_changes_pixels_within_their_range_and_one_channel_stays_one():
    images = torch.rand(4, 1, 16, 16)
    out = rand_augmented(images, "rand-m9-n2", [(0, n) for n in range(4)], (0.0,), (1.0,))
    assert out.shape == images.shape
    assert not torch.allclose(out, images, atol=0.1)
    assert 0 <= float(out.min()) <= float(out.max()) <= 1


def test_rand_augment_is_told_what_it_uses_and_nothing_else():
    """timm's operations move a share of the side (`translate_pct`, by its default 0.45), never `translate_const`."""
    read = {"translate_pct"} | {"img_mean", "magnitude_max", "magnitude_std"}
    for op in _rand_augment("rand-m7-n2", (0, 0, 0)).ops:
        assert set(op.hparams) <= read, op.name


@pytest.mark.parametrize("text", ["m7-n2", "rand-q7"])
def test_what_timm_does_not_understand_is_one_line(text):
    with pytest.raises(UsageError, match=r"train.rand_augment .* write it like 'rand-m7-n2-mstd0.5'"):
        check_rand_augment(text)


def test_a_share_is_augmented_as_in_the_joint_batch():
    images = torch.rand(10, 3, 16, 16)
    rows = np.array([1, 4, 8])
    whole = augment(images, torch.Generator().manual_seed(3))
    part = augment(images[rows], torch.Generator().manual_seed(3), share=rows, joint=10)
    assert torch.equal(part, whole[rows])


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 20, 30])
def test_a_training_that_is_shorter_than_its_warm_up_still_decays(steps):
    factors = [schedule(step, steps, 20) for step in range(steps)]
    assert max(factors) == 1.0
    assert np.all(np.diff(factors[: steps // 2]) > 0)
    assert np.all(np.diff(factors[steps // 2 + 1 :]) < 0)
    assert factors[steps // 2 :] == [schedule(step, steps - steps // 2, 0) for step in range(steps - steps // 2)]


def test_schedule_warms_up_and_ends_near_zero():
    factors = [schedule(step, 100, 10) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert np.all(np.diff(factors[10:]) <= 0)
    assert 0 < factors[-1] < 0.01
