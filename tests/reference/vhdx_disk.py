"""A VHDX read in plain Python, without the engine: what the disk holds, and whether the file is sound."""

import os
import struct
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from hvcore.disk.medium import ImageFile
from hvcore.disk.ops import Backend
from hvcore.disk.probe import PROBE
from hvcore.disk.vhdx.disk import VhdxDisk
from hvcore.disk.vhdx.layout import read_layout
from tests.reference.vhdx import (
    BAT,
    DISK_SIZE,
    FILE_PARAMETERS,
    HEADERS,
    LOGICAL,
    METADATA,
    MIB,
    REGION_TABLES,
    bat_index,
    bitmap_index,
    ratio,
    sealed,
)

NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, FULL, PARTIAL = 0, 1, 2, 3, 6, 7
PLACE = ~0xFFFFF


def open_disk(path: Path, *, write: bool = False, parent: Backend | None = None) -> VhdxDisk:
    """The disk alone: no lock, no format to guess, a parent of any kind."""
    file = ImageFile(os.open(path, os.O_RDWR if write else os.O_RDONLY), probe=PROBE.get(), name=str(path))
    return VhdxDisk(file, read_layout(file, path.stat().st_size), write=write, parent=parent)


class Header(NamedTuple):
    sequence: int
    file_write_guid: UUID
    data_write_guid: UUID
    log_guid: UUID


def headers(image: bytes) -> list[Header]:
    """Both copies; each is sound."""
    found = []
    for at in HEADERS:
        copy = image[at : at + 4096]
        assert copy[:4] == b"head" and sealed(copy) == copy
        sequence, *guids = struct.unpack_from("<Q16s16s16s", copy, 8)
        found.append(Header(sequence, *(UUID(bytes_le=guid) for guid in guids)))
    return found


class Table(NamedTuple):
    """size, block_size, sector_size: bytes. entries: the block allocation table."""

    size: int
    block_size: int
    sector_size: int
    has_parent: bool
    entries: tuple[int, ...]
    used: list[tuple[int, int]]  # (offset, length) of the header area, the log and the regions

    def block(self, number: int) -> int:
        return self.entries[bat_index(number, self.block_size, self.sector_size)]

    def bitmap(self, chunk: int) -> int:
        return self.entries[bitmap_index(chunk, self.block_size, self.sector_size)]

    @property
    def blocks(self) -> int:
        return -(-self.size // self.block_size)

    @property
    def chunk_ratio(self) -> int:
        return ratio(self.block_size, self.sector_size)


def table_of(image: bytes) -> Table:
    (count,) = struct.unpack_from("<I", image, REGION_TABLES[0] + 8)
    regions = {}
    for at in range(count):
        guid, offset, length, _ = struct.unpack_from("<16sQII", image, REGION_TABLES[0] + 16 + 32 * at)
        regions[UUID(bytes_le=guid)] = offset, length
    metadata = regions[METADATA][0]
    (count,) = struct.unpack_from("<H", image, metadata + 10)
    items = {}
    for at in range(count):
        guid, offset, length = struct.unpack_from("<16sII", image, metadata + 32 + 32 * at)
        items[UUID(bytes_le=guid)] = image[metadata + offset : metadata + offset + length]
    block_size, flags = struct.unpack("<II", items[FILE_PARAMETERS])
    (size,) = struct.unpack("<Q", items[DISK_SIZE])
    (sector_size,) = struct.unpack("<I", items[LOGICAL])
    blocks, chunk_ratio = -(-size // block_size), ratio(block_size, sector_size)
    number = blocks + (blocks - 1) // chunk_ratio
    if flags & 2:
        number = -(-blocks // chunk_ratio) * (chunk_ratio + 1)
    log_length, log_offset = struct.unpack_from("<IQ", image, HEADERS[0] + 68)
    return Table(
        size,
        block_size,
        sector_size,
        bool(flags & 2),
        struct.unpack_from(f"<{number}Q", image, regions[BAT][0]),
        [(0, MIB), (log_offset, log_length), *regions.values()],
    )


def check(image: bytes) -> Table:
    """Asserts the rules of section 6; returns the table. The file was closed cleanly."""
    assert [header.log_guid.int for header in headers(image)] == [0, 0]
    table = table_of(image)
    owned = list(table.used)
    for index, entry in enumerate(table.entries):
        chunk, within = divmod(index, table.chunk_ratio + 1)
        state, place = entry & 7, entry & PLACE
        assert entry & 0xFFFF8 == 0
        if within == table.chunk_ratio:
            assert entry == 0 or (table.has_parent and state == FULL)
        elif index - chunk >= table.blocks:
            assert entry == 0
        elif state in (NOT_PRESENT, ZERO):
            assert place == 0
        elif state == PARTIAL:
            assert table.has_parent and table.bitmap(chunk) & 7 == FULL
        else:
            assert state in (UNDEFINED, UNMAPPED, FULL)
        if place:
            length = MIB if within == table.chunk_ratio else table.block_size
            assert place + length <= len(image) or state not in (FULL, PARTIAL)
            owned.append((place, length))
    for (start, length), (following, _) in pairwise(sorted(owned)):
        assert start + length <= following
    assert len(image) % MIB == 0
    return table


def content(image: bytes, parent: bytes = b"") -> bytes:
    """The disk, by the rules of section 7. parent: the disk below, maybe of another size."""
    table = table_of(image)
    sector = table.sector_size
    per_chunk = table.chunk_ratio * (table.block_size // sector)
    below = parent[: table.size].ljust(table.size, b"\0")
    disk = bytearray()
    for block in range(table.blocks):
        start = block * table.block_size
        length = min(table.block_size, table.size - start)
        entry = table.block(block)
        place = entry & PLACE
        if entry & 7 == FULL:
            disk += image[place : place + length]
        elif entry & 7 == PARTIAL:
            bitmap = table.bitmap(block // table.chunk_ratio) & PLACE
            for at in range(0, length, sector):
                number = (start + at) // sector % per_chunk
                own = image[bitmap + (number >> 3)] >> (number & 7) & 1
                disk += image[place + at : place + at + sector] if own else below[start + at : start + at + sector]
        elif entry & 7 == NOT_PRESENT and table.has_parent:
            disk += below[start : start + length]
        else:
            disk += bytes(length)
    return bytes(disk)
