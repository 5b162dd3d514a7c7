"""`nas cost`: what a network costs on a target."""

from __future__ import annotations

import json
from pathlib import Path

import click

import nas
from nas.commands.options import FOLDER, JSON, STORAGE, check_table


@click.command()
@click.argument("model", required=False)
@click.option("--target", required=True, help="Accelerator, or a TOML file.")
@click.option("--input-size", type=int, help="Side of the square image in pixels; the model's own if not given.")
@click.option("--precision", help="fp16, w8a8, w8a16, w4a8, ...; a searched network's own bits if not given.")
@click.option("--from", "models", type=click.Path(path_type=Path), help="CSV of model,input_size,precision.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write the table to FILE ('-': stdout).")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Draw roofline, waterline, efficiency gap.")
@click.option("--compare", "others", multiple=True, metavar="MODEL", help="Show another network beside it.")
@click.option(
    "--calibration",
    metavar="NAME",
    help="As `nas calibrate` called it; 'none': the cost model alone.  [default: the newest]",
)
@FOLDER
@STORAGE
@JSON
def cost(
    model: str | None, target: str, input_size: int | None, precision: str | None, models: Path | None,
    csv_file: Path | None, plot_file: Path | None, others: tuple[str, ...], calibration: str | None, folder: Path,
    url: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Predict what MODEL costs on a target, layer by layer: a timm model, an exported folder or an ONNX file.

    Its latency is calibrated where `nas calibrate` has been run for the target.
    """
    if (model is None) == (models is None):
        raise nas.UsageError("name one MODEL, or a CSV of many with --from")
    to_stdout = str(csv_file) == "-"
    if models is not None and (plot_file is not None or others):
        raise nas.UsageError("--plot and --compare are for one MODEL, not for --from")
    if models is not None and (input_size is not None or precision is not None):
        raise nas.UsageError("--input-size and --precision are for one MODEL; with --from they are columns of the CSV")
    if to_stdout and (models is not None or others):
        raise nas.UsageError("--csv - prints the operations of one MODEL; with --from or --compare name a file")
    if as_json and to_stdout:
        raise nas.UsageError("--json and --csv - both print on stdout: leave one out, or name a file")
    if plot_file is not None:
        nas.picture_form(plot_file)
    if models is not None:
        check_table(models)
    costing = nas.costing(target, folder, url, calibration)
    if models is not None:
        rows = costing.many(models, csv_file)
        nas.Narrator().say(f"latency on {costing.target.name}: {costing.about}")
        click.echo(json.dumps(rows, indent=2) if as_json else nas.cost_lines(rows))
        if failed := [row["model"] for row in rows if row["error"]]:
            raise nas.NasError(
                f"{len(failed)} of {len(rows)} models could not be costed, {failed[0]} first: see its row"
            )
        return
    report = costing.one(str(model), input_size, precision)
    if csv_file is not None and not to_stdout:
        nas.write_whole(csv_file, nas.ops_csv(report))
    if plot_file is not None:
        nas.plot_one(report, costing.target, plot_file)
    if others:
        reports = [report, *(costing.one(other, input_size, precision) for other in others)]
        rows = [each.to_dict() for each in reports]
        click.echo(json.dumps(rows, indent=2) if as_json else nas.comparison_text(reports))
        nas.Narrator().say(f"latency on {costing.target.name}: {costing.about}")
        return
    if to_stdout:
        click.echo(nas.ops_csv(report), nl=False)
        return
    click.echo(report.to_json() if as_json else nas.report_text(report))
