"""Writing a VHDX: states, allocation, what reaches the disk and in which order, trim, faults, and the clean close."""

import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from hvcore.disk.medium import Probe
from hvcore.disk.ops import Backend
from hvcore.disk.probe import probing
from hvcore.disk.ram import RamDisk
from hvcore.disk.vector import flush, readv, trim, writev
from hvcore.disk.vhdx.disk import VhdxDisk
from hvcore.errors import DiskError, ImageDamaged
from tests.reference import journal, vhdx_disk
from tests.reference.vhdx import (
    BAT_AT,
    DATA_WRITE,
    FILE_WRITE,
    HEADERS,
    MIB,
    PAYLOAD_AT,
    Partial,
    bat_index,
    build,
    pattern,
)
from tests.reference.vhdx_disk import FULL, NOT_PRESENT, PARTIAL, UNDEFINED, UNMAPPED, ZERO, open_disk

RANGE, READ_ONLY, WRITE_ERROR, NO_SPACE, WOULD_BLOCK, UNSUPPORTED = -1, -2, -4, -5, -6, -7
LOG_AT = MIB
PARENT = b"".join(pattern(90 + n, MIB) for n in range(3))
OLD = pattern(7, MIB)
NEW = pattern(8, MIB)


def ram(content: bytes, sector_size: int = 512) -> RamDisk:
    disk = RamDisk(len(content), sector_size=sector_size)
    disk.write(0, content)
    return disk


class Watched:
    """The journal of a session."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe

    def records(self) -> list[journal.Record]:
        fd = self.probe.journal
        return journal.parse(os.pread(fd, os.fstat(fd).st_size, 0))

    def take(self) -> list[journal.Record]:
        """What was recorded since the last call."""
        found = self.records()
        os.ftruncate(self.probe.journal, 0)
        os.lseek(self.probe.journal, 0, os.SEEK_SET)
        return found


@contextmanager
def watching() -> Iterator[Watched]:
    fd = os.memfd_create("journal")
    try:
        with probing(Probe(fd)) as probe:
            yield Watched(probe)
    finally:
        os.close(fd)


def count(records: list[journal.Record], kind: int) -> int:
    return sum(record.kind == kind for record in records)


def entry_of(path: Path, block: int) -> int:
    return vhdx_disk.check(path.read_bytes()).block(block)


# Section 7, for block 1 of 3: what it holds before, and its state after a part or all of it was written.
BEFORE: dict[str, bytes | int | Partial] = {
    "not present": NOT_PRESENT,
    "undefined": UNDEFINED,
    "undefined, anchored": PAYLOAD_AT + 4 * MIB | UNDEFINED,
    "zero": ZERO,
    "unmapped": UNMAPPED,
    "unmapped, anchored": PAYLOAD_AT + 4 * MIB | UNMAPPED,
    "full": OLD,
    "partial": Partial(OLD, frozenset({0, 1, 3, 100})),
}


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("name", BEFORE)
@pytest.mark.parametrize("kind", ["dynamic", "differencing"])
@pytest.mark.parametrize(("offset", "length"), [(0, MIB), (0, 8192), (8192, 4096), (MIB - 4096, 4096)])
def test_states(tmp_path: Path, kind: str, name: str, offset: int, length: int, sector_size: int) -> None:
    child = kind == "differencing"
    before = BEFORE[name]
    if isinstance(before, Partial) and not child:
        return
    path = tmp_path / "d.vhdx"
    build(path, 3 * MIB, {0: NEW, 1: before}, sector_size=sector_size, has_parent=child)
    parent = ram(PARENT, sector_size) if child else None
    with path.open("r+b") as file:
        file.truncate(PAYLOAD_AT + 6 * MIB)
        file.seek(PAYLOAD_AT + 3 * MIB)
        file.write(b"?" * 3 * MIB)  # nothing of what is left in unused space may ever be read
    with open_disk(path, write=True, parent=parent) as disk:
        expected = bytearray(disk.read(0, 3 * MIB))
        assert expected == vhdx_disk.content(path.read_bytes(), PARENT if child else b"")
        for start in (offset, offset):  # the second time the block is there
            disk.write(MIB + start, NEW[:length])
            expected[MIB + start : MIB + start + length] = NEW[:length]
            assert disk.read(0, 3 * MIB) == expected
        disk.flush()
        assert disk.read(0, 3 * MIB) == expected
    image = path.read_bytes()
    table = vhdx_disk.check(image)
    assert vhdx_disk.content(image, PARENT if child else b"") == expected
    partial = child and length < MIB and (isinstance(before, Partial) or before == NOT_PRESENT)
    assert table.block(1) & 7 == (PARTIAL if partial else FULL)


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_partial_block_becomes_full(tmp_path: Path, sector_size: int) -> None:
    path = tmp_path / "d.vhdx"
    build(path, MIB + sector_size, {}, sector_size=sector_size, has_parent=True)
    with open_disk(path, write=True, parent=ram(PARENT, sector_size)) as disk:
        half = MIB // 2
        disk.write(half, NEW[half:])
        assert disk.entry(0) & 7 == PARTIAL
        assert list(disk.extents()) == [
            (0, half, "parent", None),
            (half, half, "data", (disk.entry(0) & ~0xFFFFF) + half),
            (MIB, sector_size, "parent", None),
        ]
        disk.write(0, NEW[:half])
        assert disk.entry(0) & 7 == FULL
        disk.write(MIB, NEW[:sector_size])  # all of the last block that belongs to the disk
        assert disk.entry(1) & 7 == FULL
        assert disk.read(0, disk.size) == NEW + NEW[:sector_size]


# V9, V11, V12: the first entry of a page of the table, and those on both sides of a chunk's end.
@pytest.mark.parametrize(
    ("block_size", "sector_size", "blocks"),
    [
        (2 * MIB, 512, (0, 511, 512, 1024, 2047, 2048, 4095, 4096)),
        (32 * MIB, 4096, (1023, 1024)),
        (MIB, 4096, (32767, 32768)),
    ],
)
@pytest.mark.parametrize("kind", ["dynamic", "differencing"])
def test_first_entries_of_pages_and_chunks(
    tmp_path: Path, kind: str, block_size: int, sector_size: int, blocks: tuple[int, ...]
) -> None:
    path = tmp_path / "large.vhdx"
    size = (blocks[-1] + 1) * block_size
    build(path, size, {}, block_size=block_size, sector_size=sector_size, has_parent=kind == "differencing")
    parent = ram(PARENT, sector_size) if kind == "differencing" else None
    data = {block: pattern(block, 4096) for block in blocks}
    with open_disk(path, write=True, parent=parent) as disk:
        for block in blocks:
            disk.write(block * block_size + 8192, data[block])
        disk.flush()
    with open_disk(path, parent=ram(PARENT, sector_size) if parent else None) as disk:
        for block in blocks:
            assert disk.read(block * block_size + 8192, 4096) == data[block]
            assert block == 0 or disk.read(block * block_size, 4096) == bytes(4096)
        entries = {disk.entry(bat_index(block, block_size, sector_size)) for block in blocks}
        assert len(entries) == len(blocks)
        assert {entry & 7 for entry in entries} == {PARTIAL if parent else FULL}


def test_bits_are_where_v12_says(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    build(path, 4 << 30, {}, block_size=2 * MIB, has_parent=True)
    with open_disk(path, write=True, parent=ram(PARENT)) as disk:
        disk.write(4103 * 512, bytes(512))
        disk.write(8388607 * 512, bytes(512))
        assert (disk.entry(1) & 7, disk.entry(2047) & 7, disk.entry(2048) & 7) == (PARTIAL, PARTIAL, FULL)
        bitmap = disk.entry(2048) & ~0xFFFFF
    bits = path.read_bytes()[bitmap : bitmap + MIB]
    assert {n: byte for n, byte in enumerate(bits) if byte} == {512: 1 << 7, 1048575: 1 << 7}


def test_nothing_is_written_before_the_first_write(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    build(path, 3 * MIB, {0: OLD})
    before = path.read_bytes()
    with watching() as watched:
        with open_disk(path, write=True) as disk:
            assert disk.data_write_guid == DATA_WRITE
            disk.flush()
            assert disk.read(0, MIB) == OLD
            assert writev(disk, 3 * MIB, [b"x"]) == RANGE
            assert writev(disk, 0, [bytes(512)], nowait=True) == WOULD_BLOCK
        assert watched.records() == []
    assert path.read_bytes() == before


def test_first_write_changes_the_header_first(tmp_path: Path) -> None:
    """O1, O2: both copies, one after the other, each durable before the next write."""
    path = tmp_path / "d.vhdx"
    build(path, 3 * MIB, {0: OLD})
    with watching() as watched, open_disk(path, write=True) as disk:
        disk.write(0, NEW[:512])
        records = watched.take()
        kinds = [(record.kind, record.offset) for record in records]
        durable = [(journal.FLUSH, 0), (journal.FLUSHED, 0)]
        header = [(journal.WRITE, at) for at in HEADERS]
        assert kinds == [header[0], *durable, header[1], *durable, (journal.WRITE, PAYLOAD_AT)]
        first, second = vhdx_disk.headers(path.read_bytes())
        assert (first.sequence, second.sequence) == (3, 4)
        assert first[1:] == second[1:]
        assert first.log_guid.int == 0
        assert first.file_write_guid not in (FILE_WRITE, DATA_WRITE, first.data_write_guid)
        assert disk.data_write_guid == first.data_write_guid != DATA_WRITE
        disk.write(512, NEW[:512])
        assert [record.kind for record in watched.take()] == [journal.WRITE]


def test_begin_takes_a_given_guid(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    build(path, 3 * MIB, {0: OLD})
    with open_disk(path, write=True) as disk:
        disk.begin(DATA_WRITE)
        disk.write(0, NEW)
        disk.begin()
        assert disk.data_write_guid == DATA_WRITE
        disk.begin(UUID(int=5))
        assert disk.data_write_guid == UUID(int=5)
    assert {header.data_write_guid for header in vhdx_disk.headers(path.read_bytes())} == {UUID(int=5)}


def test_flush_of_metadata_is_one_entry_and_two_syncs(tmp_path: Path) -> None:
    """O6: data, sync, entry, sync, and only then the table in its place; O5: one sync where only data changed."""
    path = tmp_path / "d.vhdx"
    build(path, 8 * MIB, {})
    with watching() as watched, open_disk(path, write=True) as disk:
        disk.write(0, NEW[:512])
        disk.flush()
        watched.take()
        for block in (3, 4, 5):
            disk.write(block * MIB, NEW[:512])
        assert {record.offset >= PAYLOAD_AT for record in watched.take() if record.kind == journal.WRITE} == {True}
        disk.flush()
        kinds = [(record.kind, record.offset) for record in watched.take()]
        sync = [(journal.FLUSH, 0), (journal.FLUSHED, 0)]
        entry = (journal.WRITE, LOG_AT + 4096 + 8192)
        assert kinds == [*sync, entry, *sync, (journal.WRITE, BAT_AT)]
        disk.write(0, NEW[:512])
        disk.flush()
        assert [record.kind for record in watched.take()] == [journal.WRITE, journal.FLUSH, journal.FLUSHED]


def test_many_flushes_restart_the_log(tmp_path: Path) -> None:
    """O7: a ring of 1 MiB holds 127 entries of one page. No entry passes its end, all start anew with another GUID."""
    path = tmp_path / "d.vhdx"
    build(path, 300 * MIB, {})
    with watching() as watched:
        with open_disk(path, write=True) as disk:
            for block in range(300):
                disk.write(block * MIB, pattern(block, 512))
                disk.flush()
        records = watched.records()
    entries = [record for record in records if record.kind == journal.WRITE and record.data[:4] == b"loge"]
    assert len({record.data[32:48] for record in entries}) == 3
    assert max(record.offset + record.length for record in entries) <= LOG_AT + MIB - 4096
    numbers = [int.from_bytes(record.data[16:24], "little") for record in entries]
    assert numbers == list(range(1, len(entries) + 1))
    image = path.read_bytes()
    vhdx_disk.check(image)
    content = vhdx_disk.content(image)
    assert all(content[block * MIB : block * MIB + 1024] == pattern(block, 512) + bytes(512) for block in range(300))


def test_large_flush_is_split(tmp_path: Path) -> None:
    """Rule 9: more pages than an entry holds; those of bitmaps come first, the table follows from its end on."""
    path = tmp_path / "d.vhdx"
    size = 300 << 30
    build(path, size, {}, has_parent=True)
    with watching() as watched:
        with open_disk(path, write=True, parent=ram(PARENT)) as disk:
            disk.write(200 << 30, NEW[:512])
            disk.trim(0, 200 << 30)  # 200 GiB of a child: 401 pages of the table
            disk.flush()
            assert disk.read(0, 4096) == bytes(4096)
        records = watched.records()
    entries = [n for n, each in enumerate(records) if each.kind == journal.WRITE and each.data[:4] == b"loge"]
    _, first, _, second = entries  # before each of the two the log is opened, and opened anew, with an empty entry
    pages = [
        [int.from_bytes(records[n].data[64 + 32 * i + 16 :][:8], "little") for i in range(records[n].data[24])]
        for n in (first, second)
    ]
    assert len(pages[0]) == 252
    tables = [place for place in pages[0] + pages[1] if place < PAYLOAD_AT]
    assert tables == sorted(tables, reverse=True)
    assert pages[0][0] not in tables
    between = [record.kind for record in records[first + 1 : second]]
    assert between[:2] == between[-2:] == [journal.FLUSH, journal.FLUSHED]
    assert journal.WRITE in between[2:-2]


@pytest.mark.parametrize("name", BEFORE)
@pytest.mark.parametrize("kind", ["dynamic", "differencing"])
def test_trim_states(tmp_path: Path, kind: str, name: str) -> None:
    """Section 13: whole blocks to ZERO without a place, parts in their place; both read as zeros."""
    child = kind == "differencing"
    before = BEFORE[name]
    if isinstance(before, Partial) and not child:
        return
    for offset, length in ((0, MIB), (4096, 8192)):
        path = tmp_path / f"{length}.vhdx"
        build(path, 3 * MIB, {1: before}, has_parent=child)
        with open_disk(path, write=True, parent=ram(PARENT) if child else None) as disk:
            expected = bytearray(disk.read(0, 3 * MIB))
            disk.trim(MIB + offset, length)
            expected[MIB + offset : MIB + offset + length] = bytes(length)
            assert disk.read(0, 3 * MIB) == expected
        image = path.read_bytes()
        assert vhdx_disk.content(image, PARENT if child else b"") == expected
        entry = vhdx_disk.check(image).block(1)
        if length == MIB:
            assert entry == (NOT_PRESENT if before == NOT_PRESENT and not child else ZERO)
        elif child and (before == NOT_PRESENT or isinstance(before, Partial)):
            assert entry & 7 == PARTIAL
        else:
            assert entry & 7 == (before & 7 if isinstance(before, int) else FULL)


def test_trim_to_the_end_covers_a_short_last_block(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    build(path, 2 * MIB + 512, {1: OLD, 2: OLD})
    with open_disk(path, write=True) as disk:
        disk.trim(MIB + 512, MIB)
        assert (disk.entry(1) & 7, disk.entry(2)) == (FULL, ZERO)
        assert disk.read(MIB, MIB + 512) == OLD[:512] + bytes(MIB)


def test_fixed_disk_keeps_its_blocks(tmp_path: Path) -> None:
    path = tmp_path / "f.vhdx"
    build(path, 2 * MIB, {0: OLD, 1: OLD}, fixed=True)
    with open_disk(path, write=True) as disk:
        disk.write(512, NEW)
        assert trim(disk, 0, MIB) == UNSUPPORTED
        assert list(disk.extents()) == [(0, 2 * MIB, "data", PAYLOAD_AT)]
    image = path.read_bytes()
    assert vhdx_disk.content(image) == OLD[:512] + NEW + OLD[512:]
    assert vhdx_disk.check(image).entries == (PAYLOAD_AT | FULL, PAYLOAD_AT + MIB | FULL)


def test_freed_space_waits_for_the_flush(tmp_path: Path) -> None:
    """Rule 7: before the trim is durable its space is nobody's; then it is used again, without a trace of its past."""
    path = tmp_path / "d.vhdx"
    build(path, 8 * MIB, {0: OLD})
    with open_disk(path, write=True) as disk:
        disk.trim(0, MIB)
        disk.write(MIB, NEW[:512])
        assert disk.entry(1) == PAYLOAD_AT + MIB | FULL
        disk.flush()
        disk.write(2 * MIB + 512, NEW[:512])
        assert disk.entry(2) == PAYLOAD_AT | FULL
        assert disk.read(2 * MIB, MIB) == bytes(512) + NEW[:512] + bytes(MIB - 1024)
    assert path.stat().st_size == PAYLOAD_AT + 2 * MIB


def test_unused_tail_is_cut_at_close(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    build(path, 8 * MIB, {0: OLD, 1: OLD})
    with open_disk(path, write=True) as disk:
        disk.write(3 * MIB, NEW[:512])
        assert path.stat().st_size > PAYLOAD_AT + 3 * MIB
        disk.trim(MIB, 3 * MIB)
    assert path.stat().st_size == PAYLOAD_AT + MIB


def test_dropped_disk_leaves_its_log(tmp_path: Path) -> None:
    """Without close() the flushed state is in the log and in its place."""
    path = tmp_path / "d.vhdx"
    build(path, 8 * MIB, {})
    disk = open_disk(path, write=True)
    disk.write(0, NEW)
    disk.flush()
    disk.write(MIB, NEW)
    del disk
    image = path.read_bytes()
    assert vhdx_disk.headers(image)[0].log_guid.int
    assert vhdx_disk.content(image) == NEW + bytes(7 * MIB)


def run_threads(targets: list) -> None:
    failures = []

    def guarded(target) -> None:
        try:
            target()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("kind", ["dynamic", "differencing"])
def test_threads_allocate_the_same_blocks(tmp_path: Path, kind: str) -> None:
    """Rule 13: one allocation per block, and no write is lost to another one's zeros."""
    path = tmp_path / "d.vhdx"
    blocks, threads = 12, 6
    build(path, blocks * MIB, {}, has_parent=kind == "differencing")
    parent = bytes(blocks * MIB) if kind == "dynamic" else (PARENT * blocks)[: blocks * MIB]
    expected = bytearray(parent)
    start = threading.Barrier(threads)
    with open_disk(path, write=True, parent=ram(parent) if kind == "differencing" else None) as disk:

        def write(number: int) -> None:
            for block in range(blocks):
                start.wait()
                for piece in range(4):
                    disk.write(block * MIB + (piece * threads + number) * 4096, pattern(number * 64 + block, 4096))
                if number == 0:
                    disk.flush()

        run_threads([lambda number=number: write(number) for number in range(threads)])
        for number in range(threads):
            for block in range(blocks):
                for piece in range(4):
                    at = block * MIB + (piece * threads + number) * 4096
                    expected[at : at + 4096] = pattern(number * 64 + block, 4096)
        assert disk.read(0, blocks * MIB) == expected
    image = path.read_bytes()
    vhdx_disk.check(image)
    assert vhdx_disk.content(image, parent) == expected
    assert len(image) <= PAYLOAD_AT + (blocks + 1) * MIB


def test_reads_never_see_reused_space(tmp_path: Path) -> None:
    """Rule 13: a block is trimmed and its space goes to others while reads of it are under way."""
    path = tmp_path / "d.vhdx"
    build(path, 16 * MIB, {0: b"A" * MIB})
    done = threading.Event()
    with open_disk(path, write=True) as disk:

        def read() -> None:
            while not done.is_set():
                seen = set(disk.read(0, MIB))
                assert seen <= {0, ord("A")}

        def recycle() -> None:
            try:
                for turn in range(60):
                    disk.trim(0, MIB)
                    disk.flush()
                    disk.write((1 + turn % 15) * MIB, b"B" * MIB)
                    disk.write(0, b"A" * MIB)
                    disk.trim((1 + turn % 15) * MIB, MIB)
                    disk.flush()
            finally:
                done.set()

        run_threads([read, read, recycle])
    vhdx_disk.check(path.read_bytes())
    assert path.stat().st_size <= PAYLOAD_AT + 6 * MIB


@pytest.mark.parametrize("at", range(1, 9))
def test_failed_metadata_write_poisons(tmp_path: Path, at: int) -> None:
    """Rule 12: sync, entry, sync, table; and the same at close. Reads go on, and the log is left as it is."""
    path = tmp_path / "d.vhdx"
    build(path, 8 * MIB, {0: OLD})
    with watching() as watched:
        disk = open_disk(path, write=True)
        disk.write(MIB, NEW)
        disk.flush()
        disk.write(2 * MIB, NEW)
        closing = at > 4
        if closing:
            disk.flush()
        watched.probe.fail(at - 4 if closing else at, errno.EIO)
        if closing:
            with pytest.raises(DiskError):
                disk.close()
        else:
            with pytest.raises(DiskError, match="could not be written"):
                disk.flush()
            assert disk.read(0, 3 * MIB) == OLD + NEW + NEW
            assert (flush(disk), trim(disk, 0, MIB), writev(disk, 0, [NEW])) == (WRITE_ERROR,) * 3
            assert writev(disk, 5 * MIB, [NEW]) == WRITE_ERROR
            image = path.read_bytes()
            with pytest.raises(DiskError, match="could not be written"):
                disk.close()
            assert path.read_bytes() == image
            assert vhdx_disk.headers(image)[0].log_guid.int


@pytest.mark.parametrize("at", range(1, 5))
def test_failed_begin_poisons(tmp_path: Path, at: int) -> None:
    path = tmp_path / "d.vhdx"
    build(path, 2 * MIB, {0: OLD})
    with watching() as watched, open_disk(path, write=True) as disk:
        watched.probe.fail(at, errno.EIO)
        assert writev(disk, 0, [NEW]) == WRITE_ERROR
        assert writev(disk, 0, [NEW]) == WRITE_ERROR
        assert flush(disk) == WRITE_ERROR
        assert disk.read(0, MIB) == OLD


@pytest.mark.parametrize("at", [1, 2])
def test_full_file_system_fails_the_write_alone(tmp_path: Path, at: int) -> None:
    """Rule 14: the file cannot grow (1) or the block not be written (2). Nothing is changed, nothing is poisoned."""
    path = tmp_path / "d.vhdx"
    build(path, 8 * MIB, {0: OLD})
    with watching() as watched, open_disk(path, write=True) as disk:
        disk.write(0, NEW[:512])
        watched.probe.fail(at, errno.ENOSPC)
        assert writev(disk, 3 * MIB, [NEW[:1024]]) == NO_SPACE
        assert disk.entry(3) == NOT_PRESENT
        assert readv(disk, 3 * MIB, [bytearray(MIB)]) == 0
        disk.write(3 * MIB + 512, NEW[:512])
        assert disk.read(3 * MIB, MIB) == bytes(512) + NEW[:512] + bytes(MIB - 1024)
        disk.flush()
    vhdx_disk.check(path.read_bytes())


def test_space_of_a_failed_write_is_cleaned(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    build(path, 8 * MIB, {})
    with watching() as watched, open_disk(path, write=True) as disk:
        disk.write(0, NEW[:512])
        watched.probe.fail(2, errno.EIO)
        assert writev(disk, MIB, [OLD[: MIB // 2], *[OLD[:512]] * 70]) == WRITE_ERROR  # its first half is written
        disk.write(2 * MIB, NEW[:512])
        assert disk.read(2 * MIB, MIB) == NEW[:512] + bytes(MIB - 512)


def test_without_holes_zeros_are_written(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    build(path, 8 * MIB, {0: OLD, 1: OLD})
    with watching() as watched, open_disk(path, write=True) as disk:
        disk.write(0, NEW)
        watched.take()
        watched.probe.fail(1, errno.EOPNOTSUPP)
        disk.trim(4096, 8192)
        assert [record.kind for record in watched.take()] == [journal.WRITE]
        assert disk.read(0, MIB) == NEW[:4096] + bytes(8192) + NEW[12288:]


def test_writes_are_in_whole_sectors(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    build(path, 2 * MIB, {}, sector_size=4096)
    with open_disk(path, write=True) as disk:
        assert writev(disk, 512, [bytes(4096)]) == writev(disk, 0, [bytes(512)]) == trim(disk, 0, 512) == RANGE
        assert writev(disk, 4096, [b"x" * 1000, b"", b"y" * 3096]) == 0
        assert disk.read(4096, 4096) == b"x" * 1000 + b"y" * 3096


def test_nowait_never_allocates(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    build(path, 3 * MIB, {0: OLD})
    with open_disk(path, write=True) as disk:
        disk.write(0, NEW[:512])
        assert writev(disk, MIB, [NEW[:512]], nowait=True) == WOULD_BLOCK
        assert disk.entry(1) == NOT_PRESENT
        assert writev(disk, 0, [NEW[512:1024]], nowait=True) in (0, WOULD_BLOCK)


def test_nowait_read_of_an_unread_table(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    build(path, 64 << 30, {0: OLD})
    with open_disk(path) as disk:
        assert readv(disk, 0, [bytearray(512)], nowait=True) == WOULD_BLOCK
        assert disk.read(0, 512) == OLD[:512]
        assert readv(disk, 0, [bytearray(512)], nowait=True) in (0, WOULD_BLOCK)


def test_read_only_child(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    bits = frozenset({*range(3, 70), 200, 2047})
    build(path, 4 * MIB, {1: Partial(OLD, bits), 3: ZERO}, has_parent=True)
    expected = vhdx_disk.content(path.read_bytes(), PARENT)
    with open_disk(path, parent=ram(PARENT)) as disk:
        assert disk.read(0, 4 * MIB) == expected
        pieces = [bytearray(n) for n in (700, 1, 0, *[333] * 90, MIB)]
        assert readv(disk, MIB - 5, pieces) == 0  # not in whole sectors
        assert b"".join(pieces) == expected[MIB - 5 : MIB - 5 + sum(map(len, pieces))]
        assert (writev(disk, 0, [b"x"]), flush(disk), trim(disk, 0, 512)) == (READ_ONLY,) * 3
        states = [(offset, state) for offset, _, state, _ in disk.extents()]
        assert states == [
            (0, "parent"),
            (MIB + 3 * 512, "data"),
            (MIB + 70 * 512, "parent"),
            (MIB + 200 * 512, "data"),
            (MIB + 201 * 512, "parent"),
            (2 * MIB - 512, "data"),
            (2 * MIB, "parent"),
            (3 * MIB, "zero"),
        ]


def test_child_without_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    build(path, 2 * MIB, {0: OLD}, has_parent=True)
    with open_disk(path, write=True) as disk:
        assert disk.read(0, MIB) == OLD
        assert readv(disk, MIB, [bytearray(512)]) == -3
        disk.write(MIB, NEW[:512])
        assert disk.read(MIB, 512) == NEW[:512]
    with pytest.raises(ValueError, match="a parent for a disk that has none"):
        build(path, 2 * MIB, {})
        open_disk(path, parent=ram(PARENT))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({0: PAYLOAD_AT | PARTIAL}, "entry 0 needs a sector bitmap that is not there"),
        ({2: FULL | PAYLOAD_AT, 5: ZERO}, "entry 5 names a block beyond the end of the disk"),
    ],
)
def test_damaged_child(tmp_path: Path, content: dict[int, int], message: str) -> None:
    path = tmp_path / "d.vhdx"
    build(path, 3 * MIB, content, has_parent=True)
    with path.open("r+b") as file:
        file.truncate(PAYLOAD_AT + MIB)
    with pytest.raises(ImageDamaged, match=message) as caught:
        open_disk(path)
    assert caught.value.structure == "block allocation table"
    assert caught.value.offset == BAT_AT + 8 * int(message.split()[1])


def page(fill: int) -> bytes:
    return bytes([fill]) * 4096


def test_commit_is_one_entry(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    build(path, 8 * MIB, {})
    with watching() as watched, open_disk(path, write=True) as disk:
        place = disk.allocate(2 * MIB)
        disk.write(0, NEW)
        disk.commit([(place, page(1)), (place + MIB, page(2)), (BAT_AT, page(3))])
        entries = [record for record in watched.take() if record.kind == journal.WRITE and record.data[:4] == b"loge"]
        assert [record.data[24] for record in entries] == [0, 4]
        image = path.read_bytes()
        assert image[place : place + 4096] == page(1)
        assert image[place + MIB : place + MIB + 4096] == page(2)
        # Of the page of the table only what lies behind the last entry.
        assert image[BAT_AT : BAT_AT + 4096] == (disk.entry(0)).to_bytes(8, "little") + bytes(56) + page(3)[64:]
        disk.write(MIB, NEW)
        assert disk.entry(1) & ~0xFFFFF not in (place, place + MIB)
        with pytest.raises(ValueError, match="more than 252 pages together"):
            disk.commit([(place, page(1))] * 252)
        with pytest.raises(ValueError, match="no page"):
            disk.commit([(place + 512, page(1))])
        disk.flush()
        disk.commit([(place + 4096 * n, page(n)) for n in range(252)])


def test_silent_changes_keep_the_data_write_guid(tmp_path: Path) -> None:
    """Section 3: children recorded it, and moving blocks or editing the locator changes nothing that they see."""
    path = tmp_path / "d.vhdx"
    build(path, 8 * MIB, {})
    with open_disk(path, write=True) as disk:
        disk.commit([(disk.allocate(MIB), page(1))])
        assert disk.data_write_guid == DATA_WRITE
    assert {header.data_write_guid for header in vhdx_disk.headers(path.read_bytes())} == {DATA_WRITE}


def test_relocate(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    build(path, 8 * MIB, {0: OLD, 1: NEW, 2: Partial(OLD, frozenset({1, 5}))}, has_parent=True)
    with open_disk(path, write=True, parent=ram(PARENT)) as disk:
        expected = disk.read(0, 8 * MIB)
        assert not disk.relocate(0)
        assert not disk.relocate(5)
        disk.drop(0, 1, NOT_PRESENT)
        assert disk.read(0, MIB) == PARENT[:MIB]
        assert not disk.relocate(2)  # rule 7
        disk.flush()
        assert disk.relocate(2)
        assert disk.entry(2) == PAYLOAD_AT | PARTIAL
        assert disk.read(MIB, 7 * MIB) == expected[MIB:]
        disk.flush()
    image = path.read_bytes()
    vhdx_disk.check(image)
    assert vhdx_disk.content(image, PARENT) == PARENT[:MIB] + expected[MIB:]


def test_dropped_block_is_partial_again_only_after_a_flush(tmp_path: Path) -> None:
    """Rule 9: else a split flush could show new bits over the old place."""
    path = tmp_path / "d.vhdx"
    build(path, 2 * MIB, {0: Partial(OLD, frozenset(range(100)))}, has_parent=True)
    with watching() as watched, open_disk(path, write=True, parent=ram(PARENT)) as disk:
        disk.drop(0, 1, NOT_PRESENT)
        watched.take()
        disk.write(1024, NEW[:512])
        kinds = [record.kind for record in watched.take()]
        assert journal.FLUSHED in kinds[:-1]
        assert disk.read(0, MIB) == PARENT[:1024] + NEW[:512] + PARENT[1536:MIB]


def test_wrong_arguments(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    build(path, 2 * MIB, {})
    with open_disk(path, write=True) as disk:
        for call in (
            lambda: disk.drop(1, 2, ZERO),
            lambda: disk.drop(0, 1, FULL),
            lambda: disk.allocate(512),
            lambda: disk.allocate(0),
            lambda: disk.relocate(2),
            lambda: disk.entry(2),
        ):
            with pytest.raises(ValueError):
                call()
    with open_disk(path) as disk:
        for call in (disk.begin, lambda: disk.commit([]), lambda: disk.drop(0, 1, ZERO), lambda: disk.allocate(MIB)):
            with pytest.raises(DiskError, match="read-only"):
                call()


@pytest.mark.parametrize("block_size", [MIB, 32 * MIB])
def test_other_readers_agree(tmp_path: Path, block_size: int) -> None:
    if shutil.which("qemu-img") is None or shutil.which("7zz") is None:
        pytest.skip("qemu-img and 7zz are not both installed")
    path, raw = tmp_path / "d.vhdx", tmp_path / "d.raw"
    size = 5 * block_size + 1024
    build(path, size, {}, block_size=block_size)
    with open_disk(path, write=True) as disk:
        for turn in range(12):
            disk.write(turn * 7919 * 512 % (size - MIB) // 512 * 512, pattern(turn, MIB))
            if turn % 3 == 2:
                disk.trim(turn % 5 * block_size, block_size)
                disk.flush()
        raw.write_bytes(disk.read(0, size))
    subprocess.run(["qemu-img", "check", "-f", "vhdx", path], check=True, capture_output=True)
    subprocess.run(["qemu-img", "compare", "-f", "vhdx", "-F", "raw", path, raw], check=True, capture_output=True)
    subprocess.run(["7zz", "t", "-tVHDX", path], check=True, capture_output=True)


def test_parent_is_closed_last(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    build(path, 2 * MIB, {}, has_parent=True)
    parent: Backend = ram(PARENT)
    disk: VhdxDisk = open_disk(path, write=True, parent=parent)
    disk.write(0, NEW[:512])
    disk.close()
    disk.close()
    with pytest.raises(ValueError, match="closed"):
        parent.read(0, 512)
    with pytest.raises(ValueError, match="closed"):
        disk.extents()
