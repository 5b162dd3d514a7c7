"""Measurements of a device that was never there, for tests of what is learned from them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from hw_models import Measurement, load_target
from nas.calibrate import record_units, run_calibration
from nas.calibrations import CalibrationStore, Stored
from nas.measure.design import part_pool
from nas.measure.records import MeasurementStore
from nas.progress import Narrator
from nas.store import Store
from nas.subjects import part_subject
from search_spaces import load_space

TARGET, SLOWER = "npu_40tops", 3.0


def made_records() -> list[Measurement]:
    """Sixteen blocks of a device that is three times as slow as the cost model says, measured to 3 percent."""
    rng = np.random.default_rng(0)
    target = load_target(TARGET)
    found = []
    for part in part_pool(load_space("metaformer", preset="small"), 16, 0, 10, 3)[:16]:
        record = part_subject(part).record(TARGET, "w8a8", 1.0, runtime="made up", runtime_version="1")
        seconds = SLOWER * record_units(record, target).seconds.sum() * np.exp(0.03 * rng.standard_normal())
        found.append(replace(record, latency_s=float(seconds)))
    return found


def put(folder: Path, records: Iterable[Measurement]) -> Path:
    """Enter them into the folder's database."""
    with closing(Store(folder, create=True)) as store:
        MeasurementStore(store).put(records)
    return folder


class Heard(Narrator):
    """A narrator whose words can be asked for."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.said.append(text)


def calibrated_folder(folder: Path, records: Iterable[Measurement]) -> Path:
    """The folder, with the measurements in its database and TARGET calibrated by them."""
    outcome = run_calibration(TARGET, put(folder, records), None, Narrator(quiet=True))
    assert outcome.stored is not None
    return folder


def newest(folder: Path) -> Stored:
    """TARGET's newest calibration in a folder's database."""
    with closing(Store(folder)) as store:
        found = CalibrationStore(store).newest(TARGET)
    assert found is not None
    return found
