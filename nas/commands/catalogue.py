"""`nas spaces`, `nas targets`: what there is to choose from."""

from __future__ import annotations

import json
from pathlib import Path

import click

import nas
from nas.commands.options import JSON, check_table, refuse_before


@click.command()
@click.argument("name", required=False)
@click.option("--preset", help="By default the first for a NAME, all for the list.")
@click.option("--granularity", type=click.Choice(["stage", "block"]), default="stage", show_default=True)
@JSON
def spaces(name: str | None, preset: str | None, granularity: str, as_json: bool) -> None:
    """List search spaces, or describe one: its choices, mixers and number of architectures."""
    described = nas.describe_spaces(name, preset, granularity)
    if as_json:
        click.echo(json.dumps(described if name is None else described[0], indent=2))
        return
    for space in described:
        click.echo(f"{space['name']}/{space['preset']}  {space['size']:.3g} architectures")
        click.echo(f"  mixers: {', '.join(space['mixers'])}")
        more = [mixer for mixer in space["menu"] if mixer not in space["mixers"]]
        click.echo(f"  more by --mixers: {', '.join(more)}")
        for gene, values in space["choices"].items():
            click.echo(f"  {gene}: {', '.join(map(str, values))}")
        click.echo(f"  stem: {space['stem']}")
        for gene, values in space["closed"].items():
            click.echo(f"  closed: {gene}: {', '.join(values)}  (space.choices.{gene} opens them)")


@click.group(invoke_without_command=True)
@JSON
@click.pass_context
def targets(context: click.Context, as_json: bool) -> None:
    """List the accelerators that come with the program."""
    if context.invoked_subcommand is not None:
        refuse_before(context)
    else:
        listed = nas.describe_targets()
        if as_json:
            click.echo(json.dumps(listed, indent=2))
        else:
            click.echo("\n".join(nas.target_lines(listed)))


@targets.command("show")
@click.argument("name")
@JSON
def show_target(name: str, as_json: bool) -> None:
    """Show every value of an accelerator (a name or a TOML file) with its source."""
    target = nas.describe_target(name)
    if as_json:
        click.echo(json.dumps(target, indent=2))
        return
    click.echo(f"{target['name']}: {target['title']}\n{target['description']}")
    click.echo(f"kind: {target['kind']}, stack: {target['stack']}\naccuracy: {target['accuracy']}")
    for entry in target["values"]:
        click.echo(f"{entry['key']} = {entry['value']}    # {entry['source']}")


@targets.command("fit")
@click.argument("measurements", type=click.Path(path_type=Path))
@click.option("--like", required=True, help="The target it resembles: where values start and stay if not measured.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The TOML file to write.")
@click.option("--force", is_flag=True, help="Replace what is there.")
@JSON
def fit_target(measurements: Path, like: str, out: Path, force: bool, as_json: bool) -> None:
    """Fit a target to a CSV of measured networks and say how well each value is determined.

    MEASUREMENTS has the columns model (timm name, exported folder, ONNX file), input_size, precision and latency_ms
    (or latency_s, latency_us); batch if it is not 1.
    """
    check_table(measurements)
    fitted = nas.fit_target_file(measurements, like, out, force)
    if as_json:
        click.echo(json.dumps(nas.fit_summary(fitted), indent=2))
        return
    click.echo(nas.fit_text(fitted))
    click.echo(f"Next: nas cost MODEL --target {out}")
