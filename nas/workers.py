"""Where candidates are scored: in this process, or on Ray actors that share the supernet's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nas.evaluate import Evaluation, Evaluator
    from search_spaces.architecture import Architecture


@dataclass(frozen=True, slots=True)
class Job:
    """One candidate to score. Scoring is not random, so the result does not depend on who does it.

    images: "search", or "val" once the selection is over.
    """

    number: int
    architecture: Architecture
    images: str


Scorer = Callable[[Sequence[Job]], Iterator[tuple[int, "Evaluation"]]]
"""Scores jobs and yields (trial number, evaluation) as they finish, in any order."""


@contextmanager
def scorer(evaluator: Evaluator, workers: int) -> Iterator[Scorer]:
    """`workers` Ray actors; none for 0, and then nothing of Ray is imported."""

    def in_this_process(jobs: Sequence[Job]) -> Iterator[tuple[int, Evaluation]]:
        for job in jobs:
            yield job.number, evaluator.evaluate(job.architecture, job.images)

    yield in_this_process
