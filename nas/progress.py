"""What a person sees while something runs: lines and bars on stderr, nothing on stdout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
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

    @property
    def is_quiet(self) -> bool:
        return self._quiet

    def say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text, markup=False)

    def warn(self, text: str) -> None:
        self._console.print(f"warning: {text}", markup=False)

    @contextmanager
    def bar(self, title: str) -> Iterator[Update]:
        """A bar that appears with its first update; where there is no terminal, a line at every tenth."""
        if self._quiet:
            yield lambda done, total, text: None
        elif self._console.is_terminal:
            columns: tuple[ProgressColumn, ...] = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            columns += (TextColumn("{task.fields[text]}"), TimeElapsedColumn(), TimeRemainingColumn())
            progress = Progress(*columns, console=self._console)
            try:
                yield self._live(progress, title)
            finally:
                progress.stop()
        else:
            yield self._tenths(title)

    def _live(self, progress: Progress, title: str) -> Update:
        tasks: list[TaskID] = []

        def update(done: int, total: int, text: str) -> None:
            if not tasks:
                progress.start()
                tasks.append(progress.add_task(title, total=total, text=""))
            progress.update(tasks[0], completed=done, total=total, text=text)

        return update

    def _tenths(self, title: str) -> Update:
        said = -1

        def update(done: int, total: int, text: str) -> None:
            nonlocal said
            if (tenth := 10 * done // max(1, total)) > said:
                said = tenth
                self.say(f"{title} {done}/{total} {text}".rstrip())

        return update
