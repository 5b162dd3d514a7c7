"""Trainings as Ray Tune trials: several at a time, on this machine or on a cluster that is there already.

A trial runs `Workshop.train`, as one process does, and its progress lies in the training's own folder. So
nothing of Tune has to survive: after kill -9 a new run takes the trainings that have not ended, from their last
checkpoint. On a cluster the folder of the studies must be one that every node sees.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from nas.errors import NasError, UsageError
from nas.interrupt import deferred_interrupt
from nas.workers import DEATHS, THREADS, start_ray

if TYPE_CHECKING:
    from nas.trainings import Outcome, Report, Training, Workshop

_CONNECT_S = 5.0
"""How long a cluster may take to accept a connection."""

_REPORTS = 100
"""Reports of progress in the course of one training."""


def train_on_ray(
    workshop: Workshop, trainings: Sequence[Training], workers: int, address: str | None, report: Report | None
) -> Iterator[Outcome]:
    """The outcomes of `trainings`, `workers` at a time (0: as many as the cluster at `address` has room for).

    Raises UsageError when no cluster answers at `address`, NasError when a training fails or its process dies again
    and again, KeyboardInterrupt after Ctrl-C; what is on disk is kept.
    """
    with _cluster(workers, address):
        import ray
        from ray import tune

        count = workers or int(ray.cluster_resources().get("CPU", 1))
        resources = {"cpu": 1, "gpu": gpu_share(count, int(ray.cluster_resources().get("GPU", 0)))}
        sets = weight_sets(workshop, trainings)
        trainable = tune.with_resources(tune.with_parameters(_trial, workshop=workshop, sets=sets), resources)
        home = workshop.folder / "ray"
        with deferred_interrupt() as stop_if_asked:
            tuner = tune.Tuner(
                trainable,
                param_space={"place": tune.grid_search(list(range(len(sets))))},
                tune_config=tune.TuneConfig(max_concurrent_trials=workers or None),
                run_config=tune.RunConfig(
                    name=str(os.getpid()),
                    storage_path=str(home),
                    failure_config=tune.FailureConfig(max_failures=DEATHS),
                    callbacks=[_watch(stop_if_asked, report)],
                    verbose=0,
                ),
            )
            try:
                results = tuner.fit()
            finally:
                shutil.rmtree(home / str(os.getpid()), ignore_errors=True)
    for result in (results[place] for place in range(len(results))):
        if result.error is not None:
            raise NasError(
                f"a training died {DEATHS + 1} times ({_last_line(result.error)}); give it more memory or use fewer "
                "--workers, then run the same command again"
            )
        if failed := (result.metrics or {}).get("failed"):
            raise NasError(str(failed))
    for training in trainings:
        outcome = workshop.outcome(training)
        assert outcome is not None, "a trial that ended without failure has written its outcome"
        yield outcome


def gpu_share(trials: int, gpus: int) -> float:
    """Of a GPU, for each of `trials` at a time on `gpus`: equal shares, and never more than one."""
    if not gpus:
        return 0.0
    together = -(-trials // gpus)
    return int(10_000 / together) / 10_000


def weight_sets(workshop: Workshop, trainings: Sequence[Training]) -> list[list[Training]]:
    """The trainings by their weights: networks that differ in bits alone are one training, and each is scored."""
    sets: dict[str, list[Training]] = {}
    for training in trainings:
        sets.setdefault(workshop.identity(training), []).append(training)
    return list(sets.values())


def _trial(config: dict[str, Any], workshop: Workshop, sets: list[list[Training]]) -> None:
    """The trainings of one set of weights, in a process of Ray's. What no retry would mend is reported, not raised."""
    import torch
    from ray import tune

    torch.set_num_threads(THREADS)

    def progress(number: int, done: int, total: int, loss: float) -> None:
        if done % max(1, total // _REPORTS) == 0:
            tune.report({"number": number, "steps": done, "loss": loss})

    try:
        if not workshop.folder.is_dir():
            raise UsageError(
                f"{workshop.folder} is not there on node {socket.gethostname()}; name a folder with --dir that every "
                "node of the cluster sees"
            )
        for training in sets[int(config["place"])]:
            outcome = workshop.train(training, partial(progress, training.number))
            tune.report({"number": training.number, "steps": outcome.steps, "loss": 0.0})
    except (NasError, UsageError) as error:
        tune.report({"failed": str(error)})


def _watch(stop_if_asked: Callable[[], None], report: Report | None) -> Any:
    from ray import tune

    class Watch(tune.Callback):
        """Hands progress on, and heeds Ctrl-C between two events."""

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
            if report is not None and "steps" in result:
                report(int(result["number"]), int(result["steps"]), float(result["loss"]))

        def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
            stop_if_asked()

        def __reduce__(self) -> Any:
            """Tune writes its callbacks down; this one belongs to this process."""
            return tune.Callback, ()

    return Watch()


@contextmanager
def _cluster(workers: int, address: str | None) -> Iterator[None]:
    """A cluster of this process alone, or the one at `address`, left running."""
    settings = {
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
        "RAY_AIR_NEW_OUTPUT": "0",  # which prints tables even when it is to be silent
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "3600",
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    import ray

    if address is None:
        start_ray(max(1, workers))
    else:
        _join(address)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def check_cluster(address: str) -> None:
    """Raise UsageError, without loading Ray, when nothing answers at `address`: before there is any training."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host:
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from error


def _join(address: str) -> None:
    import ray

    check_cluster(address)  # Ray itself would try for minutes
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> UsageError:
    return UsageError(
        f"no Ray cluster answers at {address!r} ({_last_line(error)}); start one with `ray start --head`, or leave "
        "--ray out"
    )


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
