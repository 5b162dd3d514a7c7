"""What a network costs on a device: numpy and the standard library, never torch."""

from hw_models.estimate import CostReport, combine, estimate
from hw_models.legality import Infeasible
from hw_models.measurements import Measurement, MeasurementError, list_packs, load_pack, read_measurements
from hw_models.part_cost import PartCost, PartEstimator, estimate_part
from hw_models.target import Target
from hw_models.target_file import TargetError, list_targets, load_target
from hw_models.workload import Op, Tensor, Window, Workload, WorkloadError

__all__ = [
    "CostReport",
    "Infeasible",
    "Measurement",
    "MeasurementError",
    "Op",
    "PartCost",
    "PartEstimator",
    "Target",
    "TargetError",
    "Tensor",
    "Window",
    "Workload",
    "WorkloadError",
    "combine",
    "estimate",
    "estimate_part",
    "list_packs",
    "list_targets",
    "load_pack",
    "load_target",
    "read_measurements",
]
