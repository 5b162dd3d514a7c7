"""What a study is: every choice a person makes, as frozen data. The one place where names become values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainSpec:
    """How the supernet is trained. Budgets are optimizer steps, never seconds.

    subnets: random subnets per sandwich step, beside the largest and the smallest.
    checkpoint_every: steps between two checkpoints; it does not change the result.
    """

    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 20
    subnets: int = 2
    label_smoothing: float = 0.1
    seed: int = 0
    checkpoint_every: int = 50


@dataclass(frozen=True, slots=True)
class EvaluateSpec:
    """How one candidate is scored.

    bn_images: training images that re-estimate its BatchNorm statistics.
    calibration_images: training images that set its activation ranges.
    search_images: images of the search split that it is scored on (fewer if the split is smaller).
    batch_size: images per forward pass; it changes memory, not the figures.
    """

    bn_images: int = 256
    calibration_images: int = 256
    search_images: int = 1000
    batch_size: int = 250
