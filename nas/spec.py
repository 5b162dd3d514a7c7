"""What a study is: every choice a person makes, as frozen data; read from TOML strictly, and written back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from nas.errors import UsageError
from nas.objectives import suggestion
from nas.spec_rules import check

STUDIES = Path(__file__).resolve().parent.parent / "studies"
"""The studies that ship, one TOML each."""

SUPERNET_VERSION = 5
"""Raised when training or sharing gives other weights for the same spec: supernets train anew, studies are new ones.
Where it does so for few specs, `TrainSpec.revisions` says it for these alone."""


@dataclass(frozen=True, slots=True)
class SpaceSpec:
    """Which networks are candidates. No `mixers` means the core; `choices` narrows or opens genes: name -> values.

    plugin: Python file with token mixers of the user's own; they are offered beside the core, or by `mixers`.
    multiplex: so many consecutive blocks of a stage share the matrices of their mixers; 1: none.
    """

    name: str = "metaformer"
    preset: str = "small"
    granularity: str = "stage"
    mixers: tuple[str, ...] = ()
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    plugin: str | None = None
    multiplex: int = 1


@dataclass(frozen=True, slots=True)
class DataSpec:
    """Which images.

    limit: at most that many training images, search images among them, and as many validation images; None: all.
    flip: a mirrored image has the same class, and training mirrors half of them; false for text, digits, arrows.
    """

    source: str = "procedural"
    limit: int | None = None
    seed: int = 0
    flip: bool = True


@dataclass(frozen=True, slots=True)
class TrainSpec:
    """How networks are trained: the supernet, and by the same recipe a network alone. Budgets are optimizer steps,
    never seconds.

    Of the supernet only:
    single_path_share: share of the steps, the first ones, that train one network each; the others are sandwich steps.
    single_path_sizes: "largest", or "random" sizes for that one network.
    subnets: random subnets per sandwich step, beside the largest and the smallest.
    small_warmup_share: share of the sandwich steps, the first ones, over which the smallest sizes on offer go down from
        the largest to the smallest of the space (0: all sizes from the start).
    fairness: every position deals its mixers evenly; otherwise they are drawn.
    distillation: what the other networks of a sandwich step learn from the largest: "kl" (its predictions by
        Kullback-Leibler divergence), "alpha" (by alpha-divergence) or "none".
    teacher: a timm model with weights on this machine that the largest network learns from (`nas.teacher`); "" none.
    warm_start: file of a trained supernet of this space or a wider one whose weights are the first ones; "" fresh ones.

    warmup_steps: of linear warm-up, at most half of the steps; the rest is half a cosine to zero.
    clip_norm: bound of the gradient's norm per network of a step; 0: none.
    drop_path: probability at which the last residual branch is left out, falling linearly to 0 at the first.
    ema: decay of the moving average of the weights, which is then what is kept; 0: the weights themselves.
    mixup, cutmix: their alpha; rand_augment: timm's text for it, such as "rand-m7-n2-mstd0.5"; 0 and "": none.
    compile: torch.compile for networks that are trained alone; a supernet would be compiled once per network.
    checkpoint_every: steps between two checkpoints; it does not change the result.
    """

    steps: int = 300
    single_path_share: float = 0.85
    single_path_sizes: str = "largest"
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 20
    subnets: int = 2
    small_warmup_share: float = 0.0
    fairness: bool = True
    distillation: str = "kl"
    teacher: str = ""
    warm_start: str = ""
    label_smoothing: float = 0.1
    clip_norm: float = 1.0
    drop_path: float = 0.0
    ema: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    rand_augment: str = ""
    compile: bool = False
    seed: int = 0
    checkpoint_every: int = 50

    @property
    def revisions(self) -> list[str]:
        """What trains otherwise than by the same entries before, as an identity adds it; nothing for most."""
        paired = ["pairs are drawn"] if self.mixup or self.cutmix else []
        return paired + (["warm-up is half"] if self.warmup_steps > self.steps // 2 else [])


@dataclass(frozen=True, slots=True)
class EvaluateSpec:
    """How one candidate is scored.

    bn_images: training images that re-estimate its BatchNorm statistics.
    calibration_images: training images that set its activation ranges.
    search_images: images of the search split that it is scored on (fewer if the split is smaller).
    batch_size: images per forward pass.
    """

    bn_images: int = 256
    calibration_images: int = 256
    search_images: int = 1000
    batch_size: int = 64


@dataclass(frozen=True, slots=True)
class SearchSpec:
    """How candidates are chosen, and what is wanted of them.

    trials: total wanted, over all runs of the study.
    batch: candidates that are proposed together; it shapes the search, whatever the number of workers.
    risk: None for the expected latency; else the share of networks whose latency is to stay below the one shown.
    calibrations: of the targets' latencies, by name (`npu_40tops#2`, or "none" for the plain cost model), one a
        target; none given: the newest there are when the study begins.
    """

    trials: int = 100
    sampler: str = "nsga2"
    seed: int = 0
    batch: int = 8
    objectives: tuple[str, ...] = ("top1", "latency")
    constraints: tuple[str, ...] = ()
    targets: tuple[str, ...] = ("npu_40tops",)
    risk: float | None = None
    calibrations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StudySpec:
    """A whole study, as one TOML file holds it: a section per field."""

    space: SpaceSpec = SpaceSpec()
    data: DataSpec = DataSpec()
    train: TrainSpec = TrainSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    search: SearchSpec = SearchSpec()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; absent options left out."""
        sections = dataclasses.asdict(self)
        return {name: {k: v for k, v in section.items() if v is not None} for name, section in sections.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str = "study") -> StudySpec:
        """Strict: raises UsageError that names an unknown, mistyped or impossible entry, and the cure."""
        sections = {f.name: type(f.default) for f in dataclasses.fields(cls)}
        for name in data:
            if name not in sections:
                raise UsageError(f"{where}: unknown section [{name}]; {suggestion(name, sections)}")
        made = {name: _section(kind, name, data.get(name, {}), where) for name, kind in sections.items()}
        spec = cls(**made)
        check(spec, where)
        return spec

    def identity(self, *facts: str) -> str:
        """Sixteen hexadecimal digits that name the study, whatever its length and speed; others with SUPERNET_VERSION.

        facts: what data.source, search.targets, space.plugin, train.warm_start and train.teacher stood for (content of
        images and of files). They take the place of the names: a moved folder is the same study, a changed file is
        another.
        """
        content = self.to_dict()
        del content["search"]["trials"], content["train"]["checkpoint_every"], content["search"]["calibrations"]
        if content["space"]["multiplex"] == 1:  # as studies without that entry were named
            del content["space"]["multiplex"]
        del content["data"]["source"], content["search"]["targets"], content["train"]["warm_start"]
        del content["data"]["flip"]  # a fact of the images where it is false
        content["train"]["teacher"] = ""
        content["space"].pop("plugin", None)
        text = json.dumps([SUPERNET_VERSION, content, *facts, *self.train.revisions], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_spec(name_or_path: str) -> tuple[str, StudySpec]:
    """(short name, spec) of a shipped study or of a TOML file. Raises UsageError."""
    shipped = STUDIES / f"{name_or_path}.toml"
    path = shipped if shipped.is_file() else Path(name_or_path)
    if not path.is_file():
        hint = suggestion(name_or_path, list_studies())
        raise UsageError(f"no study configuration {name_or_path!r}: neither a file nor a shipped study; {hint}")
    return path.stem, StudySpec.from_dict(read_toml(path), where=str(path))


def list_studies() -> list[str]:
    return sorted(path.stem for path in STUDIES.glob("*.toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """Raises UsageError with the line when the file is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a TOML file: {error}") from error


def override(spec: StudySpec, values: Mapping[str, Any]) -> StudySpec:
    """`spec` with entries such as {'train.steps': 100} replaced. Raises UsageError on an unknown entry.

    An entry of a table such as {'space.choices.gate': ["none", "se"]} leaves the others of that table.

    Another space or preset takes the choices of `spec` away unless `values` has some: they name the genes and
    values of the space they were written for.
    """
    sections: dict[str, dict[str, Any]] = {name: dict(section) for name, section in spec.to_dict().items()}
    space = sections["space"]
    if any(values.get(f"space.{key}", space[key]) != space[key] for key in ("name", "preset")):
        space["choices"] = {}
    for key, value in values.items():
        section, dot, name = key.partition(".")
        table, _, entry = name.partition(".")
        if entry and isinstance(sections.get(section, {}).get(table), Mapping):
            sections[section][table] = {**sections[section][table], entry: value}
            continue
        if not dot or section not in sections:
            known = [f"{part}.{entry}" for part, entries in sections.items() for entry in entries]
            raise UsageError(f"unknown setting {key!r}; {suggestion(key, known)}")
        sections[section][name] = value
    return StudySpec.from_dict(sections, where="settings")


def parse_setting(text: str) -> tuple[str, Any]:
    """'train.steps=100' to ('train.steps', 100); the value is TOML or a bare word. Raises UsageError."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"cannot read the setting {text!r}; write it like train.steps=100")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def differences(old: StudySpec, new: StudySpec) -> list[str]:
    """Readable list of what changed, 'train.steps 300 -> 400'; trials left out."""
    before, after = old.to_dict(), new.to_dict()
    changes = []
    for section in after:
        for key in sorted({*before[section], *after[section]} - {"trials", "checkpoint_every"}):
            was, now = before[section].get(key), after[section].get(key)
            if was != now:
                changes.append(f"{section}.{key} {_shown(was)} -> {_shown(now)}")
    return changes


def to_toml(spec: StudySpec) -> str:
    """TOML text that `load_spec` reads back to an equal spec."""
    lines: list[str] = []
    for section, entries in spec.to_dict().items():
        lines += [f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in entries.items()), ""]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(entry) for entry in value) + "]"
    # A JSON string, number or truth value is also a TOML one, once DEL is escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _shown(value: Any) -> str:
    return "unset" if value is None else _toml(value)


def _section(kind: type, name: str, entries: Any, where: str) -> Any:
    if not isinstance(entries, Mapping):
        raise UsageError(f"{where}: [{name}] must be a section of settings, but got {entries!r}")
    hints = get_type_hints(kind)
    for key in entries:
        if key not in hints:
            raise UsageError(f"{where}: unknown key {key!r} in [{name}]; {suggestion(key, hints)}")
    return kind(**{key: _typed(hints[key], value, f"{where}: {name}.{key}") for key, value in entries.items()})


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type. The handful of types that specs use; raises UsageError otherwise."""
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_typed(get_args(hint)[0], entry, where) for entry in value)
    if get_origin(hint) is Mapping and isinstance(value, Mapping):
        kind = get_args(hint)[1]
        return {str(key): _typed(kind, entry, f"{where}.{key}") for key, entry in value.items()}
    if hint is Any:
        return value
    if get_origin(hint) in _WORDS:
        raise UsageError(f"{where} must be {_WORDS[get_origin(hint)]}, but got {value!r}")
    kinds = get_args(hint) or (hint,)
    if float in kinds and type(value) is int:
        return float(value)
    if type(value) not in kinds:
        raise UsageError(f"{where} must be {_WORDS[kinds[0]]}, but got {value!r}")
    return value


_WORDS = {
    tuple: "a list",
    Mapping: "a table",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
