"""The search: propose, admit, score, record, tell; then validate what was selected. One direction, no way
back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from itertools import takewhile
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hw_models.target_text import target_text
from nas.candidates import admit
from nas.dashboard import ON_FRONT, Mirror
from nas.errors import Interrupted, UsageError
from nas.files import sole_user, write_whole
from nas.front import covered, front, reference
from nas.interrupt import deferred_interrupt
from nas.picture import trade_off_picture, trade_off_plotly
from nas.problem import Problem, pose
from nas.progress import Narrator, Update
from nas.report import front_csv, front_markdown
from nas.samplers import Proposal, Proposer
from nas.spec import StudySpec, differences, to_toml
from nas.store import Store, StudyRecord, check_name
from nas.study import Study, read_study
from nas.survey import survey
from nas.trial import Trial
from nas.workers import Job, Scorer, refuse_torchrun, scorer

if TYPE_CHECKING:
    from nas.evaluate import Evaluation
    from nas.train import TrainedSupernet


FEW_SAMPLES, MANY_SAMPLES = 300, 100_000
"""Networks that tell what share of the space meets the demands: while tables are filled seconds, then less than one."""


def run_search(
    spec: StudySpec,
    folder: Path,
    *,
    config: str = "study",
    name: str | None = None,
    url: str | None = None,
    workers: int = 0,
    narrator: Narrator | None = None,
) -> Study:
    """Run or continue the study of `spec` until it has `spec.search.trials` trials.

    config: where the spec came from; it names the study when `name` does not. url: database, by default
    nas.db in `folder`. workers: Ray actors that score candidates; 0 scores them in this process.
    Raises UsageError, NasError, NothingFeasible (the study is kept), Interrupted (finished trials are kept).
    """
    narrator = narrator or Narrator(quiet=True)
    refuse_torchrun("nas search")
    name = check_name(name) if name is not None else None
    problem = pose(spec, folder, narrator, url)
    if not any(axis.objective.needs_images for axis in problem.goal.axes):
        narrator.warn(
            "no objective needs images, yet networks are trained and scored: `nas survey` shows what a space costs"
        )
    with closing(Store(folder, url, create=True)) as store:
        study = _name_of_study(store, problem, config, name, narrator)
        narrator.say(f"study {study} in {store.folder}")
        with sole_user(store.study_folder(study), f"study {study}"):
            store.put_study(study, problem.identity, config, problem.spec, _target_texts(problem))
            write_whole(store.study_folder(study) / "study.toml", to_toml(problem.spec))
            try:
                with (
                    closing(Mirror(store.url, study, problem.goal, problem.space)) as mirror,
                    _scoring(problem, store, study, workers, narrator) as score,
                    deferred_interrupt() as stop_if_asked,
                ):
                    scoring = _stoppable(score, stop_if_asked)
                    _explore(problem, store, study, scoring, mirror, narrator)
                    _validate(problem, store, study, scoring, narrator)
                    return _publish(store, study, mirror)
            except KeyboardInterrupt as error:
                raise Interrupted(
                    f"interrupted: study {study} has {store.count_trials(study)} of {spec.search.trials} "
                    f"trials; all work is saved in {store.folder}, run the same command again to go on"
                ) from error


def _name_of_study(store: Store, problem: Problem, config: str, name: str | None, narrator: Narrator) -> str:
    """The name under which this search runs: its own if it exists already, else a new one; and why it is
    new.
    """
    known = {record.name: record for record in store.studies()}
    wanted = name or check_name(f"{config}-{problem.identity[:8]}")
    if wanted in known and known[wanted].identity != problem.identity:
        changed = _changes(known[wanted], problem.spec)
        narrator.say(f"study {wanted} was made with other settings ({changed}): this is a new study")
        wanted = f"{wanted}-{problem.identity[:8]}"
    elif wanted not in known and name is None:
        texts = _target_texts(problem)
        # Most like it is the one whose targets were described as now, and few of whose settings differ.
        far = {
            record.name: (store.targets(record.name) != texts, _distance(record, problem.spec))
            for record in known.values()
            if record.config == config
        }
        if far:
            nearest = known[min(far, key=far.__getitem__)]  # the newest of equals
            changed = _changes(nearest, problem.spec)
            narrator.say(f"settings differ from study {nearest.name} ({changed}): this is a new study")
            if changed.startswith("search.calibrations ") and far[nearest.name] == (False, 1):
                given = "".join(f" --calibration {one}" for one in nearest.spec.search.calibrations)
                narrator.say(f"to go on with that one, name the calibration that it has: nas search ...{given}")
    return wanted


def _target_texts(problem: Problem) -> dict[str, str]:
    """Target name -> what its file says, inherited values included."""
    return {name: target_text(target) for name, target in problem.targets.items()}


def _distance(record: StudyRecord, spec: StudySpec) -> float:
    """Settings that differ; infinite where another version made the study."""
    try:
        return len(differences(record.spec, spec))
    except UsageError:
        return inf


def _changes(record: StudyRecord, spec: StudySpec) -> str:
    try:
        return (
            ", ".join(differences(record.spec, spec))
            or "the images, a file that it names or the version of this program"
        )
    except UsageError:
        return "another version of this program made it"


def _explore(problem: Problem, store: Store, study: str, score: Scorer, mirror: Mirror, narrator: Narrator) -> None:
    """Batch after batch until the study has all its trials, or the space has no more networks to offer."""
    search = problem.spec.search
    trials = {trial.number: trial for trial in store.trials(study)}
    proposer = Proposer(problem.space, problem.goal, search.sampler, search.seed)
    if trials:
        narrator.say(f"continuing: {len(trials)} of {search.trials} trials are done")
        mirror.add(_without_gaps(trials, range(len(trials))))
    else:
        _say_share(problem, narrator)
    with ExitStack() as stack:
        for population in problem.populations.values():
            stack.callback(population.save)
        update = stack.enter_context(narrator.bar("searching"))
        for batch, numbers in enumerate(_batches(search.trials, search.batch)):
            try:
                for trial in _run_batch(problem, trials, batch, numbers, proposer, score):
                    if trial.number not in trials:
                        store.add_trial(study, trial)
                        trials[trial.number] = trial
                    _show(update, problem, trials)
            finally:
                told = _without_gaps(trials, numbers)
                mirror.add(told)
            proposer.tell(told)
            if len(told) < len(numbers):
                narrator.say(f"no new network was found in a space of {problem.space.size}: the search ends here")
                return


def _say_share(problem: Problem, narrator: Narrator) -> None:
    """How much of the space meets the demands that need no image: so one knows at once that a bound is too tight."""
    if (
        narrator.is_quiet
        or problem.latencies
        or all(one.axis.objective.needs_images for one in problem.goal.constraints)
    ):
        return
    full = all(population.is_full for population in problem.populations.values())
    share = survey(problem.populations, problem.goal, MANY_SAMPLES if full else FEW_SAMPLES).together
    demands = ", ".join(one.text for one in problem.goal.constraints if not one.axis.objective.needs_images)
    narrator.say(f"share of the space that meets {demands}: {share}")
    if share.fraction == 0:
        narrator.warn(f"the bounds may be too tight; `nas survey` shows how the figures of {problem.space.name} spread")


def _without_gaps(trials: dict[int, Trial], numbers: range) -> list[Trial]:
    """Those before the first that is missing, so that Optuna's numbers stay ours; the others follow on
    resume.
    """
    return [trials[number] for number in takewhile(trials.__contains__, numbers)]


def _batches(total: int, size: int) -> Iterator[range]:
    """Trial numbers in batches that do not depend on where an earlier run stopped."""
    for first in range(0, total, size):
        yield range(first, min(first + size, total))


def _run_batch(
    problem: Problem,
    done: dict[int, Trial],
    batch: int,
    numbers: range,
    proposer: Proposer,
    score: Scorer,
) -> Iterator[Trial]:
    """The trials of a batch as they finish. Those that are recorded already are not done again."""
    if all(number in done for number in numbers):
        yield from (done[number] for number in numbers)
        return
    seen = {trial.architecture.key for number, trial in done.items() if number < numbers.start}
    waiting: dict[int, Trial] = {}
    for number, proposal in zip(numbers, proposer.ask(batch, len(numbers)), strict=True):
        trial = done.get(number) or _admitted(problem, number, proposal, seen)
        if trial is None:
            break
        seen.add(trial.architecture.key)
        if number in done or trial.shortfalls(problem.goal):
            yield trial
        else:
            waiting[number] = trial
    jobs = [Job(n, trial.architecture, "search") for n, trial in waiting.items()]
    for number, evaluation in score(jobs):
        yield replace(waiting[number], accuracy=asdict(evaluation.accuracy), finished_at=datetime.now())


def _admitted(problem: Problem, number: int, proposal: Proposal, seen: set[str]) -> Trial | None:
    """The trial a proposal becomes, costed but not scored; None when nothing new is left."""
    rng = np.random.default_rng((problem.spec.search.seed, 1, number))
    candidate = admit(proposal.genome, seen, problem.space, problem.goal, problem.screen, rng)
    if candidate is None:
        return None
    return Trial(
        number=number,
        genome=candidate.genome,
        architecture=candidate.architecture,
        accuracy=None,
        costs=problem.cost(candidate.architecture),
        moves=candidate.moves,
        sampler_state=proposal.sampler_state,
    )


def _show(update: Update, problem: Problem, trials: dict[int, Trial]) -> None:
    search = problem.spec.search
    chosen = front(list(trials.values()), problem.goal)
    text = f"front {len(chosen)}"
    if all(number in trials for number in range(search.batch)):
        corner = reference([trials[number] for number in range(search.batch)], problem.goal)
        text += f" hypervolume {covered(chosen, problem.goal, corner):.4f}"
    update(len(trials), search.trials, text)


def _validate(problem: Problem, store: Store, study: str, score: Scorer, narrator: Narrator) -> None:
    """Score the front on the validation images, which nothing has seen so far."""
    known = store.validations(study)
    chosen = front(store.trials(study), problem.goal)
    jobs = [Job(t.number, t.architecture, "val") for t in chosen if t.number not in known]
    if jobs:
        said = len(problem.data.notes)
        with narrator.bar("validating the front") as update:
            for done, (number, evaluation) in enumerate(score(jobs), start=1):
                store.add_validation(study, number, asdict(evaluation.accuracy))
                update(done, len(jobs), "")
        for note in problem.data.notes[said:]:  # of images that were opened only now, if this process opened them
            narrator.say(f"validation images: {note}")


@contextmanager
def _scoring(problem: Problem, store: Store, study: str, workers: int, narrator: Narrator) -> Iterator[Scorer]:
    """A scorer that trains or loads the supernet at its first job: a search in which nothing is feasible
    trains none.
    """
    with ExitStack() as stack:
        ready: list[Scorer] = []

        def score(jobs: Sequence[Job]) -> Iterator[tuple[int, Evaluation]]:
            if jobs and not ready:
                trained = train_for(problem, store.folder, narrator)
                store.set_supernet(study, trained.path)
                evaluator = problem.evaluator(trained.supernet, trained.identity)
                ready.append(stack.enter_context(scorer(evaluator, workers)))
            return ready[0](jobs) if jobs else iter(())

        yield score


def _stoppable(score: Scorer, stop_if_asked: Callable[[], None]) -> Scorer:
    """A scorer that heeds Ctrl-C between two candidates, when the finished one has been recorded."""

    def scoring(jobs: Sequence[Job]) -> Iterator[tuple[int, Evaluation]]:
        stop_if_asked()
        for finished in score(jobs):
            yield finished
            stop_if_asked()

    return scoring


def run_training(spec: StudySpec, folder: Path, *, narrator: Narrator | None = None) -> TrainedSupernet:
    """Train the supernet that a search of the same spec reuses. Raises UsageError, NasError, Interrupted."""
    narrator = narrator or Narrator(quiet=True)
    try:
        return train_for(pose(spec, folder, narrator), folder, narrator)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"interrupted: training is saved up to its last step in {folder.resolve()}; run the same "
            "command again to go on"
        ) from error


def train_for(problem: Problem, folder: Path, narrator: Narrator) -> TrainedSupernet:
    """The supernet of a problem: a matching one of `folder`, else one trained now."""
    from nas.train import train_supernet

    with narrator.bar("training the supernet") as update:
        trained = train_supernet(
            problem.space,
            problem.data,
            problem.spec.train,
            folder,
            progress=lambda done, total, loss: update(done, total, f"loss {loss:.3f}"),
            origin=problem.origin,
        )
    state = "reused" if trained.reused else "trained"
    narrator.say(f"supernet {trained.identity} {state}: {trained.steps} steps, {trained.path}")
    return trained


def _publish(store: Store, name: str, mirror: Mirror) -> Study:
    """Write the front beside the study and onto the dashboard. Raises NothingFeasible when there is none."""
    study = read_study(store, name)
    if not study.front:
        raise study.nothing_feasible()
    write_whole(study.folder / "front.csv", front_csv(study))
    write_whole(study.folder / "front.png", trade_off_picture(study))
    mirror.plot("front", *trade_off_plotly(study))
    notes = {t.number: f"{ON_FRONT}\n\n`{t.architecture}`" for t in study.front}
    mirror.publish(front_markdown(study), study.folder / "front.png", study.artifacts, notes)
    return study
