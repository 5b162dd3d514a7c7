"""`nas calibrate`: makes predictions of a target agree with measurements."""

from __future__ import annotations

import json
from pathlib import Path

import click

import nas
from nas.commands.options import FOLDER, JSON, QUIET, STORAGE, refuse_given, where_of, words


@click.command()
@click.option("--target", required=True, help="Accelerator, or a TOML file.")
@click.option("--batch", type=int, default=1, show_default=True, help="Images at once; a search uses those of 1.")
@click.option("--suggest", type=int, help="Name that many measurements worth most instead.")
@click.option(
    "--csv", "csv_file", type=click.Path(path_type=Path), help="Write them as a table for `nas measure --from`."
)
@click.option("--space", default="metaformer", show_default=True, help="Space that they are taken from.")
@click.option("--preset", default="mobile", show_default=True, help="Preset of the space.")
@click.option("--precision", "precisions", default="w8a8", show_default=True, help="Comma-separated.")
@FOLDER
@STORAGE
@JSON
@QUIET
@click.pass_context
def calibrate(
    context: click.Context, target: str, batch: int, suggest: int | None, csv_file: Path | None, space: str,
    preset: str, precisions: str, folder: Path, url: str | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Fit predictions of a target to its measurements, and store that for searches."""
    nas.find_target(target)  # a wrong name is said before anything heavy is loaded
    if suggest is not None:
        rows = nas.suggest_measurements(
            target, suggest, folder, url, space=space, preset=preset, precisions=words(precisions), batch=batch,
            narrator=nas.Narrator(quiet=quiet),
        )  # fmt: skip
        if csv_file is not None:
            nas.write_whole(csv_file, nas.suggestion_csv(rows))
        click.echo(
            json.dumps(rows, indent=2)
            if as_json
            else nas.suggestion_text(rows, target, csv_file, where_of(folder, url))
        )
        return
    refuse_given(context, ["csv_file", "space", "preset", "precisions"], "goes with --suggest")
    outcome = nas.run_calibration(target, folder, url, nas.Narrator(quiet=quiet), batch=batch)
    if as_json:
        name = outcome.stored.name if outcome.stored else None
        click.echo(json.dumps({"calibration": name, **outcome.report}, indent=2))
    else:
        click.echo(nas.calibration_text(outcome, where_of(folder, url), target))
