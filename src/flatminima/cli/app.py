"""The application: commands, exit codes, one-line errors.

Exit codes: 0 done, 1 failed, 2 bad usage, 3 ran but a threshold failed, 130 or 143 interrupted. stdout carries the
result, stderr everything else. FLATMINIMA_DEBUG=1 shows tracebacks.

typer's own handling prints boxes of five lines, exits with 1 when a pipe closes and says nothing on Ctrl-C, so `main`
runs it with standalone_mode=False and decides itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

import flatminima
from flatminima import interrupts
from flatminima.cli.card import card
from flatminima.cli.certify import certify
from flatminima.cli.demo import demo
from flatminima.cli.doctor import doctor
from flatminima.cli.factory import FactoryFailed
from flatminima.cli.landscape import landscape
from flatminima.cli.listing import listing
from flatminima.cli.measure import measure
from flatminima.cli.messages import own_words
from flatminima.cli.panels import paneled
from flatminima.cli.rank import rank
from flatminima.cli.report import report
from flatminima.cli.reproduce import own_study, reproduce
from flatminima.cli.terminal import say
from flatminima.cli.torchrun import first, leave_together
from flatminima.cli.track import track
from flatminima.cli.train import train
from flatminima.errors import FlatMinimaError, ModelError, UsageError
from flatminima.escaping import shown

FAILED, BAD_USAGE, _SIGNALLED = 1, 2, 128

# what of a command that was stopped is there for the next one
_KEPT = "what was finished is kept; the same command goes on from there"
_KEEPING = ("demo", "reproduce", "study", "train")
_KEEPING_IN_OUTPUT = ("certify", "rank")

# typer carries its own click since 0.24; before, it used the package
_BadCommandLine = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    name="flatminima",
    help="Measure, certify and improve the minimum that a neural network was trained to.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, Callable[..., None]] = {
    "card": card,
    "certify": certify,
    "demo": demo,
    "doctor": doctor,
    "landscape": landscape,
    "list": listing,
    "measure": measure,
    "rank": rank,
    "report": report,
    "reproduce": reproduce,
    "study": own_study,
    "track": track,
    "train": train,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(paneled(_command))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flatminima {flatminima.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of every command."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal's encoding lacks is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get("NO_COLOR"):  # rich would keep bold and moving cursors
        os.environ["TERM"] = "dumb"
    code = _run()
    leave_together(code)
    sys.exit(code)


def _run() -> int:
    """The exit code."""
    try:
        with interrupts.handled():
            code = app(prog_name="flatminima", standalone_mode=False)
            sys.stdout.flush()  # here, where a closed pipe can be caught
    except (KeyboardInterrupt, typer.Abort):
        code = _SIGNALLED + signal.SIGINT
    except BrokenPipeError:
        return _reader_left()
    except SystemExit as stop:  # typer's answer to a closed pipe
        if isinstance(stop.__context__, BrokenPipeError):
            return _reader_left()
        raise
    except Exception as error:
        if os.environ.get("FLATMINIMA_DEBUG"):
            say(*(f"| {line}" for line in traceback.format_exc().rstrip().split("\n")))  # a name in it begins no line
        return _explain(error)
    if code == _SIGNALLED + signal.SIGINT:  # typer's own answer to a KeyboardInterrupt, which it has swallowed
        return _interrupted()
    return code if isinstance(code, int) else 0


def _interrupted() -> int:
    """One line that says what is kept, by the process that speaks; 130 after Ctrl-C, 143 after SIGTERM."""
    stop = interrupts.latest()
    signum = signal.SIGINT if stop is None else stop.signum
    kept = "" if stop is None else stop.kept
    if not kept:
        command, given = next(iter(sys.argv[1:]), ""), any(a.split("=")[0] == "--output" for a in sys.argv)
        kept = _KEPT if command in _KEEPING or (command in _KEEPING_IN_OUTPUT and given) else "nothing is kept"
    if first():
        _complain(f"interrupted; {kept}")
    return _SIGNALLED + signum


def _explain(error: Exception) -> int:
    """One line on stderr: what was seen, what was expected, what to do."""
    if isinstance(error, _BadCommandLine):
        found: Any = error
        context = getattr(found, "ctx", None)
        command = context.command_path if context is not None else "flatminima"
        _complain(f"{found.format_message()} (see {command} --help)", command)
        return BAD_USAGE
    if isinstance(error, FlatMinimaError):
        whose = (FactoryFailed, ModelError)  # of the user's code, or of a network's arguments, which --model-arg gives
        _complain(str(error) if isinstance(error, whose) else own_words(str(error)))
        return BAD_USAGE if isinstance(error, UsageError) else FAILED
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "can't allocate" in str(error):
        _complain(f"out of memory ({error}); try a smaller --batch-size, --subset or --limit")
    else:
        _complain(f"{type(error).__name__}: {error}; FLATMINIMA_DEBUG=1 shows where")
    return FAILED


def _complain(text: str, command: str = "flatminima") -> None:
    typer.echo(f"{command}: {shown(' '.join(text.split()))}", err=True)


def _reader_left() -> int:
    """`| head` has seen enough; nothing more is written, also not when Python exits."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
