"""`nas survey`: what a space holds, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

import nas
from nas.commands.options import CALIBRATION, FOLDER, JSON, QUIET, STORAGE, refuse_given, spec_of, spec_options


@click.command()
@spec_options
@click.option("--target", "targets", multiple=True, help="Accelerator, or a TOML file; repeat for several.")
@click.option("--constraint", "constraints", multiple=True, help="Such as 'latency<=2ms'; repeat for several.")
@CALIBRATION
@click.option("--samples", type=int, default=100_000, show_default=True, help="Networks drawn at random.")
@click.option("--classes", type=int, default=10, show_default=True, help="Outputs of the classifier.")
@FOLDER
@STORAGE
@JSON
@QUIET
@click.pass_context
def survey(
    context: click.Context, config: str, settings: tuple[str, ...], samples: int, classes: int, folder: Path,
    url: str | None, as_json: bool, quiet: bool, **entries: Any,
) -> None:  # fmt: skip
    """Show how the costs of a space spread, and what share of it meets constraints. Sees no image, trains nothing."""
    refuse_given(context, ["data", "train_steps"], "does nothing here: a survey sees no image and trains nothing")
    _, spec = spec_of(config, settings, entries)
    found = nas.run_survey(spec, folder, samples, classes, url=url, narrator=nas.Narrator(quiet=quiet))
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else nas.survey_text(found))
