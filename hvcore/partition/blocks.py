"""What every disk of a guest has in common, whatever path its requests take."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from hvcore.errors import DiskError
from hvcore.partition.failure import Failure

if TYPE_CHECKING:
    from hvcore.partition.guest import Guest

DEPTH_MAX = 256


class Blocks:
    """Requests of many blocks at once, and the asyncio twins of a disk's calls."""

    # Of the disk, like its read(), readinto(), write(), flush() and trim().
    _guest: "Guest"
    _error: Callable[[Failure, int | None], DiskError]
    # Moves block n of a buffer from or to byte places[n], queue_depth at a time; what failed.
    _many: Callable[[bool, Any, int, memoryview, int, float | None], Failure | None]
    _present: Callable[[], None]
    read: Callable[..., bytes]
    readinto: Callable[..., None]
    write: Callable[..., None]
    flush: Callable[..., None]
    trim: Callable[..., None]
    size: int
    sector_size: int

    # Many at once.

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

        self._present()
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
        if not 1 <= queue_depth <= DEPTH_MAX:
            raise ValueError(f"queue depth {queue_depth} is not between 1 and {DEPTH_MAX}")
        block = view.nbytes // places.size
        sector = numpy.uint64(self.sector_size)
        if block % self.sector_size or bool((places % sector).any()):
            raise ValueError(f"offsets and blocks of {block} bytes must be multiples of {self.sector_size} bytes")
        if block > self.size or int(places.max()) > self.size - block:
            raise ValueError(f"a block is not within the disk of {self.size} bytes")
        failure = self._many(write, places, block, view.cast("B") if view.ndim else view, queue_depth, timeout)
        if failure is not None:
            raise self._error(failure, int(places.size))

    # The asyncio twins: the same calls, in a thread of the guest's.

    async def _await(self, call: Callable[[], Any]) -> Any:
        return await asyncio.wrap_future(self._guest.submit(call))

    async def aread(self, offset: int, length: int, timeout: float | None = None) -> bytes:
        data: bytes = await self._await(partial(self.read, offset, length, timeout))
        return data

    async def areadinto(self, offset: int, buffer: Any, timeout: float | None = None) -> None:
        await self._await(partial(self.readinto, offset, buffer, timeout))

    async def awrite(self, offset: int, data: Any, timeout: float | None = None, *, fua: bool = False) -> None:
        await self._await(partial(self.write, offset, data, timeout, fua=fua))

    async def aflush(self, timeout: float | None = None) -> None:
        await self._await(partial(self.flush, timeout))

    async def atrim(self, offset: int, length: int, timeout: float | None = None) -> None:
        await self._await(partial(self.trim, offset, length, timeout))

    async def aread_batch(self, offsets: Any, out: Any, queue_depth: int = 32, timeout: float | None = None) -> None:
        await self._await(partial(self.read_batch, offsets, out, queue_depth, timeout))

    async def awrite_batch(self, offsets: Any, data: Any, queue_depth: int = 32, timeout: float | None = None) -> None:
        await self._await(partial(self.write_batch, offsets, data, queue_depth, timeout))
