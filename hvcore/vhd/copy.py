"""Moving what one disk holds into another: only what is there, by several threads, in bounded memory."""

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Protocol

from hvcore.disk.ops import Backend

CHUNK = 2 << 20
THREADS = 2
QUEUED = 8


class Source(Protocol):
    """What is copied from: any Backend or Image."""

    def readinto(self, offset: int, buffer: object) -> None: ...


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


def copy_ranges(
    source: Source,
    destination: Backend,
    ranges: Iterator[tuple[int, int]],
    *,
    zeros: bool,
    done: Callable[[int], None],
) -> int:
    """Copies (offset, length) ranges, none longer than CHUNK, in about their order; returns the bytes written.

    zeros: write zeros too; otherwise a chunk of zeros is left out, as the destination reads as zeros there already.
    done: called with the end of each chunk, in the caller's thread. What a thread or `done` raises ends the copy when
    the chunks in hand are finished. Memory: CHUNK bytes per thread.
    """
    nothing = bytes(CHUNK)

    def move(offset: int, length: int, buffers: list[bytearray]) -> int:
        buffer = buffers.pop() if length == CHUNK and buffers else bytearray(length)
        source.readinto(offset, buffer)
        if zeros or buffer != (nothing if length == CHUNK else bytes(length)):
            destination.write(offset, buffer)
            written = length
        else:
            written = 0
        if length == CHUNK:
            buffers.append(buffer)
        return written

    buffers: list[bytearray] = []
    total = 0
    with ThreadPoolExecutor(THREADS, thread_name_prefix="copy") as pool:
        waiting: list[tuple[int, Future[int]]] = []
        try:
            for offset, length in ranges:
                waiting.append((offset + length, pool.submit(move, offset, length, buffers)))
                while len(waiting) >= QUEUED:
                    total += waiting[0][1].result()
                    done(waiting.pop(0)[0])
            for end, future in waiting:
                total += future.result()
                done(end)
        except BaseException:
            for _, future in waiting:
                future.cancel()
            wait([future for _, future in waiting], return_when=FIRST_EXCEPTION)
            raise
    return total
