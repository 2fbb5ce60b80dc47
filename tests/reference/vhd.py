"""Builds VHD files byte by byte, sound or with chosen faults, and reads them back (disk-formats.md 15)."""

import struct
from pathlib import Path
from uuid import UUID

MIB = 1 << 20
ID = UUID("0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9")
CHILD_ID = UUID("f0e1d2c3-b4a5-9687-7869-5a4b3c2d1e0f")
NO_ID = UUID(int=0)
NONE = 0xFFFFFFFF
TABLE_AT = 1536
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4


def sealed(block: bytes, at: int) -> bytes:
    """The block with its checksum in the four bytes at `at`."""
    total = sum(block[:at]) + sum(block[at + 4 :])
    return block[:at] + struct.pack(">I", ~total & 0xFFFFFFFF) + block[at + 4 :]


def footer(
    size: int,
    disk_type: int = DYNAMIC,
    *,
    disk_id: UUID = ID,
    data_offset: int | None = None,
    geometry: bytes = bytes(4),
    **changes: tuple[int, str, object],
) -> bytes:
    """changes: any name -> (offset, format, value), laid over the fields."""
    if data_offset is None:
        data_offset = (1 << 64) - 1 if disk_type == FIXED else 512
    raw = bytearray(512)
    raw[0:8] = b"conectix"
    struct.pack_into(">IIQI", raw, 8, 2, 0x10000, data_offset, 0)
    raw[28:40] = b"win \x00\x0a\x00\x00Wi2k"
    struct.pack_into(">QQ", raw, 40, size, size)
    raw[56:60] = geometry
    struct.pack_into(">I", raw, 60, disk_type)
    raw[68:84] = disk_id.bytes
    for offset, layout, value in changes.values():
        struct.pack_into(layout, raw, offset, value)
    return sealed(bytes(raw), 64)


def header(
    entries: int,
    block_size: int = 2 * MIB,
    *,
    table_at: int = TABLE_AT,
    parent_id: UUID = NO_ID,
    timestamp: int = 0,
    name: bytes = b"",
    locators: tuple[tuple[bytes, int, int, int], ...] = (),
    **changes: tuple[int, str, object],
) -> bytes:
    """locators: (code, space, length, offset). name: as it stands in the file."""
    raw = bytearray(1024)
    raw[0:8] = b"cxsparse"
    struct.pack_into(">QQIII", raw, 8, (1 << 64) - 1, table_at, 0x10000, entries, block_size)
    raw[40:56] = parent_id.bytes
    struct.pack_into(">I", raw, 56, timestamp)
    raw[64 : 64 + len(name)] = name
    for number, (code, space, length, offset) in enumerate(locators):
        struct.pack_into(">4sII4xQ", raw, 576 + 24 * number, code, space, length, offset)
    for offset, layout, value in changes.values():
        struct.pack_into(layout, raw, offset, value)
    return sealed(bytes(raw), 36)


def bitmap_bytes(block_size: int) -> int:
    return (block_size // 512 + 4095) // 4096 * 512


def bitmap(block_size: int, stored: set[int] | None = None) -> bytes:
    """One bit per sector, the first one in the highest bit; None: all."""
    raw = bytearray(bitmap_bytes(block_size))
    if stored is None:
        return b"\xff" * len(raw)
    for sector in stored:
        raw[sector // 8] |= 0x80 >> sector % 8
    return bytes(raw)


def pattern(block: int, length: int) -> bytes:
    """Bytes that differ in every sector and in every block."""
    return b"".join(
        struct.pack("<IIQ", block, at, ~(block << 32 | at) % (1 << 64)) * 32 for at in range(0, length, 512)
    )


def build(
    path: Path,
    size: int,
    content: dict[int, bytes | tuple[bytes, set[int]] | int],
    *,
    block_size: int = 2 * MIB,
    disk_type: int = DYNAMIC,
    disk_id: UUID = ID,
    parent: tuple[UUID, str] | None = None,
    gap: int = 0,
    tail: bytes | None = None,
    head: bytes | None = None,
    entries: int | None = None,
) -> None:
    """Writes a dynamic or differencing VHD, its blocks packed as most tools do it, `gap` bytes before each.

    content: per block its bytes, its bytes and the sectors that count, or its whole table entry. tail, head: the
    footers, if not the right ones. parent: id and file name.
    """
    blocks = -(-size // block_size)
    entries = blocks if entries is None else entries
    table = [NONE] * (-(-entries // 128) * 128)
    place = TABLE_AT + 4 * len(table)
    options: dict[str, object] = {}
    with path.open("wb") as file:
        if parent is not None:
            disk_type = DIFFERENCING
            text = f".\\{parent[1]}".encode("utf-16-le")
            options = {
                "parent_id": parent[0],
                "name": parent[1].encode("utf-16-be"),
                "locators": ((b"W2ru", 512, len(text), place),),
            }
            file.seek(place)
            file.write(text)
            place += 512
        for block, value in content.items():
            if isinstance(value, int):
                table[block] = value
                continue
            raw, stored = value if isinstance(value, tuple) else (value, None)
            place += gap
            table[block] = place // 512
            file.seek(place)
            file.write(bitmap(block_size, stored) + raw.ljust(block_size, b"\0"))
            place += bitmap_bytes(block_size) + block_size
        end = footer(size, disk_type, disk_id=disk_id)
        file.seek(0)
        file.write(end if head is None else head)
        file.write(header(entries, block_size, **options))
        file.write(struct.pack(f">{len(table)}I", *table))
        file.truncate(place)
        file.seek(place)
        file.write(end if tail is None else tail)


def read(path: Path, parent: bytes | None = None) -> bytes:
    """The whole disk, by the copy at the start; written apart from the reader that it judges."""
    raw = path.read_bytes()
    size, disk_type = struct.unpack_from(">Q4xI", raw, 48)
    (at,) = struct.unpack_from(">Q", raw, 16)
    table_at, _, _, block_size = struct.unpack_from(">QIII", raw, at + 16)
    disk = bytearray(size if parent is None else parent[:size].ljust(size, b"\0"))
    for block in range(-(-size // block_size)):
        (entry,) = struct.unpack_from(">I", raw, table_at + 4 * block)
        if entry == NONE:
            continue
        bits = raw[entry * 512 : entry * 512 + bitmap_bytes(block_size)]
        data = entry * 512 + bitmap_bytes(block_size)
        for sector in range(min(block_size, size - block * block_size) // 512):
            if disk_type == DYNAMIC or bits[sector // 8] << sector % 8 & 0x80:
                to = block * block_size + sector * 512
                disk[to : to + 512] = raw[data + sector * 512 : data + sector * 512 + 512]
    return bytes(disk)
