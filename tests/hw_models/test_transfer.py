"""Factors of measured devices become a prior for one that was not: nearer kin count more, spread makes it unsure."""

from __future__ import annotations

import numpy as np
import pytest

from hw_models import list_targets
from hw_models.families import COLUMNS
from hw_models.transfer import STACKS, DeviceFactors, kin, published_factors, stack_of, transfer

DENSE = COLUMNS.index("dense/int")


def device(target: str, factor: float, errors: tuple[float, ...] = ()) -> DeviceFactors:
    return DeviceFactors(target, target, "int8", "", 20, {"dense/int": np.log(factor), "launch": 0.0}, errors)


def test_every_target_that_ships_has_a_kind():
    assert set(list_targets()) <= set(STACKS)
    assert stack_of("a_file_of_a_user") == ("npu", "")


def test_the_same_stack_counts_most():
    devices = [device("sl1680", 4.0), device("hailo8", 1.0)]
    near = transfer("npu_40tops", devices)
    far = transfer("ethos_u85_2048", devices)
    assert near is not None
    assert far is not None
    assert near.prior.mean[DENSE] > far.prior.mean[DENSE] > 0
    assert kin("npu_40tops", near.sources) == ["sl1680", "hailo8"]


def test_a_device_is_no_source_of_its_own_and_kinds_do_not_mix():
    assert transfer("hailo8", [device("hailo8", 3.0)]) is None
    assert transfer("npu_40tops", [device("i9_10940x", 3.0), device("rtx_4090", 3.0)]) is None


def test_devices_that_disagree_make_the_prior_unsure():
    alike = transfer("npu_40tops", [device(name, 2.0) for name in ("hailo8", "ax650n", "coral_usb", "rk3588")])
    apart = transfer(
        "npu_40tops",
        [device(name, factor) for name, factor in zip(("hailo8", "ax650n", "coral_usb", "rk3588"), (0.2, 1, 5, 20))],  # noqa: B905
    )
    assert alike is not None
    assert apart is not None
    assert apart.prior.spread[DENSE] > alike.prior.spread[DENSE]
    assert apart.prior.scale_spread > alike.prior.scale_spread


def test_the_interval_is_what_held_the_sources():
    errors = tuple(np.linspace(-1, 1, 201))
    known = transfer("npu_40tops", [device("hailo8", 1.0, errors)])
    assert known is not None
    assert known.log_spread == pytest.approx(0.9, abs=0.01)
    assert known.upper(0.9) == pytest.approx(np.exp(0.8), rel=0.01)


def test_a_target_without_a_board_starts_from_its_vendors_device():
    known = transfer("npu_40tops", published_factors())
    assert known is not None
    assert kin("npu_40tops", known.sources)[0].startswith("Synaptics")  # a core of the same vendor
    others = transfer("npu_40tops", [one for one in published_factors() if one.target != "sl1680"])
    own = [one for one in published_factors() if one.target == "sl1680"]
    assert others is not None
    scale, without = (np.mean(prior.mean) for prior in (known.prior, others.prior))
    nearer = np.mean([np.mean(list(one.log_factors.values())) for one in own])
    assert abs(scale - nearer) < abs(without - nearer)


def test_shipped_factors_can_be_read():
    devices = published_factors()
    assert len({one.target for one in devices}) >= 10
    for one in devices:
        assert DeviceFactors.from_dict(one.to_dict()) == one
        assert set(one.log_factors) <= set(COLUMNS)
        assert one.target in STACKS
