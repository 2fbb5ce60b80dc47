"""A disk of a child partition, as its applications use it."""

import asyncio
import errno
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from hvcore.errors import DiskError, ProtocolError
from hvcore.storage.vsc import Channel

if TYPE_CHECKING:
    from hvcore.partition.guest import Guest

NO_SPACE = (0x7, 0x27, 0x07)
Failure = tuple[int, int, int, bytes, bytes]
SENSE = {  # storvsp.md 10
    (0x3, 0x11): "unrecovered read error",
    (0x3, 0x03): "write fault",
    (0x4, 0x00): "hardware error",
    (0x5, 0x1A): "parameter list length error",
    (0x5, 0x20): "command not supported",
    (0x5, 0x21): "logical block address out of range",
    (0x5, 0x24): "invalid field in the command",
    (0x5, 0x26): "invalid field in the parameter list",
    (0x6, 0x2A): "the disk's capacity or parameters have changed",
    (0x7, 0x27): "the disk is write protected",
    (0xB, 0x00): "the command was aborted",
    (0xE, 0x1D): "the data differs from what the disk holds",
}
ERRNO = {0x3: errno.EIO, 0x5: errno.EINVAL, 0x7: errno.EROFS, 0xB: errno.EIO}


class Disk:
    """Offsets and lengths are bytes, multiples of sector_size and within the disk, else ValueError. A request that the
    device fails raises DiskError; TimeoutError after `timeout` seconds (None: never); GuestGone when the host ended.

    All calls may run at the same time from several threads. A buffer that is not guest memory is written on success
    only.
    """

    def __init__(self, guest: "Guest", channel: Channel, number: int, description: dict[str, Any]) -> None:
        self._guest = guest
        self.channel = channel
        self.number = number
        self.path: str = description["path"]
        self.ide_mode: str | None = description["ide_mode"] if self.path == "emulated" else None
        self.lun: int = description["lun"]
        inquiry = self._command(bytes([0x12, 0, 0, 0, 36, 0]), 36)
        if len(inquiry) < 36 or inquiry[0] != 0:
            raise ProtocolError(f"disk {number} does not identify itself as a disk")
        capacity = self._command(bytes([0x9E, 0x10]) + bytes(11) + bytes([32]) + bytes(2), 32)
        if len(capacity) < 12:
            raise ProtocolError(f"disk {number} does not say how large it is")
        self.sector_size = int.from_bytes(capacity[8:12], "big")
        if self.sector_size not in (512, 4096):
            raise ProtocolError(f"disk {number} has sectors of {self.sector_size} bytes")
        self.size = (int.from_bytes(capacity[:8], "big") + 1) * self.sector_size
        mode = self._command(bytes([0x1A, 0, 0x3F, 0, 4, 0]), 4)
        self.read_only = len(mode) >= 3 and bool(mode[2] & 0x80)

    # Commands.

    def _command(self, cdb: bytes, allocation: int = 0, data: bytes = b"", timeout: float | None = 30.0) -> bytes:
        srb, scsi, sense, received = self.channel.execute(cdb, data, allocation, lun=self.lun, timeout=timeout)
        if srb & 0x3F != 1 or scsi:
            raise self._error((0, srb, scsi, sense, b""), None)
        return received

    def _error(self, failure: Failure, blocks: int | None) -> DiskError:
        index, srb, scsi, sense, statuses = failure
        key, asc, ascq = (sense[2] & 0xF, sense[12], sense[13]) if len(sense) >= 14 else (0, 0, 0)
        where = f"request {index} of {blocks}: " if blocks is not None else ""
        text = f"SCSI status {scsi:#04x}"
        if (key, asc, ascq) == NO_SPACE:
            text = "no space left for the image"
        elif sense:
            text = SENSE.get((key, asc), f"sense {key:x}/{asc:02x}/{ascq:02x}")
        error = DiskError(
            f"disk {self.number}: {where}{text} (SRB status {srb & 0x3F:#04x})",
            srb_status=srb & 0x3F,
            scsi_status=scsi,
            sense_key=key,
            asc=asc,
            ascq=ascq,
            index=index if blocks is not None else None,
            statuses=[status & 0x3F for status in statuses] if blocks is not None else None,
        )
        error.errno = errno.ENOSPC if (key, asc, ascq) == NO_SPACE else ERRNO.get(key, errno.EIO)
        return error

    def _check(self, offset: int, length: int) -> None:
        if offset % self.sector_size or length % self.sector_size:
            raise ValueError(f"offset {offset} and length {length} are not multiples of {self.sector_size} bytes")
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{length} bytes at {offset} are not within the disk of {self.size} bytes")

    # Reading and writing.

    def read(self, offset: int, length: int, timeout: float | None = None) -> bytes:
        """`length` bytes from `offset`."""
        self._check(offset, length)
        if length == 0:
            return b""
        data, failure = self.channel.read(offset, length, self.sector_size, lun=self.lun, timeout=timeout)
        if failure is not None:
            raise self._error(failure, None)
        return data

    def readinto(self, offset: int, buffer: Any, timeout: float | None = None) -> None:
        """Fills a writable buffer; one of guest.alloc() without a copy."""
        self._run(False, offset, buffer, timeout)

    def write(self, offset: int, data: Any, timeout: float | None = None) -> None:
        """Writes a buffer; durable after the next flush()."""
        self._run(True, offset, data, timeout)

    def _run(self, write: bool, offset: int, buffer: Any, timeout: float | None) -> None:
        length = memoryview(buffer).nbytes
        self._check(offset, length)
        if length == 0:
            return
        failure = self.channel.transfer(
            write, None, offset, length, buffer, self.sector_size, lun=self.lun, timeout=timeout
        )
        if failure is not None:
            raise self._error(failure, None)

    def read_batch(self, offsets: Any, out: Any, queue_depth: int = 32, timeout: float | None = None) -> None:
        """Block n of `out` from offsets[n], with queue_depth requests in flight.

        offsets: (n,) uint64 bytes, or a sequence of integers. out: n equal blocks of bytes, as an (n, block) uint8
        array. A DiskError names the first block that failed, and the SRB status of each; the other blocks are read.
        """
        self._batch(False, offsets, out, queue_depth, timeout)

    def write_batch(self, offsets: Any, data: Any, queue_depth: int = 32, timeout: float | None = None) -> None:
        """Block n of `data` to offsets[n]; as read_batch."""
        self._batch(True, offsets, data, queue_depth, timeout)

    def _batch(self, write: bool, offsets: Any, blocks: Any, queue_depth: int, timeout: float | None) -> None:
        import numpy

        places = numpy.asarray(offsets)
        if places.ndim != 1 or (places.size and places.dtype.kind not in "iu"):
            raise ValueError("offsets are one dimension of integers")
        if places.size and int(places.min()) < 0:
            raise ValueError("an offset is negative")
        places = numpy.ascontiguousarray(places, dtype=numpy.uint64)
        view = memoryview(blocks)
        if not view.c_contiguous:
            raise ValueError("the blocks are not one contiguous buffer")
        if places.size == 0 or view.nbytes == 0 or view.nbytes % places.size:
            if places.size == 0 and view.nbytes == 0:
                return
            raise ValueError(f"{view.nbytes} bytes are not one equal block for each of {places.size} offsets")
        if not 1 <= queue_depth <= 256:
            raise ValueError(f"queue depth {queue_depth} is not between 1 and 256")
        block = view.nbytes // places.size
        sector = numpy.uint64(self.sector_size)
        if block % self.sector_size or bool((places % sector).any()):
            raise ValueError(f"offsets and blocks of {block} bytes must be multiples of {self.sector_size} bytes")
        if block > self.size or int(places.max()) > self.size - block:
            raise ValueError(f"a block is not within the disk of {self.size} bytes")
        failure = self.channel.transfer(
            write,
            places,
            0,
            block,
            view.cast("B") if view.ndim else view,
            self.sector_size,
            lun=self.lun,
            queue_depth=queue_depth,
            timeout=timeout,
        )
        if failure is not None:
            raise self._error(failure, int(places.size))

    def flush(self, timeout: float | None = None) -> None:
        """Every write that was completed before is durable when this returns."""
        self._command(bytes([0x35]) + bytes(9), timeout=timeout)

    def trim(self, offset: int, length: int, timeout: float | None = None) -> None:
        """The range's content is no longer needed (UNMAP): it reads as zeros or as before.

        DiskError where the image gives no space back (fixed VHD, VHDX). The VSP answers it on both paths.
        """
        self._check(offset, length)
        lba, left = offset // self.sector_size, length // self.sector_size
        while left:
            blocks = min(left, 0xFFFFFFFF)
            descriptor = lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(4)
            parameters = (22).to_bytes(2, "big") + (16).to_bytes(2, "big") + bytes(4) + descriptor
            self._command(
                bytes([0x42]) + bytes(6) + (24).to_bytes(2, "big") + bytes(1), data=parameters, timeout=timeout
            )
            lba, left = lba + blocks, left - blocks

    # The asyncio twins: the same calls, in a thread of the guest's.

    async def _await(self, call: Callable[[], Any]) -> Any:
        return await asyncio.wrap_future(self._guest.submit(call))

    async def aread(self, offset: int, length: int, timeout: float | None = None) -> bytes:
        data: bytes = await self._await(partial(self.read, offset, length, timeout))
        return data

    async def areadinto(self, offset: int, buffer: Any, timeout: float | None = None) -> None:
        await self._await(partial(self.readinto, offset, buffer, timeout))

    async def awrite(self, offset: int, data: Any, timeout: float | None = None) -> None:
        await self._await(partial(self.write, offset, data, timeout))

    async def aflush(self, timeout: float | None = None) -> None:
        await self._await(partial(self.flush, timeout))

    async def atrim(self, offset: int, length: int, timeout: float | None = None) -> None:
        await self._await(partial(self.trim, offset, length, timeout))

    async def aread_batch(self, offsets: Any, out: Any, queue_depth: int = 32, timeout: float | None = None) -> None:
        await self._await(partial(self.read_batch, offsets, out, queue_depth, timeout))

    async def awrite_batch(self, offsets: Any, data: Any, queue_depth: int = 32, timeout: float | None = None) -> None:
        await self._await(partial(self.write_batch, offsets, data, queue_depth, timeout))
