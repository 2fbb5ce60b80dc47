"""Bytes and sizes of VHDX structures against the vectors of disk-formats.txt, parsed and built."""

from uuid import UUID

import pytest

from hvcore.disk.vhdx import layout, locator, log, structures
from hvcore.disk.vhdx.structures import MIB, Header, MetadataItem, Region
from tests.reference import vhdx
from tests.wire.test_disk_formats import VECTORS, data

DIRTY = Header(2, vhdx.FILE_WRITE, vhdx.DATA_WRITE, vhdx.LOG, 0, 1, MIB, MIB, 1)


def rows(section: str) -> list[list[str]]:
    return VECTORS[section]


@pytest.mark.parametrize("row", [0, 1])
def test_header(row: int) -> None:
    """V1, V2."""
    raw = data(rows("header")[row][0]).ljust(4096, b"\0")
    guid = (structures.NO_GUID, vhdx.LOG)[row]
    header = Header(row + 1, vhdx.FILE_WRITE, vhdx.DATA_WRITE, guid, 0, 1, MIB, MIB, row)
    assert structures.parse_header(raw, row) == header
    assert structures.build_header(header) == raw


def test_region_table() -> None:
    """V3."""
    raw = data(rows("regions")[0][0]).ljust(65536, b"\0")
    regions = (Region(structures.BAT_REGION, 2 * MIB, MIB), Region(structures.METADATA_REGION, 3 * MIB, MIB))
    assert structures.parse_region_table(raw) == structures.RegionTable(2, regions)
    assert structures.build_region_table(regions) == raw


def test_metadata() -> None:
    """V4."""
    (table,), (contents,) = rows("metadata")
    raw = data(table).ljust(65536, b"\0") + data(contents)
    wanted = vhdx.standard_items(1 << 30, 2 * MIB)
    items = structures.pack_items(MetadataItem(guid, flags, 0, 0, content) for guid, flags, content in wanted)
    assert structures.build_metadata(items) == raw
    found = structures.parse_metadata(raw)
    assert found is not None and found.count == 5
    for item, each in zip(found.items, items, strict=True):
        assert (item.guid, item.flags, item.offset, item.length) == (each.guid, each.flags, each.offset, each.length)
        assert item.flags == structures.MANDATORY[item.guid][2] and item.content is None
    assert list(structures.judge_metadata(found, 3 * MIB, MIB)) == []
    parameters = layout.parse_parameters(items)
    assert (parameters.size, parameters.block_size, parameters.flags) == (1 << 30, 2 * MIB, 0)
    assert (parameters.sector_size, parameters.physical_sector_size, parameters.disk_id) == (512, 4096, vhdx.DISK)


def test_locator() -> None:
    """V5."""
    raw = data(rows("locator")[0][0])
    wanted = locator.ParentLocator(UUID("01234567-89ab-cdef-0123-456789abcdef"), relative_path=".\\base.vhdx")
    assert locator.parse_locator(raw) == wanted
    assert wanted.build() == raw == vhdx.locator(vhdx.LINKAGE, vhdx.RELATIVE)


def test_empty_log_entry() -> None:
    """V6."""
    raw = data(rows("log-empty")[0][0]).ljust(4096, b"\0")
    offsets = {"flushed_file_offset": 4 * MIB, "last_file_offset": 4 * MIB}
    assert log.build_entry([], sequence=1, tail=0, log_guid=vhdx.LOG, **offsets) == raw
    assert vhdx.log_entry(1, [], flushed=4 * MIB, last=4 * MIB) == raw
    found = log.parse_entry(raw, DIRTY)
    assert found == log.LogEntry(4096, 0, 1, 0, vhdx.LOG, 4 * MIB, 4 * MIB)
    assert list(log.entry_pieces(raw, found)) == []


def test_log_entry() -> None:
    """V7."""
    (head,), *parts = rows("log")
    page = bytearray(4096)
    page[:8], page[4088:] = bytes.fromhex("0600400000000000"), bytes.fromhex("0600500000000000")
    pieces = [(2 * MIB, bytes(page)), (5 * MIB, 8192)]
    offsets = {"flushed_file_offset": 6 * MIB, "last_file_offset": 6 * MIB}
    raw = log.build_entry(pieces, sequence=0x100000002, tail=0, log_guid=vhdx.LOG, **offsets)
    assert len(raw) == 8192 and raw[:128] == data(head)
    for offset, content in parts:
        assert raw[4096 + int(offset) :].startswith(data(content))
    assert vhdx.log_entry(0x100000002, pieces, flushed=6 * MIB, last=6 * MIB) == raw
    found = log.parse_entry(raw, DIRTY)
    assert found == log.LogEntry(8192, 0, 0x100000002, 2, vhdx.LOG, 6 * MIB, 6 * MIB)
    assert list(log.entry_pieces(raw, found)) == pieces


@pytest.mark.parametrize("row", rows("log-capacity"), ids=" ".join)
def test_log_capacity(row: list[str]) -> None:
    """V19."""
    count, sectors, length = map(int, row[:3])
    pieces = [(4 * MIB + 4096 * n, bytes([n]) * 4096) for n in range(count)]
    offsets = {"flushed_file_offset": 4 * MIB, "last_file_offset": 4 * MIB}
    raw = log.build_entry(pieces, sequence=1, tail=0, log_guid=vhdx.LOG, **offsets)
    assert (len(raw), log.descriptor_sectors(count)) == (length, sectors)
    found = log.parse_entry(raw, DIRTY)
    assert (found is not None) == (row[3] == "yes")
    assert found is None or list(log.entry_pieces(raw, found)) == pieces


@pytest.mark.parametrize(("state", "place", "entry"), rows("bat"))
def test_bat_entry(state: str, place: str, entry: str) -> None:
    """V8."""
    assert layout.bat_entry(int(state), int(place) * MIB) == data(entry)


@pytest.mark.parametrize("row", rows("ratios"), ids=lambda row: row[0])
def test_chunk_ratio(row: list[str]) -> None:
    """V9."""
    blocks = (1, 2, 8, 16, 32, 64, 128, 256)
    assert [layout.chunk_ratio(block * MIB, int(row[0])) for block in blocks] == list(map(int, row[1:]))


@pytest.mark.parametrize("row", rows("tables"), ids=" ".join)
def test_table_sizes(row: list[str]) -> None:
    """V10."""
    size, block, sector_size, ratio, blocks, bitmaps, dynamic, differencing, region, child_region = map(int, row)
    assert layout.chunk_ratio(block * MIB, sector_size) == ratio
    assert (-(-size // (block * MIB)), -(-blocks // ratio)) == (blocks, bitmaps)
    assert layout.bat_entries(blocks, ratio, False) == dynamic
    assert layout.bat_entries(blocks, ratio, True) == differencing == bitmaps * (ratio + 1)
    assert layout.region_bytes(8 * dynamic) == region * MIB
    assert layout.region_bytes(8 * differencing) == child_region * MIB <= layout.MAX_BAT


@pytest.mark.parametrize(("ratio", "kind", "number", "index"), rows("indices"))
def test_bat_index(ratio: str, kind: str, number: str, index: str) -> None:
    """V11."""
    function = layout.payload_index if kind == "payload" else layout.bitmap_index
    assert function(int(number), int(ratio)) == int(index)


@pytest.mark.parametrize("row", rows("bits"), ids=" ".join)
def test_bitmap_position(row: list[str]) -> None:
    """V12."""
    sector, block, sector_size, chunk, byte, bit, payload, bitmap = map(int, row)
    ratio = layout.chunk_ratio(block * MIB, sector_size)
    assert layout.bitmap_position(sector) == (chunk, byte, bit)
    assert layout.payload_index(sector * sector_size // (block * MIB), ratio) == payload
    assert layout.bitmap_index(chunk, ratio) == bitmap
