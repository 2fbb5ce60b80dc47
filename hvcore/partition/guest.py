"""A child partition of kind `process`: this process, attached to a VM."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from hvcore.errors import Error, GuestGone, ProtocolError
from hvcore.linux.quota import usable_cpus
from hvcore.memory.region import Region, RegionSlice
from hvcore.partition.adapter import Adapter, OpenChannel, check_policy
from hvcore.partition.changes import Change, Changes
from hvcore.partition.disk import Disk
from hvcore.partition.rescan import lost, rescan
from hvcore.partition.trapped import Controller, TrappedDisk
from hvcore.sizes import format_size
from hvcore.storage.packet import IDE_INTERFACE, SCSI_INTERFACE
from hvcore.storage.vsc import Channel
from hvcore.storage.watch import Watcher
from hvcore.vmbus.client import ClientChannel, VmbusClient
from hvcore.vmbus.transport import GuestEndpoint

PAGE = 4096
RING_PAGES = 32  # data pages of each direction: 128 KiB, as Linux has
SMALL_RING_PAGES = 8  # for a guest with little memory
QUEUE_DEPTH = 256
INTERFACES = (SCSI_INTERFACE, IDE_INTERFACE)
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

    `disks`: those that are there now, the ones of the VM's configuration first, in its order; the host may add, remove
    and resize disks meanwhile, see wait_for_change(). Disks may be used from several threads; close() ends all waits.
    """

    def __init__(
        self,
        sock: socket.socket,
        disks: list[dict[str, Any]],
        *,
        timeout: float = 30.0,
        sub_channels: int | None = None,
        queue_policy: str = "thread",
    ) -> None:
        """Attaches over a vmbus-user socket, which is closed when that fails.

        sub_channels: of each controller, as far as the host allows them; None: as Linux does, one channel for each CPU.
        queue_policy: see Disk.queue_policy.
        """
        self.closed = False
        self.disks: list[Disk | TrappedDisk] = []
        self._ide: Controller | None = None
        self._descriptions = {description["number"]: description for description in disks}
        self.adapters: list[Adapter] = []
        try:
            self.queue_policy = check_policy(queue_policy)
            if sub_channels is not None and not sub_channels >= 0:
                raise ValueError(f"a controller cannot have {sub_channels} sub-channels")
        except (ValueError, TypeError):
            self.closed = True
            sock.close()
            raise
        self._timeout = timeout
        self._changes = Changes()
        self._lock = threading.Lock()  # guards disks
        self._over = False  # closed, or the host is gone: that is no change among the disks
        self._numbers = 0  # one more than any disk had
        self._executor: ThreadPoolExecutor | None = None
        self._watching: threading.Thread | None = None
        self._endpoint = GuestEndpoint.attach(sock, timeout)
        try:
            self.memory = Region.attach(self._endpoint.memory_fd)
            self._events = Region.attach(self._endpoint.event_page_fd)
            self._watcher = Watcher(self._events)
            self._pages = PageAllocator(self.memory.size // PAGE)
            self._client = VmbusClient(self._endpoint.send, timeout=timeout, on_rescind=self._rescinded)
            self._endpoint.start(self._client.receive, self._client.refused, self._gone)
            self.vmbus_version = self._client.connect()
            self._client.request_offers()
            self._open_disks(disks, sub_channels)
            self._watching = threading.Thread(target=self._watch, name="hvcore-watch", daemon=True)
            self._watching.start()
        except BaseException:
            self.close()
            raise

    # Channels.

    def _open_disks(self, disks: list[dict[str, Any]], sub_channels: int | None) -> None:
        """The disks that the host's library described; then those of controllers that it has no description for."""
        offers = {
            channel.offer.interface_instance: channel
            for channel in self._client.channels
            if channel.offer.subchannel_index == 0 and channel.offer.interface_type in INTERFACES
        }
        adapters: dict[UUID, Adapter] = {}
        for description in disks:
            number = description["number"]
            if description["path"] == "trapped":
                self.disks.append(TrappedDisk(self, self.ide, number, description))
                continue
            instance = UUID(description["instance"])
            if instance not in offers:
                raise ProtocolError(f"the host does not offer disk {number}")
            if instance not in adapters:
                adapters[instance] = self._open_adapter(offers[instance], description, sub_channels)
            self.disks.append(Disk(self, adapters[instance], description["lun"], number))
        for instance, offered in offers.items():
            if instance not in adapters:
                path = "accelerated" if offered.offer.interface_type == IDE_INTERFACE else "synthetic"
                self._open_adapter(offered, {"path": path, "ide_mode": None}, sub_channels)

    @property
    def ide(self) -> Controller:
        """The IDE controller at this partition's ports. ProtocolError when the host intercepts none of them."""
        if self._ide is None:
            if self._endpoint.intercepts_fd is None:
                raise ProtocolError("the host intercepts none of this partition's ports")
            intercepts = Region.attach(self._endpoint.intercepts_fd)
            self._ide = Controller(self.memory, intercepts, self._pages.allocate)
        return self._ide

    def twin(self, disk: Disk) -> TrappedDisk:
        """An accelerated disk as the IDE controller shows it, which goes on answering (ide.md 7.3)."""
        description = self._descriptions[disk.number]
        if disk.path != "accelerated":
            raise ValueError(f"disk {disk.number} has no twin: it is {disk.path}")
        return TrappedDisk(self, self.ide, disk.number, description)

    def _open_adapter(self, offered: ClientChannel, facts: dict[str, Any], sub_channels: int | None) -> Adapter:
        # Both ends of the emulated path and the worker are three waiters: where CPUs are short this one blocks at once.
        spins = facts["path"] != "emulated" or usable_cpus() >= 3
        primary = self._open_channel(offered, spins)
        adapter = Adapter(primary, facts)
        self.adapters.append(adapter)
        primary.channel.start()
        self._watcher.add(primary.channel)
        most = primary.channel.sub_channels_max
        wanted = usable_cpus() - 1 if sub_channels is None else sub_channels
        if wanted and most:
            self.set_sub_channels(adapter, min(wanted, most))
        return adapter

    def set_sub_channels(self, adapter: Adapter, count: int) -> None:
        """Opens sub-channels of a controller, or closes the last ones, until there are `count`. ValueError: the host
        allows fewer. A call that runs on one that is closed is waited for; new ones must not start meanwhile."""
        most = adapter.primary.channel.sub_channels_max
        if not 0 <= count <= most:
            raise ValueError(f"the controller may have 0 to {most} sub-channels, not {count}")
        for index in [index for index in sorted(adapter.subs) if index > count]:
            self._close_sub_channel(adapter, adapter.subs[index])
        missing = [index for index in range(1, count + 1) if index not in adapter.subs]
        if not missing:
            return

        here = {self._sub_channel_index(adapter, channel) for channel in self._client.channels}
        if not here.issuperset(missing):
            adapter.primary.channel.create_sub_channels(count)
        for index in missing:
            channel = self._client.wait_for_channel(partial(self._is_sub_channel, adapter, index), self._timeout)
            opened = self._open_channel(channel, True)
            opened.channel.inherit(adapter.primary.channel)
            adapter.add(index, opened)

    @staticmethod
    def _sub_channel_index(adapter: Adapter, channel: ClientChannel) -> int:
        """0 for one that is not this controller's, or its primary."""
        offer = channel.offer
        ours = (offer.interface_type, offer.interface_instance) == adapter.identity and not channel.rescinded
        return offer.subchannel_index if ours else 0

    def _is_sub_channel(self, adapter: Adapter, index: int, channel: ClientChannel) -> bool:
        return self._sub_channel_index(adapter, channel) == index

    def _close_sub_channel(self, adapter: Adapter, opened: OpenChannel) -> None:
        adapter.drop(opened.offered)
        with contextlib.suppress(GuestGone):
            opened.channel.drain(self._timeout)
        opened.channel.end()
        self._client.close_channel(opened.offered)
        self._client.teardown_gpadl(opened.offered, opened.gpadl, self._timeout)
        self._pages.release(opened.first_page, opened.pages)

    def _open_channel(self, offered: ClientChannel, spins: bool) -> OpenChannel:
        data = RING_PAGES if self.memory.size >= 16 << 20 else SMALL_RING_PAGES
        count = 2 * (data + 1)
        first = self._pages.allocate(count)
        # Pages that another channel gave back hold its indices: both control pages begin as zeros.
        for page in (first, first + data + 1):
            memoryview(self.memory)[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
        pages = list(range(first, first + count))
        gpadl = self._client.create_gpadl(offered, pages)
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
        return OpenChannel(offered, channel, gpadl, first, count)

    # What changes meanwhile.

    def wait_for_change(self, timeout: float | None = None) -> list[Change]:
        """What changed among the disks since the last call, as soon as there is something; [] after `timeout` seconds.

        When a change is seen here `disks` and the disk's attributes show it. Each change is given to one caller.
        GuestGone: the guest is closed, or its host gone.
        """
        return self._changes.take(timeout)

    async def await_for_change(self, timeout: float | None = None) -> list[Change]:
        """The asyncio twin of wait_for_change."""
        changes: list[Change] = await asyncio.wrap_future(self.submit(partial(self.wait_for_change, timeout)))
        return changes

    def forget(self, disk: Disk) -> None:
        """A request of the disk found that it is not there any more."""
        with self._lock:
            disk.removed = True
            found = disk in self.disks
            self.disks = [known for known in self.disks if known is not disk]
        if found:
            self._changes.put([Change("removed", disk)])

    def _watch(self) -> None:
        """The thread that looks after notices of the host and looks for disks again when there are some."""
        while True:
            try:
                self._watcher.wait()
            except GuestGone:
                return
            for adapter in self.adapters:
                if adapter.primary.channel.notices() and not (adapter.removed or self._over):
                    # A host that does not answer is its requests' to report; a later notice looks again.
                    with contextlib.suppress(Error, TimeoutError, MemoryError):
                        self._rescan(adapter)

    def _rescan(self, adapter: Adapter) -> None:
        known = [disk for disk in self.disks if isinstance(disk, Disk) and disk.channel is adapter.primary.channel]
        if adapter.primary.channel.ended:
            adapter.removed = True
            changes = lost(known)
        else:
            changes = rescan(adapter, known, lambda lun: Disk(self, adapter, lun, self._next_number()))
        with self._lock:
            removed = {change.disk for change in changes if change.kind == "removed"}
            changes = [change for change in changes if change.kind != "removed" or change.disk in self.disks]
            added = [change.disk for change in changes if change.kind == "added"]
            self.disks = [*(disk for disk in self.disks if disk not in removed), *added]
            self._numbers = max([self._numbers, *(disk.number + 1 for disk in self.disks)])
        self._changes.put(changes)

    def _next_number(self) -> int:
        self._numbers = max([self._numbers, *(disk.number + 1 for disk in self.disks)])
        self._numbers += 1
        return self._numbers - 1

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
        self._over = True
        self._changes.close()
        self._client.gone(reason)
        if self._ide is not None:
            self._ide.end()
        for adapter in list(self.adapters):
            adapter.end()

    def _rescinded(self, offered: ClientChannel) -> None:
        for adapter in list(self.adapters):
            if adapter.primary.offered is offered:
                adapter.end()
                return
            dropped = adapter.drop(offered)
            if dropped is not None:
                dropped.channel.end()
                return

    def close(self) -> None:
        """Closes the channels, leaves the VMBus and the VM. Waiting calls end with GuestGone. Idempotent."""
        if self.closed:
            return
        self.closed = self._over = True
        if self._ide is not None:
            self._ide.end()
        self._changes.close()
        for adapter in self.adapters:
            adapter.close(self._client.close_channel)
        with contextlib.suppress(AttributeError):  # half made
            self._watcher.close()
        if self._watching is not None and self._watching is not threading.current_thread():
            self._watching.join()
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
