"""Damaged and hostile images: one ImageError or a disk that reads, never a crash, a hang or foreign data."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore.disk.crc import crc32c
from hvcore.disk.image import open_image
from hvcore.errors import ImageError
from hvcore.vhd import create
from tests.reference import vhdx
from tests.reference.vhdx import BAT_AT, HEADERS, METADATA_AT, MIB, PAYLOAD_AT, REGION_TABLES

BLOCKS = 2
CONTENT = b"".join(vhdx.pattern(n, MIB) for n in range(BLOCKS)) + bytes(MIB)
SEALED = [(at, 96, 4096) for at in HEADERS] + [(at, 96, 65536) for at in REGION_TABLES]
OPEN = [(METADATA_AT, 200), (METADATA_AT + 65536, 40), (BAT_AT, 32)]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "d.vhdx"
    vhdx.build(path, 3 * MIB, {n: vhdx.pattern(n, MIB) for n in range(BLOCKS)})
    return path


@contextmanager
def patched(path: Path, *patches: tuple[int, bytes]) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR)
    before = [(at, os.pread(fd, len(data), at)) for at, data in patches]
    try:
        for at, data in patches:
            os.pwrite(fd, data, at)
        yield
    finally:
        for at, data in reversed(before):
            os.pwrite(fd, data, at)
        os.close(fd)


def outcome(path: Path) -> bytes | None:
    """What the disk reads as, its first bytes if it is large; None: refused with one line that names the file."""
    try:
        with open_image(path, format="vhdx") as disk:
            assert disk.size > 0 and disk.size % disk.sector_size == 0
            disk.read(disk.size - disk.sector_size, disk.sector_size)
            return disk.read(0, min(disk.size, 3 * MIB))
    except ImageError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        return None


def byte_at(path: Path, at: int) -> int:
    with path.open("rb") as file:
        file.seek(at)
        return file.read(1)[0]


@pytest.mark.parametrize(("at", "length", "_whole"), SEALED)
def test_flipped_byte_under_a_checksum(image: Path, at: int, length: int, _whole: int) -> None:
    """The other copy is used: nothing changes."""
    for offset in range(at, at + length, 3):
        with patched(image, (offset, bytes([byte_at(image, offset) ^ 0x11]))):
            assert outcome(image) == CONTENT


def test_flipped_byte_in_the_identifier(image: Path) -> None:
    for offset in range(8):
        with patched(image, (offset, bytes([byte_at(image, offset) ^ 0x20]))):
            assert outcome(image) is None


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_flipped_byte_without_a_checksum(image: Path, flip: int) -> None:
    refused = 0
    for start, length in OPEN:
        for offset in range(start, start + length):
            with patched(image, (offset, bytes([byte_at(image, offset) ^ flip]))):
                refused += outcome(image) is None
    assert refused > 100


def resealed(path: Path, at: int, whole: int, patches: list[tuple[int, bytes]]) -> bytes:
    with path.open("rb") as file:
        file.seek(at)
        raw = bytearray(file.read(whole))
    for offset, data in patches:
        raw[offset : offset + len(data)] = data
    raw[4:8] = bytes(4)
    raw[4:8] = struct.pack("<I", crc32c(raw))
    return bytes(raw)


@pytest.mark.parametrize("tables", [HEADERS, REGION_TABLES])
def test_flipped_byte_with_a_right_checksum(image: Path, tables: tuple[int, int]) -> None:
    """An enemy computes checksums too; with both copies changed alike there is no way around the field."""
    whole = 4096 if tables is HEADERS else 65536
    refused = 0
    for offset in range(8, 84):
        value = bytes([byte_at(image, tables[0] + offset) ^ 0x81])
        block = resealed(image, tables[0], whole, [(offset, value)])
        with patched(image, *[(at, block) for at in tables]):
            found = outcome(image)
            assert found in (None, CONTENT)
            refused += found is None
    # A LogGuid whose log is empty is no reason to refuse reading.
    assert refused > (12 if tables is HEADERS else 20)


NUMBERS = st.integers(0, (1 << 64) - 1) | st.sampled_from(
    [0, 1, MIB, 2 * MIB, 3 * MIB, 4 * MIB, 1 << 31, 1 << 32, 1 << 44, 1 << 63, (1 << 64) - MIB, (1 << 64) - 1]
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    header=st.lists(st.tuples(st.integers(64, 76), NUMBERS), max_size=2),
    regions=st.lists(st.tuples(st.sampled_from([8, 12, 32, 40, 44, 64, 72, 76]), NUMBERS), max_size=3),
    table=st.lists(st.tuples(st.integers(0, 47).map(lambda n: n * 4), NUMBERS), max_size=3),
    items=st.lists(st.tuples(st.integers(0, 36), NUMBERS), max_size=3),
    bat=st.lists(st.tuples(st.integers(0, 3), NUMBERS), max_size=3),
)
def test_hostile_numbers(
    image: Path,
    header: list[tuple[int, int]],
    regions: list[tuple[int, int]],
    table: list[tuple[int, int]],
    items: list[tuple[int, int]],
    bat: list[tuple[int, int]],
) -> None:
    def packed(changes: list[tuple[int, int]]) -> list[tuple[int, bytes]]:
        return [(offset, struct.pack("<Q", value)) for offset, value in changes]

    patches = [(at, resealed(image, at, 4096, packed(header))) for at in HEADERS]
    patches += [(at, resealed(image, at, 65536, packed(regions))) for at in REGION_TABLES]
    patches += [(METADATA_AT + offset, data) for offset, data in packed(table)]
    patches += [(METADATA_AT + 65536 + offset, data) for offset, data in packed(items)]
    patches += [(BAT_AT + 8 * entry, struct.pack("<Q", value)) for entry, value in bat]
    with patched(image, *patches):
        outcome(image)
    assert outcome(image) == CONTENT


def test_vhdx_truncated_anywhere(image: Path, tmp_path: Path) -> None:
    raw = image.read_bytes()
    edges = [
        0,
        8,
        *HEADERS,
        *REGION_TABLES,
        MIB,
        BAT_AT,
        METADATA_AT,
        METADATA_AT + 65536,
        PAYLOAD_AT,
        PAYLOAD_AT + MIB,
    ]
    edges += [at + 4096 for at in HEADERS] + [at + 65536 for at in REGION_TABLES] + [METADATA_AT + 65576, len(raw)]
    path = tmp_path / "cut.vhdx"
    for size in sorted({edge + n for edge in edges for n in (-1, 0, 1) if 0 <= edge + n < len(raw)}):
        path.write_bytes(raw[:size])
        assert outcome(path) is None


@pytest.mark.parametrize("flip", [0x01, 0x80])
def test_flipped_byte_in_a_footer(tmp_path: Path, flip: int) -> None:
    path = tmp_path / "d.vhd"
    create(path, 4096, "vhd", "fixed")
    raw = path.read_bytes()
    for at in range(4096, 4096 + 512):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ flip]) + raw[at + 1 :])
        with pytest.raises(ImageError):
            open_image(path, format="vhd")


def test_vhd_truncated_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "d.vhd"
    create(path, 4096, "vhd", "fixed")
    raw = path.read_bytes()
    # The last byte is unused: without it the footer is one of 511 bytes, and the same disk.
    for size in [*range(0, 4096, 64), *range(4090, len(raw) - 1)]:
        path.write_bytes(raw[:size])
        with pytest.raises(ImageError):
            open_image(path, format="vhd")


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    head=st.binary(max_size=600), tail=st.binary(max_size=600), hint=st.sampled_from([b"", b"vhdxfile", b"conectix"])
)
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, head: bytes, tail: bytes, hint: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(hint + head + hint + tail)
    for format in (None, "vhd", "vhdx"):
        with pytest.raises(ImageError):
            open_image(path, format=format)
