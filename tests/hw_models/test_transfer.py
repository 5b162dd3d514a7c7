"""Factors of measured devices become a prior for one that was not: nearer kin count more, spread makes it unsure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hw_models import list_targets, load_target
from hw_models.estimate import COST_MODEL_VERSION
from hw_models.factors import SCALE_SPREAD
from hw_models.families import COLUMNS
from hw_models.target_file import TargetError
from hw_models.transfer import PUBLISHED, DeviceFactors, published_factors, stack_of, transfer

DENSE = COLUMNS.index("dense/int")


NPU = load_target("npu_40tops")


def device(target: str, factor: float, errors: tuple[float, ...] = ()) -> DeviceFactors:
    return DeviceFactors(target, target, "int8", "", 20, {"dense/int": np.log(factor), "launch": 0.0}, errors)


def test_a_file_of_a_users_own_says_what_it_is(tmp_path: Path) -> None:
    file = tmp_path / "my_core.toml"
    file.write_text('like = "epyc_zen5_core"\ntitle = "mine"\n', encoding="utf-8")
    devices = [device("i9_10940x", 3.0), device("hailo8", 1.0)]
    known = transfer(load_target(file), devices)
    assert known is not None
    assert known.devices == ["i9_10940x"]
    assert load_target(file).stack == "unknown"
    assert load_target(file).accuracy == "not compared with measurements; like epyc_zen5_core"
    file.write_text(file.read_text() + 'kind = "npu"\nstack = "Mine"\n', encoding="utf-8")
    known = transfer(load_target(file), devices)
    assert known is not None
    assert known.devices == ["hailo8"]
    file.write_text('like = "epyc_zen5_core"\nkind = "tpu"\n', encoding="utf-8")
    with pytest.raises(TargetError, match="kind must be one of npu, cpu, gpu, mcu, but is 'tpu'"):
        load_target(file)


def test_the_same_stack_counts_most():
    devices = [device("sl1680", 4.0), device("hailo8", 1.0)]
    near = transfer(NPU, devices)
    far = transfer(load_target("ethos_u85_2048"), devices)
    assert near is not None
    assert far is not None
    assert near.prior.mean[DENSE] > far.prior.mean[DENSE] > 0
    assert near.devices == ["sl1680", "hailo8"]


def test_a_device_is_no_source_of_its_own_and_kinds_do_not_mix():
    assert transfer(load_target("hailo8"), [device("hailo8", 3.0)]) is None
    assert transfer(NPU, [device("i9_10940x", 3.0), device("rtx_4090", 3.0)]) is None


def test_devices_that_disagree_make_the_prior_unsure():
    alike = transfer(NPU, [device(name, 2.0) for name in ("hailo8", "ax650n", "coral_usb", "rk3588")])
    apart = transfer(
        NPU,
        [device(name, factor) for name, factor in zip(("hailo8", "ax650n", "coral_usb", "rk3588"), (0.2, 1, 5, 20))],  # noqa: B905
    )
    assert alike is not None
    assert apart is not None
    assert apart.prior.spread[DENSE] > alike.prior.spread[DENSE]
    assert apart.prior.scale_spread > alike.prior.scale_spread


NPUS = [name for name in list_targets() if stack_of(name)[0] == "npu" and name != "npu_40tops"]


def test_a_device_counts_once_and_kin_four_times():
    many, few = tuple(np.linspace(-1, 1, 201)), (0.1, -0.1)
    known = transfer(NPU, [device("hailo8", 1.0, many), device("ax650n", 1.0, few), device("sl1680", 1.0, few)])
    assert known is not None
    weight = {name: known.errors.weights[start:stop].sum() for name, start, stop in
              (("hailo8", 0, 201), ("ax650n", 201, 203), ("sl1680", 203, 205))}  # fmt: skip
    assert weight == pytest.approx({"hailo8": 1 / 7, "ax650n": 1 / 7, "sl1680": 4 / 7})
    assert known.errors.weights.sum() == pytest.approx(6 / 7)  # the new device itself is not known


def test_two_devices_cannot_hold_ninety_percent():
    known = transfer(NPU, [device(name, 1.0, (0.1, -0.2)) for name in ("hailo8", "ax650n")])
    assert known is not None
    assert known.errors.either_way(0.5) == pytest.approx(0.2)
    assert known.log_spread == known.errors.above(0.9) == SCALE_SPREAD
    none = transfer(NPU, [device("hailo8", 1.0)])
    assert none is not None
    assert none.log_spread == SCALE_SPREAD


def test_intervals_hold_what_they_say_on_devices_that_differ():
    """Devices of one law, each with a bias and a scatter of its own: nine in ten latencies of the next are held."""
    rng = np.random.default_rng(0)
    held = {0.9: [], 0.5: []}
    below = []
    for _ in range(400):
        drawn = [rng.normal(rng.normal(0, 0.3), np.exp(rng.normal(-1.5, 0.5)), rng.integers(3, 40)) for _ in range(13)]
        known = transfer(NPU, [device(n, 1.0, tuple(e)) for n, e in zip(NPUS, drawn[1:], strict=False)])
        assert known is not None
        for level, found in held.items():
            found.append(np.mean(np.abs(drawn[0]) <= known.errors.either_way(level)))
        below.append(np.mean(drawn[0] <= known.errors.above(0.9)))
    for level, found in held.items():
        assert level - 0.02 <= np.mean(found) <= level + 0.1
    assert 0.88 <= np.mean(below) <= 1.0


def test_a_target_without_a_board_starts_from_its_vendors_device():
    known = transfer(NPU, published_factors())
    assert known is not None
    assert known.devices[0].startswith("Synaptics")  # a core of the same vendor
    others = transfer(NPU, [one for one in published_factors() if one.target != "sl1680"])
    own = [one for one in published_factors() if one.target == "sl1680"]
    assert others is not None
    scale, without = (np.mean(prior.mean) for prior in (known.prior, others.prior))
    nearer = np.mean([np.mean(list(one.log_factors.values())) for one in own])
    assert abs(scale - nearer) < abs(without - nearer)


def test_shipped_factors_are_of_this_cost_model():
    """They multiply its times: `python -m benchmarks.published_latency --pack` makes them anew when it changes."""
    meta = json.loads(PUBLISHED.read_text(encoding="utf-8"))["_meta"]
    assert meta["cost_model_version"] == COST_MODEL_VERSION


def test_shipped_factors_can_be_read():
    devices = published_factors()
    assert len({one.target for one in devices}) >= 10
    for one in devices:
        assert DeviceFactors.from_dict(one.to_dict()) == one
        assert set(one.log_factors) <= set(COLUMNS)
        assert one.target in list_targets()
