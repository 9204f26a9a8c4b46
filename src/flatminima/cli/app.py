"""The application: commands, exit codes, one-line errors.

Exit codes: 0 done, 1 failed, 2 bad usage, 3 ran but a threshold failed, 130 interrupted. stdout carries the result,
stderr everything else. FLATMINIMA_DEBUG=1 shows tracebacks.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import flatminima
from flatminima.cli.demo import demo
from flatminima.cli.listing import listing
from flatminima.cli.measure import measure
from flatminima.errors import FlatMinimaError, UsageError

app = typer.Typer(
    name="flatminima",
    help="Measure, certify and improve the minimum that a neural network was trained to.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo)
app.command("list")(listing)
app.command("measure")(measure)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flatminima {flatminima.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of every command."""


def main() -> None:
    """Run the command line and exit."""
    try:
        app()
    except FlatMinimaError as error:
        if os.environ.get("FLATMINIMA_DEBUG"):
            raise
        typer.echo(f"flatminima: {' '.join(str(error).split())}", err=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        typer.echo("flatminima: interrupted; run the same command to go on", err=True)
        sys.exit(130)
    except BrokenPipeError:  # `| head`: whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
