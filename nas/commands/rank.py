"""`nas rank`: whether one-shot accuracy orders networks as training each of them does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

import nas
from nas.commands.options import FOLDER, JSON, QUIET, RAY, WORKERS, spec_of, spec_options


@click.command()
@spec_options
@click.option("--target", "targets", multiple=True, help="Accelerator whose predicted latency is compared; the first.")
@click.option("--count", type=int, default=32, show_default=True, help="Networks, from each band of macs in turn.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of each network alone; those of the supernet if not.")
@click.option("--draw", "seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the draw.")
@click.option("--val-images", type=click.IntRange(min=1), help="Validation images per network; all if not given.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Scatter plot: .png, .svg or .pdf.")
@WORKERS
@RAY
@FOLDER
@JSON
@QUIET
def rank(
    config: str, settings: tuple[str, ...], count: int, steps: int | None, seed: int, val_images: int | None,
    plot_file: Path | None, workers: int, address: str | None, folder: Path, as_json: bool, quiet: bool,
    **entries: Any,
) -> None:  # fmt: skip
    """Train networks of the space alone and compare their order with the one-shot order.

    Draws networks from each band of macs in turn, as long as it has any, trains each from fresh weights with one
    budget, and prints Kendall's tau and Spearman's rho of one-shot accuracy, parameters, macs and predicted latency.
    The same command again goes on.
    """
    _, spec = spec_of(config, settings, entries)
    nas.check_images(spec)
    if plot_file is not None:
        nas.picture_form(plot_file)
    ranking = nas.run_rank(
        spec,
        folder,
        count=count,
        seed=seed,
        steps=steps,
        val_images=val_images,
        workers=workers,
        address=address,
        narrator=nas.Narrator(quiet=quiet),
    )
    if plot_file is not None:
        nas.write_whole(plot_file, nas.rank_picture(ranking, nas.picture_form(plot_file)))
    if as_json:
        click.echo(json.dumps(ranking.to_dict(), indent=2))
        return
    click.echo(nas.rank_text(ranking))
    click.echo(f"\nTable, figures and plot are in {ranking.folder}")
