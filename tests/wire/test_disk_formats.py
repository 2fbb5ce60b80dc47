"""The disk formats' bytes against published vectors."""

import os
import struct
import uuid
from pathlib import Path

import pytest

from hvcore.disk.crc import crc32c
from hvcore.disk.medium import ImageFile
from hvcore.disk.vhd import footer
from hvcore.disk.vhdx import layout
from hvcore.errors import ImageError
from tests.reference import vhdx
from tests.reference.vectors import sections

MIB = 1 << 20
ID = uuid.UUID("0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9")
VECTORS = sections(Path(__file__).with_name("disk-formats.txt"))


def data(text: str) -> bytes:
    if "*" in text:
        byte, _, count = text.partition("*")
        return bytes.fromhex(byte) * int(count)
    return b"" if text == "-" else bytes.fromhex(text)


@pytest.mark.parametrize(("text", "expected"), VECTORS["crc32c"])
def test_crc32c(text: str, expected: str) -> None:
    raw = data(text)
    assert crc32c(raw) == int(expected, 16)
    assert crc32c(raw[1:], crc32c(raw[:1])) == int(expected, 16)
    assert len(raw) > 4096 or vhdx.crc32c(raw) == int(expected, 16)


def test_builder_agrees_with_the_vectors() -> None:
    """The tests' own builder, so that it cannot share a mistake with the reader."""
    (clean,), (dirty,) = VECTORS["header"]
    assert vhdx.header(1) == data(clean).ljust(4096, b"\0")
    assert vhdx.header(2, log_guid=vhdx.LOG) == data(dirty).ljust(4096, b"\0")
    assert vhdx.region_table() == data(VECTORS["regions"][0][0]).ljust(65536, b"\0")
    (table,), (items,) = VECTORS["metadata"]
    expected = data(table).ljust(65536, b"\0") + data(items)
    assert vhdx.metadata(vhdx.standard_items(1 << 30, 2 * MIB)) == expected


def vector_file(tmp_path: Path, header: int) -> tuple[ImageFile, int]:
    raw = bytearray(4 * MIB)
    raw[:8] = b"vhdxfile"
    (table,), (items,) = VECTORS["metadata"]
    pieces = {
        64 << 10: VECTORS["header"][header][0],
        192 << 10: VECTORS["regions"][0][0],
        3 * MIB: table,
        3 * MIB + 65536: items,
    }
    for at, text in pieces.items():
        raw[at : at + len(data(text))] = data(text)
    (tmp_path / "v.vhdx").write_bytes(raw)
    return ImageFile(os.open(tmp_path / "v.vhdx", os.O_RDONLY)), len(raw)


def test_layout_of_the_vectors(tmp_path: Path) -> None:
    file, size = vector_file(tmp_path, 0)
    with file:
        found = layout.read_layout(file, size)
    assert (found.size, found.block_size, found.sector_size, found.physical_sector_size) == (
        1 << 30,
        2 * MIB,
        512,
        4096,
    )
    assert (found.bat_offset, found.bat_entries, found.blocks, found.chunk_ratio) == (2 * MIB, 512, 512, 2048)
    assert found.disk_id == vhdx.DISK and not found.fixed
    assert sorted(found.used) == [(MIB, MIB), (2 * MIB, MIB), (3 * MIB, MIB)]
    # One copy each: the other header is silently not there, the other region table is reported.
    assert found.notes == ("region table 2 is damaged",)


def test_header_with_a_log_is_refused(tmp_path: Path) -> None:
    file, size = vector_file(tmp_path, 1)
    with file, pytest.raises(ImageError, match="log to replay"):
        layout.read_layout(file, size)


@pytest.mark.parametrize("row", VECTORS["tables"], ids=" ".join)
def test_table_sizes(tmp_path: Path, row: list[str]) -> None:
    size, block, sector_size, ratio, blocks, _, entries, _, _, _ = map(int, row)
    path = tmp_path / "v.vhdx"
    with path.open("wb") as file:
        bat_length = -(-8 * entries // MIB) * MIB
        table = vhdx.region_table((vhdx.BAT, 4 * MIB, bat_length, 1), (vhdx.METADATA, 3 * MIB, MIB, 1))
        items = vhdx.metadata(vhdx.standard_items(size, block * MIB, sector_size))
        for at, piece in ((0, b"vhdxfile"), (65536, vhdx.header(1)), (192 << 10, table), (3 * MIB, items)):
            file.seek(at)
            file.write(piece)
        file.truncate(4 * MIB + bat_length)
    with ImageFile(os.open(path, os.O_RDONLY)) as image:
        found = layout.read_layout(image, path.stat().st_size)
    assert (found.chunk_ratio, found.blocks, found.bat_entries) == (ratio, blocks, entries)


@pytest.mark.parametrize("row", VECTORS["geometry"], ids=" ".join)
def test_geometry(row: list[str]) -> None:
    size = int(row[0])
    assert footer.geometry(size) == tuple(map(int, row[1:4]))
    assert footer.build(footer.new_footer(size, footer.FIXED, ID, 0))[56:60].hex() == row[4]


@pytest.mark.parametrize(("size", "text"), VECTORS["footer"])
def test_fixed_footer(size: str, text: str) -> None:
    raw = footer.build(footer.new_footer(int(size), footer.FIXED, ID, 0))
    assert raw == data(text).ljust(512, b"\0")
    parsed = footer.parse(raw)
    assert parsed == footer.Footer(int(size), 2, footer.geometry(int(size)), ID, b"win ", 0)


@pytest.mark.parametrize(("size", "expected"), VECTORS["footer-checksum"])
def test_footer_checksum(size: str, expected: str) -> None:
    raw = footer.build(footer.new_footer(int(size), footer.FIXED, ID, 0))
    assert raw[64:68].hex() == struct.pack(">I", footer.checksum(raw)).hex() == expected
