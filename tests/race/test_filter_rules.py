"""Requests of several threads while the rules in front of their disk change again and again."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hvcore.disk import vector
from hvcore.disk.filter import FilterDisk
from hvcore.disk.python import PythonDisk
from hvcore.disk.ram import RamDisk
from hvcore.scsi.target import Target
from tests.reference.disks import Memory

SIZE = 1 << 20
THREADS, CHANGES = 3, 200
SETS: list[list[dict[str, Any]]] = [
    [{"operations": "read", "delay_us": 1e9}],
    [{"log": True}, {"operations": ["write", "flush"], "every": 3, "error": "io_error"}],
    [{"tear": 256}],
    [{"space": 8192, "block": 4096, "log": True}],
    [{"operations": "write", "probability": 0.1, "seed": 5, "tear": 0, "then": "cut"}],
    [],
]


def test_every_request_ends_by_the_rules_of_one_moment() -> None:
    """A write that succeeded is there, whatever rules come and go; one that failed left old or new bytes."""
    over = threading.Event()
    with FilterDisk(RamDisk(SIZE)) as disk:

        def work(thread: int) -> int:
            rounds, old = 0, bytes(512)
            while not over.is_set() or not rounds:
                place = thread * 4096
                new = bytes([thread + 1, rounds % 251]) * 256
                status = vector.writev(disk, place, [new])
                assert status in (0, -4, -5)
                found = bytearray(512)
                if vector.readv(disk, place, [found]) == 0:
                    if status == 0:
                        assert found == new
                    else:
                        assert found[:256] in (old[:256], new[:256]) and found[256:] == old[256:]
                    old = bytes(found)
                else:
                    old = disk.below.read(place, 512)
                assert vector.flush(disk) in (0, -4)
                assert vector.trim(disk, SIZE // 2 + place, 4096) in (0, -4)
                rounds += 1
            return rounds

        with ThreadPoolExecutor(THREADS) as pool:
            workers = [pool.submit(work, thread) for thread in range(THREADS)]
            try:
                for turn in range(CHANGES):
                    disk.rules = SETS[turn % len(SETS)]
                    disk.counts, disk.log(), disk.held, disk.cut
            finally:
                disk.rules = []
                over.set()
            assert all(worker.result() for worker in workers)


def test_a_filter_comes_and_goes_while_requests_run() -> None:
    image = RamDisk(SIZE)
    target = Target(image)
    read = bytes([0x28]) + bytes(7) + b"\x08\0"
    over = threading.Event()

    def work() -> int:
        rounds = 0
        while not over.is_set() or not rounds:
            assert target.execute(read, allocation=4096).status in (0, 2)
            rounds += 1
        return rounds

    with FilterDisk(image) as disk, ThreadPoolExecutor(THREADS) as pool:
        workers = [pool.submit(work) for _ in range(THREADS)]
        try:
            for turn in range(CHANGES):
                disk.rules = [{"error": "io_error"}] if turn % 2 else []
                target.exchange(disk if turn % 2 else image)
        finally:
            over.set()
        assert all(worker.result() for worker in workers)


def test_threads_take_turns_in_a_python_disk() -> None:
    with PythonDisk(Memory(SIZE), SIZE) as disk, ThreadPoolExecutor(THREADS) as pool:

        def work(thread: int) -> None:
            for turn in range(300):
                data = bytes([thread + 1, turn % 251]) * 256
                disk.write(thread * 512, data)
                assert disk.read(thread * 512, 512) == data

        for worker in [pool.submit(work, thread) for thread in range(THREADS)]:
            worker.result()
