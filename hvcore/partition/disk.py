"""A disk of a child partition, as its applications use it."""

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from hvcore.errors import DiskError, ProtocolError
from hvcore.partition.adapter import Adapter, check_policy
from hvcore.partition.blocks import Blocks
from hvcore.partition.failure import MISCOMPARE, SRB_INVALID_LUN, Failure, disk_error
from hvcore.storage.unit import Unit
from hvcore.storage.vsc import Channel

if TYPE_CHECKING:
    from hvcore.partition.guest import Guest

IDENTITY_BYTES = 252
COMPARE_BLOCKS = 255  # of one COMPARE AND WRITE
VERIFY_BYTES = 1 << 18  # of one VERIFY, at most
WRITE_SAME_BYTES = 8 << 20  # of one WRITE SAME (storvsp.md 9.3)
STATUS_BYTES = 8 + 16 * 255
STATUS = ("mapped", "deallocated", "anchored")  # storvsp.md 9.10


class Extent(NamedTuple):
    """A part of a disk, in bytes; status: "mapped" (it takes space), "deallocated" or "anchored"."""

    offset: int
    length: int
    status: str


class Disk(Unit, Blocks):
    """Offsets and lengths are bytes, multiples of sector_size and within the disk, else ValueError. A request that the
    device fails raises DiskError; TimeoutError after `timeout` seconds (None: never); GuestGone when the host ended.
    ready(), read(), readinto() and write() are those of hvcore.storage.unit.

    All calls may run at the same time from several threads. A buffer that is not guest memory is written on success
    only. A command that the device did not take, because it had enough to do or a unit attention to report, is sent
    again. `size` follows the device (Guest.wait_for_change); a disk that was removed has `removed` set and fails every
    call with DiskError.
    """

    _adapter: Adapter

    def __init__(self, guest: "Guest", adapter: Adapter, lun: int, number: int) -> None:
        self._guest = guest
        self._adapter = adapter
        self.channel = adapter.primary.channel
        self.number = number
        self.lun = lun
        self.path: str = adapter.facts["path"]
        self.ide_mode: str | None = adapter.facts["ide_mode"] if self.path == "emulated" else None
        self.removed = False
        self.altered = False  # by the last refresh()
        self._policy = guest.queue_policy
        self._seen_attentions = self.channel.attentions(lun)[0]
        inquiry = self._command(bytes([0x12, 0, 0, 0, 36, 0]), 36)
        if len(inquiry) < 36 or inquiry[0] != 0:
            raise ProtocolError(f"disk {number} does not identify itself as a disk")
        self._identity = self._identify()
        self.sector_size, self.size = self._capacity()
        self.read_only = self._write_protected()

    # What the device says of itself.

    def _identify(self) -> bytes:
        """VPD page 83: the same for as long as it is the same disk."""
        return self._command(bytes([0x12, 1, 0x83, 0, IDENTITY_BYTES, 0]), IDENTITY_BYTES)

    def _capacity(self) -> tuple[int, int]:
        capacity = self._command(bytes([0x9E, 0x10]) + bytes(11) + bytes([32]) + bytes(2), 32)
        if len(capacity) < 12:
            raise ProtocolError(f"disk {self.number} does not say how large it is")
        sector = int.from_bytes(capacity[8:12], "big")
        if sector not in (512, 4096):
            raise ProtocolError(f"disk {self.number} has sectors of {sector} bytes")
        size = (int.from_bytes(capacity[:8], "big") + 1) * sector
        if size >= 1 << 63:
            raise ProtocolError(f"disk {self.number} says that it has {size} bytes")
        return sector, size

    def _write_protected(self) -> bool:
        mode = self._command(bytes([0x1A, 0, 0x3F, 0, 4, 0]), 4)
        return len(mode) >= 3 and bool(mode[2] & 0x80)

    def refresh(self) -> bool:
        """Asks the device again for its size and write protection; `altered` says whether they are others than before.
        False: there is another disk at its place, or one with other sectors."""
        if self._identify() != self._identity:
            return False
        sector, size = self._capacity()
        if sector != self.sector_size:
            return False
        read_only = self._write_protected()
        self.altered = (size, read_only) != (self.size, self.read_only)
        self.size, self.read_only = size, read_only
        return True

    @property
    def attentions(self) -> list[tuple[int, int]]:
        """(ASC, ASCQ) of the last unit attentions that the device reported to a command, which was then sent again."""
        return [code for channel in self._adapter.channels for code in channel.attentions(self.lun)[1]]

    def new_attentions(self) -> bool:
        """Whether it reported one since the last call."""
        seen, self._seen_attentions = self._seen_attentions, self.channel.attentions(self.lun)[0]
        return seen != self._seen_attentions

    # Commands.

    @property
    def queue_policy(self) -> str:
        """Which channel of several a call goes to: "thread" (each thread has its own), "round-robin" or "least-busy".
        With the latter two a batch is spread over all."""
        return self._policy

    @queue_policy.setter
    def queue_policy(self, policy: str) -> None:
        self._policy = check_policy(policy)

    def _queue(self) -> Channel:
        return self._adapter.single or self._adapter.choose(self._policy)

    def _present(self) -> None:
        if self.removed:
            raise disk_error(self.number, (0, SRB_INVALID_LUN, 0x02, b"", b""))

    def execute(
        self, cdb: bytes, data: Any = b"", allocation: int = 0, timeout: float | None = None
    ) -> tuple[int, bytes, bytes]:
        """Any SCSI command: (SCSI status, sense, data). `data` goes to the device, or up to `allocation` bytes come.
        Nothing is sent again. DiskError when the device did not execute it (it is gone, or aborted the command)."""
        self._present()
        srb, scsi, sense, received = self._queue().execute(cdb, data, allocation, lun=self.lun, timeout=timeout)
        if srb & 0x3F != 1 and not sense and scsi in (0, 0x02):
            raise self._error((0, srb, scsi, sense, b""), None)
        return scsi, sense, received

    def _command(self, cdb: bytes, allocation: int = 0, data: Any = b"", timeout: float | None = 30.0) -> bytes:
        self._present()
        srb, scsi, sense, received = self._queue().execute(
            cdb, data, allocation, lun=self.lun, timeout=timeout, patient=True
        )
        if srb & 0x3F != 1 or scsi:
            raise self._error((0, srb, scsi, sense, b""), None)
        return received

    def _error(self, failure: Failure, blocks: int | None) -> DiskError:
        if failure[1] & 0x3F == SRB_INVALID_LUN and not self.removed:
            self._guest.forget(self)  # the host's notice comes behind
        return disk_error(self.number, failure, blocks)

    def _check(self, offset: int, length: int) -> None:
        if offset % self.sector_size or length % self.sector_size:
            raise ValueError(f"offset {offset} and length {length} are not multiples of {self.sector_size} bytes")
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{length} bytes at {offset} are not within the disk of {self.size} bytes")
        if self.removed:
            self._present()

    def _many(
        self, write: bool, places: Any, block: int, view: memoryview, queue_depth: int, timeout: float | None
    ) -> Failure | None:
        channel, also = self._adapter.choose_all(self._policy)
        return channel.transfer(
            write,
            places,
            0,
            block,
            view,
            self.sector_size,
            lun=self.lun,
            queue_depth=queue_depth,
            timeout=timeout,
            also=also,
        )

    # What is not reading and writing.

    def flush(self, timeout: float | None = None) -> None:
        """Every write that was completed before is durable when this returns."""
        self._command(bytes([0x35]) + bytes(9), timeout=timeout)

    def trim(self, offset: int, length: int, timeout: float | None = None) -> None:
        """The range's content is no longer needed (UNMAP): it reads as zeros or as before.

        DiskError where the image gives no space back (fixed VHD, VHDX). The VSP answers it on both paths.
        """
        self._check(offset, length)
        for lba, blocks in self._parts(offset, length, 0xFFFFFFFF):
            descriptor = lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(4)
            parameters = (22).to_bytes(2, "big") + (16).to_bytes(2, "big") + bytes(4) + descriptor
            self._command(
                bytes([0x42]) + bytes(6) + (24).to_bytes(2, "big") + bytes(1), data=parameters, timeout=timeout
            )

    def write_zeroes(self, offset: int, length: int, timeout: float | None = None) -> None:
        """The range reads as zeros afterwards (WRITE SAME); no data travels."""
        self._check(offset, length)
        for lba, blocks in self._parts(offset, length, WRITE_SAME_BYTES // self.sector_size):
            self._command(_cdb16(0x93, 0x01, lba, blocks), timeout=timeout)

    def verify(self, offset: int, data: Any, timeout: float | None = None) -> None:
        """The device compares the disk's content with `data`; DiskError with sense key 0xE where they differ."""
        with memoryview(data) as view, view.cast("B") as flat:
            self._check(offset, flat.nbytes)
            most = min(self.channel.max_transfer, VERIFY_BYTES) // self.sector_size
            for lba, blocks in self._parts(offset, flat.nbytes, most):
                at = lba * self.sector_size - offset
                part = flat[at : at + blocks * self.sector_size]
                self._command(_cdb16(0x8F, 0x02, lba, blocks), data=part, timeout=timeout)

    def compare_and_write(self, offset: int, expected: Any, data: Any, timeout: float | None = None) -> bool:
        """Writes `data` if the disk holds `expected` there, in one step that nothing comes between; whether it did."""
        expected, data = bytes(expected), bytes(data)
        if len(expected) != len(data):
            raise ValueError(f"{len(expected)} bytes are expected and {len(data)} are to be written")
        self._check(offset, len(data))
        lba, blocks = offset // self.sector_size, len(data) // self.sector_size
        if not 1 <= blocks <= COMPARE_BLOCKS:
            raise ValueError(f"compare_and_write() takes 1 to {COMPARE_BLOCKS} sectors, not {blocks}")
        cdb = bytes([0x89, 0]) + lba.to_bytes(8, "big") + bytes(3) + bytes([blocks, 0, 0])
        try:
            self._command(cdb, data=expected + data, timeout=timeout)
        except DiskError as error:
            if error.sense_key == MISCOMPARE:
                return False
            raise
        return True

    def status(self, offset: int = 0, length: int | None = None, timeout: float | None = None) -> list[Extent]:
        """Which parts of a range take space in the image (GET LBA STATUS), in order."""
        length = self.size - offset if length is None else length
        self._check(offset, length)
        extents: list[Extent] = []
        end = offset + length
        while offset < end:
            lba = offset // self.sector_size
            cdb = bytes([0x9E, 0x12]) + lba.to_bytes(8, "big") + STATUS_BYTES.to_bytes(4, "big") + bytes(2)
            data = self._command(cdb, STATUS_BYTES, timeout=timeout)
            found = _extents(data, self.sector_size)
            if not found or found[0].offset != offset:
                raise ProtocolError(f"disk {self.number} does not say what is at byte {offset}")
            for extent in found:
                if extent.offset != offset or extent.length == 0:
                    raise ProtocolError(f"disk {self.number} describes its extents out of order")
                kept = extent._replace(length=min(extent.length, end - offset))
                if extents and extents[-1].status == kept.status:
                    extents[-1] = extents[-1]._replace(length=extents[-1].length + kept.length)
                else:
                    extents.append(kept)
                offset += kept.length
                if offset == end:
                    break
        return extents

    def _parts(self, offset: int, length: int, most: int) -> list[tuple[int, int]]:
        """(LBA, blocks) of commands of at most so many blocks."""
        first, end = offset // self.sector_size, (offset + length) // self.sector_size
        return [(lba, min(most, end - lba)) for lba in range(first, end, most)]

    # The asyncio twins: the same calls, in a thread of the guest's.

    async def aready(self, timeout: float | None = None) -> None:
        await self._await(partial(self.ready, timeout))

    async def awrite_zeroes(self, offset: int, length: int, timeout: float | None = None) -> None:
        await self._await(partial(self.write_zeroes, offset, length, timeout))

    async def averify(self, offset: int, data: Any, timeout: float | None = None) -> None:
        await self._await(partial(self.verify, offset, data, timeout))

    async def acompare_and_write(self, offset: int, expected: Any, data: Any, timeout: float | None = None) -> bool:
        written: bool = await self._await(partial(self.compare_and_write, offset, expected, data, timeout))
        return written

    async def astatus(self, offset: int = 0, length: int | None = None, timeout: float | None = None) -> list[Extent]:
        extents: list[Extent] = await self._await(partial(self.status, offset, length, timeout))
        return extents


def _cdb16(operation: int, bits: int, lba: int, blocks: int) -> bytes:
    return bytes([operation, bits]) + lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(2)


def _extents(data: bytes, sector_size: int) -> list[Extent]:
    """Of a GET LBA STATUS answer: as many whole descriptors as it has."""
    extents = []
    for at in range(8, len(data) - 15, 16):
        lba, blocks = int.from_bytes(data[at : at + 8], "big"), int.from_bytes(data[at + 8 : at + 12], "big")
        kind = data[at + 12] & 0xF
        status = STATUS[kind] if kind < len(STATUS) else f"status {kind}"
        extents.append(Extent(lba * sector_size, blocks * sector_size, status))
    return extents
