"""Accuracy and BatchNorm statistics, against direct computation."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from nas.accuracy import Accuracy, measure, predict, recalibrate_batchnorm, spread_rows


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)).eval()


def test_batchnorm_statistics_equal_the_moments_of_all_images() -> None:
    network = small_network()
    images = torch.randn(12, 3, 9, 9) + 2
    before = network[0](images).transpose(0, 1).flatten(1)
    assert recalibrate_batchnorm(network, images.split(5)) == 12  # batches of unequal size
    torch.testing.assert_close(network[1].running_mean, before.mean(1))
    torch.testing.assert_close(network[1].running_var, before.var(1))


def test_batchnorm_statistics_forget_the_old_ones_and_leave_the_rest_alone() -> None:
    one, other = small_network(), small_network()
    images = torch.randn(8, 3, 9, 9)
    with torch.no_grad():
        other[1].running_mean.fill_(7)
        other[4].running_var.fill_(9)
    for network in (one, other):
        recalibrate_batchnorm(network, images.split(4))
        assert not any(module.training for module in network.modules())
        assert network[1].momentum == 0.1
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_batchnorm_without_images_is_refused() -> None:
    network = small_network()
    before = network[1].running_mean.clone()
    with pytest.raises(ValueError, match="at least one image"):
        recalibrate_batchnorm(network, [])
    assert torch.equal(network[1].running_mean, before)


def test_a_small_last_batch_joins_the_one_before() -> None:
    """On its own, one image through a global average has no variance."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4))
    images = torch.randn(9, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    assert recalibrate_batchnorm(network, images.split(4)) == 9
    torch.testing.assert_close(network[2].running_mean, network[1](network[0](images)).mean((0, 2, 3)))
    with pytest.raises(ValueError, match="at least two images"):
        recalibrate_batchnorm(network, [images[:1]])


class Brightest(nn.Module):
    """Answers with the brightest channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.amax((2, 3))


def test_top1_counts_hits_over_all_batches() -> None:
    images = torch.zeros(10, 4, 2, 2)
    labels = torch.arange(10) % 4
    images[torch.arange(10), labels] = 1
    wrong = labels.clone()
    wrong[:3] = (wrong[:3] + 1) % 4
    accuracy = measure(Brightest(), zip(images.split(4), wrong.split(4), strict=True), "one-shot", "search")
    rate = 8 / 12
    assert accuracy == Accuracy(0.7, pytest.approx((rate * (1 - rate) / 10) ** 0.5), 10, "one-shot", "search")
    assert predict(Brightest(), images.split(4)).shape == (10, 4)


class Noted(nn.Module):
    """The mean of a batch, and in which thread, with how many threads of torch's, it was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[tuple[int, int]] = []
        self.together = threading.Barrier(2, timeout=30)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.threads.append((threading.get_ident(), torch.get_num_threads()))
        self.together.wait()  # breaks unless two batches run at a time
        return x.mean((1, 2, 3))[:, None]


def test_streams_run_at_a_time_and_give_the_batches_in_order() -> None:
    network, images = Noted(), torch.randn(24, 3, 4, 4)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = predict(network, images.split(2), streams=2)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[:, 0], images.mean((1, 2, 3)))
    assert len(network.threads) == 12
    assert {count for _, count in network.threads} == {1}, "as the thread that asked"
    assert threading.get_ident() not in {ident for ident, _ in network.threads}


def test_streams_read_images_no_faster_than_they_are_used() -> None:
    read, done = [], []

    class Counting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            done.append(len(read) - len(done))
            return x

    def images():
        for number in range(40):
            read.append(number)
            yield torch.zeros(1, 1)

    predict(Counting(), images(), streams=2)
    assert len(done) == 40
    assert max(done) <= 8


def test_what_a_stream_raises_is_raised() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("this batch")

    with pytest.raises(ValueError, match="this batch"):
        predict(Broken(), [torch.zeros(1, 1)] * 3, streams=2)


def test_none_right_of_a_few_is_not_known_exactly() -> None:
    assert Accuracy.of(0, 5, "one-shot", "search").stderr > Accuracy.of(0, 500, "one-shot", "search").stderr > 0


def test_accuracy_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        measure(Brightest(), [], "one-shot", "search")


def test_accuracy_round_trip() -> None:
    accuracy = Accuracy.of(8, 10, "stand-alone", "val")
    assert Accuracy.from_dict(accuracy.to_dict()) == accuracy
    assert str(accuracy) == "80.0% ± 13.7% (stand-alone, 10 val images)"
    with pytest.raises(ValueError, match="not an accuracy"):
        Accuracy.from_dict({"top1": 1.0})


def test_rows_are_spread_over_a_set_that_lies_class_by_class() -> None:
    labels = torch.arange(10).repeat_interleave(500)
    assert set(torch.bincount(labels[spread_rows(len(labels), 1000)]).tolist()) == {100}
    rows = spread_rows(1000, 10)
    assert (len(rows), rows[0], rows[-1]) == (10, 0, 999)
    assert set(rows[1:] - rows[:-1]) == {111}
    assert spread_rows(7, 100).tolist() == list(range(7))
