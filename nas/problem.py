"""From a StudySpec to the things its names stand for. Whatever is wrong with a name is said here, before any
work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.data.source import folder_of, is_embedded, split_folders
from nas.errors import UsageError
from nas.latency import TargetLatency, calibrated
from nas.objectives import Goal, resolve_goal, suggestion
from nas.progress import Narrator
from nas.spec import SpaceSpec, StudySpec, TrainSpec
from nas.teacher_files import full_teacher, teacher_identity
from search_spaces.metaformer import load_space
from search_spaces.plugin import install, read_plugin
from search_spaces.space import SearchSpace

if TYPE_CHECKING:
    from hw_models import CostReport
    from hw_models.target import Target
    from nas.data.bundle import DataBundle
    from nas.evaluate import Evaluator
    from nas.population import PopulationCost
    from search_spaces.architecture import Architecture
    from search_spaces.supernet import Supernet


TABLES = "tables"
"""Folder, beside the studies, of what costing has learned of spaces and targets."""


@dataclass(frozen=True)
class Problem:
    """A study that is ready to run. `identity` names it: spec, image content, target content. tables: folder of the
    population's tables. origin: identity of the supernet that its own begins with.
    """

    spec: StudySpec
    space: SearchSpace
    targets: Mapping[str, Target]
    goal: Goal
    data: DataBundle
    identity: str
    latencies: Mapping[str, TargetLatency] = field(default_factory=dict)
    tables: Path | None = None
    origin: str | None = None

    def cost(self, architecture: Architecture) -> dict[str, dict[str, Any]]:
        """Target name -> cost summary, with the calibrated latency where there is one; sees no image."""
        reports = self.reports(architecture)
        costs = {name: report.summary() for name, report in reports.items()}
        for name, latency in self.latencies.items():
            costs[name] |= latency.summary(reports[name].parts)
        return costs

    def screen(self, architecture: Architecture) -> dict[str, dict[str, Any]]:
        """As `cost`, to rounding, by table look-up: what earlier runs have costed is known."""
        from nas.population import genes_of

        if self.latencies:
            return self.cost(architecture)  # tables hold the plain cost model
        genes = genes_of(self.space, [self.space.encode(architecture)])
        costs: dict[str, dict[str, Any]] = {}
        for name, population in self.populations.items():
            figures = population.cost(genes)
            if not figures.pop("legal")[0]:
                return self.cost(architecture)  # which says what is not legal
            costs[name] = {key: float(column[0]) for key, column in figures.items()} | {"violations": []}
        return costs

    @cached_property
    def populations(self) -> dict[str, PopulationCost]:
        """Target name -> tables of the space on it."""
        from nas.population import PopulationCost

        classes, channels = self.data.num_classes, self.data.in_chans
        return {
            name: PopulationCost(self.space, target, classes, channels, folder=self.tables)
            for name, target in self.targets.items()
        }

    def reports(self, architecture: Architecture) -> dict[str, CostReport]:
        """Target name -> the whole cost report of the plain cost model."""
        from nas.cost import cost_architecture

        classes, channels = self.data.num_classes, self.data.in_chans
        return {
            name: cost_architecture(architecture, target, classes, channels) for name, target in self.targets.items()
        }

    def shown_reports(self, architecture: Architecture) -> dict[str, CostReport]:
        """As `reports`, with the latency that the study used and what is known of it; rows stay the cost model's."""
        from nas.latency import describe

        costs = self.cost(architecture)
        return {name: describe(report, costs[name]) for name, report in self.reports(architecture).items()}

    def evaluator(self, supernet: Supernet, weights: str) -> Evaluator:
        """What scores candidates with the shared weights."""
        from nas.evaluate import Evaluator

        return Evaluator(self.data, self.spec.evaluate, supernet, weights)


def pose(
    spec: StudySpec,
    folder: Path,
    narrator: Narrator | None = None,
    url: str | None = None,
    targets: Mapping[str, Target] | None = None,
) -> Problem:
    """Resolve every name of `spec`; decoded images are cached under `folder`; calibrations are those of the database
    at `url`, by default the one in `folder`. targets: those that the spec names, where they are known already. Raises
    UsageError.
    """
    from hw_models.estimate import COST_MODEL_VERSION
    from nas.samplers import SAMPLERS

    narrator = narrator or Narrator(quiet=True)
    spec = with_full_paths(spec)
    space = space_of(spec.space)
    if space.plugin is not None:
        from nas.conformance import check_plugin

        check_plugin(space.plugin)
    if spec.search.sampler not in SAMPLERS:
        raise UsageError(f"unknown sampler {spec.search.sampler!r}; {suggestion(spec.search.sampler, SAMPLERS)}")
    targets = load_targets(spec) if targets is None else targets
    from nas.admissible import admissible_space

    space, barred = admissible_space(space, targets, spec.space.mixers)
    goal = resolve_goal(spec.search.objectives, spec.search.constraints, list(targets))
    data = load_images(spec, space, folder, narrator)
    spec, latencies = calibrated(spec, targets, folder, url, narrator)
    named = "the embedded data set (--data names your own)" if is_embedded(spec.data.source) else spec.data.source
    narrator.say(f"images: {named}, {data.num_classes} classes")
    for note in [*barred, *data.notes]:
        narrator.say(note)
    own = [space.plugin.identity] if space.plugin else []
    fitted = [latency.identity for latency in latencies.values()]
    origin = _origin(spec.train, space, data, folder, narrator)
    begun = [origin] if origin is not None else []
    taught = [f"teacher {teacher_identity(spec.train.teacher)}"] if spec.train.teacher else []
    costs = [f"cost model {COST_MODEL_VERSION}", *(target.content() for target in targets.values())]
    identity = spec.identity(data.identity, *costs, *own, *fitted, *begun, *taught)
    return Problem(spec, space, targets, goal, data, identity, latencies, folder / TABLES, origin)


def _origin(spec: TrainSpec, space: SearchSpace, data: DataBundle, folder: Path, narrator: Narrator) -> str | None:
    """Identity of what the supernet begins with. Raises UsageError where nothing knows it."""
    if not spec.warm_start:
        return None
    from nas.train import known_origin

    origin = known_origin(space, data, spec, folder)
    if not Path(spec.warm_start).is_file():
        narrator.say(f"{spec.warm_start} (train.warm_start) is gone; the supernet that began with it is there")
    return origin


def space_of(spec: SpaceSpec) -> SearchSpace:
    """Raises UsageError for an unknown space, preset, mixer or choice, and for a plugin that cannot be loaded."""
    choices = {gene: list(values) for gene, values in spec.choices.items()}
    mixers = spec.mixers or (("core", "plugin") if spec.plugin else None)
    try:
        plugin = read_plugin(spec.plugin) if spec.plugin else None
        if plugin is not None:
            install(plugin)
        space = load_space(spec.name, spec.preset, spec.granularity, mixers, choices or None, spec.multiplex)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return replace(space, plugin=plugin)


def load_targets(spec: StudySpec) -> dict[str, Target]:
    """Target name -> target, in the order of the spec. Raises UsageError."""
    targets: dict[str, Target] = {}
    for name in spec.search.targets:
        target = find_target(name)
        if target.name in targets:
            raise UsageError(f"target {target.name!r} is named twice; give each target once, each with its own name")
        targets[target.name] = target
    return targets


def find_target(name_or_path: str) -> Target:
    """Raises UsageError when there is no such target, or its file is not right."""
    from hw_models import load_target

    try:
        return load_target(name_or_path)
    except ValueError as error:
        raise UsageError(str(error)) from error


def check_images(spec: StudySpec) -> None:
    """Raises UsageError where the image folder is none, before anything heavy is loaded to read it."""
    if (folder := folder_of(spec.data.source)) is not None:
        split_folders(folder)


def load_images(spec: StudySpec, space: SearchSpace, folder: Path, narrator: Narrator) -> DataBundle:
    """The three sets of images, at the largest resolution of the space. Raises UsageError."""
    from nas.data.load import load_data

    data = spec.data
    with narrator.bar("decoding images") as update:
        return load_data(
            data.source,
            resolution=space.max_resolution,
            seed=data.seed,
            limit=data.limit,
            flip=data.flip,
            cache=folder / "images",
            progress=lambda done, total: update(done, total, ""),
        )


def with_full_paths(spec: StudySpec) -> StudySpec:
    """Paths made absolute, so that a study goes on from any working directory. Raises UsageError when the files of
    train.teacher are not there.
    """
    source = spec.data.source
    if not is_embedded(source) and Path(source).is_dir():
        source = str(Path(source).resolve())
    # What is a file: as in `hw_models.load_target`.
    targets = tuple(str(Path(t).resolve()) if t.endswith(".toml") or "/" in t else t for t in spec.search.targets)
    plugin = str(Path(spec.space.plugin).resolve()) if spec.space.plugin else None
    start, teacher = spec.train.warm_start, spec.train.teacher
    train = replace(
        spec.train,
        warm_start=str(Path(start).resolve()) if start else "",
        teacher=full_teacher(teacher) if teacher else "",
    )
    return replace(
        spec,
        space=replace(spec.space, plugin=plugin),
        data=replace(spec.data, source=source),
        train=train,
        search=replace(spec.search, targets=targets),
    )
