"""What all commands do alike: a line for what goes wrong, an exit code, and a table or one JSON object for the rest."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hvcore.errors import Error
from hvcore.report.options import FORMATS, OptionError

if TYPE_CHECKING:
    from rich.console import RenderableType

FAILED = 1
USAGE = 2
DAMAGED = 3
INTERRUPTED = 128 + signal.SIGINT

Format = Annotated[
    str | None,
    typer.Option(metavar="FORMAT", help=f"Format of the image where its content does not tell: {', '.join(FORMATS)}."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def complain(message: object) -> None:
    """One line on stderr."""
    print(f"hvcore: {' '.join(str(message).split())}", file=sys.stderr)


@contextlib.contextmanager
def reported(usage: type[Exception] = OptionError) -> Iterator[None]:
    """Turns what goes wrong in a command into one line and an exit code; a bug keeps its traceback.

    usage: the exception that means that the command was asked for something that makes no sense.
    """
    try:
        yield
    except usage as error:
        complain(error)
        raise typer.Exit(USAGE) from None
    except (Error, OSError, ValueError) as error:
        complain(str(error) or type(error).__name__)
        raise typer.Exit(FAILED) from None


def emit(*texts: str) -> None:
    """Writes to stdout, as emit_all()."""
    emit_all(texts)


def emit_all(texts: Iterable[str]) -> None:
    """Writes texts to stdout, a line or more each; a reader who closes the pipe ends the command without a word."""
    try:
        for text in texts:
            print(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more at exit; that must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
        raise typer.Exit(FAILED) from None


def emit_json(schema: str, facts: dict[str, Any]) -> None:
    """The one object that --json prints."""
    from hvcore.report.model import dump

    emit(dump({"schema": schema} | facts))


def show(*renderables: "RenderableType") -> None:
    """Prints what people read."""
    from hvcore.report.table import console

    screen = console()
    with screen.capture() as captured:
        for renderable in renderables:
            screen.print(renderable)
    emit("\n".join(line.rstrip() for line in captured.get().strip("\n").split("\n")))
