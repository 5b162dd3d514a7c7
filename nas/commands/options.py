"""The options that several commands share, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

import nas

Command = Callable[..., None]

FOLDER = click.option(
    "--dir", "folder", type=click.Path(path_type=Path), default=Path("nas_runs"), show_default=True,
    help="Folder of all studies: nas.db, supernets, results.",
)  # fmt: skip
STORAGE = click.option("--storage", "url", help="SQLAlchemy URL of another database than DIR/nas.db.")
STUDY = click.option("--study", "name", help="Name of the study; the newest if not given.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
WORKERS = click.option(
    "--workers", type=click.IntRange(min=0), default=0, help="Train that many at a time on Ray; 0: one, without Ray."
)
RAY = click.option("--ray", "address", metavar="ADDRESS", help="A Ray cluster that runs already ('auto', HOST:PORT).")
CALIBRATION = click.option(
    "--calibration", "calibrations", multiple=True, metavar="NAME",
    help="One a target, as `nas calibrate` called it; 'none': the cost model alone.  [default: the newest]",
)  # fmt: skip
THREADS = click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True,
    help="Of the CPU, each on its own processor.",
)  # fmt: skip
QUIET = click.option("--quiet", is_flag=True, help="Say nothing but warnings on stderr.")


def spec_options(command: Command) -> Command:
    """The options that describe a study; each replaces an entry of its TOML."""
    options = [
        click.option("--config", default="quickstart", show_default=True, help="Shipped study, or a TOML file."),
        click.option("--space", help="Search space (see `nas spaces`)."),
        click.option("--preset", help="Preset of the space."),
        click.option("--granularity", type=click.Choice(["stage", "block"]), help="One choice per stage or block."),
        click.option("--mixers", help="Token mixers to offer: names and groups (core, first, second, all)."),
        click.option("--plugin", help="Python file with token mixers of one's own (see docs/mixers.md)."),
        click.option("--data", help="'procedural', a folder of images, torch/cifar10, hfds/..., tfds/..."),
        click.option("--train-steps", type=int, help="Optimizer steps of the supernet."),
        click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Any entry of the TOML."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


SPEC_ENTRIES = {
    "space": "space.name",
    "preset": "space.preset",
    "granularity": "space.granularity",
    "mixers": "space.mixers",
    "plugin": "space.plugin",
    "data": "data.source",
    "train_steps": "train.steps",
    "targets": "search.targets",
    "trials": "search.trials",
    "sampler": "search.sampler",
    "seed": "search.seed",
    "objectives": "search.objectives",
    "constraints": "search.constraints",
    "risk": "search.risk",
    "calibrations": "search.calibrations",
}
"""Parameter of a command -> the entry of the study's TOML that it replaces."""


def spec_of(config: str, settings: tuple[str, ...], given: dict[str, Any]) -> tuple[str, nas.StudySpec]:
    """(config name, spec): the TOML with every option that was given (a key of `SPEC_ENTRIES`) laid over it."""
    name, spec = nas.load_spec(config)
    entries = {SPEC_ENTRIES[key]: value for key, value in given.items() if value not in (None, ())}
    if "space.mixers" in entries:
        entries["space.mixers"] = words(entries["space.mixers"])
    made = nas.override(spec, entries | dict(map(nas.parse_setting, settings)))
    nas.load_targets(made)  # a wrong name is said before anything heavy is loaded
    if spec.space.choices and not made.space.choices:
        nas.describe_spaces(made.space.name, made.space.preset, made.space.granularity)  # first, that it exists
        inherited = ", ".join(f"{gene} {list(values)}" for gene, values in spec.space.choices.items())
        complain(f"{made.space.name}/{made.space.preset} is searched without the choices of {name}: {inherited}")
    return name, made


def refuse_given(context: click.Context, names: Iterable[str], because: str) -> None:
    """Raises UsageError when one of these parameters stands on the command line, where it would do nothing."""
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name in names and source is click.core.ParameterSource.COMMANDLINE:
            raise nas.UsageError(f"{option.opts[0]} {because}")


def refuse_before(context: click.Context) -> None:
    """Raises UsageError for an option of a group that stands before a command of the group, which would not see it."""
    command = context.invoked_subcommand
    names = [option.name or "" for option in context.command.params]
    refuse_given(context, names, f"does nothing before {command}: say it behind, if {command} has it")


def check_table(path: Path) -> None:
    """Raises UsageError where there is no such file, before anything heavy is loaded to read it."""
    if not path.exists():
        raise nas.UsageError(f"cannot read {path}: No such file or directory; name a CSV file")


def words(text: str) -> list[str]:
    """The entries of a comma-separated list."""
    return [word.strip() for word in text.split(",") if word.strip()]


def complain(text: str) -> None:
    """One line to stderr, under the program's name."""
    click.echo(f"nas: {text}", err=True)


def where_of(folder: Path, url: str | None) -> str:
    """The options that lead a next command to the same storage."""
    parts = [] if folder == Path("nas_runs") else [f"--dir {folder}"]
    parts += [f"--storage {url}"] if url else []
    return "".join(f" {part}" for part in parts)
