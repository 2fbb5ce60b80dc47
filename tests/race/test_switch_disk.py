"""Requests of several threads while the backend below them is exchanged again and again."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from hvcore.disk.null import NullDisk
from hvcore.disk.ops import Backend
from hvcore.disk.ram import RamDisk
from hvcore.disk.switch import SwitchDisk

SIZE = 1 << 20
THREADS, EXCHANGES = 3, 200


def copied(old: Backend) -> Backend:
    """What a checkpoint does: the same content in a new place, the old one of no further use."""
    new = RamDisk(SIZE)
    new.write(0, old.read(0, SIZE))
    old.write(0, b"\xff" * SIZE)
    return new


def test_no_request_is_lost_or_reaches_the_old_backend() -> None:
    disk = SwitchDisk(RamDisk(SIZE))
    over = threading.Event()

    def work(thread: int) -> int:
        rounds = 0
        while not over.is_set() or rounds == 0:
            offset = (rounds * THREADS + thread) % (SIZE // 512 // THREADS * THREADS) * 512
            value = bytes([thread + 1, rounds % 251]) * 256
            disk.write(offset, value)
            disk.flush()
            assert disk.read(offset, 512) == value
            rounds += 1
        return rounds

    with disk, ThreadPoolExecutor(THREADS) as pool:
        workers = [pool.submit(work, thread) for thread in range(THREADS)]
        try:
            for _ in range(EXCHANGES):
                disk.exchange(copied)
        finally:
            over.set()
        assert all(worker.result() for worker in workers)
        assert b"\xff" not in disk.read(0, SIZE)


def test_what_fails_leaves_the_disk_as_it_was() -> None:
    def fail(old: Backend) -> Backend:
        raise OSError("no space")

    with SwitchDisk(RamDisk(SIZE)) as disk:
        disk.write(0, b"a" * 512)
        with pytest.raises(OSError, match="no space"):
            disk.exchange(fail)
        with pytest.raises(ValueError, match="another size"):
            disk.exchange(lambda _: RamDisk(SIZE * 2))
        with pytest.raises(ValueError, match="other sectors"):
            disk.exchange(lambda _: RamDisk(SIZE, sector_size=4096))
        assert disk.read(0, 512) == b"a" * 512


def test_closing_closes_what_is_on_top() -> None:
    first = NullDisk(SIZE)
    disk = SwitchDisk(first)
    disk.close()
    disk.close()
    with pytest.raises(ValueError, match="closed"):
        first.read(0, 512)
    with pytest.raises(ValueError, match="closed"):
        disk.exchange(copied)
    with pytest.raises(ValueError, match="closed"):
        SwitchDisk(first)
