"""`nas measure`, killed without warning: the same command goes on, and nothing that was finished is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from nas.errors import UsageError
from nas.measure.records import MeasurementStore
from nas.store import Store

_ROOT = Path(__file__).parents[2]
_COMMAND = """
import sys
from pathlib import Path
import hw_models.measurements, nas.measure.design, nas.measure.run, nas.measure.timing
nas.measure.design.POOL = 12
nas.measure.timing.CALM = nas.measure.timing.NOISY = 1e9  # tests run on busy machines: every time is believed
hw_models.measurements.WIDEST = 1e9
nas.measure.run.TURN = 2
from nas.measure.ask import run_measuring
from nas.progress import Narrator
asked = {"target": "epyc_zen5_core", "preset": "small", "budget": 6, "precisions": ["fp32"]}
outcome = run_measuring(Path(sys.argv[1]), None, Narrator(quiet=True), **asked)
print(outcome.known, len(outcome.measured))
"""


def test_the_same_command_goes_on_after_a_kill(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _COMMAND, str(tmp_path)]
    killed = subprocess.Popen(command, env=environment)
    while killed.poll() is None and not _records(tmp_path):
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = _records(tmp_path)
    assert before
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    known, measured = (int(word) for word in done.stdout.split())
    assert known == len(before)
    after = _records(tmp_path)
    assert len(after) == known + measured > known
    assert all(after[name] == record for name, record in before.items())


def _records(folder: Path) -> dict[object, object]:
    try:
        store = Store(folder)
    except UsageError:  # no tables yet
        return {}
    try:
        return {record.identity: record for record in MeasurementStore(store).of("epyc_zen5_core")}
    finally:
        store.close()
