"""Threads that use one disk at once, each in ranges of its own, and know what these hold."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Protocol

SECTOR = 512
Range = tuple[int, int]  # offset and length in bytes


class Disk(Protocol):
    @property
    def size(self) -> int: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: object) -> None: ...
    def flush(self) -> None: ...
    def trim(self, offset: int, length: int) -> None: ...
    def extents(self) -> Iterator[tuple[int, int, str, int | None]]: ...


def crowd(disk: Disk, owned: Sequence[Sequence[Range]], content: bytearray, rounds: int) -> None:
    """One thread for each list of ranges, which must be disjoint. content: of the disk, before and afterwards.

    A thread asserts after each request that its range holds what it put there, whatever the others do.
    """
    start = threading.Barrier(len(owned))

    def work(thread: int) -> None:
        rng = Random(thread)
        start.wait()
        for number in range(rounds):
            offset, length = rng.choice(owned[thread])
            if rng.random() < 0.8:  # a part
                skip = rng.randrange(length // SECTOR) * SECTOR
                offset, length = offset + skip, min(length - skip, rng.randrange(1, 33) * SECTOR)
            what = rng.random()
            if what < 0.6:
                content[offset : offset + length] = bytes([thread + 1, number % 251]) * (length // 2)
                disk.write(offset, bytes(content[offset : offset + length]))
            elif what < 0.8:
                content[offset : offset + length] = bytes(length)
                disk.trim(offset, length)
            elif what < 0.9:
                disk.flush()
            elif what < 0.95:
                disk.read(rng.randrange(disk.size // SECTOR) * SECTOR, SECTOR)  # another's, maybe
            else:
                assert sum(length for _, length, _, _ in disk.extents()) == disk.size
            assert disk.read(offset, length) == content[offset : offset + length]

    with ThreadPoolExecutor(len(owned)) as pool:
        for done in [pool.submit(work, thread) for thread in range(len(owned))]:
            done.result()
