"""The VHD engine: what is read, what each write leaves in the file and in which order (disk-formats.md 15.3, 15.5)."""

import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest

from hvcore.disk.medium import Probe
from hvcore.disk.probe import probing
from hvcore.disk.vector import flush, readv, trim, writev
from hvcore.disk.vhd.disk import VhdDisk
from hvcore.errors import DiskError, ImageDamaged
from tests.reference import journal, vhd
from tests.reference.crash import fast_folder
from tests.reference.journal import Content
from tests.reference.vhd import MIB, NONE, TABLE_AT
from tests.reference.vhd_disk import created, layout_of, opened, raw_disk

OK, RANGE, READ_ONLY, READ_ERROR, WRITE_ERROR, NO_SPACE, WOULD_BLOCK, CORRUPT = 0, -1, -2, -3, -4, -5, -6, -9
KIB64 = 64 << 10
BASE = vhd.pattern(99, 8 * KIB64)


@contextmanager
def child(folder: Path, *, size: int = 8 * KIB64, block_size: int = KIB64) -> Iterator[VhdDisk]:
    """A new differencing disk over a raw parent of 8 blocks."""
    (folder / "base").write_bytes(BASE)
    created(folder / "c.vhd", size, block_size=block_size, child=True)
    with opened(folder / "c.vhd", write=True, parent=raw_disk(folder / "base")) as disk:
        yield disk


def reopened(folder: Path) -> bytes:
    with opened(folder / "c.vhd", parent=raw_disk(folder / "base")) as disk:
        content = disk.read(0, disk.size)
    assert content == vhd.read(folder / "c.vhd", BASE)
    return content


# ---- Reading


@pytest.mark.parametrize("gap", [0, 512, 3584])
@pytest.mark.parametrize("block_size", [4 << 10, KIB64, MIB])
def test_dynamic_with_holes(tmp_path: Path, gap: int, block_size: int) -> None:
    path = tmp_path / "d.vhd"
    size = 6 * block_size + 1024
    content = {5: vhd.pattern(5, block_size), 1: vhd.pattern(1, block_size), 6: vhd.pattern(6, block_size)}
    vhd.build(path, size, content, block_size=block_size, gap=gap)
    expected = b"".join(content.get(n, bytes(block_size)) for n in range(7))[:size]
    with opened(path) as disk:
        assert (disk.size, disk.sector_size, disk.physical_sector_size, disk.read_only) == (size, 512, 512, True)
        assert (disk.disk_id, disk.block_size) == (vhd.ID, block_size)
        assert disk.read(0, size) == expected == vhd.read(path)
        pieces = [bytearray(n) for n in [700, 1, 0, block_size - 5, *[8] * 90, block_size]]
        assert readv(disk, block_size - 333, pieces) == OK
        assert b"".join(pieces) == expected[block_size - 333 :][: sum(map(len, pieces))]
        assert readv(disk, size - 1, [bytearray(2)]) == RANGE
        assert writev(disk, 0, [bytes(512)]) == flush(disk) == trim(disk, 0, 512) == READ_ONLY
        assert [disk.entry(n) for n in (0, 2, 3, 4)] == [NONE] * 4
        with pytest.raises(ValueError, match="has 7 blocks, none of them is number 7"):
            disk.entry(7)


def test_dynamic_reads_ignore_the_bitmap(tmp_path: Path) -> None:
    vhd.build(tmp_path / "d.vhd", KIB64, {0: (vhd.pattern(0, KIB64), {3})}, block_size=KIB64)
    with opened(tmp_path / "d.vhd") as disk:
        assert disk.read(0, KIB64) == vhd.pattern(0, KIB64)


@pytest.mark.parametrize("size", [4 * KIB64, 4 * KIB64 + 512, 9 * KIB64])
@pytest.mark.parametrize("parent_size", [512, 3 * KIB64 + 512, 8 * KIB64])
def test_differencing_reads(tmp_path: Path, size: int, parent_size: int) -> None:
    """Bit 1: data, the first sector in the highest bit; bit 0 and no block: the parent, zeros behind its end."""
    (tmp_path / "base").write_bytes(BASE[:parent_size])
    stored = {0, 7, 8, 9, 63, 64, 65, 126, 127}
    blocks = {0: (vhd.pattern(0, KIB64), stored), 3: (vhd.pattern(3, KIB64), set(range(0, 128, 2)))}
    vhd.build(tmp_path / "c.vhd", size, blocks, block_size=KIB64, parent=(vhd.ID, "base"))
    with opened(tmp_path / "c.vhd", parent=raw_disk(tmp_path / "base")) as disk:
        expected = vhd.read(tmp_path / "c.vhd", BASE[:parent_size])
        assert disk.read(0, size) == expected
        for sector in range(0, size // 512, 5):
            buffer = bytearray(300)
            assert readv(disk, sector * 512 + 100, [buffer]) == OK
            assert buffer == expected[sector * 512 + 100 : sector * 512 + 400]


def test_extents(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(BASE)
    vhd.build(tmp_path / "d.vhd", 4 * KIB64 - 512, {1: b"", 3: b""}, block_size=KIB64)
    with opened(tmp_path / "d.vhd") as disk:
        assert list(disk.extents()) == [
            (0, KIB64, "zero", None),
            (KIB64, KIB64, "data", 2560),
            (2 * KIB64, KIB64, "zero", None),
            (3 * KIB64, KIB64 - 512, "data", 2560 + KIB64 + 512),
        ]
    blocks = {1: (b"", {0, 1, 5}), 3: (b"", {127})}
    vhd.build(tmp_path / "c.vhd", 4 * KIB64, blocks, block_size=KIB64, parent=(vhd.ID, "base"))
    with opened(tmp_path / "c.vhd") as disk:
        assert list(disk.extents()) == [
            (0, KIB64, "parent", None),
            (KIB64, 1024, "data", 3072),
            (KIB64 + 1024, 1536, "parent", None),
            (KIB64 + 2560, 512, "data", 3072 + 2560),
            (KIB64 + 3072, 3 * KIB64 - 512 - KIB64 - 3072 + KIB64, "parent", None),
            (4 * KIB64 - 512, 512, "data", 3072 + KIB64 + 512 + KIB64 - 512),
        ]


def test_without_its_parent_a_child_reads_only_its_own(tmp_path: Path) -> None:
    vhd.build(tmp_path / "c.vhd", 2 * KIB64, {0: (BASE[:512], {0})}, block_size=KIB64, parent=(vhd.ID, "base"))
    with opened(tmp_path / "c.vhd") as disk:
        assert disk.read(0, 512) == BASE[:512]
        assert readv(disk, 512, [bytearray(512)]) == readv(disk, KIB64, [bytearray(512)]) == READ_ERROR


def test_arguments(tmp_path: Path) -> None:
    created(tmp_path / "d.vhd", MIB)
    (tmp_path / "base").write_bytes(BASE)
    with raw_disk(tmp_path / "base") as parent, pytest.raises(ValueError, match="a dynamic disk has no parent"):
        opened(tmp_path / "d.vhd", parent=parent)
    with opened(tmp_path / "d.vhd", write=True) as disk:
        assert writev(disk, 100, [bytes(512)]) == writev(disk, 0, [bytes(100)]) == trim(disk, 0, 100) == RANGE
        assert writev(disk, MIB, [bytes(512)]) == trim(disk, MIB - 512, 1024) == RANGE
        assert writev(disk, 0, []) == writev(disk, MIB, [b""]) == trim(disk, MIB, 0) == OK
    disk.close()
    with pytest.raises(ValueError, match="closed"):
        disk.entry(0)


# ---- Damage


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({1: 0}, "entry 1 places a block over a header"),
        ({1: 1}, "entry 1 places a block over a header"),
        ({1: 3}, "entry 1 places a block over a header"),
        ({1: NONE - 1}, "entry 1 places a block beyond the end of the file"),
        ({1: 5}, "the block of entry 1 overlaps another block"),
        ({1: 4}, "the block of entry 1 overlaps another block"),
        ({1: 4 + 128}, "the block of entry 1 overlaps another block"),
        ({2: 4 + 2 * 129 + 1}, "entry 2 places a block beyond the end of the file"),
    ],
)
def test_table_is_judged_at_opening(tmp_path: Path, entries: dict[int, int], words: str) -> None:
    path = tmp_path / "d.vhd"
    vhd.build(path, 4 * KIB64, {0: b"", 3: b"", 2: b""} | entries, block_size=KIB64)
    with pytest.raises(ImageDamaged, match=words) as caught:
        opened(path)
    assert caught.value.structure == "block allocation table"
    assert caught.value.offset == TABLE_AT + 4 * next(iter(entries))


def test_neighbours_are_no_overlap(tmp_path: Path) -> None:
    vhd.build(tmp_path / "d.vhd", 40 * KIB64, {n: b"" for n in range(39, -1, -1)}, block_size=KIB64)
    with opened(tmp_path / "d.vhd") as disk:
        assert sorted(disk.entry(n) for n in range(40)) == [4 + 129 * n for n in range(40)]


LARGE = 1100 << 30  # a table of 2.1 MiB in blocks of 2 MiB


def test_large_table_is_judged_when_used(tmp_path: Path) -> None:
    """Beyond 256 KiB a page is read when it is needed; its damage spoils that page, and allocation, but no other."""
    path = tmp_path / "d.vhd"
    count = LARGE // (2 * MIB)
    vhd.build(path, LARGE, {0: b"", count - 1: 5, 200_000: 1 << 30}, gap=0)
    with opened(path, write=True) as disk:
        assert disk.read(4 * MIB, 512) == bytes(512)
        for at in (LARGE - 512, 200_000 * 2 * MIB):
            for _ in range(2):
                assert readv(disk, at, [bytearray(512)]) == CORRUPT
        with pytest.raises(DiskError, match="the image's metadata is damaged"):
            disk.entry(count - 1)
        disk.write(0, b"x" * 512)
        assert writev(disk, 4 * MIB, [bytes(512)]) == CORRUPT
        assert disk.read(0, 512) == b"x" * 512


def test_largest_disk(tmp_path: Path) -> None:
    path = tmp_path / "d.vhd"
    size = 2040 << 30
    created(path, size)
    with opened(path, write=True) as disk:
        assert readv(disk, size - 512, [bytearray(512)], nowait=True) == WOULD_BLOCK
        disk.write(size - 512, b"e" * 512)
        disk.write(1 << 40, b"m" * 512)
        disk.flush()
        assert [piece[:3] for piece in disk.extents()] == [
            (0, 1 << 40, "zero"),
            (1 << 40, 2 * MIB, "data"),
            ((1 << 40) + 2 * MIB, size - (1 << 40) - 4 * MIB, "zero"),
            (size - 2 * MIB, 2 * MIB, "data"),
        ]
    with opened(path, write=True) as disk:
        assert disk.read(size - 512, 512) == b"e" * 512
        disk.write(0, b"s" * 512)
        assert len({disk.entry(n) for n in (0, (1 << 40) // (2 * MIB), size // (2 * MIB) - 1)}) == 3
    with opened(path) as disk:
        assert [disk.read(at, 512)[:1] for at in (0, 1 << 40, size - 512)] == [b"s", b"m", b"e"]


# ---- Writing


def test_dynamic_allocation_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "d.vhd"
    created(path, 64 * MIB)
    with opened(path, write=True) as disk:
        disk.write(3 * MIB, b"w" * 1024)
        raw = path.read_bytes()
        assert raw[3584:4096] == b"\xff" * 512 and raw[TABLE_AT : TABLE_AT + 128] == b"\xff" * 128
        assert raw[-512:] == raw[:512] and raw.count(raw[:512]) == 2 and len(raw) < 33 * MIB
        disk.flush()
        assert struct.unpack_from(">3I", path.read_bytes(), TABLE_AT) == (NONE, 7, NONE)
    raw = path.read_bytes()
    assert len(raw) == 4096 + 2 * MIB + 512 and raw[-512:] == raw[:512]
    assert vhd.read(path)[3 * MIB : 3 * MIB + 1024] == b"w" * 1024
    assert vhd.read(path).count(0) == 64 * MIB - 1024


def test_differencing_allocation_in_the_file(tmp_path: Path) -> None:
    with child(tmp_path) as disk:
        disk.write(KIB64 + 1024, b"a" * 1024)
        disk.write(KIB64 + 4096, b"b" * 512)  # its bit waits for the flush
        place = disk.entry(1) * 512
        assert (tmp_path / "c.vhd").read_bytes()[place : place + 2] == bytes([0b00110000, 0])
        disk.flush()
        assert (tmp_path / "c.vhd").read_bytes()[place : place + 512] == vhd.bitmap(KIB64, {2, 3, 8})
    expected = bytearray(BASE)
    expected[KIB64 + 1024 : KIB64 + 2048] = b"a" * 1024
    expected[KIB64 + 4096 : KIB64 + 4608] = b"b" * 512
    assert reopened(tmp_path) == expected


@pytest.mark.parametrize("block_size", [4 << 10, 4 * MIB, 256 * MIB])
def test_bitmaps_of_all_lengths(tmp_path: Path, block_size: int) -> None:
    (tmp_path / "base").write_bytes(BASE)
    size = 2 * block_size + 512
    created(tmp_path / "c.vhd", size, block_size=block_size, child=True)
    places = [0, size // 3 // 512 * 512, block_size - 512, block_size, 2 * block_size - 1024, size - 512]
    with opened(tmp_path / "c.vhd", write=True, parent=raw_disk(tmp_path / "base")) as disk:
        for at in places:
            disk.write(at, b"w" * 512)
        disk.flush()
        place = disk.entry(0) * 512
        assert (place + vhd.bitmap_bytes(block_size)) % 4096 == 0
    with opened(tmp_path / "c.vhd", parent=raw_disk(tmp_path / "base")) as disk:
        stored = [(at, length) for at, length, state, _ in disk.extents() if state == "data"]
        covered = {at + n for at, length in stored for n in range(0, length, 512)}
        assert covered == set(places)
        for at in places:
            assert disk.read(at, 512) == b"w" * 512


def test_nothing_changes_before_the_first_write(tmp_path: Path) -> None:
    created(tmp_path / "d.vhd", 4 * MIB)
    before = (tmp_path / "d.vhd").read_bytes()
    with opened(tmp_path / "d.vhd", write=True) as disk:
        disk.read(0, 4 * MIB)
        disk.flush()
        disk.trim(0, 4 * MIB)
    assert (tmp_path / "d.vhd").read_bytes() == before


def test_space_behind_the_blocks_is_zeroed_before_use(tmp_path: Path) -> None:
    """What an earlier crash left there is nobody's content (rule 15); the tail alone does not say where it begins."""
    path = tmp_path / "d.vhd"
    vhd.build(path, 8 * KIB64, {0: vhd.pattern(0, KIB64)}, block_size=KIB64)
    raw = path.read_bytes()
    junk = vhd.pattern(77, 3 * KIB64)
    path.write_bytes(raw[:-512] + raw[-512:] + junk + raw[-512:])
    with opened(path, write=True) as disk:
        for block in (1, 2, 3, 4, 5):
            disk.write(block * KIB64 + 512, b"n" * 512)
    expected = bytearray(vhd.pattern(0, KIB64).ljust(8 * KIB64, b"\0"))
    for block in (1, 2, 3, 4, 5):
        expected[block * KIB64 + 512 : block * KIB64 + 1024] = b"n" * 512
    assert vhd.read(path) == expected


def test_blocks_go_behind_a_table_that_was_moved(tmp_path: Path) -> None:
    """A grown table lies behind the blocks (15.5): the end of the highest structure counts."""
    path = tmp_path / "d.vhd"
    vhd.build(path, 8 * KIB64, {0: vhd.pattern(0, KIB64)}, block_size=KIB64)
    raw = bytearray(path.read_bytes())
    end = len(raw) - 512
    table = raw[TABLE_AT : TABLE_AT + 512]
    raw[512:1536] = vhd.header(8, KIB64, table_at=end)
    path.write_bytes(bytes(raw[:end] + table + raw[end:]))
    with opened(path, write=True) as disk:
        disk.write(7 * KIB64, b"n" * 512)
        assert disk.entry(7) * 512 >= end + 512
    assert vhd.read(path)[:KIB64] == vhd.pattern(0, KIB64)
    assert vhd.read(path)[7 * KIB64 : 7 * KIB64 + 512] == b"n" * 512


def test_packed_when_padding_would_not_fit(tmp_path: Path) -> None:
    """512 KiB blocks: 2040 GiB of them with padding have sector numbers of more than 32 bits."""
    created(tmp_path / "d.vhd", 2040 << 30, block_size=512 << 10)
    with opened(tmp_path / "d.vhd", write=True) as disk:
        disk.write(0, b"a" * 512)
        disk.write(512 << 10, b"b" * 512)
        assert disk.entry(1) - disk.entry(0) == 1025


def test_close_gives_surplus_back_and_a_dropped_disk_opens(tmp_path: Path) -> None:
    path = tmp_path / "d.vhd"
    created(path, 64 * MIB)
    disk = opened(path, write=True)
    disk.write(0, b"a" * 512)
    disk.flush()
    disk.write(8 * MIB, b"b" * 512)
    del disk  # no close: what was not flushed is lost, nothing else
    assert path.stat().st_size > 30 * MIB
    assert layout_of(path).footer_state == "tail"
    assert vhd.read(path) == (b"a" * 512).ljust(64 * MIB, b"\0")
    with opened(path, write=True) as disk:
        disk.write(8 * MIB + 512, b"c" * 512)
    assert path.stat().st_size == 4096 + 2 * MIB + 4096 + 2 * MIB + 512
    expected = bytearray(64 * MIB)
    expected[:512] = b"a" * 512
    expected[8 * MIB + 512 : 8 * MIB + 1024] = b"c" * 512
    assert vhd.read(path) == expected


@pytest.mark.parametrize("kind", ["dynamic", "differencing"])
def test_settled_file_is_a_closed_image(tmp_path: Path, kind: str) -> None:
    """And the disk goes on: it reads, allocates, settles again, and closes."""
    path, copy, size = tmp_path / "c.vhd", tmp_path / "copy.vhd", 64 * KIB64
    below = BASE if kind == "differencing" else bytes(size)
    (tmp_path / "base").write_bytes(below)
    created(path, size, block_size=KIB64, child=kind == "differencing")
    expected = bytearray(below.ljust(size, b"\0"))
    empty = path.read_bytes()
    with opened(path, write=True, parent=raw_disk(tmp_path / "base") if kind == "differencing" else None) as disk:
        disk.settle()
        assert path.read_bytes() == empty
        for number, blocks in enumerate([(3,), (), (60, 3, 7), (7, 8), ()], 1):
            for block in blocks:
                at = block * KIB64 + 512 * number
                disk.write(at, bytes([number]) * 1024)
                expected[at : at + 1024] = bytes([number]) * 1024
            disk.settle()
            assert disk.read(0, size) == expected
            raw = path.read_bytes()
            copy.write_bytes(raw)
            layout = layout_of(copy)
            assert (layout.footer_state, raw[-512:]) == ("tail", raw[:512])
            ends = [disk.entry(n) * 512 + 512 + KIB64 for n in range(64) if disk.entry(n) != NONE]
            assert layout.tail_offset == max(ends)
            assert vhd.read(copy, below if kind == "differencing" else None) == expected
    assert path.read_bytes() == raw
    with pytest.raises(ValueError, match="closed"):
        disk.settle()


def test_settling_forgets_places_behind_the_end(tmp_path: Path) -> None:
    """Of allocations that failed: the file may end there now, and grow again over them."""
    created(tmp_path / "d.vhd", 64 * KIB64, block_size=KIB64)
    with probing(Probe()) as probe:
        disk = opened(tmp_path / "d.vhd", write=True)
    disk.write(0, b"a" * 512)
    probe.fail(2, 28)
    assert writev(disk, KIB64, [b"b" * 512]) == NO_SPACE
    probe.fail(0, 0)
    disk.settle()
    for block in range(1, 64):
        disk.write(block * KIB64, bytes([block]) * 512)
    places = sorted(disk.entry(n) for n in range(64))
    assert all(after - before >= 129 for before, after in pairwise(places))
    disk.close()
    assert vhd.read(tmp_path / "d.vhd")[::KIB64] == b"a" + bytes(range(1, 64))


@pytest.mark.parametrize(("error", "calls"), [*[(28, n) for n in range(1, 8)], (0, 2), (0, 4)])
def test_settling_that_fails_loses_nothing(tmp_path: Path, calls: int, error: int) -> None:
    """At any call; error 0: a write stops half-way and goes on. A failed flush is for good, all else is made up for."""
    created(tmp_path / "d.vhd", 8 * MIB)
    with probing(Probe()) as probe:
        disk = opened(tmp_path / "d.vhd", write=True)
    disk.write(0, b"a" * 512)
    disk.flush()
    disk.write(4 * MIB, b"b" * 512)
    probe.fail(calls, error)
    failed = False
    try:
        disk.settle()
    except DiskError:
        failed = True
    probe.fail(0, 0)
    gone = writev(disk, 2 * MIB, [b"c" * 512]) != OK
    # F, entry, F, footer, F, size, F.
    assert (failed, gone) == ((True, calls in (1, 2, 3, 5, 7)) if error else (False, False))
    with suppress(DiskError):
        disk.close()
    expected = bytearray(8 * MIB)
    expected[:512] = b"a" * 512
    found = vhd.read(tmp_path / "d.vhd")
    if not gone:
        expected[2 * MIB : 2 * MIB + 512] = b"c" * 512
    if found[4 * MIB] or not gone:
        expected[4 * MIB : 4 * MIB + 512] = b"b" * 512
    assert found == expected
    assert layout_of(tmp_path / "d.vhd").footer_state == "tail"


def test_trim_of_a_dynamic_disk(tmp_path: Path) -> None:
    path = tmp_path / "d.vhd"
    vhd.build(path, 4 * KIB64, {n: vhd.pattern(n, KIB64) for n in (0, 1)}, block_size=KIB64)
    before = path.read_bytes()[TABLE_AT : TABLE_AT + 512]
    with opened(path, write=True) as disk:
        disk.trim(KIB64 - 1024, 2 * KIB64)
        assert disk.read(0, 4 * KIB64) == vhd.pattern(0, KIB64)[:-1024].ljust(4 * KIB64, b"\0")
        disk.write(KIB64, vhd.pattern(1, KIB64))
        disk.trim(KIB64 + 512, 1024)
        expected = vhd.pattern(1, KIB64)[:512] + bytes(1024) + vhd.pattern(1, KIB64)[1536:]
        assert disk.read(KIB64, KIB64) == expected
    assert path.read_bytes()[TABLE_AT : TABLE_AT + 512] == before


def test_trim_of_a_differencing_disk_hides_the_parent(tmp_path: Path) -> None:
    """Zeros are stored: a block that were dropped, or a bit, would show the parent again (15.3)."""
    with child(tmp_path) as disk:
        disk.write(0, b"w" * KIB64)
        disk.trim(512, 2 * KIB64)
        disk.trim(5 * KIB64, 512)
    expected = bytearray(BASE)
    expected[:512] = b"w" * 512
    expected[512 : 2 * KIB64 + 512] = bytes(2 * KIB64)
    expected[5 * KIB64 : 5 * KIB64 + 512] = bytes(512)
    assert reopened(tmp_path) == expected


def test_trim_behind_the_parents_end_stores_nothing(tmp_path: Path) -> None:
    with child(tmp_path, size=12 * KIB64) as disk:
        disk.trim(8 * KIB64, 4 * KIB64)
        assert [disk.entry(n) for n in range(12)] == [NONE] * 12
        disk.trim(8 * KIB64 - 512, 1024)
        assert [disk.entry(n) != NONE for n in range(12)] == [n == 7 for n in range(12)]
    assert reopened(tmp_path) == (BASE[:-512] + bytes(512)).ljust(12 * KIB64, b"\0")


def test_nowait(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(BASE)
    vhd.build(
        tmp_path / "c.vhd", 8 * KIB64, {0: (b"", {0})}, block_size=KIB64, parent=(vhd.ID, "base"), head=bytes(512)
    )
    file = [bytearray(512)]
    with opened(tmp_path / "c.vhd", write=True, parent=raw_disk(tmp_path / "base")) as disk:
        assert readv(disk, 0, file, nowait=True) == WOULD_BLOCK  # the bitmap is not in memory
        assert writev(disk, 0, [bytes(512)], nowait=True) == WOULD_BLOCK  # the head copy is to be mended
        assert readv(disk, 0, file) == OK
        assert readv(disk, 0, file, nowait=True) in (OK, WOULD_BLOCK)
        assert writev(disk, 0, [bytes(512)]) == OK
        assert writev(disk, KIB64, [bytes(512)], nowait=True) == WOULD_BLOCK  # needs a block


# ---- Threads


@pytest.mark.parametrize("kind", ["dynamic", "differencing"])
def test_threads_that_allocate_one_block(tmp_path: Path, kind: str) -> None:
    """Each block is allocated once, and no thread's sectors are lost (rule 13)."""
    size, threads = 64 * KIB64, 8
    (tmp_path / "base").write_bytes(BASE)
    created(tmp_path / "c.vhd", size, block_size=KIB64, child=kind == "differencing")
    parent = raw_disk(tmp_path / "base") if kind == "differencing" else None
    with opened(tmp_path / "c.vhd", write=True, parent=parent) as disk:

        def work(thread: int) -> None:
            for block in range(64):
                for sector in range(thread, 128, 4 * threads):
                    disk.write(block * KIB64 + sector * 512, bytes([thread + 1]) * 512)
                if block % 16 == thread:
                    disk.flush()
                assert disk.read(block * KIB64 + thread * 512, 512) == bytes([thread + 1]) * 512

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
        assert len({disk.entry(n) for n in range(64)}) == 64
    content = vhd.read(tmp_path / "c.vhd", BASE if kind == "differencing" else None)
    below = BASE.ljust(size, b"\0") if kind == "differencing" else bytes(size)
    for sector in range(size // 512):
        owner = sector % 32
        expected = bytes([owner + 1]) * 512 if owner < threads else below[sector * 512 : sector * 512 + 512]
        assert content[sector * 512 : sector * 512 + 512] == expected


# ---- Order and failure


def records_of(folder: Path, steps: list[tuple[str, int, int]], *, kind: str = "dynamic") -> list[journal.Record]:
    log = os.memfd_create("journal")
    with probing(Probe(log)):
        parent = raw_disk(folder / "base") if kind == "differencing" else None
        with opened(folder / "c.vhd", write=True, parent=parent) as disk:
            for verb, offset, length in steps:
                if verb == "write":
                    disk.write(offset, b"w" * length)
                else:
                    disk.flush()
            end = os.fstat(log).st_size
    recorded = os.pread(log, end, 0)
    os.close(log)
    return journal.parse(recorded)


@pytest.mark.parametrize(("entries", "footer_at"), [(32, 2048), (512, 3584)])
def test_order_of_an_allocation(tmp_path: Path, entries: int, footer_at: int) -> None:
    """Footer behind the new space, F, old footer zeroed, again where it lay in the block, bitmap, data; F, entry, F."""
    vhd.build(tmp_path / "c.vhd", 64 * MIB, {}, entries=entries)
    found = [
        (each.kind, each.offset, each.length)
        for each in records_of(tmp_path, [("write", 0, 512), ("write", 2 * MIB, 512), ("flush", 0, 0)])
    ]
    flushed = [(journal.FLUSH, 0, 0), (journal.FLUSHED, 0, 0)]
    end = (32 * MIB // (2 * MIB + 4096)) * (2 * MIB + 4096)
    assert found == [
        (journal.WRITE, end, 512),
        *flushed,
        (journal.WRITE, footer_at, 512),
        *[(journal.PUNCH, 3584, 512)] * (footer_at == 3584),
        (journal.WRITE, 3584, 512),
        (journal.WRITE, 4096, 512),
        (journal.WRITE, 2_104_832, 512),
        (journal.WRITE, 2_105_344, 512),
        *flushed,
        (journal.WRITE, TABLE_AT, 512),
        *flushed,
    ]


CUT_BLOCK, CUT_SIZE = 16 << 10, 4 * (16 << 10)


@pytest.mark.parametrize("gap", [0, 4096, 3 * CUT_BLOCK])
@pytest.mark.parametrize("kind", ["dynamic", "differencing"])
def test_cut_while_a_block_takes_the_place_of_the_footer(tmp_path: Path, kind: str, gap: int) -> None:
    """The old footer lies in the bitmap or the data of a block to come: no cut shows it as bits or data, and none
    leaves a file without a footer. The same while space is given back, and taken again."""
    path, child = tmp_path / "c.vhd", kind == "differencing"
    below = BASE[:CUT_SIZE] if child else bytes(CUT_SIZE)
    (tmp_path / "base").write_bytes(below)
    vhd.build(
        path,
        CUT_SIZE,
        {},
        block_size=CUT_BLOCK,
        entries=384 if child else 512,
        parent=(vhd.ID, "base") if child else None,
    )
    raw = path.read_bytes()
    path.write_bytes(raw[:-512] + bytes(gap) + raw[-512:])
    start = {"c.vhd": Content.load(path)}
    new = vhd.pattern(50, CUT_SIZE)
    log = os.memfd_create("journal")
    with probing(Probe(log)), opened(path, write=True, parent=raw_disk(tmp_path / "base") if child else None) as disk:
        promises = []
        for sector, last in ((40, "flush"), (8, "settle"), (70, "settle"), (9, "flush"), (100, "close")):
            disk.write(sector * 512, new[sector * 512 :][:512])
            getattr(disk, last)()
            promises.append((sector, len(journal.parse(os.pread(log, 1 << 24, 0)))))
    records = journal.parse(os.pread(log, 1 << 24, 0))
    os.close(log)
    names = ["c.vhd"] * (max(each.file for each in records) + 1)
    promised = dict(promises)
    with fast_folder() as folder:
        for cut, way, files in journal.cuts(start, names, records, random=1, each=True):
            files["c.vhd"].store(folder / "c.vhd")
            assert layout_of(folder / "c.vhd").footer_state == "tail", (cut, way)
            found = vhd.read(folder / "c.vhd", below if child else None)
            for sector in range(CUT_SIZE // 512):
                at = slice(sector * 512, sector * 512 + 512)
                if sector not in promised or cut < promised[sector]:
                    allowed = (below[at], new[at]) if sector in promised else (below[at],)
                else:
                    allowed = (new[at],)
                assert found[at] in allowed, (cut, way, sector)


def test_order_of_bits(tmp_path: Path) -> None:
    """Data, F, bit, F; a flush with nothing dirty is one F."""
    (tmp_path / "base").write_bytes(BASE)
    vhd.build(tmp_path / "c.vhd", KIB64, {0: (b"", {0})}, block_size=KIB64, parent=(vhd.ID, "base"))
    steps = [("write", 512, 512), ("flush", 0, 0), ("write", 0, 1024), ("flush", 0, 0)]
    found = [(each.kind, each.offset) for each in records_of(tmp_path, steps, kind="differencing")]
    flushed = [(journal.FLUSH, 0), (journal.FLUSHED, 0)]
    assert found == [
        *[(journal.WRITE, 3072 + 512), *flushed, (journal.WRITE, 2560), *flushed],
        *[(journal.WRITE, 3072), *flushed],
    ]


def test_entries_of_one_sector_go_in_one_write(tmp_path: Path) -> None:
    created(tmp_path / "c.vhd", 300 * KIB64, block_size=KIB64)
    steps = [("write", block * KIB64, 512) for block in (0, 1, 127, 128, 299)] + [("flush", 0, 0)]
    writes = [each for each in records_of(tmp_path, steps) if each.kind == journal.WRITE]
    assert [(each.offset, each.length) for each in writes[-1:]] == [(TABLE_AT, 1536)]


@pytest.mark.parametrize("at", [2, 3])
def test_failed_flush_poisons(tmp_path: Path, at: int) -> None:
    """The entry's write, or the flush after it (rule 12): reads go on, nothing else, and the file keeps what it had."""
    created(tmp_path / "d.vhd", 4 * MIB)
    with probing(Probe()) as probe:
        disk = opened(tmp_path / "d.vhd", write=True)
    disk.write(0, b"a" * 512)
    disk.flush()
    disk.write(2 * MIB, b"b" * 512)
    probe.fail(at, 5)
    assert flush(disk) == WRITE_ERROR
    assert writev(disk, 0, [b"c" * 512]) == writev(disk, 2 * MIB, [b"c" * 512]) == flush(disk) == WRITE_ERROR
    assert trim(disk, 0, 512) == WRITE_ERROR
    assert disk.read(0, 512) == b"a" * 512 and disk.read(2 * MIB, 512) == b"b" * 512
    with pytest.raises(DiskError):
        disk.close()
    with opened(tmp_path / "d.vhd") as disk:
        assert disk.read(0, 512) == b"a" * 512


@pytest.mark.parametrize(("entries", "calls"), [*[(4, n) for n in range(1, 6)], *[(512, n) for n in range(1, 7)]])
def test_full_file_system_fails_the_write_and_nothing_else(tmp_path: Path, entries: int, calls: int) -> None:
    """ENOSPC at any call of an allocation: no entry, no loss, and a later try succeeds (rule 14).

    The table of 512 entries ends where the first block begins, so the old footer lies in its space."""
    vhd.build(tmp_path / "d.vhd", 8 * MIB, {}, entries=entries)
    with probing(Probe()) as probe:
        disk = opened(tmp_path / "d.vhd", write=True)
    probe.fail(calls, 28)
    status = writev(disk, 0, [b"a" * 512])
    # A failed flush is for good; zeroing the old footer is made up for later, as the space is then old.
    assert status == {2: NO_SPACE, 3: OK}.get(calls, NO_SPACE)
    if calls == 2:
        with pytest.raises(DiskError):
            disk.close()
        return
    probe.fail(0, 0)
    assert disk.read(0, 512) == (b"a" * 512 if status == OK else bytes(512))
    disk.write(0, b"b" * 512)
    disk.write(4 * MIB, b"c" * 512)
    disk.close()
    expected = bytearray(8 * MIB)
    expected[:512], expected[4 * MIB : 4 * MIB + 512] = b"b" * 512, b"c" * 512
    assert vhd.read(tmp_path / "d.vhd") == expected
    assert layout_of(tmp_path / "d.vhd").footer_state == "tail"


def test_space_of_failed_allocations_is_used_again(tmp_path: Path) -> None:
    created(tmp_path / "d.vhd", 8 * MIB)
    with probing(Probe()) as probe:
        disk = opened(tmp_path / "d.vhd", write=True)
    disk.write(0, b"a" * 512)
    for _ in range(20):
        probe.fail(2, 28)  # the data, after the bitmap; or the bitmap, after the hole
        assert writev(disk, 2 * MIB, [b"b" * 4096]) == NO_SPACE
    probe.fail(0, 0)
    disk.write(2 * MIB, b"c" * 512)
    assert disk.entry(1) - disk.entry(0) == 4104
    disk.close()
    assert vhd.read(tmp_path / "d.vhd")[2 * MIB : 2 * MIB + 8192] == (b"c" * 512).ljust(8192, b"\0")


def test_write_that_stops_half_way(tmp_path: Path) -> None:
    created(tmp_path / "d.vhd", 8 * MIB)
    with probing(Probe()) as probe:
        disk = opened(tmp_path / "d.vhd", write=True)
    for call in range(1, 8):
        probe.fail(call, 0)
        disk.write(call * 512, bytes([call]) * 512)
        disk.flush()
    disk.close()
    assert vhd.read(tmp_path / "d.vhd")[512:4096] == b"".join(bytes([call]) * 512 for call in range(1, 8))
