"""Ctrl-C at a moment of our choosing.

Python raises KeyboardInterrupt wherever it stands, and inside a destructor or a callback of a library it is
swallowed: the search would go on as if nobody had asked. So work that is done in short pieces asks between
them.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], None]]:
    """Inside, Ctrl-C only makes the yielded function raise KeyboardInterrupt when it is next called; a second
    Ctrl-C interrupts at once. Outside the main thread nothing is changed.
    """
    asked = threading.Event()

    def stop_if_asked() -> None:
        if asked.is_set():
            raise KeyboardInterrupt

    def remember(signum: int, frame: FrameType | None) -> None:
        stop_if_asked()
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop_if_asked
        return
    before = signal.signal(signal.SIGINT, remember)
    try:
        yield stop_if_asked
        stop_if_asked()
    finally:
        signal.signal(signal.SIGINT, before)
