"""The command line. Exit codes: 0 done, 1 the work failed, 2 bad usage, 130 interrupted by Ctrl-C."""

from hvcore.cli.commands import app, main

__all__ = ["app", "main"]
