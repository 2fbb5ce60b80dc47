"""Threads that write, read, trim and flush one VHDX at once: some blocks are shared, and space changes hands."""

import pytest

from hvcore.disk.ram import RamDisk
from tests.reference import vhdx_disk
from tests.reference.crash import fast_folder
from tests.reference.crowd import crowd
from tests.reference.vhdx import MIB, build, pattern
from tests.reference.vhdx_disk import open_disk

THREADS, ROUNDS, SESSIONS = 4, 120, 2
SHARED, OWNED = 3, 3  # blocks in which every thread has a part; blocks that each thread has for itself
BLOCKS = SHARED + THREADS * OWNED
PART = MIB // THREADS
BASE = b"".join(pattern(n, MIB) for n in range(BLOCKS - 2))


@pytest.mark.parametrize("kind", ["dynamic", "differencing"])
def test_each_thread_finds_what_it_wrote(kind: str) -> None:
    size, child = BLOCKS * MIB, kind == "differencing"
    below = BASE if child else b""
    content = bytearray(below.ljust(size, b"\0"))
    owned = [
        [(block * MIB + thread * PART, PART) for block in range(SHARED)]
        + [((SHARED + n * THREADS + thread) * MIB, MIB) for n in range(OWNED)]
        for thread in range(THREADS)
    ]
    with fast_folder() as folder:
        path = folder / "c.vhdx"
        build(path, size, {}, has_parent=child)
        for _ in range(SESSIONS):
            parent = None
            if child:
                parent = RamDisk(len(BASE))
                parent.write(0, BASE)
            with open_disk(path, write=True, parent=parent) as disk:
                crowd(disk, owned, content, ROUNDS)
                assert disk.read(0, size) == content
            image = path.read_bytes()
            vhdx_disk.check(image)
            assert vhdx_disk.content(image, below) == content
