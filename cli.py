"""The command line: parse, call the `nas` face, print. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import nas

FAILED, INTERRUPTED = 1, 130

Command = Callable[..., None]

_FOLDER = click.option(
    "--dir", "folder", type=click.Path(path_type=Path), default=Path("nas_runs"), show_default=True,
    help="Folder of all studies: nas.db, supernets, results.",
)  # fmt: skip
_STORAGE = click.option("--storage", "url", help="SQLAlchemy URL of another database than DIR/nas.db.")
_STUDY = click.option("--study", "name", help="Name of the study; the newest if not given.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
_QUIET = click.option("--quiet", is_flag=True, help="Say nothing but warnings on stderr.")


def _spec_options(command: Command) -> Command:
    """The options that describe a study; each replaces an entry of its TOML."""
    options = [
        click.option("--config", default="quickstart", show_default=True, help="Shipped study, or a TOML file."),
        click.option("--space", help="Search space (see `nas spaces`)."),
        click.option("--preset", help="Preset of the space."),
        click.option("--granularity", type=click.Choice(["stage", "block"]), help="One choice per stage or block."),
        click.option("--mixers", help="Token mixers to offer, comma-separated."),
        click.option("--data", help="'procedural', a folder of images, torch/cifar10, hfds/..., tfds/..."),
        click.option("--train-steps", type=int, help="Optimizer steps of the supernet."),
        click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Any entry of the TOML."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _spec(config: str, settings: tuple[str, ...], given: dict[str, Any]) -> tuple[str, nas.StudySpec]:
    """(config name, spec) with every option that was given laid over the TOML."""
    name, spec = nas.load_spec(config)
    values = {key: value for key, value in given.items() if value not in (None, ())}
    made = nas.override(spec, values | dict(map(nas.parse_setting, settings)))
    if spec.space.choices and not made.space.choices:
        nas.describe_spaces(made.space.name, made.space.preset, made.space.granularity)  # first, that it exists
        inherited = ", ".join(f"{gene} {list(entries)}" for gene, entries in spec.space.choices.items())
        _complain(f"{made.space.name}/{made.space.preset} is searched without the choices of {name}: {inherited}")
    return name, made


def _words(text: str | None) -> list[str] | None:
    return [word.strip() for word in text.split(",") if word.strip()] if text else None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of a failure.")
@click.version_option(package_name="nas")
def cli() -> None:
    """Find vision networks that are accurate after quantization and fast on an edge NPU.

    Begin with: nas search --space metaformer --target npu_40tops
    """


@cli.command()
@_spec_options
@click.option("--target", "targets", multiple=True, help="Accelerator, or a TOML file; repeat for several.")
@click.option("--trials", type=int, help="Trials wanted in all, over every run of the study.")
@click.option("--sampler", help="nsga2, tpe or random.")
@click.option("--seed", type=int, help="Seed of the search.")
@click.option("--objective", "objectives", multiple=True, help="top1, latency, energy, ...; repeat for several.")
@click.option("--constraint", "constraints", multiple=True, help="Such as 'latency<=2ms'; repeat for several.")
@click.option("--study", "--name", "name", help="Name of the study; by default CONFIG-<hash of the settings>.")
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Score on that many Ray actors.")
@_FOLDER
@_STORAGE
@_JSON
@_QUIET
def search(
    config: str, space: str | None, preset: str | None, granularity: str | None, mixers: str | None,
    data: str | None, train_steps: int | None, settings: tuple[str, ...], targets: tuple[str, ...],
    trials: int | None, sampler: str | None, seed: int | None, objectives: tuple[str, ...],
    constraints: tuple[str, ...], name: str | None, workers: int, folder: Path, url: str | None,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Search for networks on the Pareto front. The same command again continues the study."""
    short, spec = _spec(
        config,
        settings,
        {
            "space.name": space,
            "space.preset": preset,
            "space.granularity": granularity,
            "space.mixers": _words(mixers),
            "data.source": data,
            "train.steps": train_steps,
            "search.targets": targets,
            "search.trials": trials,
            "search.sampler": sampler,
            "search.seed": seed,
            "search.objectives": objectives,
            "search.constraints": constraints,
        },
    )
    narrator = nas.Narrator(quiet=quiet)
    study = nas.run_search(spec, folder, config=short, name=name, url=url, workers=workers, narrator=narrator)
    if as_json:
        click.echo(json.dumps(nas.study_summary(study), indent=2))
        return
    where = _where(folder, url)
    click.echo(nas.front_table(study))
    click.echo(f"\nEverything is in {study.root}: picture {study.folder / 'front.png'}")
    click.echo(f"Next: nas pareto{where}       the front again (--json, --csv, --plot FILE)")
    click.echo(f"      nas dashboard{where}    the study in Optuna Dashboard")
    click.echo(f"      nas export{where} --front --out exported    timm packages and ONNX files")


@cli.command()
@_spec_options
@_FOLDER
@_JSON
@_QUIET
def train(
    config: str, space: str | None, preset: str | None, granularity: str | None, mixers: str | None,
    data: str | None, train_steps: int | None, settings: tuple[str, ...], folder: Path, as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Train the supernet that a search of the same settings then reuses."""
    _, spec = _spec(
        config,
        settings,
        {
            "space.name": space,
            "space.preset": preset,
            "space.granularity": granularity,
            "space.mixers": _words(mixers),
            "data.source": data,
            "train.steps": train_steps,
        },
    )
    trained = nas.run_training(spec, folder, narrator=nas.Narrator(quiet=quiet))
    if as_json:
        row = {"identity": trained.identity, "path": str(trained.path), "steps": trained.steps}
        click.echo(json.dumps({**row, "reused": trained.reused}))
    else:
        click.echo(trained.path)


@cli.command()
@_STUDY
@_FOLDER
@_STORAGE
@_JSON
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write the front to FILE ('-': stdout).")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Draw the trade-off: .png, .svg or .pdf.")
def pareto(
    name: str | None,
    folder: Path,
    url: str | None,
    as_json: bool,
    csv_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Print the Pareto front of a study."""
    study = nas.open_study(folder, url, name)
    if plot_file is not None:
        nas.write_picture(study, plot_file)
    if csv_file is not None and str(csv_file) != "-":
        nas.write_whole(csv_file, nas.front_csv(study))
    if as_json:
        click.echo(json.dumps(nas.networks(study), indent=2))
    elif csv_file is not None and str(csv_file) == "-":
        click.echo(nas.front_csv(study), nl=False)
    elif study.front:
        click.echo(nas.front_table(study))
    if not study.front:
        raise study.nothing_feasible()


@cli.command()
@_STUDY
@_FOLDER
@_STORAGE
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any free port.")
def dashboard(name: str | None, folder: Path, url: str | None, host: str, port: int) -> None:
    """Show a study in Optuna Dashboard until Ctrl-C."""
    nas.show_dashboard(nas.open_study(folder, url, name), host, port)


@cli.command()
@_STUDY
@_FOLDER
@_STORAGE
@click.option("--trial", "trial_number", type=int, help="Export this trial.")
@click.option("--front", "whole_front", is_flag=True, help="Export every network of the front.")
@click.option("--best-under", metavar="CONSTRAINT", help="Export the most accurate one under 'latency<=1ms'.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder that gets a folder per network.")
@click.option("--force", is_flag=True, help="Replace what is there.")
@_JSON
@_QUIET
def export(
    name: str | None, folder: Path, url: str | None, trial_number: int | None, whole_front: bool,
    best_under: str | None, out: Path, force: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Write networks as timm packages and ONNX files, each checked after it is written."""
    if sum((trial_number is not None, whole_front, best_under is not None)) != 1:
        raise nas.UsageError("say which networks: one of --trial N, --front, --best-under 'latency<=1ms'")
    study = nas.open_study(folder, url, name)
    if trial_number is not None:
        chosen = [study.trial(trial_number)]
    elif best_under is not None:
        chosen = [study.best_under(best_under)]
    else:
        chosen = study.front
        if not chosen:
            raise study.nothing_feasible()
    written = nas.export_trials(study, chosen, out, force=force, narrator=nas.Narrator(quiet=quiet))
    click.echo(json.dumps([str(path) for path in written]) if as_json else "\n".join(map(str, written)))


@cli.command()
@click.argument("name", required=False)
@click.option("--preset", help="small or mobile; by default small for a NAME, both for the list.")
@click.option("--granularity", type=click.Choice(["stage", "block"]), default="stage", show_default=True)
@_JSON
def spaces(name: str | None, preset: str | None, granularity: str, as_json: bool) -> None:
    """List search spaces, or describe one: its choices, mixers and number of architectures."""
    described = nas.describe_spaces(name, preset, granularity)
    if as_json:
        click.echo(json.dumps(described if name is None else described[0], indent=2))
        return
    for space in described:
        click.echo(f"{space['name']}/{space['preset']}  {space['size']:.3g} architectures")
        click.echo(f"  mixers: {', '.join(space['mixers'])}")
        for gene, values in space["choices"].items():
            click.echo(f"  {gene}: {', '.join(map(str, values))}")


@cli.command()
@_FOLDER
@_STORAGE
@_JSON
def studies(folder: Path, url: str | None, as_json: bool) -> None:
    """List the studies that ship, and those in the folder."""
    listed = nas.describe_studies(folder, url)
    if as_json:
        click.echo(json.dumps(listed, indent=2))
        return
    for shipped in listed["shipped"]:
        click.echo(f"{shipped['name']}  (shipped) {shipped['about']}")
    for study in listed["studies"]:
        wanted = study["wanted"]
        done = f"{study['trials']} trials, made by another version"
        if wanted is not None:
            done = f"{study['trials']} of {wanted} trials"
        click.echo(f"{study['name']}  {done}, last searched {study['touched_at']}")


@cli.group(invoke_without_command=True)
@_JSON
@click.pass_context
def targets(context: click.Context, as_json: bool) -> None:
    """List the accelerators that come with the program."""
    if context.invoked_subcommand is None:
        listed = nas.describe_targets()
        if as_json:
            click.echo(json.dumps(listed, indent=2))
        else:
            click.echo("\n".join(f"{target['name']}  {target['title']}" for target in listed))


@targets.command("show")
@click.argument("name")
@_JSON
def show_target(name: str, as_json: bool) -> None:
    """Show every value of an accelerator (a name or a TOML file) with its source."""
    target = nas.describe_target(name)
    if as_json:
        click.echo(json.dumps(target, indent=2))
        return
    click.echo(f"{target['name']}: {target['title']}\n{target['description']}\naccuracy: {target['accuracy']}")
    for entry in target["values"]:
        click.echo(f"{entry['key']} = {entry['value']}    # {entry['source']}")


@cli.command()
@click.argument("model", required=False)
@click.option("--target", required=True, help="Accelerator, or a TOML file.")
@click.option("--input-size", type=int, help="Side of the square image in pixels; the model's own if not given.")
@click.option("--precision", help="fp16, w8a8, w8a16, w4a8, ...; a searched network's own bits if not given.")
@click.option("--from", "models", type=click.Path(path_type=Path), help="CSV of model,input_size,precision.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write the table to FILE ('-': stdout).")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Draw roofline, waterline, efficiency gap.")
@click.option("--compare", "others", multiple=True, metavar="MODEL", help="Show another network beside it.")
@_JSON
def cost(
    model: str | None, target: str, input_size: int | None, precision: str | None, models: Path | None,
    csv_file: Path | None, plot_file: Path | None, others: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Predict what MODEL costs on a target, layer by layer: a timm model, or a folder that export wrote."""
    if (model is None) == (models is None):
        raise nas.UsageError("name one MODEL, or a CSV of many with --from")
    to_stdout = str(csv_file) == "-"
    if models is not None and (plot_file is not None or others):
        raise nas.UsageError("--plot and --compare are for one MODEL, not for --from")
    if models is not None and (input_size is not None or precision is not None):
        raise nas.UsageError("--input-size and --precision are for one MODEL; with --from they are columns of the CSV")
    if to_stdout and (models is not None or others):
        raise nas.UsageError("--csv - prints the operations of one MODEL; with --from or --compare name a file")
    if models is not None:
        rows = nas.cost_many(models, target, csv_file)
        click.echo(json.dumps(rows, indent=2) if as_json else nas.cost_lines(rows))
        if failed := [row["model"] for row in rows if row["error"]]:
            raise nas.NasError(
                f"{len(failed)} of {len(rows)} models could not be costed, {failed[0]} first: see its row"
            )
        return
    report = nas.cost_one(str(model), target, input_size, precision)
    if csv_file is not None and not to_stdout:
        nas.write_whole(csv_file, nas.ops_csv(report))
    if plot_file is not None:
        nas.plot_one(report, target, plot_file)
    if others:
        reports = [report, *(nas.cost_one(other, target, input_size, precision) for other in others)]
        rows = [each.to_dict() for each in reports]
        click.echo(json.dumps(rows, indent=2) if as_json else nas.comparison_text(reports))
        return
    if to_stdout and not as_json:
        click.echo(nas.ops_csv(report), nl=False)
        return
    click.echo(report.to_json() if as_json else nas.report_text(report))


def main() -> None:
    """Entry point: runs a command and maps what it raises to the exit status."""
    # Before torch is loaded: threads that sleep while they wait. Spinning ones (the default) make training four times
    # slower as soon as another process wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = sys.argv[1:]
    debug = "--debug" in words  # wherever it stands: it is added to a command that just failed
    try:
        sys.exit(cli([word for word in words if word != "--debug"], standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort as error:
        _complain(str(error.__cause__ or "") or "interrupted")
        sys.exit(INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        expected = getattr(error, "exit_status", None)
        line = " ".join(str(error).split())
        _complain(line if expected else f"{type(error).__name__}: {line} (--debug shows where)")
        sys.exit(expected or FAILED)


def _complain(text: str) -> None:
    click.echo(f"nas: {text}", err=True)


def _where(folder: Path, url: str | None) -> str:
    """The options that lead a next command to the same storage."""
    parts = [] if folder == Path("nas_runs") else [f"--dir {folder}"]
    parts += [f"--storage {url}"] if url else []
    return "".join(f" {part}" for part in parts)


if __name__ == "__main__":
    main()
