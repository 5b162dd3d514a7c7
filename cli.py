"""The command line: parse, call the `nas` face, print. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import os
import sys

import click

import nas
from nas.commands.calibrate import calibrate
from nas.commands.catalogue import spaces, targets
from nas.commands.cost import cost
from nas.commands.finalists import finalists
from nas.commands.measure import measure
from nas.commands.options import complain
from nas.commands.rank import rank
from nas.commands.search import search, train
from nas.commands.study import dashboard, export, pareto, studies
from nas.commands.survey import survey
from nas.commands.verify import verify

FAILED, INTERRUPTED = 1, 130


def _show_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"nas, version {nas.version()}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of a failure.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Find vision networks that are accurate after quantization and fast on an edge NPU.

    Begin with: nas search --space metaformer --target npu_40tops
    """


COMMANDS = (
    *(search, survey, train, rank, finalists, pareto, dashboard, export),
    *(cost, measure, calibrate, verify, spaces, targets, studies),
)
for command in COMMANDS:
    cli.add_command(command)


def wait_politely() -> None:
    """How torch's threads wait for each other, before it is loaded: they look for some tenths of a millisecond, then
    sleep. To sleep at once takes 1.5 times as long on idle cores, and half as long beside a process that takes one of
    two; to look as long as GNU's OpenMP does gains 3 percent and loses 7 (benchmarks/thread_waiting.py).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # LLVM's OpenMP, of macOS
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # GNU's, which asks this first


def main() -> None:
    """Entry point: runs a command and maps what it raises to the exit status."""
    wait_politely()
    words = sys.argv[1:]
    debug = "--debug" in words  # wherever it stands: it is added to a command that just failed
    try:
        sys.exit(cli([word for word in words if word != "--debug"], standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort as error:
        complain(str(error.__cause__ or "") or "interrupted")
        sys.exit(INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        expected = getattr(error, "exit_status", None)
        line = " ".join(str(error).split())
        complain(line if expected else f"{type(error).__name__}: {line} (--debug shows where)")
        sys.exit(expected or FAILED)


if __name__ == "__main__":
    main()
