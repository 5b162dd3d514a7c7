"""Where candidates are scored: in this process, or on Ray actors that share the supernet's weights.

A batch of images is computed on one thread wherever that happens: with another number of threads convolutions round
otherwise, and 4-bit quantization turns that into other predictions. So the number of workers never changes a figure.
This process, which has all cores when there are no workers, computes as many batches at a time as it has threads.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nas.errors import NasError, UsageError

if TYPE_CHECKING:
    from nas.evaluate import Evaluation, Evaluator
    from nas.spec import EvaluateSpec
    from search_spaces.architecture import Architecture

THREADS = 1
DEATHS = 3
"""How often the scoring of one candidate may kill its actor before the search gives up."""


@dataclass(frozen=True, slots=True)
class Job:
    """One candidate to score. Scoring is not random, so the result does not depend on who does it.

    images: "search", or "val" once the selection is over.
    """

    number: int
    architecture: Architecture
    images: Literal["search", "val"]


def leads() -> bool:
    """Whether this is the process that speaks: the only one, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def refuse_torchrun(command: str) -> None:
    """Raise UsageError in a process that torchrun started, for a command that does not train one network together."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            f"torchrun is for `nas train`, whose supernet `{command}` then uses; several processes of `{command}` come "
            "by --workers N"
        )


Scorer = Callable[[Sequence[Job]], Iterator[tuple[int, "Evaluation"]]]
"""Scores jobs and yields (trial number, evaluation) as they finish, in any order. What was yielded has been
dealt with (recorded) before another job begins.
"""


@contextmanager
def scorer(evaluator: Evaluator, workers: int) -> Iterator[Scorer]:
    """`workers` Ray actors; none for 0, and then nothing of Ray is imported."""
    with _on_actors(evaluator, workers) if workers else _in_this_process(evaluator) as score:
        yield score


@contextmanager
def one_thread() -> Iterator[int]:
    """Inside, torch computes as it does when a candidate is scored. Gives the threads it has outside."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


@contextmanager
def _in_this_process(evaluator: Evaluator) -> Iterator[Scorer]:
    def score(jobs: Sequence[Job]) -> Iterator[tuple[int, Evaluation]]:
        for job in jobs:
            try:
                evaluation = evaluator.evaluate(job.architecture, job.images, threads)
            except ValueError as error:
                raise _not_scorable(job, error) from error
            yield job.number, evaluation

    with one_thread() as threads:
        yield score


class _Worker:
    """An actor: an evaluator whose weights lie in the object store, read-only and once for all actors."""

    def __init__(self, spec: EvaluateSpec, identity: str, shared: list[Any]) -> None:
        """shared: references to the data, the space and the weights as numpy arrays by name."""
        import warnings

        import ray
        import torch

        from nas.evaluate import Evaluator
        from search_spaces.supernet import Supernet

        torch.set_num_threads(THREADS)
        bundle, space, weights = ray.get(shared)
        with torch.device("meta"):
            supernet = Supernet(space, bundle.num_classes, bundle.in_chans)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # and nobody writes
            tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
        supernet.load_state_dict(tensors, strict=True, assign=True)
        self._evaluator = Evaluator(bundle, spec, supernet.eval(), identity)

    def evaluate(self, job: Job) -> Evaluation:
        return self._evaluator.evaluate(job.architecture, job.images)


@contextmanager
def _on_actors(evaluator: Evaluator, workers: int) -> Iterator[Scorer]:
    import ray

    start_ray(workers)
    try:
        weights = {name: tensor.numpy() for name, tensor in evaluator.supernet.state_dict().items()}
        shared = [ray.put(part) for part in (evaluator.bundle, evaluator.supernet.space, weights)]
        kind = ray.remote(num_cpus=1)(_Worker)

        def hire() -> Any:
            return kind.remote(evaluator.spec, evaluator.weights, shared)

        actors = [hire() for _ in range(workers)]
        yield lambda jobs: _dealt_out(jobs, actors, hire)
    finally:
        ray.shutdown()


def _dealt_out(jobs: Sequence[Job], actors: list[Any], hire: Callable[[], Any]) -> Iterator[tuple[int, Evaluation]]:
    """One job at a time for every actor. In the place of an actor that died comes a new one, which does its
    job again: Ray's own restart does the same, but complains of it on stderr beforehand.
    """
    import ray

    waiting = list(reversed(jobs))
    busy: dict[Any, tuple[Job, int]] = {}
    deaths: dict[int, int] = {}

    def give(place: int) -> None:
        if waiting:
            job = waiting.pop()
            busy[actors[place].evaluate.remote(job)] = (job, place)

    for place in range(len(actors)):
        give(place)
    while busy:
        (done,), _ = ray.wait(list(busy), num_returns=1)
        job, place = busy.pop(done)
        try:
            evaluation = ray.get(done)
        except ray.exceptions.RayActorError as error:
            deaths[job.number] = deaths.get(job.number, 0) + 1
            if deaths[job.number] > DEATHS:
                raise NasError(
                    f"the worker that scored trial {job.number} died {deaths[job.number]} times; give it more "
                    "memory or use fewer --workers, then run the same command again"
                ) from error
            actors[place] = hire()
            waiting.append(job)
        except ValueError as error:
            raise _not_scorable(job, error) from error
        else:
            yield job.number, evaluation
        give(place)


def _not_scorable(job: Job, error: ValueError) -> Exception:
    """The line for a candidate that raised: of the supernet as it was trained, as no retry gives another result."""
    cause = getattr(error, "cause", error)  # Ray hands on what an actor raised with the actor's traceback around it
    if isinstance(cause, UsageError):  # of the images, not of the candidate
        return cause
    return NasError(
        f"trial {job.number} cannot be scored ({cause}): {job.architecture}; train the supernet with a lower "
        "train.learning_rate or more train.steps"
    )


def start_ray(workers: int) -> None:
    """A cluster of this process alone."""
    import logging

    import ray

    # Ray keeps others out by a token; without this one it would write one into the home folder.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(
        address="local",
        num_cpus=workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
