"""The dynamic header of a VHD, parent names and locators, and the layout that they describe (disk-formats.md 15.2)."""

import struct
from pathlib import Path
from uuid import UUID

import pytest

from hvcore.disk.image import open_image
from hvcore.disk.vhd.header import (
    DynamicHeader,
    build_header,
    decode_locator,
    encode_locator,
    encode_name,
    parent_name,
    parse_header,
)
from hvcore.errors import ImageDamaged, ImageError, ParentError
from tests.reference import vhd
from tests.reference.vhd import MIB, TABLE_AT
from tests.reference.vhd_disk import layout_of

BASE = UUID("deadbeef-0000-4000-8000-000000000001")


def test_every_byte_is_kept() -> None:
    raw = bytearray(b"cxsparse" + bytes(range(8, 256)) * 5)[:1024]
    struct.pack_into(">I", raw, 24, 0x00010000)
    sealed = vhd.sealed(bytes(raw), 36)
    assert build_header(parse_header(sealed)) == sealed


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (bytes(1024), "dynamic header is missing"),
        (vhd.header(3)[:-1] + b"\1", "dynamic header is damaged: its checksum is wrong"),
        (vhd.header(3, v=(24, ">I", 0x20000)), "dynamic header version 0x00020000 is not supported"),
    ],
)
def test_damaged_header(tmp_path: Path, raw: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        parse_header(raw, 512)
    path = tmp_path / "d.vhd"
    vhd.build(path, 6 * MIB, {})
    patch(path, 512, raw)
    with pytest.raises(ImageError, match=words):
        open_image(path)


def test_faults_say_where() -> None:
    with pytest.raises(ImageDamaged) as caught:
        parse_header(bytes(1024), 512)
    assert (caught.value.structure, caught.value.offset) == ("dynamic header", 512)


@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le"])
@pytest.mark.parametrize("name", ["base.vhd", "Übung größer.vhd", "a", ""])
def test_parent_name_in_either_byte_order(encoding: str, name: str) -> None:
    assert parent_name(DynamicHeader(0, 0, 0, name=name.encode(encoding).ljust(512, b"\0"))) == name


def test_parent_name_that_shows_no_byte_order_is_big_endian() -> None:
    assert parent_name(DynamicHeader(0, 0, 0, name=encode_name("磁盘"))) == "磁盘"


def test_parent_name_of_any_bytes_is_text() -> None:
    for raw in (b"\xd8\x00" * 256, b"\xff" * 512, b"\0\xdc" * 256):
        assert isinstance(parent_name(DynamicHeader(0, 0, 0, name=raw)), str)


def test_parent_name_has_an_end() -> None:
    assert len(encode_name("x" * 255)) == 512
    with pytest.raises(ValueError, match="256 UTF-16 units"):
        encode_name("x" * 256)


@pytest.mark.parametrize(
    ("code", "text"), [("W2ru", ".\\base.vhd"), ("W2ku", "C:\\ü\\b.vhd"), ("MacX", "file:///ü/base.vhd")]
)
def test_locators(code: str, text: str) -> None:
    raw = encode_locator(code, text)
    assert decode_locator(code, raw) == decode_locator(code, raw + b"\0\0") == text


def patch(path: Path, offset: int, raw: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(raw)


def test_layout(tmp_path: Path) -> None:
    path = tmp_path / "c.vhd"
    vhd.build(path, 5 * MIB + 512, {}, parent=(BASE, "base.vhd"), disk_id=vhd.CHILD_ID, entries=200)
    layout = layout_of(path)
    assert (layout.size, layout.block_size, layout.blocks, layout.entries) == (5 * MIB + 512, 2 * MIB, 3, 200)
    assert (layout.table_offset, layout.bitmap_bytes, layout.disk_type) == (TABLE_AT, 512, 4)
    assert (layout.disk_id, layout.parent_id, layout.parent_name) == (vhd.CHILD_ID, BASE, "base.vhd")
    assert layout.locators == [("W2ru", ".\\base.vhd")]
    assert layout.used == [(0, 512), (512, 1024), (TABLE_AT, 1024), (TABLE_AT + 1024, 20)]
    with pytest.raises(
        ParentError, match=r"its parent cannot be opened: .*base\.vhd: no such file or directory; name it"
    ):
        open_image(path)


@pytest.mark.parametrize(
    ("block_size", "expected"), [(4 << 10, 512), (512 << 10, 512), (2 * MIB, 512), (4 * MIB, 1024)]
)
def test_bitmap_takes_whole_sectors(tmp_path: Path, block_size: int, expected: int) -> None:
    vhd.build(tmp_path / "d.vhd", 8 * MIB, {}, block_size=block_size)
    assert layout_of(tmp_path / "d.vhd").bitmap_bytes == expected == vhd.bitmap_bytes(block_size)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (vhd.header(3, 3 * MIB), "block size 3145728 is not a power of two"),
        (vhd.header(3, 2048), "block size 2048 is not a power of two"),
        (vhd.header(3, 512 * MIB), "block size 536870912 is not a power of two"),
        (vhd.header(3, 0), "block size 0 is not a power of two"),
        (vhd.header(2), "table has 2 entries, the disk 3 blocks"),
        (vhd.header(3, table_at=1600), "table's offset 1600 is not a multiple of 512"),
        (vhd.header(3, table_at=1024), "the dynamic header and the block allocation table overlap"),
        (vhd.header(3, table_at=0), "the copy of the footer and the block allocation table overlap"),
        (vhd.header(3, table_at=1 << 40), "truncated: the block allocation table ends at"),
        (vhd.header(3, table_at=(1 << 64) - 512), "truncated: the block allocation table ends at"),
        (vhd.header(0xFFFFFFFF), "truncated: the block allocation table ends at"),
    ],
)
def test_headers_that_lie(tmp_path: Path, raw: bytes, words: str) -> None:
    path = tmp_path / "d.vhd"
    vhd.build(path, 6 * MIB, {0: vhd.pattern(0, 2 * MIB)})
    patch(path, 512, raw)
    with pytest.raises(ImageDamaged, match=words):
        open_image(path)


@pytest.mark.parametrize(
    ("locator", "words"),
    [
        ((b"W2ku", 512, 20, 100), "the copy of the footer and parent locator 0 overlap"),
        ((b"W2ku", 512, 20, 1530), "the dynamic header and parent locator 0 overlap|locator 0 and the block"),
        ((b"W2ku", 512, 65537, 2048), "parent locator 0 has 65537 bytes, more than 65536"),
        ((b"Mac ", 512, 20, (1 << 64) - 8), "truncated: parent locator 0 ends at"),
        ((b"W2ru", 512, 20, 1 << 40), "truncated: parent locator 0 ends at"),
    ],
)
def test_locators_that_lie(tmp_path: Path, locator: tuple[bytes, int, int, int], words: str) -> None:
    path = tmp_path / "d.vhd"
    vhd.build(path, 6 * MIB, {0: vhd.pattern(0, 2 * MIB)}, parent=(BASE, "b.vhd"))
    patch(path, 512, vhd.header(3, parent_id=BASE, locators=(locator,)))
    with pytest.raises(ImageDamaged, match=words):
        layout_of(path)


def test_unknown_and_empty_locators_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "d.vhd"
    vhd.build(path, 6 * MIB, {}, parent=(BASE, "b.vhd"))
    locators = ((b"Mac ", 1, 8, 2048), (b"W2ku", 0, 0, 0), (b"Wi2r", 1, 8, 2056))
    patch(path, 512, vhd.header(3, parent_id=BASE, locators=locators))
    layout = layout_of(path)
    assert layout.locators == []
    assert [(each.code, each.space, each.length, each.offset) for each in layout.header.locators[:3]] == list(locators)


def test_locators_of_a_dynamic_disk_mean_nothing(tmp_path: Path) -> None:
    path = tmp_path / "d.vhd"
    vhd.build(path, 6 * MIB, {})
    patch(path, 512, vhd.header(3, locators=((b"W2ku", 512, 99999999, 3),)))
    with open_image(path) as disk:
        assert disk.read(0, 6 * MIB) == bytes(6 * MIB)
