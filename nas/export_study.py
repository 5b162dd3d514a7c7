"""From trials of a study to exported folders: the same weights, images and thread count that scored them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.errors import Interrupted, UsageError
from nas.kept_targets import kept_targets, say_edited
from nas.problem import Problem, pose
from nas.progress import Narrator
from nas.study import Study
from nas.trial import Trial

if TYPE_CHECKING:
    from nas.accuracy import Accuracy, Kind
    from nas.evaluate import Evaluator


def export_trials(
    study: Study,
    trials: Sequence[Trial],
    out: Path,
    *,
    weights: str = "best",
    force: bool = False,
    narrator: Narrator | None = None,
) -> list[Path]:
    """Export every trial to a folder of its own in `out`; returns these folders.

    weights: "best" takes those of `nas finalists` for a network that was trained by itself, "shared" the supernet's.
    Raises UsageError when a folder is there already (without `force`) or the images have changed since the
    search, NasError when weights are damaged or the disk refuses, Interrupted with what is done.
    """
    from nas.export import model_name
    from nas.export.folder import refuse_to_replace
    from nas.train import load_supernet, supernet_identity
    from nas.workers import one_thread

    narrator = narrator or Narrator(quiet=True)
    folders = [out / model_name(trial.architecture) for trial in trials]
    for folder in folders:
        refuse_to_replace(folder, force=force)
    problem = same_problem(study, narrator)
    shared = supernet_identity(problem.space, problem.data, problem.spec.train, problem.origin)
    supernet = load_supernet(study.trained_supernet, problem.space, problem.data, shared)
    evaluator = problem.evaluator(supernet, shared)
    written: list[Path] = []
    try:
        with one_thread(), narrator.bar("exporting") as update:
            for trial, folder in zip(trials, folders, strict=True):
                update(len(written), len(trials), f"{folder.name}: writes and checks (a quarter of a minute)")
                record = study.finalists.get(trial.number) if weights == "best" else None
                _export(study, problem, evaluator, trial, record, folder, force)
                written.append(folder.absolute())
                update(len(written), len(trials), folder.name)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"interrupted: {len(written)} of {len(trials)} networks are exported to {out}, none by half; "
            "the same command with --force writes them all"
        ) from error
    return written


def _export(
    study: Study,
    problem: Problem,
    evaluator: Evaluator,
    trial: Trial,
    record: Mapping[str, Any] | None,
    folder: Path,
    force: bool,
) -> None:
    """Write the network of `trial`: with the weights of its own training, if `record` says that it ended, or shared."""
    from nas.export import export_network
    from nas.trainings import load_outcome

    arch = trial.architecture
    provenance: dict[str, Any] = {"study": study.name, "trial": trial.number, "supernet": evaluator.weights}
    kind: Kind
    selected_by: Accuracy | None
    if record is None or record["stopped"]:
        prepared, kind, selected_by = evaluator.prepare(arch), "one-shot", trial.selected_by
    else:
        network = load_outcome(record, problem.data)
        prepared = evaluator.prepare_network(network, arch, record["identity"])
        kind, selected_by = "stand-alone", None  # it was selected with other weights
        provenance |= _of_training(record) | {"top-1 at selection": str(trial.selected_by)}
    export_network(
        prepared,
        arch,
        problem.data,
        problem.shown_reports(arch),
        folder,
        selected_by=selected_by,
        kind=kind,
        provenance=provenance,
        force=force,
    )


def _of_training(record: Mapping[str, Any]) -> dict[str, Any]:
    """Where weights of its own come from, for the card."""
    train = record["train"]
    return {
        "training": record["identity"],
        "trained by itself": f"{record['steps']} steps of {train['batch_size']} images from {record['weights']} "
        f"weights, teacher {record['teacher']}",
    }


def same_problem(study: Study, narrator: Narrator) -> Problem:
    """The problem as the search had it, with the targets that it had. Raises UsageError when what its names stand for
    has changed otherwise.
    """
    say_edited(study, narrator)
    quiet = Narrator(quiet=True)  # the search has said what there is to say of images and targets
    problem = pose(study.spec, study.root, quiet, study.url, kept_targets(study))
    if problem.identity != study.identity:
        raise UsageError(
            f"study {study.name} ran with other images, plugin, first weights, teacher, or version of this program: "
            "what it scored is not what would be made now; restore them, use that version, or search again"
        )
    return problem
