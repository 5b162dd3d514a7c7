"""`nas verify`: the front of a study, measured on a device at hand."""

from __future__ import annotations

import json
from pathlib import Path

import click

import nas
from nas.commands.options import FOLDER, JSON, QUIET, STORAGE, STUDY, THREADS, refuse_given


@click.command()
@STUDY
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda", "board"]),
    default="cpu",
    show_default=True,
    help="Measure here, or compare with what was measured on a board and imported.",
)
@click.option("--target", help="Target that describes the device; found by itself for known CPUs.")
@click.option("--precision", help="In which all networks run; own: at their own bits.  [default: w8a8; on a board own]")
@THREADS
@click.option("--replace", is_flag=True, help="Drop what another version of the runtime measured on the device.")
@FOLDER
@STORAGE
@JSON
@QUIET
@click.pass_context
def verify(
    context: click.Context, name: str | None, device: str, target: str | None, precision: str | None, threads: int,
    replace: bool, folder: Path, url: str | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Measure the front on a device of this machine, or take a board's times, beside that device's own predictions."""
    if device != "cpu":
        refuse_given(context, ["threads"], "is for --device cpu")
    study = nas.open_study(folder, url, name)
    narrator = nas.Narrator(quiet=quiet)
    chosen = {} if precision is None else {"precision": precision}
    if device == "board":
        refuse_given(context, ["replace"], "is for what is measured here; `nas measure import` has its own")
        if target is None:
            raise nas.UsageError("say which board with --target: a target's name or TOML file")
        done = nas.verify_board(study, narrator, target, **chosen)
    else:
        done = nas.verify_study(
            study, narrator, device=device, target=target, threads=threads, replace=replace, **chosen
        )
    click.echo(json.dumps(done.to_dict(), indent=2) if as_json else nas.verification_text(done))
