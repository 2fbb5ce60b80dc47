"""VHDX files built by hand: what is read, and every fault that must be named."""

import struct
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from hvcore.disk.image import open_image
from hvcore.disk.vector import flush, readv, trim, writev
from hvcore.errors import DiskError, ImageError
from hvcore.vhd import Extent, info
from hvcore.vhd import open as open_vhd
from tests.reference import vhdx
from tests.reference.vhdx import (
    BAT,
    BAT_AT,
    HEADERS,
    METADATA,
    METADATA_AT,
    MIB,
    PAYLOAD_AT,
    REGION_TABLES,
    build,
    header,
    metadata,
    pattern,
    region_table,
    standard_items,
)
from tests.reference.vhdx_disk import open_disk

OTHER = UUID("deadbeef-0000-4000-8000-000000000001")
UNDEFINED, ZERO, UNMAPPED, FULL = 1, 2, 3, 6


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("reverse", [False, True])
def test_dynamic_with_holes(tmp_path: Path, sector_size: int, reverse: bool) -> None:
    path = tmp_path / "d.vhdx"
    size = 6 * MIB + sector_size
    content = {0: pattern(0, MIB), 2: pattern(2, MIB), 3: pattern(3, MIB), 5: ZERO, 6: pattern(6, MIB)}
    build(path, size, content, sector_size=sector_size, reverse=reverse)
    expected = b"".join(content.get(n) if isinstance(content.get(n), bytes) else bytes(MIB) for n in range(7))[:size]
    with open_image(path) as disk:
        assert (disk.size, disk.sector_size, disk.physical_sector_size) == (size, sector_size, 4096)
        assert disk.read_only
        assert disk.read(0, size) == expected
        for offset in (0, MIB - sector_size, 2 * MIB - sector_size, 3 * MIB, size - sector_size):
            assert disk.read(offset, sector_size) == expected[offset : offset + sector_size]
        pieces = [bytearray(n) for n in [700, 1, 0, MIB - 5, *[64] * 90, MIB, 2 * MIB]]
        assert readv(disk, MIB - 333, pieces) == 0
        assert b"".join(pieces) == expected[MIB - 333 : MIB - 333 + sum(map(len, pieces))]
        assert readv(disk, size - 1, [bytearray(2)]) == -1
        assert writev(disk, 0, [b"x"]) == flush(disk) == trim(disk, 0, 512) == -2


def test_fixed(tmp_path: Path) -> None:
    path = tmp_path / "f.vhdx"
    build(path, 4 * MIB, {n: pattern(n, 2 * MIB) for n in range(2)}, block_size=2 * MIB, fixed=True)
    with open_vhd(path) as image:
        assert (image.format, image.info.type, image.block_size, image.parent) == ("vhdx", "fixed", 2 * MIB, None)
        assert image.read(0, 4 * MIB) == pattern(0, 2 * MIB) + pattern(1, 2 * MIB)
        assert list(image.extents()) == [Extent(0, 4 * MIB, "data", PAYLOAD_AT)]


def test_extents(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    build(path, 6 * MIB - 512, {1: pattern(1, MIB), 2: pattern(2, MIB), 5: pattern(5, MIB)})
    with open_vhd(path) as image:
        assert list(image.extents()) == [
            Extent(0, MIB, "zero", None),
            Extent(MIB, 2 * MIB, "data", PAYLOAD_AT),
            Extent(3 * MIB, 2 * MIB, "zero", None),
            Extent(5 * MIB, MIB - 512, "data", PAYLOAD_AT + 2 * MIB),
        ]


@pytest.mark.parametrize(("sector_size", "blocks"), [(512, (4095, 4096, 8191, 8192)), (4096, (32767, 32768))])
def test_bitmap_entries_are_interleaved(tmp_path: Path, sector_size: int, blocks: tuple[int, ...]) -> None:
    """Beyond the first chunk (4 or 32 GiB) the entry of a block is not at the block's number."""
    path = tmp_path / "large.vhdx"
    size = (blocks[-1] + 1) * MIB
    build(path, size, {block: pattern(block, MIB) for block in blocks}, sector_size=sector_size)
    with open_image(path) as disk:
        for block in blocks:
            assert disk.read(block * MIB, MIB) == pattern(block, MIB)
        assert disk.read((blocks[0] - 1) * MIB, MIB) == bytes(MIB)


@pytest.mark.parametrize(
    "entry", [UNDEFINED, ZERO, UNMAPPED, PAYLOAD_AT + MIB | UNMAPPED, PAYLOAD_AT | ZERO, PAYLOAD_AT]
)
def test_states_that_read_as_zeros(tmp_path: Path, entry: int) -> None:
    path = tmp_path / "d.vhdx"
    build(path, 2 * MIB, {0: pattern(0, MIB), 1: entry})
    with open_image(path) as disk:
        assert disk.read(0, 2 * MIB) == pattern(0, MIB) + bytes(MIB)


def test_last_block_may_end_with_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "short.vhdx"
    build(path, MIB + 1024, {0: pattern(0, MIB), 1: pattern(1, 1024)})
    with path.open("r+b") as file:
        file.truncate(PAYLOAD_AT + MIB + 1024)
    with open_image(path) as disk:
        assert disk.read(0, MIB + 1024) == pattern(0, MIB) + pattern(1, 1024)
    with path.open("r+b") as file:
        file.truncate(PAYLOAD_AT + MIB + 1023)
    with pytest.raises(ImageError, match="entry 1 places a block beyond the end of the file"):
        open_image(path)


def test_file_cut_short_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    build(path, 2 * MIB, {0: pattern(0, MIB), 1: pattern(1, MIB)})
    with open_image(path) as disk:
        with path.open("r+b") as file:
            file.truncate(PAYLOAD_AT + MIB)
        assert readv(disk, 0, [bytearray(MIB)]) == 0
        assert readv(disk, MIB - 512, [bytearray(1024)]) == -3


@pytest.mark.parametrize("order", ["first", "second", "one damaged", "identical"])
def test_current_header_is_chosen(tmp_path: Path, order: str) -> None:
    """The copy with the greater number counts; the other one names a log here, which must not matter."""
    path = tmp_path / "d.vhdx"
    build(path, MIB, {0: pattern(0, MIB)})
    good, stale = header(9), header(8, log_guid=vhdx.LOG)
    copies = {
        "first": (good, stale),
        "second": (stale, good),
        "one damaged": (good, bytes(4096)),
        "identical": (good, good),
    }[order]
    with path.open("r+b") as file:
        for at, copy in zip(HEADERS, copies, strict=True):
            file.seek(at)
            file.write(copy)
    with open_image(path) as disk:
        assert disk.read(0, MIB) == pattern(0, MIB)


def test_second_region_table(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    build(path, MIB, {0: pattern(0, MIB)})
    with path.open("r+b") as file:
        file.seek(REGION_TABLES[0] + 20)
        file.write(b"?")
    assert info(path).notes == ("region table 1 is damaged",)
    with open_image(path) as disk:
        assert disk.read(0, MIB) == pattern(0, MIB)


def test_optional_strangers_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    build(path, MIB, {0: pattern(0, MIB)})
    items = [*standard_items(MIB, MIB), (OTHER, 0, b"own"), (OTHER, 1, b"user's"), (vhdx.DISK_SIZE, 1, b"user's")]
    table = region_table((BAT, BAT_AT, MIB, 0), (METADATA, METADATA_AT, MIB, 0), (OTHER, 5 * MIB, MIB, 0))
    with path.open("r+b") as file:
        file.truncate(6 * MIB)
        for at in REGION_TABLES:
            file.seek(at)
            file.write(table)
        file.seek(METADATA_AT)
        file.write(metadata(items))
    with open_image(path) as disk:
        assert disk.read(0, MIB) == pattern(0, MIB)


def faulty(
    *,
    head: bytes | None = None,
    table: bytes | None = None,
    items: bytes | None = None,
    bat: tuple[int, ...] = (),
    size: int | None = None,
    at: tuple[int, bytes] | None = None,
) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            for offsets, data in ((HEADERS, head), (REGION_TABLES, table), ((METADATA_AT,), items)):
                for offset in offsets if data is not None else ():
                    file.seek(offset)
                    file.write(data or b"")
            file.seek(BAT_AT)
            file.write(struct.pack(f"<{len(bat)}Q", *bat))
            if at:
                file.seek(at[0])
                file.write(at[1])
            if size is not None:
                file.truncate(size)

    return damage


def items(*more: tuple[UUID, int, bytes], without: UUID | None = None, **options: int) -> bytes:
    arguments = {"size": 3 * MIB, "block_size": MIB, **options}
    return metadata([item for item in standard_items(**arguments) if item[0] != without] + list(more))


def regions(*more: tuple[UUID, int, int, int], bat: int = BAT_AT, bat_length: int = MIB) -> bytes:
    return region_table((BAT, bat, bat_length, 1), (METADATA, METADATA_AT, MIB, 1), *more)


FAULTS = {
    "identifier": (faulty(at=(0, b"vhdxfilf")), "not recognised"),
    "both headers": (faulty(at=(HEADERS[0], bytes(65536 + 8))), "both headers are damaged"),
    "equal numbers": (faulty(at=(HEADERS[0], header(2, log_length=2 * MIB))), "same sequence number but differ"),
    "header version": (faulty(head=header(3, version=2)), "header version 2 is not supported"),
    "log version": (
        faulty(head=header(3, log_guid=vhdx.LOG, log_version=1)),
        "has a log to replay, but log version 1 is not supported",
    ),
    "log length": (faulty(head=header(3, log_length=4096)), "the log length 4096 is not"),
    "log length 0": (faulty(head=header(3, log_length=0)), "the log length 0 is not"),
    "log offset": (faulty(head=header(3, log_offset=512 << 10)), "the log offset 524288 is not"),
    "log beyond file": (faulty(head=header(3, log_offset=(1 << 64) - MIB)), "truncated: the log ends at"),
    "log over BAT": (faulty(head=header(3, log_offset=BAT_AT)), "overlap"),
    "both region tables": (faulty(table=bytes(65536)), "both region tables are damaged"),
    "region count": (faulty(table=region_table(count=2048)), "has 2048 entries, more than 2047"),
    "huge BAT": (faulty(table=regions(bat=8 * MIB, bat_length=514 * MIB), size=522 * MIB), "more than 537919488"),
    "no BAT": (faulty(table=region_table((METADATA, METADATA_AT, MIB, 1))), "no BAT region"),
    "no metadata region": (faulty(table=region_table((BAT, BAT_AT, MIB, 1))), "no metadata region"),
    "unknown region": (faulty(table=regions((OTHER, 6 * MIB, MIB, 1))), "deadbeef.* is required but unknown"),
    "region twice": (faulty(table=regions((BAT, 6 * MIB, MIB, 1))), "the BAT region is listed twice"),
    "region flags": (faulty(table=regions((OTHER, 6 * MIB, MIB, 2))), "reserved bits"),
    "regions overlap": (faulty(table=regions(bat_length=2 * MIB)), "the BAT region and the metadata region overlap"),
    "region unaligned": (faulty(table=regions(bat=BAT_AT + 512)), "not placed in whole MiB"),
    "region in headers": (faulty(table=regions(bat=0)), "not placed in whole MiB"),
    "region of nothing": (faulty(table=regions(bat_length=0)), "not placed in whole MiB"),
    "region beyond file": (faulty(table=regions((OTHER, (1 << 64) - MIB, MIB, 0))), "truncated"),
    "region wraps": (faulty(table=regions((OTHER, (1 << 64) - MIB, 2 * MIB, 0))), "truncated"),
    "metadata signature": (faulty(items=b"metadatb"), "signature is missing"),
    "metadata count": (faulty(items=metadata([], count=2048)), "has 2048 entries"),
    "item missing": (faulty(items=items(without=vhdx.PHYSICAL)), "no physical sector size"),
    "item twice": (faulty(items=items((vhdx.DISK_SIZE, 6, bytes(8)))), "listed twice"),
    "unknown item": (faulty(items=items((OTHER, 4, b"x"))), "deadbeef.* is required but unknown"),
    "user required": (faulty(items=items((OTHER, 5, b"x"))), "a user's and required"),
    "item flags": (faulty(items=items((OTHER, 8, b"x"))), "reserved bits"),
    "item size": (faulty(items=items((vhdx.DISK_ID, 6, bytes(15)), without=vhdx.DISK_ID)), "15 bytes, not 16"),
    "item outside": (faulty(at=(METADATA_AT + 48, struct.pack("<I", MIB - 4))), "outside the metadata region"),
    "item in table": (faulty(at=(METADATA_AT + 48, struct.pack("<I", 1024))), "outside the metadata region"),
    "item too long": (faulty(at=(METADATA_AT + 52, struct.pack("<I", 2 * MIB))), "2097152 bytes at"),
    "items overlap": (faulty(at=(METADATA_AT + 48, struct.pack("<I", 65540))), "overlap"),
    "incomplete": (
        faulty(items=items((UUID("71CC85F0-1B69-4E28-9558-C3BF83AE75D3"), 4, b""))),
        "marked incomplete",
    ),
    "block size 3 MiB": (faulty(items=items(block_size=3 * MIB)), "not a power of two"),
    "block size 512 KiB": (faulty(items=items(block_size=MIB // 2)), "not a power of two"),
    "block size 512 MiB": (faulty(items=items(block_size=512 * MIB)), "not a power of two"),
    "block size 0": (faulty(items=items(block_size=0)), "not a power of two"),
    "parameter flags": (faulty(items=items(flags=4)), "reserved bits"),
    "differencing": (
        faulty(items=items((vhdx.LOCATOR, 4, vhdx.locator(vhdx.LINKAGE, vhdx.RELATIVE)), flags=2)),
        "its parent cannot be opened: .*base.vhdx: no such file or directory; name it",
    ),
    "no locator": (faulty(items=items(flags=2)), "a differencing disk without a parent locator"),
    "bad locator": (faulty(items=items((vhdx.LOCATOR, 4, b"x"), flags=2)), "the parent locator has 1 bytes"),
    "stray locator": (
        faulty(items=items((vhdx.LOCATOR, 4, b"x"))),
        "a parent locator in a disk",
    ),
    "sector 1024": (faulty(items=items(sector_size=1024)), "logical sector size is 1024"),
    "physical 0": (faulty(items=items(physical=0)), "physical sector size is 0"),
    "size of half a sector": (faulty(items=items(size=MIB + 256)), "not a multiple of 512"),
    "size 0": (faulty(items=items(size=0)), "disk size 0"),
    "size 65 TiB": (faulty(items=items(size=65 << 40)), "up to 64 TiB|to 64 TiB"),
    "BAT too small": (faulty(items=items(size=1 << 40)), "BAT region .* is too small"),
    "reserved bits": (faulty(bat=(PAYLOAD_AT | FULL | 8,)), "entry 0 has reserved bits"),
    "state 4": (faulty(bat=(0, 4)), "entry 1 has a state that does not exist"),
    "state 5": (faulty(bat=(0, 5)), "entry 1 has a state that does not exist"),
    "state 7": (faulty(bat=(0, 0, PAYLOAD_AT | 7)), "entry 2 is partially present"),
    "block at 0": (faulty(bat=(FULL,)), "entry 0 places a block inside the header area"),
    "block beyond file": (faulty(bat=(0, 100 * MIB | FULL)), "entry 1 places a block beyond the end"),
    "block wraps": (faulty(bat=(0, ((1 << 64) - MIB) | FULL)), "entry 1 places a block beyond the end"),
    "block over log": (faulty(bat=(MIB | FULL,)), "at MiB 1 of the file overlaps the log"),
    "block over BAT": (faulty(bat=(BAT_AT | FULL,)), "at MiB 2 of the file overlaps the log or a region"),
    "anchor over metadata": (faulty(bat=(METADATA_AT | UNMAPPED,)), "at MiB 3 of the file overlaps"),
    "one place twice": (faulty(bat=(PAYLOAD_AT | FULL, 0, PAYLOAD_AT | FULL)), "two blocks overlap at MiB 4"),
    "anchor over block": (faulty(bat=(PAYLOAD_AT + MIB | FULL, PAYLOAD_AT + MIB | UNDEFINED)), "two blocks overlap"),
    "file of 100 bytes": (faulty(size=100), "truncated"),
    "file of 2 MiB": (faulty(size=2 * MIB), "truncated"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.vhdx"
    build(path, 3 * MIB, {n: pattern(n, MIB) for n in range(3)})
    damage, message = FAULTS[name]
    damage(path)
    with pytest.raises(ImageError, match=message) as caught:
        open_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_overlap_of_larger_blocks(tmp_path: Path) -> None:
    path = tmp_path / "bad.vhdx"
    build(path, 8 * MIB, {0: pattern(0, 4 * MIB), 1: pattern(1, 4 * MIB)}, block_size=4 * MIB)
    faulty(bat=(PAYLOAD_AT + 3 * MIB | FULL, PAYLOAD_AT | FULL))(path)
    with pytest.raises(ImageError, match="two blocks overlap at MiB 7"):
        open_image(path)


def test_bitmap_entry_in_a_dynamic_disk(tmp_path: Path) -> None:
    path = tmp_path / "bad.vhdx"
    build(path, 5000 * MIB, {0: pattern(0, MIB)})
    with path.open("r+b") as file:
        file.seek(BAT_AT + 8 * 4096)
        file.write(struct.pack("<Q", PAYLOAD_AT + MIB | FULL))
    with pytest.raises(ImageError, match="entry 4096 names a sector bitmap"):
        open_image(path)


def test_table_of_the_largest_disk(tmp_path: Path) -> None:
    """64 TiB in blocks of 1 MiB: 513 MiB of table, of which only what is used is read (6)."""
    path = tmp_path / "huge.vhdx"
    build(path, 3 * MIB, {})
    bat_length = 513 * MIB
    table = region_table((BAT, 16 * MIB, bat_length, 1), (METADATA, METADATA_AT, MIB, 1))
    data_at = 16 * MIB + bat_length
    faulty(table=table, items=items(size=64 << 40), size=data_at + MIB)(path)
    with path.open("r+b") as file:
        file.seek(16 * MIB + 8 * 67125246)  # of the last block
        file.write(struct.pack("<Q", data_at | FULL))
        file.seek(data_at)
        file.write(pattern(9, MIB))
    with open_image(path) as disk:
        assert disk.read((64 << 40) - MIB, MIB) == pattern(9, MIB)
        assert disk.read(1 << 40, 4096) == bytes(4096)
        assert list(disk.extents()) == [
            (0, (64 << 40) - MIB, "zero", None),
            ((64 << 40) - MIB, MIB, "data", data_at),
        ]


def test_fault_of_a_large_table_is_met_when_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "bad.vhdx"
    build(path, 64 << 30, {40000: 4})
    with open_disk(path) as disk:
        assert disk.damage is None
        assert disk.read(0, MIB) == bytes(MIB)
        for _ in range(2):
            with pytest.raises(DiskError, match="the image's metadata is damaged"):
                disk.read(40000 * MIB, 512)
        assert disk.damage == "the block allocation table is damaged: entry 40009 has a state that does not exist"
        assert disk.read(0, MIB) == bytes(MIB)
    with open_disk(path, write=True) as disk:
        with pytest.raises(DiskError, match="the image's metadata is damaged"):
            disk.write(0, bytes(512))  # the whole table is judged before it is changed
        assert disk.read(0, MIB) == bytes(MIB)
