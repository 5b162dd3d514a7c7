"""Published latencies of timm models, and which target stands for which device."""

from __future__ import annotations

import csv
import itertools
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rank_statistics import spearman
from nas.errors import UsageError

DEVICE_TARGETS = {
    "AXERA AX630C": "ax630c",
    "AXERA AX650N": "ax650n",
    "Apple iPhone 12": "apple_a14",
    "Coral Dev Board": "coral_dev_board",
    "Coral USB Accelerator": "coral_usb",
    "Hailo-8L": "hailo8l",
    "Hailo-8": "hailo8",
    "Hailo-15H": "hailo10h",
    "NVIDIA Jetson AGX Orin": "jetson_agx_orin",
    "Qualcomm QCS8275": "qcs8275",
    "Qualcomm QCS8550": "qcs8550",
    "Qualcomm Samsung Galaxy S24": "galaxy_s24",
    "Qualcomm Samsung Galaxy S25": "galaxy_s25",
    "Qualcomm Snapdragon X Elite": "snapdragon_x_elite",
    "Synaptics VS680": "sl1680",
}
"""First words of a device label -> target; the first that fits wins."""

PRECISIONS = {"fp32": "fp32", "int8": "w8a8", "int8/uint8": "w8a8", "w8a8": "w8a8", "w8a16": "w8a16", "fp16": "fp16"}
SMALLEST_GROUP = 8

INPUT_SIZES = {("Qualcomm", "efficientnet_b4"): 224, ("Qualcomm", "efficientnetv2_s"): 224}
"""(maker, model) -> side of the image in pixels, where the table has another. Qualcomm AI Hub compiled its ImageNet
classifiers for 224 x 224 whatever they were trained at (quic/ai-hub-models, _shared/imagenet_classifier/model.py,
get_input_spec); its perf.yaml of EfficientNet-B4 lists 602,112 bytes, 3 x 224 x 224 x 4, beside the latencies of the
table, which has the 380 and 384 pixels of the model cards."""


@dataclass(frozen=True)
class Row:
    """A published latency of a timm model, in seconds per image; of throughput rows the inverse."""

    model: str
    input_size: int | None
    seconds: float
    batch: int = 1


def read_groups(path: Path, smallest: int = SMALLEST_GROUP) -> dict[tuple[str, str, str], list[Row]]:
    """(device, precision, runtime) -> rows, for groups that are large enough and whose precision is known."""
    found: dict[tuple[str, str, str], dict[tuple[str, int | None], list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                words = row["precision"].split()
                if not (row["latency_ms"] or row["fps"]):
                    continue
                if row["timm_name"] and row["batch"].split()[:1] == ["1"] and words and words[0] in PRECISIONS:
                    size = int(row["input_res"]) if row["input_res"] else None
                    size = INPUT_SIZES.get((row["device"].split()[0], row["timm_name"]), size)
                    group = (row["device"], row["precision"], row["runtime"])
                    found[group][row["timm_name"], size].append(seconds(row))
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; give the folder of npu_published.csv by --data"
        ) from error
    except (KeyError, ValueError) as error:
        raise UsageError(f"{path} does not have the columns of npu_published.csv ({error})") from error
    groups = {
        group: [Row(model, size, float(np.median(seconds))) for (model, size), seconds in rows.items()]
        for group, rows in found.items()
    }
    return {group: rows for group, rows in groups.items() if len({row.model for row in rows}) >= smallest}


def seconds(row: dict[str, str]) -> float:
    """Throughput rows are used as throughput, and rows that give only images per second as those."""
    if row["fps"] and ("throughput" in row["metric_kind"] or not row["latency_ms"]):
        return 1.0 / float(row["fps"])
    return float(row["latency_ms"]) / 1e3


def read_benchmark(path: Path, sample: int) -> list[Row]:
    """At most `sample` rows of one of timm's benchmark files, evenly over the file sorted by model and size."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [
                Row(
                    row["model"],
                    int(row["infer_img_size"]),
                    1 / float(row["infer_samples_per_sec"]),
                    int(row["infer_batch_size"]),
                )
                for row in csv.DictReader(file)
            ]
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"{path} is not one of timm's inference benchmarks ({error})") from error
    rows.sort(key=lambda row: (row.model, row.input_size or 0))
    step = max(1, -(-len(rows) // max(1, sample)))
    return rows[::step]


def target_of(device: str) -> str | None:
    return next((target for words, target in DEVICE_TARGETS.items() if device.startswith(words)), None)


def compare_sources(groups: dict[tuple[str, str, str], list[Row]]) -> list[dict[str, Any]]:
    """Two published groups of one kind of device and one precision on the models they share: how well silicon agrees
    with itself. From four models on.
    """
    out = []
    for one, other in itertools.combinations(sorted(groups), 2):
        targets = {target_of(one[0]), target_of(other[0])}
        if len(targets) > 1 or None in targets or one[1].split()[0] != other[1].split()[0]:
            continue
        left, right = ({(row.model, row.input_size): row.seconds for row in groups[key]} for key in (one, other))
        shared = sorted(left.keys() & right.keys(), key=str)
        if len(shared) < 4:
            continue
        ratio = np.array([left[key] / right[key] for key in shared])
        out.append(
            {
                "one": " ".join((one[0], one[2])),
                "other": " ".join((other[0], other[2])),
                "models": len(shared),
                "rho": spearman(np.array([left[key] for key in shared]), np.array([right[key] for key in shared])),
                "within_10": float((np.abs(ratio - 1) <= 0.10).mean()),
                "within_25": float((np.abs(ratio - 1) <= 0.25).mean()),
            }
        )
    return out
