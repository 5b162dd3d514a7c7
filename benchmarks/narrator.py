"""What a person sees while something is measured for minutes."""

from __future__ import annotations

import time

from nas.progress import Narrator


class Stamped(Narrator):
    """Says with every line after how many seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._begin = time.monotonic()

    def say(self, text: str) -> None:
        super().say(f"{time.monotonic() - self._begin:5.0f} s  {text}")
