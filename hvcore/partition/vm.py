"""One VM in the host: its images, channels, worker and guest, put together and taken apart in order."""

import contextlib
import os
import socket
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from hvcore.dispatch.pool import MediaPool
from hvcore.errors import Error, HostError
from hvcore.hypervisor.partition import ChildPartition, Hypervisor
from hvcore.memory.region import Region
from hvcore.metrics.events import EventReader
from hvcore.metrics.trace import TraceReader, decode
from hvcore.partition.config import LIMITS, DiskConfig, VmConfig
from hvcore.partition.emulator import INTERCEPTED_PORTS, Emulator
from hvcore.partition.images import Images
from hvcore.partition.loop import Loop
from hvcore.partition.sources import Attached, Watch, hung_up
from hvcore.partition.storage import Controller, Event, Storage, VirtualDisk
from hvcore.vhd.live import checkpoint
from hvcore.vmbus.attach import Refusal
from hvcore.vmbus.gpadl import Gpadl
from hvcore.vmbus.message import STATUS_SUCCESS, STATUS_UNSUCCESSFUL
from hvcore.vmbus.offers import Channel
from hvcore.vmbus.server import VmbusServer
from hvcore.vmbus.transport import Attachment, HostEndpoint

TRACE_BYTES = 1 << 20
LOG_BYTES = 1 << 16
WORKER_TRACE = slice(4096, 4096 + 65 * 4096)  # of the memory shared with a worker (pyx/hvcore/dispatch/handover.pxd)
RESTARTS = 5  # of a worker within RESTART_SECONDS; then its disks fail until the next guest
RESTART_SECONDS = 30.0
CLOSE_PATIENCE = 5.0  # for a worker that holds a request of a closing channel


class Vm:
    """The VM's devices are what hvcore.vmbus.server asks (Devices). `note` records an event for people."""

    def __init__(
        self,
        loop: Loop,
        hypervisor: Hypervisor,
        images: Images,
        pool: MediaPool,
        config: VmConfig,
        number: int,
        note: Event,
    ) -> None:
        """Opens the images. ImageError, HostError, ValueError: nothing is left open."""
        hypervisor.check(config.memory)
        self.config = config
        self.id = uuid.uuid4()
        self.running = False
        self._loop = loop
        self._hypervisor = hypervisor
        self._note = note
        self._emulator: Emulator | None = None
        self._watch: Watch | None = None
        self._restarts: list[float] = []
        self._partition: ChildPartition | None = None
        self._server: VmbusServer | None = None
        self._endpoint: HostEndpoint | None = None
        self._source: Attached | None = None
        self._trace: Region | None = None
        self._trace_readers: list[TraceReader] = []
        self._channels: dict[Channel, tuple[Controller, int]] = {}  # offered: controller and sub-channel
        self.storage = Storage(self.id, number, config, images, pool, note)
        self.dispatch = self.storage.dispatch
        self._broken = Watch(self.dispatch.broken_fd, self._worker_broke)
        self._sub_channels = Watch(self.dispatch.sub_channel_fd, self._offer_sub_channels)
        self._loop.add(self._sub_channels)
        self._log = Region.create(LOG_BYTES, "hvcore-events")
        self.dispatch.events(self._log)
        self._log_reader = EventReader(self._log)

    # Disks.

    def add_disk(self, disk: DiskConfig) -> dict[str, Any]:
        """One disk more, also while a guest is there: it is told. IDE disks come and go with the VM stopped."""
        if disk.path != "synthetic" and self.running:
            raise HostError(f"{disk.image}: an IDE disk is added while {self.config.name} is stopped")
        added = self.storage.add(disk)
        self._note("disk added", vm=self.config.name, disk=added.number, image=disk.image)
        return added.describe()

    def remove_disk(self, number: int) -> None:
        """One disk less, also while a guest is there: it is told, and what it has under way on the disk ends."""
        disk = self.storage.find(number)
        if disk.place is not None and self.running:
            raise HostError(f"disk {number} is an IDE disk: it is removed while {self.config.name} is stopped")
        self.storage.detach(disk)
        self.dispatch.drain_disk(disk.index)
        self.storage.discard(disk)
        self._note("disk removed", vm=self.config.name, disk=number)

    def move_disk(self, number: int, path: str) -> dict[str, Any]:
        """Puts a disk on another path, under the same number, while the VM is stopped."""
        disk = self.storage.find(number)
        if self.running:
            raise HostError(f"disk {number} is moved while {self.config.name} is stopped")
        config = replace(disk.config, path=path, controller=0, lun=None, image=disk.image.info.path, inject=disk.rules)
        self.remove_disk(number)
        try:
            moved = self.storage.add(config, number)
        except BaseException:
            self.storage.add(disk.config, number)
            raise
        return moved.describe()

    def set_qos(self, number: int, limits: dict[str, int]) -> dict[str, Any]:
        """Sets limits of a disk while it runs; those not named stay as they are."""
        disk = self.storage.find(number)
        if not isinstance(limits, dict) or set(limits) - set(LIMITS):
            raise ValueError(f"a disk's limits are {', '.join(LIMITS)}, not {limits!r}")
        self.storage.set_limits(disk, limits)
        return disk.config.limits

    def report_slow(self, nanoseconds: int) -> None:
        """Requests that take so long are events from now on; 0: none."""
        if type(nanoseconds) is not int or not 0 <= nanoseconds < 1 << 62:
            raise ValueError(f"a threshold is a number of nanoseconds, not {nanoseconds!r}")
        self._log_reader.slow_ns = nanoseconds

    def report_events(self) -> None:
        """Hands on what the data path has to tell (docs/qos-and-counters.md)."""
        offset = time.time_ns() - time.monotonic_ns()
        for event in self._log_reader.collect():
            details = {name: value for name, value in event.items() if name not in ("kind", "vm", "disk", "time_ns")}
            found = self.storage.by_index(event["disk"])
            self._note(
                event["kind"],
                vm=self.config.name,
                disk=found.number if found is not None else None,
                happened=(event["time_ns"] + offset) / 1e9,
                **details,
            )

    def resize_disk(self, number: int, size: int) -> dict[str, Any]:
        """Gives a disk and its image another size; a guest hears of it (storvsp.md 8.2: unit attention, rescan)."""
        disk = self.storage.find(number)
        if isinstance(size, bool) or not isinstance(size, int):
            raise ValueError(f"a size is a number of bytes, not {size!r}")
        if disk.place is not None and self.running:
            raise HostError(f"disk {number} is an IDE disk: it is resized while {self.config.name} is stopped")
        self.storage.resize(disk, size)
        self._note("disk resized", vm=self.config.name, disk=number, size=size)
        return disk.describe()

    def checkpoint(self, disk: int, image: str) -> dict[str, Any]:
        """From now on disk number `disk` writes into the new differencing image `image`, on top of the present one."""
        opened = self.storage.find(disk).image
        if not isinstance(image, str) or not image or "\0" in image:
            raise ValueError(f"a checkpoint's image is the name of a new file, not {image!r}")
        opened.info = checkpoint(opened.disk, opened.info, image)
        self._note("checkpoint", vm=self.config.name, disk=disk, image=image)
        return self.describe()

    def inject(self, disk: int, rules: Any) -> None:
        """The rules in front of a disk from now on (hvcore.disk.rules); none: the disk as it is."""
        self.storage.inject(self.storage.find(disk), rules)

    def injected(self, disk: int) -> dict[str, Any]:
        return self.storage.injected(self.storage.find(disk))

    # Life.

    def start(self) -> None:
        """Starts the worker, when there are emulated disks. HostError when it does not come up."""
        if self.running:
            raise HostError(f"{self.config.name} is running already")
        if self.storage.needs_worker:
            self._start_worker()
            self._loop.add(self._broken)
        self.running = True
        self._note("started", vm=self.config.name)

    def attach(self) -> tuple[int, list[dict[str, Any]]]:
        """The guest's end of a new attachment (a descriptor that the caller owns) and what its disks are."""
        if not self.running:
            raise HostError(f"{self.config.name} is not running")
        if self._endpoint is not None and hung_up(self._endpoint.fileno()):
            # Whoever comes after a guest that is gone need not wait until the loop has seen that.
            self._endpoint.on_hangup()
        if self._endpoint is not None:
            raise HostError(f"{self.config.name} has a guest already")
        if self.storage.needs_worker and self._emulator is None:
            self._restarts.clear()
            self._start_worker()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._endpoint = HostEndpoint(ours, self._admit, self._message, self._guest_gone)
        self._source = Attached(self._endpoint)
        self._loop.add(self._source)
        return theirs.detach(), [disk.describe() for disk in self.storage]

    def stop(self) -> None:
        """Ends guest and worker; the VM may be started again. Idempotent."""
        if self._endpoint is not None:
            self._drop_guest()
            self._note("guest stopped", vm=self.config.name)
        if self.running and self.storage.needs_worker:
            self._loop.remove(self._broken)
        self._stop_worker()
        if self.running:
            self.running = False
            self.storage.settle()
            self._note("stopped", vm=self.config.name)

    def close(self) -> None:
        """Stops, and closes the images. Idempotent."""
        self.stop()
        self._trace_readers.clear()
        self._loop.remove(self._sub_channels)
        self.report_events()
        self.storage.close()
        del self._log_reader  # a view of the memory
        self._log.close()

    # The worker.

    def _start_worker(self) -> None:
        memory = self._partition.memory if self._partition is not None else None
        intercepts = self._partition.intercepts if self._partition is not None else None
        storage = self.storage
        self._emulator = Emulator(self.dispatch, storage.drives, memory, storage.guest_drives, intercepts)
        self._watch = Watch(self._emulator.pidfd, self._worker_ended)
        self._loop.add(self._watch)
        self._open_trace()

    def _stop_worker(self) -> None:
        if self._watch is not None:
            self._loop.remove(self._watch)
            self._watch = None
        if self._emulator is not None:
            self._trace_readers = self._trace_readers[:1]  # the second reads the worker's memory
            self._emulator.close()
            self._emulator = None

    def _worker_ended(self) -> None:
        """The worker died: only what it had in hand is lost, and a new one takes over."""
        status = self._emulator.process.poll() if self._emulator is not None else None
        self._note("worker ended", vm=self.config.name, status=status)
        self._stop_worker()
        now = time.monotonic()
        self._restarts = [then for then in self._restarts if now - then < RESTART_SECONDS] + [now]
        if len(self._restarts) <= RESTARTS:
            try:
                self._start_worker()
                return
            except (HostError, OSError) as error:
                self._note("worker not restarted", vm=self.config.name, reason=str(error))
                self._stop_worker()
        else:
            self._note("worker not restarted", vm=self.config.name, reason="it ended too often")
        self.dispatch.worker_unavailable()
        if self._partition is not None and self._partition.intercepts is not None:
            self._partition.intercepts.worker_unavailable()

    def _worker_broke(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.dispatch.broken_fd, 8)
        self._note("worker broke the protocol", vm=self.config.name)
        if self._emulator is not None:
            self._emulator.kill()  # its end is then seen as any other's

    # The guest.

    def _admit(self) -> Attachment | Refusal:
        intercepted = INTERCEPTED_PORTS if self.storage.guest_drives else None
        try:
            self._partition = self._hypervisor.create_child(self.config.memory, self.id, intercepted)
        except MemoryError as error:
            self._note("guest refused", vm=self.config.name, reason=str(error))
            return Refusal.NO_MEMORY
        memory, intercepts = self._partition.memory, self._partition.intercepts
        self.dispatch.attach(memory, self._partition.events, self._partition.doorbell, intercepts)
        if self._emulator is not None:
            with contextlib.suppress(HostError):  # it is dying: its end comes as an event of its own
                self._emulator.memory(memory, intercepts)
        pages = self._partition.memory.size // 4096
        self._server = VmbusServer(self._send, self, memory_pages=pages)
        self._channels = {}
        for controller in self.controllers:
            self._channels[self._server.offer(controller.offer())] = controller, 0
        self._note("guest attached", vm=self.config.name)
        return self._partition.attachment

    def _send(self, message: bytes) -> None:
        if self._endpoint is not None:
            self._endpoint.send(message)

    def _message(self, payload: bytes, connection: int) -> None:
        if self._server is not None:
            self._server.receive(payload, connection)

    def _guest_gone(self, reason: str) -> None:
        self._note("guest gone", vm=self.config.name, reason=reason)
        self._drop_guest()

    def _drop_guest(self) -> None:
        if self._source is not None:
            self._loop.remove(self._source)
            self._source = None
        if self._endpoint is not None:
            endpoint, self._endpoint = self._endpoint, None
            endpoint.close()
        if self._server is not None:
            self._server.disconnect()
            self._server = None
        for controller in self.controllers:
            self._close(controller, 0)
        for disk in self.storage:  # at the guest's ports too
            disk.delays(False)
        self.dispatch.detach()
        for disk in self.storage:
            disk.delays(True)
        if self._emulator is not None and self._partition is not None:
            with contextlib.suppress(HostError):
                self._emulator.memory(None)
        if self._partition is not None:
            self._partition.close()
            self._partition = None
        self._channels = {}

    # What the VMBus asks of its devices (hvcore.vmbus.server.Devices).

    def open_channel(self, channel: Channel, gpadl: Gpadl, downstream_page_offset: int) -> int | None:
        controller, sub = self._channels[channel]
        for disk in controller.units.values():
            disk.delays(True)
        opened = self.dispatch.open_channel(controller.number, sub, channel.relid, gpadl.pfns, downstream_page_offset)
        return STATUS_SUCCESS if opened else STATUS_UNSUCCESSFUL

    def close_channel(self, channel: Channel) -> bool:
        controller, sub = self._channels[channel]
        self._close(controller, sub)
        if sub == 0 and self._server is not None:  # storvsp.md 4.1: the sub-channels go with their primary
            for other, place in list(self._channels.items()):
                if place[0] is controller and place[1]:
                    self._server.rescind(other)
                    del self._channels[other]
        return True

    def gpadl_in_use(self, channel: Channel, gpadl: Gpadl) -> bool:
        return False  # storage names its pages in each request

    def retarget_channel(self, channel: Channel) -> None:
        pass  # one event page for all processors

    @property
    def controllers(self) -> list[Controller]:
        """Those of SCSI disks and those of single IDE disks."""
        of_disks = {disk.controller.number: disk.controller for disk in self.storage if disk.controller is not None}
        return list(({c.number: c for c in self.storage.controllers} | of_disks).values())

    def _close(self, controller: Controller, sub: int) -> None:
        """Returns when nothing of the channel is in flight. Disk accesses end; a worker may not, and is then ended."""
        for disk in controller.units.values():
            disk.delays(False)
        self._drain(controller, sub)
        if sub:  # the primary channel goes on
            for disk in controller.units.values():
                disk.delays(True)

    def _drain(self, controller: Controller, sub: int) -> None:
        if self.dispatch.close_channel(controller.number, sub, CLOSE_PATIENCE if controller.emulated else -1):
            return
        if self._emulator is not None:
            self._note("worker does not answer", vm=self.config.name)
            self._emulator.kill()
            self.dispatch.worker_lost()
        self.dispatch.close_channel(controller.number, sub)

    def _offer_sub_channels(self) -> None:
        """A guest asked for sub-channels (storvsp.md 4.3): those of each controller that are not offered yet."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.dispatch.sub_channel_fd, 8)
        if self._server is None:
            return
        offered = set(self._channels.values())
        for controller in self.storage.controllers:
            for sub in range(1, self.dispatch.sub_channels(controller.number) + 1):
                if (controller, sub) not in offered:
                    self._channels[self._server.offer(controller.offer(sub))] = controller, sub

    # What it does and what it cost.

    def _open_trace(self) -> None:
        if self._trace is None:
            return
        readers = self._trace_readers[:1] or [TraceReader(self._trace)]
        if self._emulator is not None:
            readers.append(TraceReader(memoryview(self._emulator.shared)[WORKER_TRACE]))
        self._trace_readers = readers

    def trace(self, enable: bool | None) -> dict[str, Any]:
        """Turns tracing on or off (None: leaves it), and returns the stamps since the last call, oldest first."""
        if self._trace is None:
            self._trace = Region.create(TRACE_BYTES, "hvcore-trace")
            self.dispatch.trace(self._trace)
            self._open_trace()
        stamps: list[list[int]] = []
        for reader in self._trace_readers:
            if enable is not None:
                reader.enable(enable)
            with contextlib.suppress(Error):  # a worker can write anything into its own ring
                stamps += [[e.time_ns, e.trace_id, e.key, e.hop, e.channel] for e in decode(reader.collect())]
        return {"stamps": sorted(stamps), "lost": sum(reader.lost for reader in self._trace_readers)}

    def counters(self) -> dict[str, Any]:
        """Counters of each disk since the VM was made, and context switches of the processes that serve it."""
        switches = context_switches(os.getpid())
        if self._emulator is not None:
            switches += context_switches(self._emulator.process.pid)
        return {
            "disks": [self._disk_counters(disk) for disk in self.storage],
            "context_switches": switches,
            "vmbus": self._server.inspect() if self._server is not None else None,
        }

    def _disk_counters(self, disk: VirtualDisk) -> dict[str, Any]:
        found: dict[str, Any] = dict(self.dispatch.counters(disk.index))
        if disk.controller is not None:
            found["channel"] = self.dispatch.inspect(disk.controller.number)
        return found | {"number": disk.number}

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.config.name,
            "id": str(self.id),
            "state": "running" if self.running else "stopped",
            "guest": self._server is not None,
            "memory": self.config.memory,
            "worker": self._emulator.process.pid if self._emulator is not None else None,
            "disks": [disk.describe() | {"size": disk.image.info.size} for disk in self.storage],
        }


def context_switches(pid: int) -> int:
    """Of all threads of a process so far; those that have ended are not counted."""
    total = 0
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                for line in (task / "status").read_text().splitlines():
                    if "ctxt_switches" in line:
                        total += int(line.split()[1])
    return total
