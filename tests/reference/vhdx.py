"""Builds VHDX files byte by byte, sound or with chosen faults (disk-formats.md 2 to 6)."""

import struct
from functools import cache
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

MIB = 1 << 20
BAT_AT, METADATA_AT, PAYLOAD_AT = 2 * MIB, 3 * MIB, 4 * MIB
HEADERS, REGION_TABLES = (64 << 10, 128 << 10), (192 << 10, 256 << 10)
BAT = UUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
METADATA = UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")
FILE_PARAMETERS = UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
DISK_SIZE = UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
DISK_ID = UUID("BECA12AB-B2E6-4523-93EF-C309E000C746")
LOGICAL = UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
PHYSICAL = UUID("CDA348C7-445D-4471-9CC9-E9885251C556")
LOCATOR = UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
LOCATOR_TYPE = UUID("B04AEFB7-D19E-4A81-B789-25B8E9445913")
FILE_WRITE = UUID("00112233-4455-6677-8899-aabbccddeeff")
DATA_WRITE = UUID("01234567-89ab-cdef-0123-456789abcdef")
LOG = UUID("a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf")
DISK = UUID("f0e1d2c3-b4a5-9687-7869-5a4b3c2d1e0f")
NO_LOG = UUID(int=0)
LINKAGE = ("parent_linkage", "{01234567-89ab-cdef-0123-456789abcdef}")
RELATIVE = ("relative_path", ".\\base.vhdx")


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


def sealed(block: bytes) -> bytes:
    return block[:4] + struct.pack("<I", crc32c(block[:4] + bytes(4) + block[8:])) + block[8:]


@cache
def header(
    sequence: int,
    *,
    log_guid: UUID = NO_LOG,
    log_version: int = 0,
    version: int = 1,
    log_length: int = MIB,
    log_offset: int = MIB,
) -> bytes:
    guids = FILE_WRITE.bytes_le + DATA_WRITE.bytes_le + log_guid.bytes_le
    fields = struct.pack("<4sIQ48sHHIQ", b"head", 0, sequence, guids, log_version, version, log_length, log_offset)
    return sealed(fields.ljust(4096, b"\0"))


@cache
def region_table(*regions: tuple[UUID, int, int, int], count: int | None = None) -> bytes:
    """regions: (guid, offset, length, flags)."""
    regions = regions or ((BAT, BAT_AT, MIB, 1), (METADATA, METADATA_AT, MIB, 1))
    body = b"".join(struct.pack("<16sQII", guid.bytes_le, *rest) for guid, *rest in regions)
    head = struct.pack("<4sIII", b"regi", 0, len(regions) if count is None else count, 0)
    return sealed((head + body).ljust(64 << 10, b"\0"))


def standard_items(
    size: int, block_size: int, sector_size: int = 512, physical: int = 4096, flags: int = 0
) -> list[tuple[UUID, int, bytes]]:
    return [
        (FILE_PARAMETERS, 4, struct.pack("<II", block_size, flags)),
        (DISK_SIZE, 6, struct.pack("<Q", size)),
        (DISK_ID, 6, DISK.bytes_le),
        (LOGICAL, 6, struct.pack("<I", sector_size)),
        (PHYSICAL, 6, struct.pack("<I", physical)),
    ]


def metadata(items: list[tuple[UUID, int, bytes]], count: int | None = None) -> bytes:
    """items: (guid, flags, content)."""
    table = struct.pack("<8sHH20x", b"metadata", 0, len(items) if count is None else count)
    body = b""
    for guid, flags, content in items:
        offset = (64 << 10) + len(body) if content else 0
        table += struct.pack("<16sIII4x", guid.bytes_le, offset, len(content), flags)
        body += content
    return table.ljust(64 << 10, b"\0") + body


def locator(*pairs: tuple[str, str], kind: UUID = LOCATOR_TYPE, reserved: int = 0, count: int | None = None) -> bytes:
    """The parent locator's item (disk-formats.md 8)."""
    raw = struct.pack("<16sHH", kind.bytes_le, reserved, len(pairs) if count is None else count)
    at = len(raw) + 12 * len(pairs)
    texts = b""
    for pair in pairs:
        key, value = (text.encode("utf-16-le") for text in pair)
        raw += struct.pack("<IIHH", at + len(texts), at + len(texts) + len(key), len(key), len(value))
        texts += key + value
    return raw + texts


def ratio(block_size: int, sector_size: int) -> int:
    return (1 << 23) * sector_size // block_size


def bat_index(block: int, block_size: int, sector_size: int) -> int:
    return block + block // ratio(block_size, sector_size)


def bitmap_index(chunk: int, block_size: int, sector_size: int) -> int:
    return (chunk + 1) * ratio(block_size, sector_size) + chunk


class Partial(NamedTuple):
    """A block in state 7."""

    data: bytes
    sectors: frozenset[int]  # those of the block whose bits are set


def build(
    path: Path,
    size: int,
    content: dict[int, bytes | int | Partial],
    *,
    block_size: int = MIB,
    sector_size: int = 512,
    fixed: bool = False,
    reverse: bool = False,
    has_parent: bool = False,
) -> None:
    """Writes a VHDX. content: per block its bytes (state 6), bytes and sectors (7), or its whole BAT entry; other
    blocks are not present.

    Blocks lie in the file in the dictionary's order, or in the reverse of it; sector bitmaps come last.
    """
    chunk_ratio = ratio(block_size, sector_size)
    blocks = -(-size // block_size)
    entries = bat_index(blocks, block_size, sector_size) + 1
    if has_parent:
        entries = -(-blocks // chunk_ratio) * (chunk_ratio + 1)
    bat_length = -(-8 * entries // MIB) * MIB
    standard = standard_items(size, block_size, sector_size, flags=2 if has_parent else int(fixed))
    if has_parent:
        standard.append((LOCATOR, 4, locator(LINKAGE, RELATIVE)))
    metadata_at = BAT_AT + bat_length
    place = metadata_at + MIB
    present = [block for block, value in content.items() if not isinstance(value, int)]
    bitmaps: dict[int, bytearray] = {}
    with path.open("wb") as file:
        file.write(b"vhdxfile" + "builder".encode("utf-16-le"))
        for sequence, at in enumerate(HEADERS, 1):
            file.seek(at)
            file.write(header(sequence))
        for at in REGION_TABLES:
            file.seek(at)
            file.write(region_table((BAT, BAT_AT, bat_length, 1), (METADATA, metadata_at, MIB, 1)))
        file.seek(metadata_at)
        file.write(metadata(standard))
        for block in reversed(present) if reverse else present:
            value = content[block]
            data, state = (value.data, 7) if isinstance(value, Partial) else (value, 6)
            if isinstance(value, Partial):
                bits = bitmaps.setdefault(block // chunk_ratio, bytearray(MIB))
                for sector in value.sectors:
                    number = block % chunk_ratio * (block_size // sector_size) + sector
                    bits[number >> 3] |= 1 << (number & 7)
            file.seek(place)
            file.write(data)
            file.seek(BAT_AT + 8 * bat_index(block, block_size, sector_size))
            file.write(struct.pack("<Q", place | state))
            place += block_size
        for chunk, bits in bitmaps.items():
            file.seek(place)
            file.write(bits)
            file.seek(BAT_AT + 8 * bitmap_index(chunk, block_size, sector_size))
            file.write(struct.pack("<Q", place | 6))
            place += MIB
        for block, value in content.items():
            if isinstance(value, int):
                file.seek(BAT_AT + 8 * bat_index(block, block_size, sector_size))
                file.write(struct.pack("<Q", value))
        file.truncate(place)


def log_entry(
    sequence: int,
    changes: list[tuple[int, bytes | int]],
    *,
    tail: int = 0,
    log_guid: UUID = LOG,
    flushed: int = PAYLOAD_AT,
    last: int = PAYLOAD_AT,
    count: int | None = None,
    length: int | None = None,
) -> bytes:
    """A log entry (disk-formats.md 9.1); changes: (offset, page of 4096 bytes or number of zeros)."""
    descriptors, sectors = b"", b""
    for offset, change in changes:
        if isinstance(change, int):
            descriptors += struct.pack("<4s4xQQQ", b"zero", change, offset, sequence)
        else:
            descriptors += b"desc" + change[-4:] + change[:8] + struct.pack("<QQ", offset, sequence)
            sectors += b"data" + struct.pack("<I", sequence >> 32) + change[8:-4]
            sectors += struct.pack("<I", sequence & 0xFFFFFFFF)
    area = -(-(64 + len(descriptors)) // 4096) * 4096
    head = struct.pack("<4sIII", b"loge", 0, area + len(sectors) if length is None else length, tail)
    head += struct.pack("<QII", sequence, len(changes) if count is None else count, 0) + log_guid.bytes_le
    return sealed((head + struct.pack("<QQ", flushed, last) + descriptors).ljust(area, b"\0") + sectors)


def write_log(path: Path, entries: list[tuple[int, bytes]], *, log_guid: UUID = LOG, version: int = 0) -> None:
    """Puts entries into the log at these offsets of its ring, over its end too, and names the log in both headers."""
    with path.open("r+b") as file:
        for position, raw in entries:
            first = raw[: MIB - position]
            for at, part in ((MIB + position, first), (MIB, raw[len(first) :])):
                file.seek(at)
                file.write(part)
        for sequence, at in enumerate(HEADERS, 3):
            file.seek(at)
            file.write(header(sequence, log_guid=log_guid, log_version=version))


def pattern(block: int, length: int) -> bytes:
    """Bytes that differ in every sector and in every block."""
    return b"".join(
        struct.pack("<IIQ", block, at, ~(block << 32 | at) % (1 << 64)) * 32 for at in range(0, length, 512)
    )
