"""Threads that write, read, trim and flush one VHD at once: into the same new blocks, bitmaps and table sectors."""

import pytest

from tests.reference import vhd
from tests.reference.crash import fast_folder
from tests.reference.crowd import crowd
from tests.reference.vhd_disk import created, layout_of, opened, raw_disk

THREADS, ROUNDS, SESSIONS = 4, 250, 4
BLOCK, BLOCKS = 64 << 10, 40
PART = BLOCK // THREADS
BASE = vhd.pattern(3, BLOCK * BLOCKS // 2)


@pytest.mark.parametrize("kind", ["dynamic", "differencing"])
def test_each_thread_finds_what_it_wrote(kind: str) -> None:
    size, child = BLOCK * BLOCKS, kind == "differencing"
    below = BASE if child else b""
    content = bytearray(below.ljust(size, b"\0"))
    owned = [[(block * BLOCK + thread * PART, PART) for block in range(BLOCKS)] for thread in range(THREADS)]
    with fast_folder() as folder:
        (folder / "base").write_bytes(BASE)
        created(folder / "c.vhd", size, block_size=BLOCK, child=child)
        for _ in range(SESSIONS):
            parent = raw_disk(folder / "base") if child else None
            with opened(folder / "c.vhd", write=True, parent=parent) as disk:
                crowd(disk, owned, content, ROUNDS)
                assert disk.read(0, size) == content
                taken = [disk.entry(n) for n in range(BLOCKS) if disk.entry(n) != vhd.NONE]
                assert len(set(taken)) == len(taken)
            assert vhd.read(folder / "c.vhd", below if child else None) == content
            assert layout_of(folder / "c.vhd").footer_state == "tail"
