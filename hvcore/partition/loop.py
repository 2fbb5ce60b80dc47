"""The host's event loop: one thread that serves control sockets, attachments and the ends of processes."""

import contextlib
import os
import select
import time
from typing import Protocol

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANGUP = select.EPOLLHUP | select.EPOLLERR


class Source(Protocol):
    """Something with a descriptor. interest() is asked before each wait; 0 still reports hang-ups."""

    def fileno(self) -> int: ...
    def interest(self) -> int: ...
    def ready(self, events: int) -> None: ...
    def deadline(self) -> float | None:
        """When interest() is to be asked again at the latest (time.monotonic), or None."""


class Loop:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        # A wait goes on after a signal's handler: one that calls stop() has to end it.
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, READ)
        self._sources: dict[int, Source] = {}
        self._interest: dict[int, int] = {}
        self._stopping = False

    def add(self, source: Source) -> None:
        fd, interest = source.fileno(), source.interest()
        self._epoll.register(fd, interest)
        self._sources[fd] = source
        self._interest[fd] = interest

    def remove(self, source: Source) -> None:
        """A source whose descriptor is closed already has left the epoll set by itself."""
        fd = next((fd for fd, known in self._sources.items() if known is source), None)
        if fd is not None:
            del self._sources[fd], self._interest[fd]
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def stop(self) -> None:
        """Ends run(). May be called by a signal's handler."""
        self._stopping = True
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        """Until stop()."""
        while not self._stopping:
            found = self._epoll.poll(self._timeout())
            for source, fd, events in [(self._sources.get(fd), fd, events) for fd, events in found]:
                # An earlier one of this round may have removed it, and another may have its descriptor's number by now.
                if source is not None and self._sources.get(fd) is source:
                    source.ready(events)

    def _timeout(self) -> float | None:
        timeout = None
        for fd, source in self._sources.items():
            interest = source.interest()
            if interest != self._interest[fd]:
                self._epoll.modify(fd, interest)
                self._interest[fd] = interest
            deadline = source.deadline()
            if deadline is not None:
                left = max(0.0, deadline - time.monotonic())
                timeout = left if timeout is None else min(timeout, left)
        return timeout

    def close(self) -> None:
        self._epoll.close()
        wake, self._wake = self._wake, -1  # first: a signal's handler may call stop() even now
        os.close(wake)
