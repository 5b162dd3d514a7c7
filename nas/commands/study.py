"""`nas pareto`, `nas dashboard`, `nas export`, `nas studies`: what is done with a study."""

from __future__ import annotations

import json
from pathlib import Path

import click

import nas
from nas.commands.options import FOLDER, JSON, QUIET, STORAGE, STUDY


@click.command()
@STUDY
@FOLDER
@STORAGE
@JSON
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
    if as_json and str(csv_file) == "-":
        raise nas.UsageError("--json and --csv - both print on stdout: leave one out, or name a file")
    study = nas.open_study(folder, url, name)
    narrator = nas.Narrator()
    if name is None:
        narrator.say(f"study {study.name}, the one searched last")
    nas.say_edited(study, narrator)
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


@click.command()
@STUDY
@FOLDER
@STORAGE
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any free port.")
def dashboard(name: str | None, folder: Path, url: str | None, host: str, port: int) -> None:
    """Show a study in Optuna Dashboard until Ctrl-C."""
    nas.show_dashboard(nas.open_study(folder, url, name), host, port)


@click.command()
@STUDY
@FOLDER
@STORAGE
@click.option("--trial", "trial_number", type=int, help="Export this trial.")
@click.option("--front", "whole_front", is_flag=True, help="Export every network of the front.")
@click.option("--best-under", metavar="CONSTRAINT", help="Export the most accurate one under 'latency<=1ms'.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder that gets a folder per network.")
@click.option(
    "--weights", type=click.Choice(["best", "shared"]), default="best", show_default=True,
    help="best: those of `nas finalists` where there are such; shared: the supernet's.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace what is there.")
@JSON
@QUIET
def export(
    name: str | None, folder: Path, url: str | None, trial_number: int | None, whole_front: bool,
    best_under: str | None, out: Path, weights: str, force: bool, as_json: bool, quiet: bool,
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
    written = nas.export_trials(study, chosen, out, weights=weights, force=force, narrator=nas.Narrator(quiet=quiet))
    click.echo(json.dumps([str(path) for path in written]) if as_json else "\n".join(map(str, written)))


@click.command()
@FOLDER
@STORAGE
@JSON
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
            done = f"{study['trials']} of {max(wanted, study['trials'])} trials"
        click.echo(f"{study['name']}  {done}, last searched {study['touched_at'][:16].replace('T', ' ')}")
