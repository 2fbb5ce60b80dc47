"""The dynamic header of a VHD and its parent locators: read, judged, made (disk-formats.md 15.2)."""

import struct
from dataclasses import dataclass
from uuid import UUID

from hvcore.disk.vhd.footer import NO_OFFSET, VERSION, byte_sum
from hvcore.errors import ImageDamaged, ImageError

COOKIE = b"cxsparse"
HEADER_BYTES = 1024
NAME_BYTES = 512
LOCATORS = 8
MIN_BLOCK, MAX_BLOCK = 4 << 10, 256 << 20
NO_ID = UUID(int=0)
# Paths that are read; any other locator is kept as it is. Their texts: UTF-16LE, UTF-16LE, UTF-8, no terminator.
RELATIVE, ABSOLUTE, FILE_URL = "W2ru", "W2ku", "MacX"
ENCODINGS = {RELATIVE: "utf-16-le", ABSOLUTE: "utf-16-le", FILE_URL: "utf-8"}

# cookie, data offset, table offset, version, entries, block size, checksum, parent's id, its timestamp, reserved
LAYOUT = struct.Struct(">8sQQIIII16sI4s")
LOCATOR = struct.Struct(">4sII4sQ")
LOCATORS_AT = LAYOUT.size + NAME_BYTES
RESERVED_AT = LOCATORS_AT + LOCATORS * LOCATOR.size


@dataclass(frozen=True)
class Locator:
    """Where a text that leads to the parent lies in the file.

    space: what the writer reserved for it, in bytes or in sectors, depending on the writer: never to be relied on.
    """

    code: bytes
    space: int
    length: int
    offset: int
    reserved: bytes = bytes(4)


EMPTY = Locator(bytes(4), 0, 0, 0)


@dataclass(frozen=True)
class DynamicHeader:
    """A dynamic header whose cookie, checksum and version are right; bytes that mean nothing here are kept.

    name: the parent's file name as it stands there, NAME_BYTES (parent_name() reads it).
    """

    table_offset: int
    entries: int
    block_size: int
    parent_id: UUID = NO_ID
    parent_timestamp: int = 0
    name: bytes = bytes(NAME_BYTES)
    locators: tuple[Locator, ...] = (EMPTY,) * LOCATORS
    data_offset: int = NO_OFFSET
    reserved: tuple[bytes, bytes] = (bytes(4), bytes(HEADER_BYTES - RESERVED_AT))


def parse_header(header: bytes, offset: int | None = None) -> DynamicHeader:
    """ImageDamaged: it is none, or a damaged one; offset: where in the file it was."""
    if header[:8] != COOKIE:
        raise ImageDamaged("the dynamic header is missing", structure="dynamic header", offset=offset)
    fields = LAYOUT.unpack_from(header)
    _, data_offset, table_offset, version, entries, block_size, stored, parent_id, parent_timestamp, gap = fields
    if stored != byte_sum(header, 36):
        raise ImageDamaged(
            "the dynamic header is damaged: its checksum is wrong", structure="dynamic header", offset=offset
        )
    if version != VERSION:
        raise ImageError(f"dynamic header version {version:#010x} is not supported")
    locators = LOCATOR.iter_unpack(header[LOCATORS_AT:RESERVED_AT])
    return DynamicHeader(
        table_offset=table_offset,
        entries=entries,
        block_size=block_size,
        parent_id=UUID(bytes=parent_id),
        parent_timestamp=parent_timestamp,
        name=header[LAYOUT.size : LOCATORS_AT],
        locators=tuple(Locator(code, space, length, at, rest) for code, space, length, rest, at in locators),
        data_offset=data_offset,
        reserved=(gap, header[RESERVED_AT:]),
    )


def build_header(header: DynamicHeader) -> bytes:
    """The 1024 bytes; those of a parsed header are the ones that were read."""
    fields = [COOKIE, header.data_offset, header.table_offset, VERSION, header.entries, header.block_size, 0]
    raw = LAYOUT.pack(*fields, header.parent_id.bytes, header.parent_timestamp, header.reserved[0]) + header.name
    for each in header.locators:
        raw += LOCATOR.pack(each.code, each.space, each.length, each.reserved, each.offset)
    raw += header.reserved[1]
    return raw[:36] + byte_sum(raw, 36).to_bytes(4, "big") + raw[40:]


def decode_utf16(raw: bytes, unsure: str) -> str:
    """UTF-16 up to the first NUL, in the byte order that the zero bytes of ASCII characters show; else `unsure`."""
    raw = raw[: len(raw) & ~1]
    end = next((at for at in range(0, len(raw), 2) if raw[at : at + 2] == b"\0\0"), len(raw))
    high, low = raw[0:end:2].count(0), raw[1:end:2].count(0)
    encoding = unsure if high == low else "utf-16-be" if high > low else "utf-16-le"
    return raw[:end].decode(encoding, errors="replace")


def parent_name(header: DynamicHeader) -> str:
    """The parent's file name; written big-endian, by some writers little-endian."""
    return decode_utf16(header.name, "utf-16-be")


def encode_name(name: str) -> bytes:
    raw = name.encode("utf-16-be")
    if len(raw) > NAME_BYTES - 2:
        raise ValueError(f"the parent's file name has {len(raw) // 2} UTF-16 units, more than {NAME_BYTES // 2 - 1}")
    return raw.ljust(NAME_BYTES, b"\0")


def decode_locator(code: str, raw: bytes) -> str:
    if ENCODINGS[code] == "utf-8":
        return raw.partition(b"\0")[0].decode(errors="replace")
    return decode_utf16(raw, ENCODINGS[code])


def encode_locator(code: str, text: str) -> bytes:
    return text.encode(ENCODINGS[code])
