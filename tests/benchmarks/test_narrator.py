"""Lines that say when."""

from __future__ import annotations

import re
import time

import pytest

from benchmarks.narrator import Stamped


def test_every_line_says_after_how_many_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    narrator = Stamped()
    narrator.say("begun")
    time.sleep(1.1)
    with narrator.bar("timed") as update:
        update(1, 2, "")
    lines = capsys.readouterr().err.splitlines()
    found = [re.fullmatch(r" *(\d+) s  (.*)", line) for line in lines]
    said = [(int(match[1]), match[2]) for match in found if match]
    assert [words for _, words in said] == ["begun", "timed 1/2"]
    assert said[1][0] > said[0][0]
