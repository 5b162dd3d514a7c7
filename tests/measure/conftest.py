"""What tests of measuring share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nas.measure.records import MeasurementStore
from nas.store import Store


@pytest.fixture
def unexcited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run on busy machines: every time is believed."""
    monkeypatch.setattr("nas.measure.timing.CALM", 1e9)
    monkeypatch.setattr("nas.measure.timing.NOISY", 1e9)
    monkeypatch.setattr("nas.measure.timing.SLICE_S", 1e-4)
    monkeypatch.setattr("hw_models.measurements.WIDEST", 1e9)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MeasurementStore]:
    with closing(Store(tmp_path, create=True)) as opened:
        yield MeasurementStore(opened)
