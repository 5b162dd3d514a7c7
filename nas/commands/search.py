"""`nas search`, `nas train`: what uses the images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

import nas
from nas.commands.options import CALIBRATION, FOLDER, JSON, QUIET, STORAGE, spec_of, spec_options, where_of


@click.command()
@spec_options
@click.option("--target", "targets", multiple=True, help="Accelerator, or a TOML file; repeat for several.")
@click.option("--trials", type=int, help="Trials wanted in all, over every run of the study.")
@click.option("--sampler", help="nsga2, tpe or random.")
@click.option("--seed", type=int, help="Seed of the search.")
@click.option("--objective", "objectives", multiple=True, help=f"{', '.join(nas.OBJECTIVES)}; repeat for several.")
@click.option("--constraint", "constraints", multiple=True, help="Such as 'latency<=2ms'; repeat for several.")
@CALIBRATION
@click.option("--risk", type=float, help="Search on the latency that this share stays below, such as 0.9.")
@click.option("--study", "--name", "name", help="Name of the study; by default CONFIG-<hash of the settings>.")
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Score on that many Ray actors.")
@FOLDER
@STORAGE
@JSON
@QUIET
def search(
    config: str, settings: tuple[str, ...], name: str | None, workers: int, folder: Path, url: str | None,
    as_json: bool, quiet: bool, **entries: Any,
) -> None:  # fmt: skip
    """Search for networks on the Pareto front. The same command again continues the study."""
    short, spec = spec_of(config, settings, entries)
    nas.check_images(spec)
    narrator = nas.Narrator(quiet=quiet)
    try:
        study = nas.run_search(spec, folder, config=short, name=name, url=url, workers=workers, narrator=narrator)
    except nas.NothingFeasible:
        if as_json:
            click.echo(json.dumps(nas.study_summary(nas.open_study(folder, url)), indent=2))
        raise
    if as_json:
        click.echo(json.dumps(nas.study_summary(study), indent=2))
        return
    where = f"{where_of(folder, url)} --study {study.name}"
    click.echo(nas.front_table(study))
    click.echo(f"\nEverything is in {study.root}: picture {study.folder / 'front.png'}")
    click.echo(f"Next: nas pareto{where}       the front again (--json, --csv, --plot FILE)")
    click.echo(f"      nas dashboard{where}    the study in Optuna Dashboard")
    click.echo(f"      nas finalists{where}    the front trained by itself: better weights for the export")
    click.echo(f"      nas export{where} --front --out exported    timm packages and ONNX files")


@click.command()
@spec_options
@click.option(
    "--target", "targets", multiple=True,
    help="Accelerator, or a TOML file, whose mixers are trained; repeat for several.",
)  # fmt: skip
@FOLDER
@JSON
@QUIET
def train(config: str, settings: tuple[str, ...], folder: Path, as_json: bool, quiet: bool, **entries: Any) -> None:
    """Train the supernet that a search of the same settings, targets included, then reuses.

    On several GPUs: torchrun --nproc-per-node N --no-python nas train ...
    """
    _, spec = spec_of(config, settings, entries)
    nas.check_images(spec)
    trained = nas.run_training(spec, folder, narrator=nas.Narrator(quiet=quiet or not nas.leads()))
    if not nas.leads():
        return
    if as_json:
        row = {"identity": trained.identity, "path": str(trained.path), "steps": trained.steps}
        click.echo(json.dumps({**row, "reused": trained.reused}))
    else:
        click.echo(trained.path)
