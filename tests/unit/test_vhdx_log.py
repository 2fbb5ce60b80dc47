"""The log of a VHDX: which entries count, and that replay and overlay give the same disk (disk-formats.md 9)."""

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from hvcore.disk.image import open_image, read_vhdx
from hvcore.disk.medium import ImageFile, Probe
from hvcore.disk.vhdx import log
from hvcore.disk.vhdx.layout import read_header, read_layout
from hvcore.disk.vhdx.structures import HEADERS, NO_GUID, parse_header
from hvcore.errors import DiskError, ImageDamaged, ImageDirty, ImageError
from hvcore.vhd import info
from tests.reference import vhdx
from tests.reference.journal import FLUSHED, WRITE, cut, parse
from tests.reference.vhdx import BAT_AT, METADATA_AT, MIB, PAYLOAD_AT, build, log_entry, pattern, write_log

BLOCKS = 2
SIZE = BLOCKS * MIB
OTHER = UUID("deadbeef-0000-4000-8000-000000000002")


def page(number: int) -> bytes:
    return struct.pack("<QQ", number, ~number % (1 << 64)) * 256


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "d.vhdx"
    build(path, SIZE, {n: pattern(n, MIB) for n in range(BLOCKS)})
    return path


def opened(path: Path, write: bool = False) -> ImageFile:
    return ImageFile(os.open(path, os.O_RDWR if write else os.O_RDONLY))


def numbers(path: Path) -> list[int] | None:
    """Sequence numbers of the entries that replay takes; None: the log is empty."""
    with opened(path) as file:
        size = path.stat().st_size
        plan = log.read_log(file, read_header(file, size), size)
        return None if plan is None else [entry.sequence for entry in plan.entries]


def both_ways(path: Path) -> bytes:
    """The file as replay leaves it, behind the headers, which a read-only open must see and not make."""
    before = path.read_bytes()
    with opened(path) as file:
        header, notes = log.settle_log(file, read_header(file, len(before)), len(before), write=False)
        assert header.log_guid == NO_GUID and "replayed in memory" in notes[0]
        seen = file.read(192 << 10, file.size() - (192 << 10))
    assert path.read_bytes() == before
    with opened(path, write=True) as file:
        old = read_header(file, len(before))
        header, notes = log.settle_log(file, old, len(before), write=True)
        assert "its log was replayed" in notes[0]
    after = path.read_bytes()
    copies = [parse_header(after[at : at + 4096], copy) for copy, at in enumerate(HEADERS)]
    assert copies[header.copy] == header and header.sequence == old.sequence + 4
    for copy in copies:  # both carry the new facts: an older one would bring the log back
        assert copy is not None and copy.log_guid == NO_GUID
        assert copy.file_write_guid == header.file_write_guid != old.file_write_guid
        assert copy.data_write_guid == old.data_write_guid  # replay changes nothing that a guest can see
    assert after[192 << 10 :] == seen
    assert numbers(path) is None
    # Torn before LogGuid was cleared: the same replay again, to the same bytes (9.4).
    with path.open("r+b") as raw:
        for at in HEADERS:
            raw.seek(at)
            raw.write(before[at : at + 4096])
    with opened(path, write=True) as file:
        log.settle_log(file, read_header(file, len(after)), len(after), write=True)
    assert path.read_bytes()[192 << 10 :] == seen
    return seen


def at(seen: bytes, offset: int, length: int = 4096) -> bytes:
    return seen[offset - (192 << 10) :][:length]


def test_empty_entry(path: Path) -> None:
    write_log(path, [(0, log_entry(1, []))])
    before = path.read_bytes()
    assert numbers(path) == [1]
    assert both_ways(path) == before[192 << 10 :]


def test_pages_and_zeros_in_order(path: Path) -> None:
    changes = [
        (PAYLOAD_AT, page(1)),
        (PAYLOAD_AT + 4096, page(2)),
        (PAYLOAD_AT, 8192),
        (PAYLOAD_AT + 4096, page(3)),
    ]
    write_log(path, [(0, log_entry((1 << 32) + 2, changes))])
    seen = both_ways(path)
    assert at(seen, PAYLOAD_AT, 12288) == bytes(4096) + page(3) + pattern(0, MIB)[8192:12288]


def test_later_entry_wins(path: Path) -> None:
    first = log_entry(7, [(PAYLOAD_AT, page(1)), (PAYLOAD_AT + 8192, page(2))])
    second = log_entry(8, [(PAYLOAD_AT, page(3))])
    write_log(path, [(0, first), (len(first), second)])
    assert numbers(path) == [7, 8]
    seen = both_ways(path)
    assert (at(seen, PAYLOAD_AT), at(seen, PAYLOAD_AT + 8192)) == (page(3), page(2))


def test_entries_before_the_tail_are_ignored(path: Path) -> None:
    old = log_entry(7, [(PAYLOAD_AT, page(1))])
    new = log_entry(8, [(PAYLOAD_AT + 4096, page(2))], tail=len(old))
    write_log(path, [(0, old), (len(old), new)])
    assert numbers(path) == [8]
    assert at(both_ways(path), PAYLOAD_AT) == pattern(0, MIB)[:4096]


@pytest.mark.parametrize("position", [MIB - 4096, MIB - 8192])
def test_wrapped_entry(path: Path, position: int) -> None:
    raw = log_entry(3, [(PAYLOAD_AT + 4096 * n, page(n)) for n in range(200)], tail=position)
    write_log(path, [(position, raw)])
    seen = both_ways(path)
    assert at(seen, PAYLOAD_AT, 200 * 4096) == b"".join(map(page, range(200)))


def test_wrapped_sequence(path: Path) -> None:
    start = MIB - 3 * 8192
    entries = [
        ((start + 8192 * n) % MIB, log_entry(5 + n, [(PAYLOAD_AT + 4096 * n, page(n))], tail=start)) for n in range(6)
    ]
    write_log(path, entries)
    assert numbers(path) == [5, 6, 7, 8, 9, 10]
    assert at(both_ways(path), PAYLOAD_AT, 6 * 4096) == b"".join(map(page, range(6)))


@pytest.mark.parametrize("lost", [0, 4096, 8192])
def test_torn_last_entry(path: Path, lost: int) -> None:
    whole = log_entry(1, [(PAYLOAD_AT, page(1))])
    torn = bytearray(log_entry(2, [(PAYLOAD_AT, page(2)), (PAYLOAD_AT + 4096, page(3))]))
    torn[lost : lost + 512] = bytes(512)
    write_log(path, [(0, whole), (len(whole), bytes(torn))])
    assert numbers(path) == [1]
    assert at(both_ways(path), PAYLOAD_AT) == page(1)


def test_stale_entries_behind(path: Path) -> None:
    """Of an earlier lap, with the same LogGuid: smaller numbers end the sequence and lose against it."""
    new = log_entry(20, [(PAYLOAD_AT, page(1))])
    stale = [(len(new) + 8192 * n, log_entry(5 + n, [(PAYLOAD_AT, page(9))], tail=len(new))) for n in range(4)]
    write_log(path, [(0, new), *stale])
    assert numbers(path) == [20]


def test_gap_in_the_numbers(path: Path) -> None:
    """Two runs; the one with the greater last number counts, though its tail excludes what was before the gap."""
    entries = [(8192 * n, log_entry(number, [(PAYLOAD_AT, page(number))])) for n, number in enumerate((1, 2))]
    entries.append((16384, log_entry(4, [(PAYLOAD_AT, page(4))], tail=16384)))
    write_log(path, entries)
    assert numbers(path) == [4]


@pytest.mark.parametrize(("left", "right", "taken"), [(10, 20, 20), (20, 10, 20)])
def test_of_two_runs_the_later_one(path: Path, left: int, right: int, taken: int) -> None:
    write_log(path, [(0, log_entry(left, [])), (65536, log_entry(right, [], tail=65536))])
    assert numbers(path) == [taken]


@pytest.mark.parametrize("tail", [4096, 65536, MIB - 4096])
def test_tail_outside_of_the_run(path: Path, tail: int) -> None:
    write_log(path, [(0, log_entry(1, [(PAYLOAD_AT, page(1))], tail=tail))])
    assert numbers(path) == []


def test_foreign_guid_and_number_zero(path: Path) -> None:
    write_log(path, [(0, log_entry(1, [], log_guid=OTHER)), (4096, log_entry(0, [], tail=4096))])
    assert numbers(path) == []


def test_no_valid_entry(path: Path) -> None:
    """What a killed QEMU may leave: nothing was applied, so reading is safe; writing needs the user's word."""
    write_log(path, [])
    before = path.read_bytes()
    assert "has no valid entry: opened as its last complete state" in info(path).notes[0]
    with open_image(path) as disk:
        assert disk.read(0, SIZE) == pattern(0, MIB) + pattern(1, MIB)
    with pytest.raises(ImageDirty, match=r"d\.vhdx: .*run hvcore vhd repair"):
        open_image(path, mode="r+")
    assert path.read_bytes() == before


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_log_version(path: Path, mode: str) -> None:
    write_log(path, [(0, log_entry(1, []))], version=1)
    with pytest.raises(ImageError, match="log version 1 is not supported"):
        open_image(path, mode=mode)
    write_log(path, [], version=1, log_guid=NO_GUID)
    assert info(path).size == SIZE


HOSTILE: dict[str, tuple[list[tuple[int, bytes | int]], str]] = {
    "identifier": ([(0, page(1))], "changes the headers, at 0"),
    "header": ([(64 << 10, page(1))], "changes the headers, at 65536"),
    "just before": ([(188 << 10, page(1))], "changes the headers"),
    "log": ([(MIB, page(1))], "changes the log itself, at 1048576"),
    "log's last page": ([(2 * MIB - 4096, page(1))], "changes the log itself"),
    "zeros into the log": ([(MIB - 4096, 8192)], "changes the log itself"),
    "zeros over the log": ([(MIB - 4096, 2 * MIB)], "changes the log itself"),
    "wraps": ([((1 << 64) - 4096, 8192)], "beyond any file"),
    "far": ([(128 << 40, page(1))], "beyond any file"),
    "no zeros": ([(PAYLOAD_AT, 0)], "not whole pages"),
    "half a page of zeros": ([(PAYLOAD_AT, 512)], "not whole pages"),
    "unaligned": ([(PAYLOAD_AT + 512, page(1))], "not whole pages"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_entry_with_a_forbidden_target(path: Path, name: str, mode: str) -> None:
    """Refused, not skipped, also behind a good one (9.2)."""
    changes, words = HOSTILE[name]
    good = log_entry(1, [])
    write_log(path, [(0, good), (len(good), log_entry(2, changes))])
    before = path.read_bytes()
    with pytest.raises(ImageDamaged, match=words) as caught:
        open_image(path, mode=mode)
    assert caught.value.offset == MIB + 4096
    assert path.read_bytes() == before


def test_last_page_before_the_log_may_change(path: Path) -> None:
    write_log(path, [(0, log_entry(1, [(MIB - 4096, page(1)), (192 << 10, vhdx.region_table()[:4096])]))])
    assert at(both_ways(path), MIB - 4096) == page(1)


BROKEN: dict[str, Callable[[bytearray], None]] = {
    "checksum": lambda raw: raw.__setitem__(5000, raw[5000] ^ 1),
    "length 0": lambda raw: struct.pack_into("<I", raw, 8, 0),
    "length of the log": lambda raw: struct.pack_into("<I", raw, 8, MIB),
    "length too long": lambda raw: struct.pack_into("<I", raw, 8, 12288),
    "odd length": lambda raw: struct.pack_into("<I", raw, 8, 8193),
    "tail beyond": lambda raw: struct.pack_into("<I", raw, 12, MIB),
    "odd tail": lambda raw: struct.pack_into("<I", raw, 12, 512),
    "more descriptors": lambda raw: struct.pack_into("<I", raw, 24, 2),
    "endless descriptors": lambda raw: struct.pack_into("<I", raw, 24, 0xFFFFFFFF),
    "no descriptors": lambda raw: struct.pack_into("<I", raw, 24, 0),
    "descriptor signature": lambda raw: struct.pack_into("<4s", raw, 64, b"dexc"),
    "descriptor number": lambda raw: struct.pack_into("<Q", raw, 88, 2),
    "data signature": lambda raw: struct.pack_into("<4s", raw, 4096, b"date"),
    "data high": lambda raw: struct.pack_into("<I", raw, 4100, 1),
    "data low": lambda raw: struct.pack_into("<I", raw, 8188, 2),
}


@pytest.mark.parametrize("name", BROKEN)
def test_invalid_entry(path: Path, name: str) -> None:
    """Each rule of 9.2 by itself: the checksum is right, but for the case that is about it."""
    raw = bytearray(log_entry(1, [(PAYLOAD_AT, page(1))]))
    BROKEN[name](raw)
    write_log(path, [(0, bytes(raw) if name == "checksum" else vhdx.sealed(bytes(raw)))])
    assert numbers(path) == []


def test_truncated_file_is_refused_by_the_head_alone(path: Path) -> None:
    """FlushedFileOffset (9.4 step 1): older entries may have known a longer file."""
    size = path.stat().st_size
    old = log_entry(1, [], flushed=size + MIB)
    write_log(path, [(0, old), (4096, log_entry(2, [], flushed=size))])
    both_ways(path)
    write_log(path, [(0, log_entry(1, [])), (4096, log_entry(2, [], flushed=size + MIB))])
    before = path.read_bytes()
    for mode in ("r", "r+"):
        with pytest.raises(ImageDamaged, match="truncated: its log was written to a file of"):
            open_image(path, mode=mode)
    assert path.read_bytes() == before


def test_file_is_extended(path: Path) -> None:
    """By pages, by zeros, and to LastFileOffset."""
    size = path.stat().st_size
    changes = [(size + 4096, page(1)), (size + 8192, 2 * MIB), (size + MIB, page(2))]
    write_log(path, [(0, log_entry(1, changes, last=size + 8 * MIB))])
    seen = both_ways(path)
    assert len(seen) == size + 8 * MIB - (192 << 10)
    assert at(seen, size, 16384) == bytes(4096) + page(1) + bytes(8192)
    assert at(seen, size + MIB, 8192) == page(2) + bytes(4096)


def test_replay_brings_metadata_and_blocks(path: Path) -> None:
    """Structures are read after replay only: without it this disk has another size and no third block."""
    size = path.stat().st_size
    items = vhdx.metadata(vhdx.standard_items(3 * MIB, MIB))[65536:].ljust(4096, b"\0")
    bat = struct.pack("<3Q", *(PAYLOAD_AT + n * MIB | 6 for n in range(3))).ljust(4096, b"\0")
    with path.open("r+b") as file:
        file.seek(BAT_AT)
        file.write(b"\xff" * 4096)  # torn: nonsense until the log repairs it (rule 4)
        file.seek(size)
        file.write(pattern(2, MIB))
    entry = log_entry(1, [(METADATA_AT + 65536, items), (BAT_AT, bat)], flushed=size, last=size + MIB)
    write_log(path, [(0, entry)])
    before = path.read_bytes()
    expected = b"".join(pattern(n, MIB) for n in range(3))
    with open_image(path) as disk:
        assert disk.read(0, disk.size) == expected
    assert path.read_bytes() == before
    with opened(path, write=True) as file:
        layout = read_vhdx(file, len(before), True)
        assert (layout.size, layout.header.log_guid, layout.file_size) == (3 * MIB, NO_GUID, len(before))
        assert layout.notes == ("the disk was not closed cleanly: its log was replayed",)
    with open_image(path) as disk:
        assert disk.read(0, disk.size) == expected
    assert info(path).notes == ()


def test_layout_of_a_dirty_file_needs_its_replay(path: Path) -> None:
    write_log(path, [(0, log_entry(1, []))])
    with opened(path) as file, pytest.raises(ImageDirty, match="log to replay"):
        read_layout(file, path.stat().st_size)


def test_overlay_has_a_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted are the different pages: one that is logged again takes no more memory."""
    monkeypatch.setattr(log, "MAX_OVERLAY", 3 * 4096)
    pages = [(PAYLOAD_AT + 4096 * n, page(n)) for n in range(3)]
    write_log(path, [(0, log_entry(1, pages * 2))])
    with open_image(path) as disk:
        assert disk.read(8192, 4096) == page(2)
    write_log(path, [(0, log_entry(1, [*pages, (PAYLOAD_AT + 65536, page(4))]))])
    with pytest.raises(ImageDirty, match="too much to replay in memory; open it for writing"):
        open_image(path)
    write_log(path, [(0, log_entry(1, [(PAYLOAD_AT, 4096)] * 4))])
    with pytest.raises(ImageDirty, match="too much to replay in memory"):
        open_image(path)


def test_headers_alternate(path: Path) -> None:
    with opened(path, write=True) as file:
        first = read_header(file, path.stat().st_size)
        second = log.update_header(file, first, data_write_guid=OTHER)
        assert (second.copy, second.sequence, second.data_write_guid) == (1 - first.copy, first.sequence + 1, OTHER)
        assert replace(second, copy=first.copy, sequence=first.sequence, data_write_guid=first.data_write_guid) == first
        assert read_header(file, path.stat().st_size) == second
        third = log.update_header(file, second)
        assert third.copy == first.copy and third.data_write_guid == OTHER


def test_last_sequence_number(path: Path) -> None:
    with opened(path, write=True) as file:
        header = replace(read_header(file, path.stat().st_size), sequence=(1 << 64) - 1)
        before = path.read_bytes()
        with pytest.raises(ImageDamaged, match="sequence number cannot grow"):
            log.update_header(file, header)
    assert path.read_bytes() == before


def test_nested_headers_are_scanned_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sector begins like an entry of nearly the whole log: still each is read about once."""
    fake = struct.pack("<4sIIIQII", b"loge", 0, MIB - 4096, 0, 1, 32000, 0) + vhdx.LOG.bytes_le
    write_log(path, [(4096 * n, fake.ljust(4096, b"\0")) for n in range(256)])
    reads = []
    read_ring = log.read_ring
    monkeypatch.setattr(log, "read_ring", lambda *args: reads.append(args[2]) or read_ring(*args))
    assert numbers(path) == []
    assert len(reads) <= 2 * 256


def test_long_run_without_a_tail_is_scanned_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 valid entries whose last one names a tail outside: no entry is looked at again for each of the others."""
    entries = [(4096 * n, log_entry(n + 1, [], tail=MIB - 4096)) for n in range(255)]
    write_log(path, entries)
    scans = []
    scan = log.scan_entry
    monkeypatch.setattr(log, "scan_entry", lambda *args: scans.append(1) or scan(*args))
    assert numbers(path) == []
    assert len(scans) == 256


@pytest.fixture
def journal() -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        yield file.fileno()


def recorded(path: Path, journal: int) -> list:
    size = path.stat().st_size
    with ImageFile(os.open(path, os.O_RDWR), probe=Probe(journal)) as file:
        log.settle_log(file, read_header(file, size), size, write=True)
    return parse(os.pread(journal, 1 << 24, 0))


def test_replay_flushes_in_order(path: Path, journal: int) -> None:
    """Both headers one by one, the pages, then both headers again, a flush after each (9.4)."""
    write_log(path, [(0, log_entry(1, [(PAYLOAD_AT, page(1)), (PAYLOAD_AT + 8192, page(2))]))])
    steps = [
        record.offset if record.kind == WRITE else "flush"
        for record in recorded(path, journal)
        if record.kind in (WRITE, FLUSHED)
    ]
    one, two = HEADERS
    assert steps == [
        *(one, "flush", two, "flush"),
        *(PAYLOAD_AT, PAYLOAD_AT + 8192, "flush"),
        *(one, "flush", two, "flush"),
    ]


@pytest.mark.parametrize("survives", [[True], [False], [True, False], [False, True, True]])
def test_cut_during_replay(path: Path, journal: int, survives: list[bool]) -> None:
    """Whatever of the unflushed sectors is there: the next open gives the same disk."""
    write_log(path, [(0, log_entry(1, [(PAYLOAD_AT, page(1)), (PAYLOAD_AT + MIB, page(2)), (PAYLOAD_AT, page(3))]))])
    start = path.read_bytes()
    records = recorded(path, journal)
    expected = path.read_bytes()[192 << 10 :]
    for count in range(len(records) + 1):
        path.write_bytes(cut(start, records[:count], survives))
        with opened(path) as file:
            log.settle_log(file, read_header(file, len(start)), len(start), write=False)
            assert file.read(192 << 10, len(expected)) == expected


@pytest.mark.parametrize("call", range(1, 16))
def test_failure_during_replay(path: Path, call: int) -> None:
    """The open fails, and a later one replays all the same."""
    write_log(path, [(0, log_entry(1, [(PAYLOAD_AT, page(1)), (PAYLOAD_AT + MIB, page(2))]))])
    size = path.stat().st_size
    probe = Probe()
    with ImageFile(os.open(path, os.O_RDWR), probe=probe) as file:
        header = read_header(file, size)
        plan = log.read_log(file, header, size)
        assert plan is not None
        probe.fail(call, 5, True)
        calls = probe.calls
        try:
            log.replay_into(file, header, plan)
        except DiskError:
            assert probe.calls >= calls + call
        else:
            assert probe.calls < calls + call
    with open_image(path) as disk:
        assert disk.read(0, 4096) + disk.read(MIB, 4096) == page(1) + page(2)


@pytest.mark.skipif(not shutil.which("qemu-io") or not shutil.which("qemu-img"), reason="needs qemu-io and qemu-img")
@pytest.mark.parametrize("writes", [1, 5])
def test_killed_qemu(tmp_path: Path, writes: int) -> None:
    path = tmp_path / "q.vhdx"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, "16M"], check=True)
    commands = [word for n in range(writes) for word in ("-c", f"write -P {n + 65} {2 * n}M 64k")]
    subprocess.run(["qemu-io", "-f", "vhdx", *commands, "-c", "flush", "-c", "abort", path], capture_output=True)
    before = path.read_bytes()
    expected = bytearray(16 * MIB)
    for n in range(writes):
        expected[2 * n * MIB : 2 * n * MIB + 65536] = bytes([n + 65]) * 65536
    with open_image(path) as disk:
        assert disk.read(0, disk.size) == expected
    assert path.read_bytes() == before
    if numbers(path) != []:
        with opened(path, write=True) as file:
            read_vhdx(file, len(before), True)
        with open_image(path) as disk:
            assert disk.read(0, disk.size) == expected
        subprocess.run(["qemu-img", "check", "-q", "-f", "vhdx", path], check=True)


@pytest.mark.skipif(not shutil.which("qemu-io") or not shutil.which("qemu-img"), reason="needs qemu-io and qemu-img")
@pytest.mark.parametrize("after_ms", range(0, 16, 2))
def test_qemu_killed_in_the_midst(tmp_path: Path, after_ms: int) -> None:
    """Of eight allocating writes under way some are lost. What is left is clean, a log to replay, or a LogGuid without
    entries, as chance has it; QEMU's replay of a copy has the same content."""
    path, copy = tmp_path / "q.vhdx", tmp_path / "copy.vhdx"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, "16M"], check=True)
    commands = [word for n in range(8) for word in ("-c", f"aio_write -P {n + 65} {n}M 64k")]
    subprocess.run(
        ["qemu-io", "-f", "vhdx", *commands, "-c", f"sleep {after_ms}", "-c", "abort", path], capture_output=True
    )
    before = path.read_bytes()
    shutil.copy(path, copy)
    subprocess.run(["qemu-img", "check", "-q", "-r", "all", "-f", "vhdx", copy], check=True)
    subprocess.run(["qemu-img", "convert", "-f", "vhdx", "-O", "raw", copy, tmp_path / "raw"], check=True)
    expected = (tmp_path / "raw").read_bytes()
    with open_image(path) as disk:
        assert disk.read(0, disk.size) == expected
    assert path.read_bytes() == before
    with opened(path, write=True) as file:
        if numbers(path) == []:
            with pytest.raises(ImageDirty, match="hvcore vhd repair"):
                read_vhdx(file, len(before), True)
            return
        read_vhdx(file, len(before), True)
    with open_image(path) as disk:
        assert disk.read(0, disk.size) == expected
    subprocess.run(["qemu-img", "check", "-q", "-f", "vhdx", path], check=True)


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")
def test_qemu_replays_to_the_same_disk(path: Path) -> None:
    """QEMU is a judge of logs that never wrapped (disk-formats.md 17)."""
    size = path.stat().st_size
    bat = struct.pack("<2Q", PAYLOAD_AT | 6, 2).ljust(4096, b"\0")
    first = log_entry(1, [(BAT_AT, bat), (PAYLOAD_AT + 4096, 8192)], flushed=size, last=size)
    write_log(path, [(0, first), (len(first), log_entry(2, [(PAYLOAD_AT, page(1))], flushed=size, last=size))])
    copy = path.with_name("copy.vhdx")
    shutil.copy(path, copy)
    subprocess.run(["qemu-img", "check", "-q", "-r", "all", "-f", "vhdx", copy], check=True)
    with open_image(path) as ours, open_image(copy) as theirs:
        assert ours.read(0, SIZE) == theirs.read(0, SIZE)
        assert ours.read(0, 12288) == page(1) + bytes(8192)
        assert ours.read(MIB, MIB) == bytes(MIB)
