"""Where a test says which probe watches the image files that are opened from now on; nothing else sets it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from hvcore.disk.medium import Probe

PROBE: ContextVar[Probe | None] = ContextVar("PROBE", default=None)


@contextmanager
def probing(probe: Probe) -> Iterator[Probe]:
    """Every image file that is opened inside, parents too, is watched by `probe` until it is closed."""
    token = PROBE.set(probe)
    try:
        yield probe
    finally:
        PROBE.reset(token)
