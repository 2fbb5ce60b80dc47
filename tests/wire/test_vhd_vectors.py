"""The VHD format's bytes against published vectors (disk-formats.md 22, V13 to V18 and V20)."""

import os
import uuid
from pathlib import Path

import pytest

from hvcore.disk.image import open_image
from hvcore.disk.medium import ImageFile
from hvcore.disk.vhd.create import Parent, build_vhd
from hvcore.disk.vhd.footer import build, geometry, new_footer, parse
from hvcore.disk.vhd.header import DynamicHeader, build_header, parent_name, parse_header
from hvcore.disk.vhd.layout import read_vhd_layout
from tests.reference import vhd
from tests.reference.vectors import sections

MIB = 1 << 20
ID = uuid.UUID("0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9")
VECTORS = sections(Path(__file__).with_name("vhd-vectors.txt"))


@pytest.mark.parametrize("row", VECTORS["geometry"])
def test_geometry(row: list[str]) -> None:
    size = int(row[0])
    cylinders, heads, sectors = geometry(size)
    assert [str(value) for value in (cylinders, heads, sectors)] == row[1:4]
    raw = build(new_footer(size, 2, ID, 0))
    assert raw[56:60].hex() == row[4]
    assert size - cylinders * heads * sectors * 512 == int(row[5])
    assert raw == vhd.footer(size, 2, geometry=bytes.fromhex(row[4]))


@pytest.mark.parametrize(("size", "disk_type", "checksum", "head"), VECTORS["footer"])
def test_footer(size: str, disk_type: str, checksum: str, head: str) -> None:
    raw = bytes.fromhex(head).ljust(512, b"\0")
    footer = new_footer(int(size), int(disk_type), ID, 0)
    assert build(footer) == raw
    assert raw[64:68].hex() == checksum
    assert parse(raw) == parse(raw[:511]) == footer
    assert vhd.footer(int(size), int(disk_type), geometry=raw[56:60]) == raw


@pytest.mark.parametrize(("size", "disk_type", "checksum"), VECTORS["checksum"])
def test_footer_checksum(size: str, disk_type: str, checksum: str) -> None:
    assert build(new_footer(int(size), int(disk_type), ID, 0))[64:68].hex() == checksum


@pytest.mark.parametrize(("table", "entries", "block", "checksum", "head"), VECTORS["header"])
def test_header(table: str, entries: str, block: str, checksum: str, head: str) -> None:
    raw = bytes.fromhex(head).ljust(1024, b"\0")
    header = DynamicHeader(int(table), int(entries), int(block))
    assert build_header(header) == raw == vhd.header(int(entries), int(block), table_at=int(table))
    assert raw[36:40].hex() == checksum
    assert parse_header(raw) == header


def test_header_of_a_child(tmp_path: Path) -> None:
    path = tmp_path / "child.vhd"
    file = ImageFile(os.open(path, os.O_RDWR | os.O_CREAT))
    locators = [("W2ru", ".\\base.vhd"), ("W2ku", "C:\\d\\base.vhd")]
    parent = Parent(ID, 0x2B3C4D5E, "base.vhd", locators)
    build_vhd(file, size=64 * MIB, type="differencing", parent=parent)
    raw = path.read_bytes()[512:1536]
    for offset, expected in VECTORS["child"]:
        at = int(offset)
        assert raw[at : at + len(expected) // 2].hex() == expected
    header = parse_header(raw)
    assert build_header(header) == raw
    assert (header.parent_id, header.parent_timestamp, parent_name(header)) == (ID, 0x2B3C4D5E, "base.vhd")
    assert read_vhd_layout(file, file.size()).locators == locators
    file.close()
    name = "base.vhd".encode("utf-16-be")
    places = ((b"W2ru", 512, 20, 2048), (b"W2ku", 512, 26, 2560))
    assert vhd.header(32, parent_id=ID, timestamp=0x2B3C4D5E, name=name, locators=places) == raw


def test_aligned_layout(tmp_path: Path) -> None:
    """V20, but for the place of the footer: it stands directly behind the last structure or block. QEMU puts its next
    block there, and expects zeros behind its bitmap: it would show a footer further on as the guest's data."""
    path = tmp_path / "d.vhd"
    with ImageFile(os.open(path, os.O_RDWR | os.O_CREAT)) as file:
        build_vhd(file, size=64 * MIB, type="dynamic", disk_id=ID)
    raw = path.read_bytes()
    assert len(raw) == 2560
    assert raw[:512] == raw[2048:] == bytes.fromhex(VECTORS["footer"][1][3]).ljust(512, b"\0")
    assert raw[1536:2048] == b"\xff" * 512
    with open_image(path, mode="r+") as disk:
        for number, entry, place in VECTORS["aligned"]:
            block = 20 - int(number)
            disk.write(block * 2 * MIB, b"x" * 512)
            assert disk.entry(block) == int(entry)
            assert disk.find(block * 2 * MIB) == (2 * MIB, "data", int(place))
    assert path.stat().st_size == int(place) + 2 * MIB + 512
