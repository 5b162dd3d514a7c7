"""A study of the real parts that takes seconds: few images, two training steps, shallow networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nas.spec import StudySpec, override

SMALL: dict[str, Any] = {
    "space.mixers": ["pool", "dwconv"],
    "space.choices": {"resolution": [24], "depth": [1], "expansion": [2.0]},
    "data.source": "procedural:train=160,val=150",
    "train.steps": 2,
    "train.batch_size": 8,
    "train.warmup_steps": 1,
    "train.subnets": 1,
    "evaluate.bn_images": 16,
    "evaluate.calibration_images": 16,
    "evaluate.search_images": 32,
    "search.trials": 6,
    "search.batch": 4,
}


def small_spec(**settings: Any) -> StudySpec:
    """`search_trials=9` sets search.trials."""
    return override(StudySpec(), SMALL | {key.replace("_", ".", 1): value for key, value in settings.items()})


def small_toml(folder: Path, **settings: Any) -> Path:
    from nas.spec import to_toml

    path = folder / "small.toml"
    path.write_text(to_toml(small_spec(**settings)))
    return path
