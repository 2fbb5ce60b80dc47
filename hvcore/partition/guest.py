"""A child partition of kind `process`: this process, attached to a VM."""

import contextlib
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from hvcore.errors import Error, ProtocolError
from hvcore.linux.quota import usable_cpus
from hvcore.memory.region import Region, RegionSlice
from hvcore.partition.disk import Disk
from hvcore.sizes import format_size
from hvcore.storage.vsc import Channel
from hvcore.vmbus.client import ClientChannel, VmbusClient
from hvcore.vmbus.transport import GuestEndpoint

PAGE = 4096
RING_PAGES = 32  # data pages of each direction: 128 KiB, as Linux has
SMALL_RING_PAGES = 8  # for a guest with little memory
QUEUE_DEPTH = 256
UNLOAD_PATIENCE = 5.0  # seconds; a host that does not answer sees the socket's end instead


class PageAllocator:
    """Adjacent guest pages, first fit. Page 0 stays unused: an address of 0 is then always a mistake."""

    def __init__(self, pages: int) -> None:
        self._lock = threading.Lock()
        self._free = [(1, pages - 1)] if pages > 1 else []
        self.total = pages

    def allocate(self, pages: int) -> int:
        """The number of the first of `pages` adjacent pages. MemoryError says what is needed and what is there."""
        with self._lock:
            for index, (first, count) in enumerate(self._free):
                if count >= pages:
                    if count == pages:
                        del self._free[index]
                    else:
                        self._free[index] = first + pages, count - pages
                    return first
            most = max((count for _, count in self._free), default=0)
        raise MemoryError(
            f"the request needs {format_size(pages * PAGE)} of guest memory and {format_size(most * PAGE)} are free: "
            f"give the VM more than {format_size(self.total * PAGE)}, or use a smaller block size or queue depth"
        )

    def release(self, first: int, pages: int) -> None:
        with self._lock:
            self._free.append((first, pages))
            self._free.sort()
            merged: list[tuple[int, int]] = []
            for start, count in self._free:
                if merged and sum(merged[-1]) == start:
                    merged[-1] = merged[-1][0], merged[-1][1] + count
                else:
                    merged.append((start, count))
            self._free = merged


class Guest:
    """The VM's child partition in this process: its memory, its VMBus, its disks. Made by VirtualMachine.attach().

    `disks` is in the order of the VM's configuration. Disks may be used from several threads; close() ends all waits.
    """

    def __init__(self, sock: socket.socket, disks: list[dict[str, Any]], *, timeout: float = 30.0) -> None:
        """Attaches over a vmbus-user socket, which is closed when that fails."""
        self.closed = False
        self.disks: list[Disk] = []
        self._open: list[tuple[ClientChannel, int, Channel]] = []
        self._executor: ThreadPoolExecutor | None = None
        self._endpoint = GuestEndpoint.attach(sock, timeout)
        try:
            self.memory = Region.attach(self._endpoint.memory_fd)
            self._events = Region.attach(self._endpoint.event_page_fd)
            self._pages = PageAllocator(self.memory.size // PAGE)
            self._client = VmbusClient(self._endpoint.send, timeout=timeout, on_rescind=self._rescinded)
            self._endpoint.start(self._client.receive, self._client.refused, self._gone)
            self.vmbus_version = self._client.connect()
            offers = {channel.offer.interface_instance: channel for channel in self._client.request_offers()}
            opened: dict[str, Channel] = {}  # by the controller's instance
            for description in disks:
                instance, number = description["instance"], description["number"]
                offered = offers.get(UUID(instance))
                if offered is None:
                    raise ProtocolError(f"the host does not offer disk {number}")
                if instance not in opened:
                    opened[instance] = self._open_channel(offered, description)
                self.disks.append(Disk(self, opened[instance], number, description))
        except BaseException:
            self.close()
            raise

    def _open_channel(self, offered: ClientChannel, description: dict[str, Any]) -> Channel:
        data = RING_PAGES if self.memory.size >= 16 << 20 else SMALL_RING_PAGES
        count = 2 * (data + 1)
        first = self._pages.allocate(count)
        pages = list(range(first, first + count))
        gpadl = self._client.create_gpadl(offered, pages)
        # Both ends of the emulated path and the worker are three waiters: where CPUs are short this one blocks at once.
        spins = description["path"] != "emulated" or usable_cpus() >= 3
        channel = Channel(
            self.memory,
            self._events,
            self._endpoint.doorbell_fd,
            offered.relid,
            pages,
            data + 1,
            self._pages.allocate,
            depth=QUEUE_DEPTH,
            spins=spins,
        )
        self._client.open_channel(offered, gpadl, data + 1)
        self._open.append((offered, gpadl, channel))
        channel.start()
        return channel

    def alloc(self, size: int) -> RegionSlice:
        """A writable buffer of `size` bytes of guest memory, page-aligned: requests on it move no byte twice.

        Given back with its last reference. A request on it that timed out may still write into it.
        """
        if size <= 0:
            raise ValueError(f"a buffer of {size} bytes")
        pages = (size + PAGE - 1) // PAGE
        allocator = self._pages  # not the guest, which a collector may clear before the last of its buffers goes
        first = allocator.allocate(pages)
        return RegionSlice(self.memory, first * PAGE, size, lambda: allocator.release(first, pages))

    def submit(self, call: Callable[[], Any]) -> Any:
        """Runs a blocking call of a disk in a thread of the guest's; a concurrent.futures.Future."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(16, thread_name_prefix="hvcore-guest")
        return self._executor.submit(call)

    def _gone(self, reason: str) -> None:
        self._client.gone(reason)
        for _, _, channel in list(self._open):
            channel.end()

    def _rescinded(self, offered: ClientChannel) -> None:
        for known, _, channel in list(self._open):
            if known is offered:
                channel.end()

    def close(self) -> None:
        """Closes the channels, leaves the VMBus and the VM. Waiting calls end with GuestGone. Idempotent."""
        if self.closed:
            return
        self.closed = True
        for offered, _gpadl, channel in self._open:
            channel.end()
            with contextlib.suppress(Error, OSError):
                self._client.close_channel(offered)
        with contextlib.suppress(Error, OSError, AttributeError):
            self._client.unload(UNLOAD_PATIENCE)
        self._endpoint.close()
        if self._executor is not None:
            self._executor.shutdown()
        # The mappings go with the last buffer or transfer that uses them.

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
