"""What `nas measure` was asked for, as jobs, and the measuring of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from math import inf
from pathlib import Path
from typing import Any

from hw_models import Target
from nas.errors import UsageError
from nas.files import sole_user
from nas.measure.design import IN_CHANS, NUM_CLASSES, choose_parts, draw_networks
from nas.measure.jobs import Job
from nas.measure.methods import methods_asked, refuse_other_methods
from nas.measure.records import MeasurementStore, refuse_other_software
from nas.measure.run import measure_jobs
from nas.measure.session import Device, Outcome
from nas.measure.wanted import read_wanted
from nas.problem import find_target
from nas.progress import Narrator
from nas.store import Store
from nas.subjects import Subject, architecture_subject, named_subject, part_subject
from search_spaces import load_space
from search_spaces.space import SearchSpace

DEVICES = {"cpu": "cpu", "gpu": "cuda"}
"""Kind of a target -> what `nas measure --device` calls one at this machine; boards of other kinds are out of reach."""

DEFAULT_BUDGET = 200


def run_measuring(
    folder: Path,
    url: str | None,
    narrator: Narrator,
    *,
    device: str = "cpu",
    target: str | None = None,
    space: str = "metaformer",
    preset: str = "mobile",
    models: Sequence[str] = (),
    networks: int = 0,
    budget: int | None = None,
    minutes: float | None = None,
    precisions: Sequence[str] = (),
    input_size: int | None = None,
    batch: int = 1,
    threads: int = 1,
    patience_s: float | None = None,
    workers: int | None = None,
    wanted: Path | None = None,
    seed: int = 0,
    prepare_only: bool = False,
    replace: bool = False,
) -> Outcome:
    """Time blocks of a space, or whole networks, on a device of this machine; every result goes into the database.

    models: timm names and exported folders. networks: how many to draw from the space. budget: block measurements, a
    block at one precision each; by default DEFAULT_BUDGET, none when models, networks or a table are asked for.
    wanted: a table of suggested blocks, each in its own precision and at its own batch.
    minutes: when to stop. precisions: the device's usual ones by default. workers: processes that compile for a GPU.
    prepare_only: write or compile the graphs, time later.
    patience_s: how long a group of graphs waits for the processor to be at peace (`nas.measure.timing.PATIENCE_S`).
    replace: drop what another version of the runtime, or another method, measured.
    Raises UsageError for what does not exist or cannot be timed here, NasError under load, Interrupted at Ctrl-C.
    """
    if (budget is not None and budget < 1) or networks < 0 or batch < 1 or (minutes is not None and not minutes > 0):
        raise UsageError("--budget, --minutes and --batch must be positive, and --networks not negative")
    if patience_s is not None and (device != "cpu" or not 0 < patience_s < inf):
        raise UsageError(f"--patience is a positive number of seconds, for --device cpu alone, but is {patience_s:g}")
    if replace and prepare_only:
        raise UsageError("--replace drops times for those that are taken, and --prepare-only takes none: leave one out")
    if wanted is not None and precisions and not (budget or networks or models):
        raise UsageError("--precision goes without --from: its lines say in which precision each block is wanted")
    if wanted is not None and batch != 1 and not (budget or networks or models):
        raise UsageError("--batch goes without --from: its lines say at which batch each block is wanted")
    with closing(Store(folder, url, create=True)) as store:
        on = open_device(device, store.folder / "measure" / "graphs", threads, workers)
        name = target_name(target) if target else on.default_target()
        described = find_target(target or name)
        pairs = read_wanted(wanted) if wanted is not None else []
        chosen = tuple(precisions) or on.usual
        _check_precisions(on, chosen, [precision for _, precision, _ in pairs], wanted)
        if budget is None:
            budget = 0 if models or networks or wanted is not None else DEFAULT_BUDGET
        subjects = [named_subject(model, input_size) for model in models]
        if networks or budget:
            made = space_of(space, preset)
            drawn = draw_networks(made, networks, seed)
            subjects += [architecture_subject(arch, NUM_CLASSES, IN_CHANS) for arch in drawn]
            subjects += chosen_blocks(made, described, -(-budget // len(chosen)), chosen, seed, batch)
        jobs = [Job(*pair) for pair in pairs]
        jobs += [Job(subject, precision, batch) for subject in subjects for precision in chosen]
        measured = MeasurementStore(store)
        with sole_user(store.folder / "measure", "the measuring of this folder"):
            if dropped := _make_room(measured, on, name, threads, jobs, replace=replace):
                narrator.warn(f"{dropped} measurements of {name} by another version or method are dropped")
            narrator.say(
                f"{len(jobs)} measurements on {device} as target {name}, {on.runtime} {on.runtime_version}, "
                f"{threads} thread{'s' * (threads > 1)}"
            )
            return measure_jobs(
                jobs,
                on,
                name,
                measured,
                narrator,
                minutes=minutes,
                prepare_only=prepare_only,
                seed=seed,
                patience_s=patience_s,
            )


def _check_precisions(on: Device, chosen: Sequence[str], of_table: Sequence[str], table: Path | None) -> None:
    """Raises UsageError for a precision that the device does not time. of_table: what lines of `table` ask for."""
    known = f"{on.runtime} on this device times {', '.join(on.precisions)}"
    if unknown := [precision for precision in chosen if precision not in on.precisions]:
        raise UsageError(
            f"{known}, not {unknown[0]}: its figures must come from a device with such kernels (`nas measure import`)"
        )
    if unknown := [precision for precision in of_table if precision not in on.precisions]:
        raise UsageError(f"{table} asks for {unknown[0]}: {known}")


def _make_room(
    measured: MeasurementStore, on: Device, target: str, threads: int, jobs: Sequence[Job], *, replace: bool
) -> int:
    """Drop what does not mix with the times of these jobs, when it is to be replaced; how many. Raises UsageError
    otherwise.
    """
    software = (on.runtime, on.runtime_version)
    refuse_other_threads(measured, target, threads, software if replace else None)
    dropped = refuse_other_software(measured, target, *software, replace=replace)
    return dropped + refuse_other_methods(measured, target, methods_asked(jobs), replace=replace)


def open_device(device: str, folder: Path, threads: int, workers: int | None = None) -> Device:
    """A device of this machine. Raises UsageError when there is none, or when it has no use for workers."""
    if device == "cpu" and workers is not None:
        raise UsageError("--workers is for --device cuda, whose compiler needs processors; leave it out")
    if device == "cuda":
        from nas.measure.cuda import CudaDevice

        return CudaDevice(workers)
    if device != "cpu":
        raise UsageError(f"unknown device {device!r}; known: {', '.join(DEVICES.values())}")
    from nas.measure.cpu import CpuDevice

    return CpuDevice(folder, threads)


def space_of(space: str, preset: str) -> SearchSpace:
    """Raises UsageError for an unknown space or preset."""
    try:
        return load_space(space, preset=preset)
    except ValueError as error:
        raise UsageError(str(error)) from error


def target_name(name_or_path: str) -> str:
    """The name under which a target's measurements are kept: that of its file, without `.toml`."""
    return Path(name_or_path).stem if name_or_path.endswith(".toml") else name_or_path


def chosen_blocks(
    space: SearchSpace, target: Target, count: int, precisions: Sequence[str], seed: int, batch: int = 1
) -> list[Subject]:
    """The blocks of a space that tell most, as subjects."""
    parts = choose_parts(space, target, count, tuple(precisions), seed, NUM_CLASSES, IN_CHANS, batch)
    return [part_subject(part) for part in parts]


def refuse_other_threads(
    store: MeasurementStore, target: str, threads: int, software: tuple[str, str] | None = None
) -> None:
    """One target has the times of one number of threads. software: (runtime, version) whose times alone count; all by
    default. Raises UsageError for another number.
    """
    for record in store.of(target):
        if software is not None and (record.runtime, record.runtime_version) != software:
            continue
        known: Any = record.condition().get("threads", threads)
        if known != threads:
            raise UsageError(
                f"{target} has measurements with {known} threads, and these are with {threads}: name another target "
                "with --target, or use --threads " + str(known)
            )
