"""Fitting a target: known values are found again, bounds hold, what is not measured stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw_models import Op, Target, Tensor, Window, Workload, estimate, load_target
from hw_models.fit import _Times, fit_target, parameters, with_values
from hw_models.target_file import parse_target
from hw_models.target_text import target_text


def _network(layers: int, channels: int, size: int, pointwise: bool, activation: bool, dtype: str = "int8") -> Workload:
    """A chain of convolutions, each followed by a softmax-like vector op or not."""
    tensors = [Tensor("x", (1, channels, size, size), dtype)]
    ops: list[Op] = []
    kernel = 1 if pointwise else 3
    for layer in range(layers):
        source = len(tensors) - 1
        tensors.append(Tensor(f"w{layer}", (channels, channels, kernel, kernel), dtype, constant=True))
        tensors.append(Tensor(f"y{layer}", (1, channels, size, size), dtype))
        gemm = (1, size * size, channels, channels * kernel**2)
        ops.append(
            Op(f"c{layer}", f"c{layer}", "conv", (source,), (source + 2,), (source + 1,), (channels * size**2,),
               gemm=gemm, window=Window((kernel, kernel)))
        )  # fmt: skip
        if activation:
            tensors.append(Tensor(f"s{layer}", (1, channels, size, size), dtype))
            ops.append(
                Op(f"n{layer}", f"n{layer}", "softmax", (source + 2,), (source + 3,), (), (channels * size**2,),
                   extent=channels)
            )  # fmt: skip
    return Workload("net", tuple(tensors), tuple(ops), (0,), (len(tensors) - 1,))


NETWORKS = [
    _network(layers, channels, size, pointwise, activation)
    for layers, channels, size, pointwise, activation in (
        (4, 64, 112, False, False), (8, 256, 28, False, False), (6, 128, 56, False, True), (40, 32, 14, True, False),
        (80, 16, 7, True, False), (4, 1024, 7, False, False), (6, 2048, 4, False, False), (10, 96, 28, True, True),
        (3, 48, 112, True, True), (12, 512, 14, False, False), (1, 8, 8, True, False), (20, 64, 28, False, True),
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def like() -> Target:
    return load_target("npu_40tops")


@pytest.mark.parametrize("name", ["npu_40tops", "hailo8", "i9_10940x", "rtx_4090"])
@pytest.mark.parametrize("values", [{}, {"memory.dram_bytes_per_s": 0.2, "overhead.launch_s": 3.0}])
def test_times_without_an_estimate_are_those_of_one(name: str, values: dict[str, float]) -> None:
    """Second way: the estimate, at the target's own values and at others, of devices where transfers hide and wait."""
    base = load_target(name)
    small = replace(base.memory, resident_weight_bytes=base.memory.resident_weight_bytes // 50)
    target = replace(base, memory=small)
    chosen = parameters(target, ("w8a8",) if "w8a8" in target.matrix.rates else ("fp32",))
    theta = np.array([np.log(values.get(parameter.key, 1.0)) for parameter in chosen])
    changed = with_values(target, {p.key: p.prior * values.get(p.key, 1.0) for p in chosen})
    networks = [_network(4, 64, 112, False, True), _network(10, 512, 14, False, False), _network(9, 96, 28, True, True)]
    predicted = _Times.of(networks, target, chosen, np.zeros(len(chosen))).predict(theta, chosen)
    kept = _Times.of(networks, changed, chosen, theta).predict(theta, chosen)
    assert kept == pytest.approx([estimate(network, changed).latency_s for network in networks], rel=1e-9)
    assert predicted == pytest.approx(kept, rel=0.2 if values else 1e-9)  # what is fused may change with the values


def test_known_values_are_found_again(like: Target) -> None:
    """Second way: the model itself, at other values, with two percent of noise."""
    truth = {
        "matrix.rates.w8a8": 0.5, "vector.clock_hz": 2e9, "memory.dram_bytes_per_s": 20e9,
        "overhead.launch_s": 8e-6, "overhead.network_s": 4e-4,
    }  # fmt: skip
    device = with_values(like, truth)
    rng = np.random.default_rng(0)
    measured = [estimate(net, device).latency_s * float(np.exp(0.02 * rng.standard_normal())) for net in NETWORKS]
    fit = fit_target(NETWORKS, measured, like)
    assert np.median(np.abs(fit.before)) > 0.3
    assert np.median(np.abs(fit.after)) < 0.03
    assert np.median(np.abs(fit.held_out)) < 0.06
    found = {fitted.parameter.key: fitted for fitted in fit.fitted}
    assert set(found) == set(truth)
    for key, value in truth.items():
        assert abs(np.log(found[key].value / value)) < max(3 * found[key].log_error, 0.05), key
        assert found[key].verdict in ("determined", "roughly determined"), key
    assert fit.target == with_values(like, {key: fitted.value for key, fitted in found.items()})


def test_what_is_not_measured_stays(like: Target) -> None:
    """One small network at twice its predicted latency: launches decide it, the matrix engine does not."""
    small = NETWORKS[4]
    fit = fit_target([small], [2 * estimate(small, like).latency_s], like)
    found = {fitted.parameter.key: fitted for fitted in fit.fitted}
    assert abs(fit.after[0]) < abs(fit.before[0]) / 2
    assert found["memory.dram_bytes_per_s"].value == pytest.approx(like.memory.dram_bytes_per_s, rel=0.2)
    assert "prior" in found["memory.dram_bytes_per_s"].verdict
    assert np.isnan(fit.held_out).all()
    assert fit.target.energy == like.energy


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(1e-7, 10.0), min_size=1, max_size=4), st.sampled_from(["npu_40tops", "mcu_320kb", "hailo8"]))
def test_values_never_leave_their_bounds(measured: list[float], name: str) -> None:
    like = load_target(name)
    fit = fit_target(NETWORKS[3 : 3 + len(measured)], measured, like)
    for fitted in fit.fitted:
        assert fitted.parameter.low <= fitted.value <= fitted.parameter.high
        assert np.isfinite(fitted.log_error)
        assert fitted.log_error <= fitted.parameter.spread * 1.001
    assert np.isfinite(fit.after).all()


def test_impossible_measurements_are_refused(like: Target) -> None:
    for measured in ([0.0], [float("nan")], []):
        with pytest.raises(ValueError, match="positive measured latency"):
            fit_target(NETWORKS[: len(measured)], measured, like)


def test_only_precisions_the_device_has_are_fitted(like: Target) -> None:
    keys = [parameter.key for parameter in parameters(like, {"w8a8", "fp32"})]
    assert "matrix.rates.w8a8" in keys
    assert "matrix.rates.fp32" not in keys


@pytest.mark.parametrize("name", ["npu_40tops", "hailo8", "i9_10940x"])
def test_a_target_survives_its_text(name: str) -> None:
    import tomllib

    target = load_target(name)
    assert parse_target(tomllib.loads(target_text(target)), name) == target
