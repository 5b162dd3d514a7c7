"""`nas measure`: time blocks and networks here, plan it for a board elsewhere, take the times in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

import nas
from nas.commands.options import (
    FOLDER,
    JSON,
    QUIET,
    STORAGE,
    THREADS,
    check_table,
    refuse_before,
    refuse_given,
    where_of,
    words,
)

SPACE = click.option("--space", default="metaformer", show_default=True, help="Search space (see `nas spaces`).")
PRESET = click.option("--preset", default="mobile", show_default=True, help="Preset of the space.")
MODELS = click.option("--model", "models", multiple=True, metavar="MODEL", help="A timm model or an exported folder.")
WANTED = click.option(
    "--from", "wanted", type=click.Path(path_type=Path), help="Blocks of a table of `nas calibrate --suggest N --csv`."
)
SEED = click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of blocks and networks.")


@click.group(invoke_without_command=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="What to time on: this machine's CPU or GPU.")
@click.option("--target", help="Target that describes the device; found by itself for known CPUs.")
@SPACE
@PRESET
@MODELS
@click.option("--networks", type=int, default=0, help="Whole networks to draw from the space.")
@click.option("--budget", type=int, help="Block measurements (block x precision).  [default: 200]")
@click.option("--minutes", type=float, help="Stop after so many minutes; the same command goes on.")
@click.option("--precision", "precisions", help="Comma-separated; the device's usual ones if not given.")
@click.option("--input-size", type=int, help="Side of the square image for --model; its own if not given.")
@click.option("--batch", type=int, default=1, show_default=True)
@THREADS
@click.option(
    "--patience",
    "patience_s",
    type=float,
    metavar="SECONDS",
    help="Seconds that 16 graphs wait, in all, for a CPU at peace, up to three times.  [default: 15]",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Processes that compile for a GPU; 0: this one.  [default: processors less 2]",
)
@WANTED
@SEED
@click.option("--prepare-only", is_flag=True, help="Write or compile graphs now, time them later.")
@click.option("--replace", is_flag=True, help="Drop what another version of the runtime, or another method, measured.")
@FOLDER
@STORAGE
@JSON
@QUIET
@click.pass_context
def measure(
    context: click.Context, device: str | None, precisions: str | None, folder: Path, url: str | None,
    as_json: bool, quiet: bool, **asked: Any,
) -> None:  # fmt: skip
    """Time fused blocks of a space, or whole networks, on a device; Ctrl-C keeps what is measured."""
    if context.invoked_subcommand is not None:
        refuse_before(context)
        return
    if device is None:
        raise nas.UsageError("say what to time on with --device cpu or --device cuda, or see `nas measure --help`")
    if not asked["models"]:
        refuse_given(context, ["input_size"], "is for --model; blocks and networks of a space have sizes of their own")
    if (asked["models"] or asked["wanted"]) and not (asked["networks"] or asked["budget"]):
        refuse_given(context, ["space", "preset"], "goes with --budget or --networks, which take from a space")
    if device == "cuda":
        refuse_given(context, ["threads"], "is for --device cpu")
    if asked["wanted"]:
        check_table(asked["wanted"])
    narrator = nas.Narrator(quiet=quiet)
    chosen = words(precisions) if precisions else ()
    outcome = nas.run_measuring(folder, url, narrator, device=device, precisions=chosen, **asked)
    for name, operators in outcome.unfused.items():
        narrator.warn(f"{name} is not fused as intended: {', '.join(operators)}")
    if as_json:
        click.echo(json.dumps([record.to_dict() for record in outcome.measured], indent=2))
    else:
        click.echo(nas.measured_text(outcome, where_of(folder, url)))
    if outcome.refused:
        name, reason = next(iter(outcome.refused.items()))
        raise nas.NasError(f"{len(outcome.refused)} have no time, {name} first: {reason}")


@measure.command("export")
@click.option("--target", help="Of this target only.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write; stdout if not given.")
@FOLDER
@STORAGE
def export_(target: str | None, out: Path | None, folder: Path, url: str | None) -> None:
    """Write measurements as CSV, every digit and all that is known of them."""
    text = nas.export_measurements(folder, url, target)
    if out is None:
        click.echo(text, nl=False)
    else:
        nas.write_whole(out, text)


@measure.command("import")
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--target", required=True, help="The device they are of: a target's name or TOML file.")
@click.option("--replace", is_flag=True, help="Drop what another runtime, version or method measured on it.")
@FOLDER
@STORAGE
@QUIET
def import_(table: Path, target: str, replace: bool, folder: Path, url: str | None, quiet: bool) -> None:
    """Take in a CSV of times: model, input_size, precision and latency_s, latency_ms or latency_us."""
    check_table(table)
    done = nas.import_measurements(table, target, folder, url, replace_other=replace)
    narrator = nas.Narrator(quiet=quiet)
    if done.empty:
        narrator.warn(
            f"{len(done.empty)} lines of {table} have no latency and were left out, line {done.empty[0]} first"
        )
    if done.dropped:
        narrator.warn(
            f"{done.dropped} measurements of {done.target} by another runtime, version or method were dropped"
        )
    networks = sum(record.kind == "network" for record in done.records)
    blocks = len(done.records) - networks
    click.echo(f"{done.target}: {networks} networks and {blocks} blocks taken in, {done.replaced} of them again")
    shipped = {known["name"] for known in nas.describe_targets()}
    own = target if target.endswith(".toml") else f"{done.target}.toml"
    click.echo(f"Next: nas calibrate --target {done.target if done.target in shipped else own}")
    if done.target not in shipped and own != target:
        narrator.warn(f"no target {done.target} comes with nas: a file {own} must describe it (see `nas targets`)")


@measure.command("drop")
@click.option("--target", required=True, help="The device they are of: a target's name or TOML file.")
@click.option("--model", "models", multiple=True, metavar="MODEL", help="As the table calls it: a network or a block.")
@click.option("--all", "every", is_flag=True, help="All measurements of the device.")
@FOLDER
@STORAGE
def drop_(target: str, models: tuple[str, ...], every: bool, folder: Path, url: str | None) -> None:
    """Remove measurements that are wrong from the database; `nas calibrate` then makes a version without them."""
    dropped = nas.drop_measurements(target, models, folder, url, every=every)
    click.echo(f"{len(dropped)} measurements dropped")


@measure.command()
@click.option("--target", help="Target that describes the GPU; found by itself for known ones.")
@SPACE
@PRESET
@click.option("--budget", type=int, default=12, show_default=True, help="Blocks.")
@click.option("--precision", "precisions", default="fp16", show_default=True, help="Of fp16, bf16 and fp32.")
@click.option("--batch", type=int, default=64, show_default=True)
@SEED
@JSON
@QUIET
def gap(as_json: bool, quiet: bool, precisions: str, **asked: Any) -> None:
    """Time blocks on a CUDA GPU as a chain of kernels and as one fused kernel, beside the cost model's ratio."""
    gaps = nas.measure_gap(nas.Narrator(quiet=quiet), precisions=words(precisions), **asked)
    if as_json:
        click.echo(json.dumps([gap.to_dict() for gap in gaps], indent=2))
    else:
        click.echo("\n\n".join(map(nas.gap_text, gaps)))
    if left := [f"{name} in {gap.precision}" for gap in gaps for name in gap.left_out]:
        raise nas.NasError(f"{len(left)} blocks have no figure, {left[0]} first: see above")


@measure.command()
@click.option("--target", required=True, help="Whose cost model chooses: a target's name or TOML file.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@SPACE
@PRESET
@MODELS
@click.option("--budget", type=int, help="Blocks; each is two files.  [default: 20]")
@click.option("--networks", type=int, help="Whole networks to draw from the space.  [default: 5]")
@click.option(
    "--precision", help="In which the device shall run them; own: exported folders at their own bits.  [default: w8a8]"
)
@WANTED
@SEED
@click.option("--force", is_flag=True, help="Replace what is there.")
@QUIET
def plan(target: str, out: Path, budget: int | None, quiet: bool, **asked: Any) -> None:
    """Write the ONNX files to time on a board elsewhere, and the table that `nas measure import` takes back."""
    written = nas.write_plan(target, out, nas.Narrator(quiet=quiet), blocks=budget, **asked)
    click.echo(str(written))
