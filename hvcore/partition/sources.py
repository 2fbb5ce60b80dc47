"""What a VM has its host's event loop wait for."""

import select
import time
from collections.abc import Callable

from hvcore.partition.loop import HANGUP, READ, WRITE
from hvcore.vmbus.transport import HostEndpoint


class Watch:
    """A descriptor that becomes readable when `callback` has something to do."""

    def __init__(self, fd: int, callback: Callable[[], None]) -> None:
        self._fd = fd
        self._callback = callback

    def fileno(self) -> int:
        return self._fd

    def interest(self) -> int:
        return READ

    def ready(self, events: int) -> None:
        self._callback()

    def deadline(self) -> float | None:
        return None


class Attached:
    """A guest's vmbus-user socket."""

    def __init__(self, endpoint: HostEndpoint) -> None:
        self._endpoint = endpoint

    def fileno(self) -> int:
        return self._endpoint.fileno()

    def interest(self) -> int:
        return (READ if self._endpoint.wants_read else 0) | (WRITE if self._endpoint.wants_write else 0)

    def ready(self, events: int) -> None:
        if events & READ:
            self._endpoint.on_readable()
        if events & WRITE and not self._endpoint.closed:
            self._endpoint.on_writable()
        if events & HANGUP and not events & READ and not self._endpoint.closed:
            self._endpoint.on_hangup()

    def deadline(self) -> float | None:
        left = self._endpoint.resume_after()
        return None if left is None else time.monotonic() + left


def hung_up(fd: int) -> bool:
    """Whether the other end of a socket is closed."""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))
