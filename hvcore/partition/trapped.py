"""Disks that a guest reaches through the ports of its IDE controller: the trapped path, seen from the child."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hvcore.errors import DiskError, ProtocolError
from hvcore.ide.requester import Channel, VirtualProcessor
from hvcore.linux.quota import usable_cpus
from hvcore.memory.region import Region
from hvcore.partition.blocks import Blocks
from hvcore.partition.failure import Failure, disk_error

if TYPE_CHECKING:
    from hvcore.dispatch.requesters import DriveRequester
    from hvcore.partition.guest import Guest

IDE_MODES = ("dma", "pio", "pio-string", "pio-multiple")
ROOMY = 16 << 20  # guest memory from which on a channel has more of it for itself
BOUNCE_BYTES = 0x20000  # 256 sectors: the most that one 28-bit command moves
SMALL_BOUNCE_BYTES = 0x8000
SECTOR = 512
ERR, BUSY = 0x01, 0x80
UNC, IDNF, ABRT = 0x40, 0x10, 0x04
RANGES = 64  # of one block of DATA SET MANAGEMENT (ide.md 3.3)
RANGE_SECTORS = 65535

# ATA error to sense key, ASC, ASCQ and SRB status, as the host's own storage stack reports the same failures
# (ide.md 1.4, storvsp.md 10).
UNRECOVERED_READ = (0x3, 0x11, 0x00)
WRITE_FAULT = (0x3, 0x03, 0x00)
OUT_OF_RANGE = (0x5, 0x21, 0x00)
WRITE_PROTECTED = (0x7, 0x27, 0x00)
ABORTED = (0xB, 0x00, 0x00)
SRB_ERROR, SRB_ABORTED = 0x04, 0x02


class Controller:
    """The guest's IDE controller: one virtual processor, and a channel for each that has drives."""

    def __init__(self, memory: Region, intercepts: Region, allocate: Callable[[int], int]) -> None:
        """memory, intercepts: mapped. allocate: see hvcore.ide.requester.Channel."""
        # Host, worker and child are three waiters: where CPUs are short this one gives its own up while the host reads
        # or writes. The answers to port accesses come too soon for that.
        self.processor = VirtualProcessor(memory, intercepts, spins=usable_cpus() >= 3)
        self._bounce = BOUNCE_BYTES if memory.size >= ROOMY else SMALL_BOUNCE_BYTES
        self._allocate = allocate
        self._channels: dict[int, Channel] = {}

    def channel(self, number: int) -> Channel:
        if number not in self._channels:
            self._channels[number] = Channel(self.processor, number, self._allocate, self._bounce)
        return self._channels[number]

    def end(self) -> None:
        """Every wait ends with GuestGone, now and later."""
        self.processor.end()


class Drive:
    """One drive of a channel, with the calls that a Disk makes of its channel."""

    def __init__(self, channel: Channel, number: int, mode: str, read_only: bool) -> None:
        self.channel = channel
        self.number = number
        self.mode = IDE_MODES.index(mode)
        self.read_only = read_only

    def read(
        self, offset: int, length: int, sector_size: int, *, lun: int = 0, timeout: float | None = None
    ) -> tuple[bytes, None] | tuple[None, Failure]:
        data, failure = self.channel.read(self.number, self.mode, offset, length, timeout)
        if failure is not None:
            return None, self.failed(failure, write=False)
        assert data is not None
        return data, None

    def transfer(
        self,
        write: bool,
        offsets: Any,
        offset: int,
        block: int,
        buffer: Any,
        sector_size: int,
        *,
        lun: int = 0,
        queue_depth: int = 1,
        timeout: float | None = None,
    ) -> Failure | None:
        """An IDE channel runs one command at a time, whatever the queue depth."""
        failure = self.channel.transfer(self.number, self.mode, write, offsets, offset, block, buffer, timeout)
        return self.failed(failure, write) if failure is not None else None

    def failed(self, failure: tuple[int, str, int, int, int, bytes], write: bool) -> Failure:
        index, outcome, status, error, _, failed = failure
        srb, sense = SRB_ERROR, WRITE_FAULT if write else UNRECOVERED_READ
        if outcome != "error":  # the bus master, the protocol, or no controller at all
            srb, sense = SRB_ABORTED, ABORTED
        elif error & IDNF:
            sense = OUT_OF_RANGE
        elif write and self.read_only and error & ABRT:
            sense = WRITE_PROTECTED
        key, asc, ascq = sense
        block = bytes([0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0])
        # The device's own words travel in the vendor's bytes of the block.
        block += bytes([status, error])
        return index, srb, 2, block, bytes(srb if one else 1 for one in failed)

    def counters(self) -> dict[str, int]:
        """Of the whole channel and its processor."""
        mine, processor = self.channel.counters(), self.channel.processor.counters()
        return processor | mine | {"blocking_waits": mine["blocking_waits"] + processor["blocking_waits"]}


class TrappedDisk(Blocks):
    """A disk behind the guest's IDE controller. Calls and errors are a Disk's; a DiskError has ata_status and ata_error
    beside the SRB status and sense that they amount to.

    Requests run one at a time per IDE channel, which two disks may share; a batch's queue depth changes nothing. A
    controller whose worker died is reset, and what it had not completed is done again, a few times; then the request
    fails.
    """

    def __init__(self, guest: "Guest", controller: Controller, number: int, description: dict[str, Any]) -> None:
        self._guest = guest
        self.number = number
        self.path = description["path"]
        self.ide_mode = description["ide_mode"]
        self.lun = 0
        self.read_only = bool(description["read_only"])
        place = description["place"]
        self.drive = Drive(controller.channel(place // 2), place % 2, description["ide_mode"], self.read_only)
        self.channel = self.drive
        identify = self.drive.channel.identify(place % 2)
        if identify is None:
            raise ProtocolError(f"disk {number} does not answer at drive {place % 2} of IDE channel {place // 2}")
        self.sector_size = SECTOR
        self.size = int.from_bytes(identify[200:208], "little") * SECTOR
        if self.size == 0:
            raise ProtocolError(f"disk {number} does not say how large it is")
        self.can_trim = bool(identify[2 * 169] & 1)
        swapped = bytes(identify[at ^ 1] for at in range(len(identify)))
        self.model = swapped[54:94].decode("ascii", "replace").strip()
        self.serial = swapped[20:40].decode("ascii", "replace").strip()

    def _present(self) -> None:
        """An IDE disk stays for as long as its guest."""

    def _check(self, offset: int, length: int) -> None:
        if offset % SECTOR or length % SECTOR:
            raise ValueError(f"offset {offset} and length {length} are not multiples of {SECTOR} bytes")
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{length} bytes at {offset} are not within the disk of {self.size} bytes")

    def read(self, offset: int, length: int, timeout: float | None = None) -> bytes:
        """`length` bytes from `offset`."""
        self._check(offset, length)
        if length == 0:
            return b""
        data, failure = self.drive.read(offset, length, SECTOR, timeout=timeout)
        if data is None:
            assert failure is not None
            raise self._error(failure, None)
        return data

    def readinto(self, offset: int, buffer: Any, timeout: float | None = None) -> None:
        """Fills a writable buffer; one of guest.alloc() without a copy by DMA."""
        self._move(False, offset, buffer, timeout)

    def write(self, offset: int, data: Any, timeout: float | None = None, *, fua: bool = False) -> None:
        """Writes a buffer; durable after the next flush(), or with fua when this returns."""
        self._move(True, offset, data, timeout)
        if fua:
            self.flush(timeout)

    def _move(self, write: bool, offset: int, buffer: Any, timeout: float | None) -> None:
        length = memoryview(buffer).nbytes
        self._check(offset, length)
        if length:
            failure = self.drive.transfer(write, None, offset, length, buffer, SECTOR, timeout=timeout)
            if failure is not None:
                raise self._error(failure, None)

    def _many(
        self, write: bool, places: Any, block: int, view: memoryview, queue_depth: int, timeout: float | None
    ) -> Failure | None:
        return self.drive.transfer(write, places, 0, block, view, SECTOR, queue_depth=queue_depth, timeout=timeout)

    def _error(self, failure: Failure, blocks: int | None) -> DiskError:
        error = disk_error(self.number, failure, blocks)
        error.ata_status, error.ata_error = failure[3][18], failure[3][19]
        text = "the IDE controller was lost or reset" if failure[1] == SRB_ABORTED else "ATA"
        error.args = (f"{error.args[0]}, {text} status {error.ata_status:#04x} error {error.ata_error:#04x}",)
        return error

    def requester(self) -> "DriveRequester":
        """What takes the load generator's requests."""
        from hvcore.dispatch.requesters import DriveRequester

        drive = self.drive
        return DriveRequester(drive.channel, drive.number, drive.mode, self.size, read_only=self.read_only)

    def counters(self) -> dict[str, int]:
        """What the guest's end of its channel cost beyond the port accesses, which the host counts by the drive."""
        found = self.drive.counters()
        return {name: found[name] for name in ("bytes_copied", "doorbells", "blocking_waits")}

    def _done(self, failure: tuple[int, str, int, int, int, bytes] | None) -> None:
        if failure is not None:
            raise self._error(self.drive.failed(failure, write=True), None)

    def flush(self, timeout: float | None = None) -> None:
        self._done(self.drive.channel.flush(self.drive.number, timeout))

    def trim(self, offset: int, length: int, timeout: float | None = None) -> None:
        """The range's content is no longer needed (DATA SET MANAGEMENT): it reads as zeros or as before.

        DiskError where the drive does not offer it.
        """
        self._check(offset, length)
        lba, left = offset // SECTOR, length // SECTOR
        while left:
            block = b""
            while left and len(block) < 8 * RANGES:
                sectors = min(left, RANGE_SECTORS)
                block += (lba | sectors << 48).to_bytes(8, "little")
                lba, left = lba + sectors, left - sectors
            self._done(self.drive.channel.trim(self.drive.number, block.ljust(8 * RANGES, b"\0"), timeout))
