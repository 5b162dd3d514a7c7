"""From trials of a study to exported folders: the same weights, images and thread count that scored them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nas.errors import Interrupted, UsageError
from nas.problem import Problem, pose
from nas.progress import Narrator
from nas.study import Study
from nas.trial import Trial


def export_trials(
    study: Study, trials: Sequence[Trial], out: Path, *, force: bool = False, narrator: Narrator | None = None
) -> list[Path]:
    """Export every trial to a folder of its own in `out`; returns these folders.

    Raises UsageError when a folder is there already (without `force`) or the images have changed since the
    search, NasError when weights are damaged or the disk refuses, Interrupted with what is done.
    """
    from nas.evaluate import Evaluator
    from nas.export import export_network, model_name
    from nas.train import load_supernet, supernet_identity
    from nas.workers import one_thread

    narrator = narrator or Narrator(quiet=True)
    problem = _same_problem(study, narrator)
    if study.supernet is None:
        raise UsageError(f"study {study.name} has no trained supernet yet; run its search first")
    weights = supernet_identity(problem.space, problem.data, problem.spec.train)
    supernet = load_supernet(study.supernet, problem.space, problem.data, weights)
    evaluator = Evaluator(problem.data, problem.spec.evaluate, supernet, weights)
    written: list[Path] = []
    try:
        with one_thread(), narrator.bar("exporting") as update:
            for trial in trials:
                arch = trial.architecture
                folder = export_network(
                    evaluator.prepare(arch),
                    arch,
                    problem.data,
                    problem.reports(arch),
                    out / model_name(arch),
                    selected_by=trial.selected_by,
                    provenance={"study": study.name, "trial": trial.number, "supernet": weights},
                    force=force,
                )
                written.append(folder)
                update(len(written), len(trials), folder.name)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"interrupted: {len(written)} of {len(trials)} networks are exported to {out}, none by half; "
            "the same command with --force writes them all"
        ) from error
    return written


def _same_problem(study: Study, narrator: Narrator) -> Problem:
    """The problem as the search had it. Raises UsageError when what its names stand for has changed since."""
    problem = pose(study.spec, study.root, narrator)
    if problem.identity != study.identity:
        raise UsageError(
            f"the images or a target file of study {study.name} have changed since it ran: an export would not be what "
            "was scored; restore them, or search again"
        )
    return problem
