"""What must hold of a study beyond the types of its entries."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING

from nas.errors import UsageError

if TYPE_CHECKING:
    from nas.spec import StudySpec, TrainSpec

_AT_LEAST = {
    1: {
        "space": ("multiplex",),
        "train": ("steps", "checkpoint_every"),
        "evaluate": ("search_images",),
        "search": ("trials", "batch"),
    },
    2: {  # the variance of a batch of one is no variance
        "train": ("batch_size",),
        "evaluate": ("bn_images", "calibration_images", "batch_size"),
    },
}


def check(spec: StudySpec, where: str) -> None:
    """Raise UsageError that names the first rule which `spec` breaks; `where` says what it was read from."""
    for least, sections in _AT_LEAST.items():
        for section, key in ((section, key) for section, keys in sections.items() for key in keys):
            value = getattr(getattr(spec, section), key)
            if value < least:
                raise UsageError(f"{where}: {section}.{key} must be at least {least}, but got {value}")
    for key in ("objectives", "targets"):
        if not getattr(spec.search, key):
            raise UsageError(f"{where}: search.{key} must name at least one")
    for section, key in (("data", "seed"), ("train", "seed"), ("search", "seed"), ("train", "subnets")):
        value = getattr(getattr(spec, section), key)
        if value < 0:
            raise UsageError(f"{where}: {section}.{key} must be 0 or more, but got {value}")
    if spec.search.risk is not None and not 0.5 <= spec.search.risk <= 0.95:
        raise UsageError(f"{where}: search.risk must lie between 0.5 and 0.95, but is {spec.search.risk:g}")
    if spec.data.limit is not None and spec.data.limit < 1:
        raise UsageError(f"{where}: data.limit must be at least 1, but got {spec.data.limit}")
    for rule in _broken_rules(spec.train):
        named = {key: value for key, value in dataclasses.asdict(spec.train).items() if key in re.findall(r"\w+", rule)}
        shown = ", ".join(f"{key} = {json.dumps(value)}" for key, value in named.items())
        raise UsageError(f"{where}: {rule} must hold in [train], but got {shown}")


_TRAIN_WORDS = {"single_path_sizes": ("largest", "random"), "distillation": ("kl", "alpha", "none")}


def _broken_rules(train: TrainSpec) -> list[str]:
    rules = {
        "learning_rate > 0": 0 < train.learning_rate < float("inf"),
        "weight_decay >= 0": 0 <= train.weight_decay < float("inf"),
        "warmup_steps >= 0": train.warmup_steps >= 0,
        "0 <= single_path_share <= 1": 0 <= train.single_path_share <= 1,
        "0 <= small_warmup_share <= 1": 0 <= train.small_warmup_share <= 1,
        "0 <= label_smoothing < 1": 0 <= train.label_smoothing < 1,
        "clip_norm >= 0": 0 <= train.clip_norm < float("inf"),
        "0 <= drop_path < 1": 0 <= train.drop_path < 1,
        "0 <= ema < 1": 0 <= train.ema < 1,
        "mixup >= 0": 0 <= train.mixup < float("inf"),
        "cutmix >= 0": 0 <= train.cutmix < float("inf"),
        "an even batch_size with mixup or cutmix, which mix images in pairs,": (
            train.batch_size % 2 == 0 or not (train.mixup or train.cutmix)
        ),
    }
    for key, words in _TRAIN_WORDS.items():
        rules[f"{key} in {', '.join(words)}"] = getattr(train, key) in words
    return [rule for rule, holds in rules.items() if not holds]
