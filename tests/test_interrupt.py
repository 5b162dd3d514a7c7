"""Ctrl-C at a moment of our choosing."""

from __future__ import annotations

import os
import signal

import pytest

from nas.interrupt import deferred_interrupt


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class Swallows:
    def __del__(self) -> None:
        ctrl_c()


def test_it_waits_until_it_is_asked_about_and_cannot_be_swallowed():
    before = signal.getsignal(signal.SIGINT)
    steps = []

    def work() -> None:
        with deferred_interrupt() as stop_if_asked:
            stop_if_asked()
            Swallows()
            steps.append("the piece under way is finished")
            stop_if_asked()
            steps.append("another piece")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["the piece under way is finished"]
    assert signal.getsignal(signal.SIGINT) is before


def test_one_that_came_last_is_not_lost():
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        ctrl_c()


def test_a_second_one_interrupts_at_once():
    steps = []

    def work() -> None:
        with deferred_interrupt():
            ctrl_c()
            ctrl_c()
            steps.append("too late")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == []
