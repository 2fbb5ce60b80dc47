"""How long work tells how far it is."""

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""Called with what is being done now and the finished part of the whole, 0 to 1. What it raises ends the work."""


def silent(text: str, fraction: float) -> None:
    """Progress of work that nobody watches."""
