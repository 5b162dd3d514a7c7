"""What a person sees while something runs: lines and bars on stderr, nothing on stdout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Update = Callable[[int, int, str], None]
"""(done, total, what is worth knowing now)"""


class Narrator:
    """Says what happens, once. `quiet` keeps everything but warnings back."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._quiet = quiet

    def say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text, markup=False)

    def warn(self, text: str) -> None:
        self._console.print(f"warning: {text}", markup=False)

    @contextmanager
    def bar(self, title: str) -> Iterator[Update]:
        """A bar on a terminal; elsewhere (a log file, CI) a line at every tenth of the way."""
        if self._quiet:
            yield lambda done, total, text: None
        elif self._console.is_terminal:
            with self._live_bar(title) as update:
                yield update
        else:
            yield self._tenths(title)

    @contextmanager
    def _live_bar(self, title: str) -> Iterator[Update]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(title, total=None, text="")
            yield lambda done, total, text: progress.update(task, completed=done, total=total, text=text)

    def _tenths(self, title: str) -> Update:
        said = -1

        def update(done: int, total: int, text: str) -> None:
            nonlocal said
            if (tenth := 10 * done // max(1, total)) > said:
                said = tenth
                self.say(f"{title} {done}/{total} {text}".rstrip())

        return update
