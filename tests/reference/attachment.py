"""A host in a thread: HostEndpoint and VmbusServer behind one end of a socketpair, as an event loop drives them."""

import fcntl
import os
import select
import socket
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

from hvcore.vmbus.offers import Offer
from hvcore.vmbus.server import VmbusServer
from hvcore.vmbus.transport import Attachment, HostEndpoint, Refusal
from tests.reference.control import MEMORY_PAGES, ScriptedDevices

VM = UUID("11223344-5566-7788-99aa-bbccddeeff00")


def memfd(size: int, seals: int = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


class Shared:
    """The three descriptors of an attachment."""

    def __init__(self, pages: int = MEMORY_PAGES) -> None:
        self.memory = memfd(pages * 4096)
        self.doorbell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.page = memfd(4096)
        self.attachment = Attachment(self.memory, pages * 4096, self.doorbell, self.page, VM)

    def close(self) -> None:
        for fd in (self.memory, self.doorbell, self.page):
            os.close(fd)


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class HostThread:
    """with HostThread(offers) as host: host.guest is the other end of the socket; host.do(call) runs in the loop."""

    def __init__(self, *offers: Offer, answer: Refusal | None = None, **options: Any) -> None:
        self.shared = Shared()
        self.log: list[object] = []
        self.devices = ScriptedDevices(self.log)
        self.ended: list[str] = []
        sock, self.guest = pair()
        self.endpoint = HostEndpoint(
            sock,
            lambda: self.shared.attachment if answer is None else answer,
            lambda message, connection: self.server.receive(message, connection),
            self._gone,
            **options,
        )
        self.server = VmbusServer(self.endpoint.send, self.devices, memory_pages=MEMORY_PAGES)
        self.channels = [self.server.offer(offer) for offer in offers]
        self._calls: list[tuple[Callable[[], Any], threading.Event]] = []
        self._bell = os.eventfd(0, os.EFD_CLOEXEC)
        self._stop = False
        self._thread = threading.Thread(target=self._loop)

    def _gone(self, reason: str) -> None:
        self.ended.append(reason)
        self.server.disconnect()

    def do(self, call: Callable[[], Any]) -> None:
        done = threading.Event()
        self._calls.append((call, done))
        os.eventfd_write(self._bell, 1)
        done.wait()

    def _loop(self) -> None:
        while not self._stop:
            poll = select.poll()
            poll.register(self._bell, select.POLLIN)
            if not self.endpoint.closed:
                mask = select.POLLIN * self.endpoint.wants_read | select.POLLOUT * self.endpoint.wants_write
                poll.register(self.endpoint, mask)
            pause = self.endpoint.resume_after()
            for fd, events in poll.poll(None if pause is None else pause * 1000 + 1):
                if fd == self._bell:
                    os.eventfd_read(self._bell)
                    while self._calls:
                        call, done = self._calls.pop(0)
                        call()
                        done.set()
                    continue
                if events & select.POLLIN:
                    self.endpoint.on_readable()
                if events & select.POLLOUT:
                    self.endpoint.on_writable()
                if events & (select.POLLHUP | select.POLLERR):
                    self.endpoint.on_hangup()

    def _end(self) -> None:
        self._stop = True

    def __enter__(self) -> "HostThread":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self._end)
        self._thread.join()
        self.endpoint.close()
        self.guest.close()
        os.close(self._bell)
        self.shared.close()
