"""Moving what one disk holds into another: only what is there, reading ahead, in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from hvcore.disk.ops import Backend

CHUNK = 2 << 20
AHEAD = 4
# Of one write. A file system may ask for as much contiguous memory as a write has bytes; from 1 MiB on, the search for
# it can cost several times what the copy does.
PIECE = 512 << 10
WRITE_BACK = 64 << 20


class Source(Protocol):
    """What is copied from: any Backend or Image."""

    def readinto(self, offset: int, buffer: object) -> None: ...


def aligned(ranges: Iterator[tuple[int, int]], step: int) -> Iterator[tuple[int, int]]:
    """Ascending, disjoint ranges (offset, length) with borders at multiples of `step`, joined where they then touch."""
    start = end = 0
    for offset, length in ranges:
        low, high = offset - offset % step, -(-(offset + length) // step) * step
        if low > end:
            if end > start:
                yield start, end - start
            start = low
        end = max(end, high)
    if end > start:
        yield start, end - start


def chunks(extents: Iterator[tuple[int, int]], limit: int, size: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Cuts ranges (offset, length) at `limit` and at multiples of `size`, joining what lies in one such piece."""
    start = end = 0
    for offset, length in extents:
        stop = min(offset + length, limit)
        while offset < stop:
            if offset != end or offset % size == 0:
                if end > start:
                    yield start, end - start
                start = offset
            end = min(stop, offset - offset % size + size)
            offset = end
    if end > start:
        yield start, end - start


def filled(buffer: bytearray, offset: int, grain: int) -> Iterator[tuple[int, int]]:
    """The parts (first, end) of what lies at `offset` of a disk that are not whole grains of zeros.

    A grain begins at a multiple of `grain` on the disk; those at the borders of the buffer may be cut.
    """
    nothing = bytes(min(grain, len(buffer)))
    start, at = None, 0
    while at < len(buffer):
        end = min(len(buffer), at + grain - (offset + at) % grain)
        zeros = buffer.startswith(nothing if end - at == len(nothing) else bytes(end - at), at)
        if zeros and start is not None:
            yield start, at
            start = None
        elif not zeros and start is None:
            start = at
        at = end
    if start is not None:
        yield start, len(buffer)


def copy_ranges(
    source: Source,
    destination: Backend,
    ranges: Iterator[tuple[int, int]],
    *,
    zeros: bool,
    done: Callable[[int], None],
    grain: int = CHUNK,
) -> int:
    """Copies (offset, length) ranges, none longer than CHUNK, in their order; returns the bytes written.

    zeros: write zeros too; otherwise grains of zeros are left out, as the destination reads as zeros there already.
    done: called with the end of each range, in the caller's thread. What it or a read or write raises ends the copy
    when the calls in hand are finished. Memory: AHEAD + 1 times CHUNK.

    One thread writes, so that new blocks lie in the file in the disk's order and writers never wait for each other;
    others read ahead. The medium is asked to write back all the time: otherwise nearly all of it happens at the end.
    """
    spare: list[bytearray] = []

    def fill(offset: int, length: int) -> bytearray:
        buffer = spare.pop() if length == CHUNK and spare else bytearray(length)
        source.readinto(offset, buffer)
        return buffer

    total = unsynced = 0
    waiting: deque[tuple[int, Future[bytearray]]] = deque()
    sync: Future[None] | None = None

    def put() -> int:
        offset, future = waiting.popleft()
        buffer = future.result()
        written = 0
        with memoryview(buffer) as view:
            for first, end in [(0, len(buffer))] if zeros else filled(buffer, offset, grain):
                for at in range(first, end, PIECE):
                    destination.write(offset + at, view[at : min(end, at + PIECE)])
                written += end - first
        if len(buffer) == CHUNK:
            spare.append(buffer)
        done(offset + len(buffer))
        return written

    with ThreadPoolExecutor(2, thread_name_prefix="copy") as pool:
        try:
            more = True
            while more or waiting:
                while more and len(waiting) < AHEAD:
                    found = next(ranges, None)
                    if found is None:
                        more = False
                    else:
                        waiting.append((found[0], pool.submit(fill, *found)))
                if waiting:
                    written = put()
                    total += written
                    unsynced += written
                if unsynced >= WRITE_BACK and (sync is None or sync.done()):
                    if sync is not None:
                        sync.result()
                    sync, unsynced = pool.submit(destination.flush), 0
            if sync is not None:
                sync.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # and waits for those that run: they use both disks
            raise
    return total
