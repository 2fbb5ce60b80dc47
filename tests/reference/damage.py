"""Sound images, and one fault at a time in them; everything is built here byte by byte."""

import struct
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from tests.reference import vhd, vhdx
from tests.reference.vhdx import (
    BAT,
    BAT_AT,
    DATA_WRITE,
    FILE_PARAMETERS,
    HEADERS,
    LOG,
    METADATA,
    METADATA_AT,
    MIB,
    PAYLOAD_AT,
    REGION_TABLES,
    sealed,
)

LOCATOR_TYPE = UUID("b04aefb7-d19e-4a81-b789-25b8e9445913")
LOCATOR = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
OTHER = UUID("11111111-2222-3333-4444-555555555555")
ITEMS_AT = METADATA_AT + (64 << 10)
CHUNK = 4096  # payload entries before a bitmap entry: blocks of 1 MiB, sectors of 512 bytes
SIZE = 4 * MIB
LOG_AT = MIB

Mutation = Callable[[bytearray], None]


def dynamic_vhdx(path: Path, size: int = SIZE) -> None:
    """Blocks 0 and 1 are there, in this order from PAYLOAD_AT on, block 2 is zero, block 3 absent."""
    vhdx.build(path, size, {0: vhdx.pattern(0, MIB), 1: vhdx.pattern(1, MIB), 2: 2})


def locator(linkage: UUID, *paths: tuple[str, str]) -> bytes:
    pairs = (("parent_linkage", f"{{{linkage}}}"), *paths)
    head = LOCATOR_TYPE.bytes_le + struct.pack("<HH", 0, len(pairs))
    at = 20 + 12 * len(pairs)
    body = b""
    for key, value in pairs:
        left, right = key.encode("utf-16-le"), value.encode("utf-16-le")
        head += struct.pack("<IIHH", at + len(body), at + len(body) + len(left), len(left), len(right))
        body += left + right
    return head + body


def child_vhdx(path: Path, parent: str = "base.vhdx", linkage: UUID = DATA_WRITE, size: int = SIZE) -> None:
    """A differencing disk: block 0 in part, its first 8 sectors; block 1 whole; block 2 zero; block 3 the parent's.
    In the file: the bitmap at PAYLOAD_AT, then the blocks."""
    with path.open("wb") as file:
        file.write(b"vhdxfile")
        for sequence, at in enumerate(HEADERS, 1):
            file.seek(at)
            file.write(vhdx.header(sequence))
        for at in REGION_TABLES:
            file.seek(at)
            file.write(vhdx.region_table())
        file.seek(BAT_AT)
        file.write(struct.pack("<QQQ", PAYLOAD_AT + MIB | 7, PAYLOAD_AT + 2 * MIB | 6, 2))
        file.seek(BAT_AT + 8 * CHUNK)
        file.write(struct.pack("<Q", PAYLOAD_AT | 6))
        items = vhdx.standard_items(size, MIB, flags=2)
        items.append((LOCATOR, 4, locator(linkage, ("relative_path", f".\\{parent}"))))
        file.seek(METADATA_AT)
        file.write(vhdx.metadata(items))
        file.seek(PAYLOAD_AT)
        file.write(b"\xff")
        for block in (0, 1):
            file.seek(PAYLOAD_AT + MIB + block * MIB)
            file.write(vhdx.pattern(0x80 + block, MIB))


def log_entry(
    pieces: list[tuple[int, bytes | int]],
    *,
    sequence: int = 1,
    tail: int = 0,
    guid: UUID = LOG,
    flushed: int = 6 * MIB,
    last: int = 6 * MIB,
) -> bytes:
    descriptors = data = b""
    for offset, content in pieces:
        if isinstance(content, int):
            descriptors += struct.pack("<4sIQQQ", b"zero", 0, content, offset, sequence)
        else:
            descriptors += b"desc" + content[-4:] + content[:8] + struct.pack("<QQ", offset, sequence)
            data += b"data" + struct.pack("<I", sequence >> 32) + content[8:-4]
            data += struct.pack("<I", sequence & 0xFFFFFFFF)
    area = -(-(64 + len(descriptors)) // 4096) * 4096
    head = struct.pack("<4sIIIQII16sQQ", b"loge", 0, area + len(data), tail, sequence, len(pieces), 0, guid.bytes_le,
                       flushed, last)  # fmt: skip
    return sealed((head + descriptors).ljust(area, b"\0") + data)


def put(at: int, data: bytes) -> Mutation:
    def change(raw: bytearray) -> None:
        raw[at : at + len(data)] = data

    return change


def flip(at: int) -> Mutation:
    def change(raw: bytearray) -> None:
        raw[at] ^= 0xFF

    return change


def both(*changes: Mutation) -> Mutation:
    def change(raw: bytearray) -> None:
        for each in changes:
            each(raw)

    return change


def cut(length: int) -> Mutation:
    def change(raw: bytearray) -> None:
        del raw[length:]

    return change


def headers(**fields: object) -> Mutation:
    """Both headers say so; their checksums are right."""
    return both(*(put(at, vhdx.header(sequence, **fields)) for sequence, at in enumerate(HEADERS, 1)))  # type: ignore[arg-type]


def tables(*regions: tuple[UUID, int, int, int], count: int | None = None) -> Mutation:
    return both(*(put(at, vhdx.region_table(*regions, count=count)) for at in REGION_TABLES))


def entry(index: int, value: int) -> Mutation:
    return put(BAT_AT + 8 * index, struct.pack("<Q", value))


def metadata(
    change: Callable[[list[tuple[UUID, int, bytes]]], list[tuple[UUID, int, bytes]]], flags: int = 0
) -> Mutation:
    def apply(raw: bytearray) -> None:
        items = vhdx.metadata(change(vhdx.standard_items(SIZE, MIB, flags=flags)))
        raw[METADATA_AT : METADATA_AT + len(items)] = items

    return apply


def item(guid: UUID, content: bytes | None = None, flags: int | None = None) -> Mutation:
    """The item's content and flags are these; None: as they were."""

    def change(items: list[tuple[UUID, int, bytes]]) -> list[tuple[UUID, int, bytes]]:
        return [
            (one, f if flags is None or one != guid else flags, c if content is None or one != guid else content)
            for one, f, c in items
        ]

    return metadata(change)


def without(guid: UUID) -> Mutation:
    return metadata(lambda items: [each for each in items if each[0] != guid])


def added(guid: UUID, flags: int, content: bytes) -> Mutation:
    return metadata(lambda items: [*items, (guid, flags, content)])


def parameters(block_size: int, flags: int = 0) -> Mutation:
    return item(FILE_PARAMETERS, struct.pack("<II", block_size, flags))


def dirty(*pieces: tuple[int, bytes | int], **fields: int) -> Mutation:
    """A log with one entry that waits for its replay."""
    return both(headers(log_guid=LOG), put(LOG_AT, log_entry(list(pieces), **fields)))  # type: ignore[arg-type]


def bat_page(*entries: int) -> bytes:
    return struct.pack(f"<{len(entries)}Q", *entries).ljust(4096, b"\0")


VHD_BLOCK = 64 << 10
VHD_SIZE = 4 * VHD_BLOCK
VHD_TABLE = vhd.TABLE_AT


def dynamic_vhd(path: Path) -> None:
    """Blocks 0 and 1 are there."""
    vhd.build(path, VHD_SIZE, {n: vhd.pattern(n, VHD_BLOCK) for n in (0, 1)}, block_size=VHD_BLOCK)


def child_vhd(path: Path, parent: UUID = vhd.ID) -> None:
    """Block 0 is there in part."""
    content = {0: (vhd.pattern(0x80, VHD_BLOCK), set(range(8)))}
    vhd.build(path, VHD_SIZE, content, block_size=VHD_BLOCK, disk_id=vhd.CHILD_ID, parent=(parent, "base.vhd"))


def fixed_vhd(path: Path, size: int = VHD_SIZE) -> None:
    path.write_bytes(vhd.pattern(3, size) + vhd.footer(size, vhd.FIXED))


def vhd_entry(index: int, value: int) -> Mutation:
    return put(VHD_TABLE + 4 * index, struct.pack(">I", value))


def vhd_header(**fields: object) -> Mutation:
    return put(512, vhd.header(4, VHD_BLOCK, **fields))  # type: ignore[arg-type]


def vhd_tail(**fields: object) -> Mutation:
    """Both footers."""

    def change(raw: bytearray) -> None:
        raw[:512] = raw[-512:] = vhd.footer(VHD_SIZE, **fields)  # type: ignore[arg-type]

    return change


REGIONS = ((BAT, BAT_AT, MIB, 1), (METADATA, METADATA_AT, MIB, 1))


def vhdx_content(raw: bytes) -> bytes:
    """The disk in a dynamic VHDX of dynamic_vhdx()'s layout whose log is empty."""
    assert raw[HEADERS[0] + 48 : HEADERS[0] + 64] == raw[HEADERS[1] + 48 : HEADERS[1] + 64] == bytes(16)
    disk = b""
    for (value,) in struct.iter_unpack("<Q", raw[BAT_AT : BAT_AT + 8 * (SIZE // MIB)]):
        place = value & ~0xFFFFF
        disk += raw[place : place + MIB] if value & 7 == 6 else bytes(MIB)
    return disk
