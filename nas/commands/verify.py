"""`nas verify`: the front of a study, measured on a device at hand."""

from __future__ import annotations

import json
from pathlib import Path

import click

import nas
from nas.commands.options import FOLDER, JSON, QUIET, STORAGE, STUDY, THREADS, refuse_given


@click.command()
@STUDY
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--target", help="Target that describes the device; found by itself for known CPUs.")
@click.option("--precision", default="w8a8", show_default=True, help="In which all networks run.")
@THREADS
@click.option("--replace", is_flag=True, help="Drop what another version of the runtime measured on the device.")
@FOLDER
@STORAGE
@JSON
@QUIET
@click.pass_context
def verify(
    context: click.Context, name: str | None, device: str, target: str | None, precision: str, threads: int,
    replace: bool, folder: Path, url: str | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Measure the front on a device of this machine, beside that device's own predictions."""
    if device == "cuda":
        refuse_given(context, ["threads"], "is for --device cpu")
    study = nas.open_study(folder, url, name)
    narrator = nas.Narrator(quiet=quiet)
    done = nas.verify_study(
        study, narrator, device=device, target=target, precision=precision, threads=threads, replace=replace
    )
    click.echo(json.dumps(done.to_dict(), indent=2) if as_json else nas.verification_text(done))
