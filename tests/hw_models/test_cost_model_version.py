"""Predictions do not change unnoticed: calibrations are of one version of the cost model."""

from __future__ import annotations

import pytest

from hw_models import estimate, load_target
from nas.bits import put_precision
from nas.cost import timm_workload

KNOWN_S = {
    ("mobilenetv3_small_100", "npu_40tops", "w8a8"): 1.66984e-04,
    ("mobilenetv3_small_100", "npu_40tops", "w4a8"): 1.52804e-04,
    ("mobilenetv3_small_100", "ethos_u85_2048", "w8a8"): 5.28742e-04,
    ("mobilenetv3_small_100", "epyc_zen3_core", "fp32"): 3.07703e-03,
    ("mobilenetv3_small_100", "epyc_zen3_core", "w8a8"): 3.28989e-03,
    ("mobilenetv3_small_100", "epyc_zen5_core", "fp32"): 1.27125e-03,
    ("mobilenetv3_small_100", "epyc_zen5_core", "w8a8"): 1.51471e-03,
    ("mobilenetv3_small_100", "h200", "fp16"): 2.34843e-04,
    ("pvt_v2_b0", "npu_40tops", "w8a8"): 3.10526e-04,
    ("pvt_v2_b0", "npu_40tops", "w4a8"): 2.93756e-04,
    ("pvt_v2_b0", "ethos_u85_2048", "w8a8"): 2.86674e-03,
    ("pvt_v2_b0", "epyc_zen3_core", "fp32"): 2.35499e-02,
    ("pvt_v2_b0", "epyc_zen3_core", "w8a8"): 2.42305e-02,
    ("pvt_v2_b0", "epyc_zen5_core", "fp32"): 1.05387e-02,
    ("pvt_v2_b0", "epyc_zen5_core", "w8a8"): 9.36214e-03,
    ("pvt_v2_b0", "h200", "fp16"): 3.67998e-04,
    ("convnextv2_atto", "npu_40tops", "w8a8"): 2.87011e-04,
    ("convnextv2_atto", "npu_40tops", "w4a8"): 2.71894e-04,
    ("convnextv2_atto", "ethos_u85_2048", "w8a8"): 2.22438e-03,
    ("convnextv2_atto", "epyc_zen3_core", "fp32"): 2.49104e-02,
    ("convnextv2_atto", "epyc_zen3_core", "w8a8"): 1.98810e-02,
    ("convnextv2_atto", "epyc_zen5_core", "fp32"): 1.06450e-02,
    ("convnextv2_atto", "epyc_zen5_core", "w8a8"): 8.00618e-03,
    ("convnextv2_atto", "h200", "fp16"): 2.75073e-04,
}
"""(network, target, precision) -> predicted latency in version 2, by `nas cost NETWORK --target T --precision P
--calibration none`. Figures of h200 are of its second description: calibrations of a target know what describes it.
"""


@pytest.mark.parametrize(("network", "target", "precision"), KNOWN_S)
def test_predictions_are_those_of_this_version(network: str, target: str, precision: str) -> None:
    found = estimate(put_precision(timm_workload(network), precision), load_target(target)).latency_s
    assert found == pytest.approx(KNOWN_S[network, target, precision], rel=1e-4), (
        "predictions have changed: count hw_models.estimate.COST_MODEL_VERSION up, and put the new figures here"
    )
