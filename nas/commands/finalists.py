"""`nas finalists`: the networks of a front, trained by themselves."""

from __future__ import annotations

import json
from pathlib import Path

import click

import nas
from nas.commands.options import FOLDER, JSON, QUIET, RAY, STORAGE, STUDY, WORKERS, where_of


@click.command()
@STUDY
@FOLDER
@STORAGE
@click.option("--top", type=int, help="How many of the front, evenly along it; 8, or all if it has fewer.")
@click.option(
    "--weights", type=click.Choice(["inherited", "fresh"]), default="inherited", show_default=True,
    help="Begin with the supernet's weights, or with fresh ones.",
)  # fmt: skip
@click.option(
    "--teacher", default="supernet", show_default=True, metavar="supernet|none|NAME[:FILE]|FOLDER",
    help="What they learn from beside the labels: a timm model with weights on this machine, or an exported folder.",
)  # fmt: skip
@click.option("--steps", type=click.IntRange(min=1), help="Steps of each; those of the supernet if not given.")
@click.option(
    "--learning-rate", type=click.FloatRange(min=0, min_open=True), help="Default: the supernet's; inherited / 4."
)
@click.option(
    "--early-stopping/--no-early-stopping", default=True, show_default=True, help="Stop hopeless ones (ASHA)."
)
@WORKERS
@RAY
@JSON
@QUIET
def finalists(
    name: str | None, folder: Path, url: str | None, top: int | None, weights: str, teacher: str, steps: int | None,
    learning_rate: float | None, early_stopping: bool, workers: int, address: str | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Train networks of the front by themselves, quantize and validate them; `nas export` then ships those weights."""
    begun = nas.open_study(folder, url, name)  # a wrong name is said before anything heavy is loaded
    study = nas.run_finalists(
        begun,
        top=top,
        weights=weights,
        teacher=teacher,
        steps=steps,
        learning_rate=learning_rate,
        early_stopping=early_stopping,
        workers=workers,
        address=address,
        narrator=nas.Narrator(quiet=quiet),
    )
    if as_json:
        click.echo(json.dumps(nas.finalists_rows(study), indent=2))
        return
    click.echo(nas.finalists_table(study))
    where = f"{where_of(folder, url)} --study {study.name}"
    click.echo(f"\nNext: nas export{where} --front --out exported    with these weights")
