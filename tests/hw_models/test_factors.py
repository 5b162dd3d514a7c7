"""Columns add up to the cost model's latency; fitted factors recover a device that differs by known factors."""

from __future__ import annotations

import numpy as np
import pytest

from hw_models import combine, estimate_part, load_target
from hw_models.factors import NOISES, FactorPrior, fit_factors, fit_folds, folds
from hw_models.families import COLUMNS, KERNEL_FEATURES, LIBRARY_FEATURES, network_units
from nas.bits import put_precision
from nas.cost import timm_workload

USED = ["dense/int", "pointwise/int", "depthwise/int", "dram/int", "launch", "network"]


@pytest.mark.parametrize("model", ["resnet10t", "vit_tiny_patch16_224", "mobilenetv2_050"])
@pytest.mark.parametrize("precision", ["w8a8", "fp16"])
@pytest.mark.parametrize("name", ["npu_40tops", "hailo8", "sl1680"])
def test_columns_add_up_to_the_latency(model, precision, name):
    target = load_target(name)
    part = estimate_part(put_precision(timm_workload(model, None if "vit" in model else 96), precision), target)
    units = network_units([part], target)
    assert units.seconds.sum() == pytest.approx(combine([part], target).latency_s, rel=1e-12)
    assert units.by_column().sum() == pytest.approx(units.seconds.sum(), rel=1e-12)
    assert np.isfinite(units.features).all()
    wrong = "float" if precision == "w8a8" else "int"
    matrix = [COLUMNS.index(f"{family}/{wrong}") for family in ("dense", "pointwise", "depthwise", "attention")]
    assert units.by_column()[matrix].sum() == 0


def test_a_library_s_kernels_say_more_of_themselves_than_an_accelerator_s():
    workload = put_precision(timm_workload("mobilenetv3_small_050", 96), "w8a8")
    npu, core = (
        network_units([estimate_part(workload, target)], target).features[:, len(KERNEL_FEATURES) :]
        for target in (load_target("npu_40tops"), load_target("epyc_zen3_core"))
    )
    assert not npu.any()
    assert ((core >= 0) & (core <= 1)).all()
    seen = core.any(axis=0)
    for name in ("activation", "product", "conversion", "reorder", "idle inputs", "strided"):
        assert seen[LIBRARY_FEATURES.index(name)], name
    assert not seen[LIBRARY_FEATURES.index("grouped")]


def _device(samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns of made-up networks and a device that is three times slower, and ten times in depthwise kernels."""
    rng = np.random.default_rng(seed)
    columns_s = np.zeros((samples, len(COLUMNS)))
    for name in USED:
        columns_s[:, COLUMNS.index(name)] = rng.lognormal(-8, 1, samples)
    true = np.full(len(COLUMNS), 3.0)
    true[COLUMNS.index("depthwise/int")] = 10.0
    return columns_s, columns_s @ true, true


def test_factors_of_a_device_are_recovered():
    columns_s, measured_s, true = _device(60)
    factors, _ = fit_factors(columns_s, measured_s)
    used = [COLUMNS.index(name) for name in USED]
    np.testing.assert_allclose(factors[used], true[used], rtol=0.05)
    assert (factors > 0).all()


def test_one_measurement_sets_the_common_scale():
    columns_s, _, _ = _device(20)
    factors, _ = fit_factors(columns_s[:1], 4 * columns_s[:1].sum(axis=1))
    np.testing.assert_allclose(columns_s @ factors, 4 * columns_s.sum(axis=1), rtol=0.1)


def test_wrong_measurements_do_not_bend_the_rest():
    columns_s, measured_s, _ = _device(40)
    spoilt = measured_s.copy()
    spoilt[::10] /= 200
    factors, _ = fit_factors(columns_s, spoilt)
    np.testing.assert_allclose(columns_s @ factors, measured_s, rtol=0.1)


def test_scaling_what_is_measured_scales_the_prediction():
    columns_s, measured_s, _ = _device(30)
    factors, noise = fit_factors(columns_s, measured_s)
    twice, _ = fit_factors(columns_s, 2 * measured_s, noise=noise)
    np.testing.assert_allclose(columns_s @ twice, 2 * (columns_s @ factors), rtol=0.02)


def test_a_sure_prior_is_kept():
    columns_s, measured_s, true = _device(10)
    prior = FactorPrior(np.log(true), np.full(len(COLUMNS), 1e-3), scale_spread=1e-3, format_spread=1e-3)
    factors, _ = fit_factors(columns_s, 1.3 * measured_s, prior, noise=0.4)
    np.testing.assert_allclose(factors, true, rtol=0.01)


@pytest.mark.parametrize("count", [3, 20, 57])
def test_every_sample_is_left_out_once(count):
    pieces = list(folds(count))
    assert sorted(np.concatenate([test for _, test in pieces])) == list(range(count))
    for train, test in pieces:
        assert not set(train) & set(test)
        assert len(train) + len(test) == count


def test_fits_of_all_folds_at_once_are_those_of_one_after_the_other():
    columns_s, measured_s, _ = _device(12)
    measured_s = measured_s * np.exp(0.1 * np.random.default_rng(1).standard_normal(12))
    pieces = list(folds(12))
    prior = FactorPrior.of_cost_model()
    at_once = fit_folds(columns_s, measured_s, prior, NOISES, pieces)
    for row, noise in zip(at_once, NOISES, strict=True):
        for factors, (train, _) in zip(row, pieces, strict=True):
            alone, _ = fit_factors(columns_s[train], measured_s[train], prior, noise)
            np.testing.assert_allclose(factors, alone, rtol=1e-4)


def test_a_column_without_time_moves_with_the_others():
    columns_s, measured_s, _ = _device(20)
    factors, _ = fit_factors(columns_s, 5 * measured_s)
    unused = [name for name in COLUMNS if name not in USED and name.endswith("/int")]
    moved = factors[[COLUMNS.index(name) for name in unused]]
    assert len(set(moved)) == 1
    assert moved[0] > 3


@pytest.mark.parametrize("measured", [[], [0.0], [-1.0], [np.nan]])
def test_times_must_be_positive(measured):
    with pytest.raises(ValueError, match="positive"):
        fit_factors(np.ones((len(measured), len(COLUMNS))), np.array(measured))


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_to_choose_a_noise_stay_near_the_prior(count: int) -> None:
    rng = np.random.default_rng(count)
    columns_s = rng.uniform(1e-4, 1e-3, (count, len(COLUMNS)))
    measured_s = 3 * columns_s.sum(axis=1)
    prior = FactorPrior.of_cost_model()
    chosen, noise = fit_factors(columns_s, measured_s, prior)
    assert noise == max(NOISES)
    np.testing.assert_allclose(chosen, fit_factors(columns_s, measured_s, prior, max(NOISES))[0])
