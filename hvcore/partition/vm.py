"""One VM in the host: its images, channels, worker and guest, put together and taken apart in order."""

import contextlib
import os
import select
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hvcore.disk.image import ImageInfo
from hvcore.disk.ops import Backend
from hvcore.dispatch.host import Dispatch
from hvcore.errors import Error, HostError, ImageError
from hvcore.hypervisor.partition import ChildPartition, Hypervisor
from hvcore.memory.region import Region
from hvcore.metrics.trace import TraceReader, decode
from hvcore.partition.config import IDE_MODES, DiskConfig, VmConfig
from hvcore.partition.emulator import Drive, Emulator
from hvcore.partition.loop import HANGUP, READ, WRITE, Loop
from hvcore.scsi.target import Target
from hvcore.storage.packet import SCSI_INTERFACE
from hvcore.vhd.live import checkpoint, open_live, settle
from hvcore.vmbus.attach import Refusal
from hvcore.vmbus.gpadl import Gpadl
from hvcore.vmbus.message import STATUS_SUCCESS, STATUS_UNSUCCESSFUL
from hvcore.vmbus.offers import Channel, Offer
from hvcore.vmbus.server import VmbusServer
from hvcore.vmbus.transport import Attachment, HostEndpoint

TRACE_BYTES = 1 << 20
WORKER_TRACE = slice(4096, 65536)  # of the memory shared with a worker (pyx/hvcore/dispatch/handover.pxd)
RESTARTS = 5  # of a worker within RESTART_SECONDS; then its disks fail until the next guest
RESTART_SECONDS = 30.0
CLOSE_PATIENCE = 5.0  # for a worker that holds a request of a closing channel

Event = Callable[..., None]


class _Watch:
    """A descriptor that only becomes readable once, as a source of the loop."""

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


class _Attached:
    """A guest's vmbus-user socket as a source of the loop."""

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


class VirtualDisk:
    """One disk of a VM: configuration, open image, place in the data path, channel offered to the guest."""

    def __init__(self, config: DiskConfig, image: "OpenImage", index: int, offer: Offer) -> None:
        self.config = config
        self.image = image
        self.index = index
        self.offer = offer

    def describe(self) -> dict[str, Any]:
        """What a guest's library has to know to find the disk."""
        return {
            "instance": str(self.offer.interface_instance),
            "lun": 0,
            "path": self.config.path,
            "ide_mode": self.config.ide_mode,
            "image": self.image.info.path,
            "parent": self.image.info.parent,
        }


class OpenImage:
    """An image that one or more disks of a VM share. info: what it is now; after a checkpoint that is the new child."""

    def __init__(self, disk: Backend, info: ImageInfo) -> None:
        self.disk = disk
        self.info = info


class Vm:
    """The VM's devices are what hvcore.vmbus.server asks (Devices). `note` records an event for people."""

    def __init__(self, loop: Loop, hypervisor: Hypervisor, config: VmConfig, number: int, note: Event) -> None:
        """Opens the images. ImageError, ValueError: nothing is left open."""
        hypervisor.check(config.memory)
        self.config = config
        self.id = uuid.uuid4()
        self.running = False
        self.disks: list[VirtualDisk] = []
        self._loop = loop
        self._hypervisor = hypervisor
        self._note = note
        self._images: dict[tuple[object, ...], OpenImage] = {}
        self._drives: list[Drive] = []
        self._emulator: Emulator | None = None
        self._watch: _Watch | None = None
        self._restarts: list[float] = []
        self._partition: ChildPartition | None = None
        self._server: VmbusServer | None = None
        self._endpoint: HostEndpoint | None = None
        self._source: _Attached | None = None
        self._trace: Region | None = None
        self._trace_readers: list[TraceReader] = []
        self._channels: dict[Channel, VirtualDisk] = {}
        self.dispatch = Dispatch()
        self._broken = _Watch(self.dispatch.broken_fd, self._worker_broke)
        try:
            for disk in config.disks:
                self._add_disk(disk, number)
        except BaseException:
            self.dispatch.close()
            self._close_images()
            raise

    # Disks.

    def _open(self, disk: DiskConfig) -> OpenImage:
        """Two disks of one VM may name the same image: they then share it, as its lock would keep the second out."""
        try:
            found = Path(disk.image).stat()
        except (OSError, ValueError) as error:
            raise ImageError(f"{disk.image}: {getattr(error, 'strerror', None) or error}") from None
        key = found.st_dev, found.st_ino, disk.format, disk.read_only, disk.sector_size
        image = self._images.get(key)
        if image is None:
            mode = "r" if disk.read_only else "r+"
            image = OpenImage(*open_live(disk.image, mode=mode, format=disk.format, sector_size=disk.sector_size))
            self._images[key] = image
        return image

    def _add_disk(self, disk: DiskConfig, number: int) -> None:
        opened = self._open(disk)
        image = opened.disk
        identity = uuid.uuid5(self.id, str(len(self.disks)))
        target = Target(image, id=identity.bytes, serial=identity.hex[:20])
        place = {}
        if disk.path == "emulated":
            if image.sector_size != 512:
                raise ValueError(f"{disk.image}: an IDE disk has sectors of 512 bytes, not {image.sector_size}")
            if image.size > 512 << 48:
                raise ValueError(f"{disk.image}: an IDE disk has at most 2**48 sectors")
            channel, drive = divmod(len(self._drives), 2)
            physical = image.physical_sector_size
            self._drives.append((channel, drive, image.size // 512, image.read_only, identity.hex[:20], physical))
            place = {"channel": channel, "drive": drive, "mode": IDE_MODES.index(disk.ide_mode)}
        index = self.dispatch.add_disk(target, disk.path, vm=number, **place)
        self.disks.append(VirtualDisk(disk, opened, index, Offer(SCSI_INTERFACE, identity)))

    def _close_images(self) -> None:
        for image in self._images.values():
            try:
                image.disk.close()
            except Error as error:
                self._note("image not closed cleanly", vm=self.config.name, image=image.info.path, reason=str(error))
        self._images.clear()

    def _settle_images(self) -> None:
        """A stopped VM's images can be copied: nothing in them waits for a log's replay."""
        for image in self._images.values():
            try:
                settle(image.disk)
            except Error as error:
                self._note("image not closed cleanly", vm=self.config.name, image=image.info.path, reason=str(error))

    def checkpoint(self, disk: int, image: str) -> dict[str, Any]:
        """From now on disk number `disk` writes into the new differencing image `image`, on top of the present one."""
        if not isinstance(disk, int) or not 0 <= disk < len(self.disks):
            raise ValueError(f"{self.config.name} has no disk {disk!r}")
        if not isinstance(image, str) or not image or "\0" in image:
            raise ValueError(f"a checkpoint's image is the name of a new file, not {image!r}")
        opened = self.disks[disk].image
        opened.info = checkpoint(opened.disk, opened.info, image)
        self._note("checkpoint", vm=self.config.name, disk=disk, image=image)
        return self.describe()

    # Life.

    def start(self) -> None:
        """Starts the worker, when there are emulated disks. HostError when it does not come up."""
        if self.running:
            raise HostError(f"{self.config.name} is running already")
        if self._drives:
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
        if self._drives and self._emulator is None:
            self._restarts.clear()
            self._start_worker()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._endpoint = HostEndpoint(ours, self._admit, self._message, self._guest_gone)
        self._source = _Attached(self._endpoint)
        self._loop.add(self._source)
        return theirs.detach(), [disk.describe() for disk in self.disks]

    def stop(self) -> None:
        """Ends guest and worker; the VM may be started again. Idempotent."""
        if self._endpoint is not None:
            self._drop_guest()
            self._note("guest stopped", vm=self.config.name)
        if self.running and self._drives:
            self._loop.remove(self._broken)
        self._stop_worker()
        if self.running:
            self.running = False
            self._settle_images()
            self._note("stopped", vm=self.config.name)

    def close(self) -> None:
        """Stops, and closes the images. Idempotent."""
        self.stop()
        self._trace_readers.clear()
        self.dispatch.close()
        self._close_images()

    # The worker.

    def _start_worker(self) -> None:
        memory = self._partition.memory if self._partition is not None else None
        self._emulator = Emulator(self.dispatch, self._drives, memory)
        self._watch = _Watch(self._emulator.pidfd, self._worker_ended)
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

    def _worker_broke(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.dispatch.broken_fd, 8)
        self._note("worker broke the protocol", vm=self.config.name)
        if self._emulator is not None:
            self._emulator.kill()  # its end is then seen as any other's

    # The guest.

    def _admit(self) -> Attachment | Refusal:
        try:
            self._partition = self._hypervisor.create_child(self.config.memory, self.id)
        except MemoryError as error:
            self._note("guest refused", vm=self.config.name, reason=str(error))
            return Refusal.NO_MEMORY
        self.dispatch.attach(self._partition.memory, self._partition.events, self._partition.doorbell)
        if self._emulator is not None:
            with contextlib.suppress(HostError):  # it is dying: its end comes as an event of its own
                self._emulator.memory(self._partition.memory)
        pages = self._partition.memory.size // 4096
        self._server = VmbusServer(self._send, self, memory_pages=pages)
        self._channels = {self._server.offer(disk.offer): disk for disk in self.disks}
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
        for disk in self.disks:
            self._close_disk(disk)
        self.dispatch.detach()
        if self._emulator is not None and self._partition is not None:
            with contextlib.suppress(HostError):
                self._emulator.memory(None)
        if self._partition is not None:
            self._partition.close()
            self._partition = None
        self._channels = {}

    # What the VMBus asks of its devices (hvcore.vmbus.server.Devices).

    def open_channel(self, channel: Channel, gpadl: Gpadl, downstream_page_offset: int) -> int | None:
        disk = self._channels[channel]
        opened = self.dispatch.open_channel(disk.index, channel.relid, gpadl.pfns, downstream_page_offset)
        return STATUS_SUCCESS if opened else STATUS_UNSUCCESSFUL

    def close_channel(self, channel: Channel) -> bool:
        self._close_disk(self._channels[channel])
        return True

    def gpadl_in_use(self, channel: Channel, gpadl: Gpadl) -> bool:
        return False  # storage names its pages in each request

    def retarget_channel(self, channel: Channel) -> None:
        pass  # one event page for all processors

    def _close_disk(self, disk: VirtualDisk) -> None:
        """Returns when nothing of the channel is in flight. Disk accesses end; a worker may not, and is then ended."""
        if self.dispatch.close_channel(disk.index, CLOSE_PATIENCE if disk.config.path == "emulated" else -1):
            return
        if self._emulator is not None:
            self._note("worker does not answer", vm=self.config.name)
            self._emulator.kill()
            self.dispatch.worker_lost()
        self.dispatch.close_channel(disk.index)

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
            "disks": [
                self.dispatch.counters(disk.index) | {"channel": self.dispatch.inspect(disk.index)}
                for disk in self.disks
            ],
            "context_switches": switches,
            "vmbus": self._server.inspect() if self._server is not None else None,
        }

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.config.name,
            "id": str(self.id),
            "state": "running" if self.running else "stopped",
            "guest": self._server is not None,
            "memory": self.config.memory,
            "worker": self._emulator.process.pid if self._emulator is not None else None,
            "disks": [disk.describe() | {"size": disk.image.info.size} for disk in self.disks],
        }


def hung_up(fd: int) -> bool:
    """Whether the other end of a socket is closed."""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


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
