"""Small sound images whose structures are named field by field, to be changed as an enemy would: any field to any
value, checksums made right again, so that the change reaches the code behind them (disk-formats.md 2 to 9, 15).

A change is four numbers, whatever they are, so that hypothesis and a fuzzer can both make them up: which structure,
which field, which value, which of its copies.
"""

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from hvcore.disk.crc import crc32c
from tests.reference import vhdx
from tests.reference.vhdx import BAT_AT, DATA_WRITE, HEADERS, LOG, MIB, REGION_TABLES, pattern

Change = tuple[int, int, int, int]
Field = tuple[int, int]  # offset in the structure, bytes

LOCATOR = UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
LOCATOR_TYPE = UUID("B04AEFB7-D19E-4A81-B789-25B8E9445913")
VHD_ID = UUID("0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9")
SECTOR = 512


@dataclass(frozen=True)
class Structure:
    """Lies at each of `places`, alike. seal: how its checksum is made right; big: its numbers' byte order."""

    name: str
    places: tuple[int, ...]
    fields: tuple[Field, ...]
    seal: str = ""
    big: bool = False


@dataclass
class File:
    """A file of an image: its bytes in pieces; a structure is the whole piece that begins at its place."""

    name: str
    size: int
    pieces: dict[int, bytes]
    structures: tuple[Structure, ...]


@dataclass
class Seed:
    """An image and the files that it is based on; the image itself is the first."""

    name: str
    format: str
    files: tuple[File, ...]
    targets: list[tuple[int, Structure | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number, file in enumerate(self.files):
            self.targets += [(number, structure) for structure in file.structures]
            self.targets.append((number, None))  # its length


# VHDX ---------------------------------------------------------------------------------------------------------------


def every(first: int, count: int, stride: int, *fields: Field) -> tuple[Field, ...]:
    return tuple((first + n * stride + at, width) for n in range(count) for at, width in fields)


HEADER_FIELDS = ((8, 8), (16, 8), (32, 8), (48, 8), (56, 8), (64, 2), (66, 2), (68, 4), (72, 8))
REGION_FIELDS = ((8, 4), (12, 4), *every(16, 3, 32, (0, 8), (16, 8), (24, 4), (28, 4)))
TABLE_FIELDS = ((0, 8), (8, 2), (10, 2), *every(32, 7, 32, (0, 8), (16, 4), (20, 4), (24, 4), (28, 4)))
ITEM_FIELDS = ((0, 4), (4, 4), (8, 8), (16, 8), (32, 4), (36, 4))
LOCATOR_FIELDS = (
    (40, 8),
    (56, 2),
    (58, 2),
    *every(60, 2, 12, (0, 4), (4, 4), (8, 2), (10, 2)),
    *every(84, 80, 2, (0, 2)),
)
ENTRY_FIELDS = ((8, 4), (12, 4), (16, 8), (24, 4), (28, 4), (32, 8), (48, 8), (56, 8))
DESCRIPTOR_FIELDS = every(64, 2, 32, (0, 4), (4, 4), (8, 8), (16, 8), (24, 8))
SECTOR_FIELDS = ((4096, 4), (4100, 4), (4104, 8), (8188, 4))


def locator(linkage: UUID, path: str) -> bytes:
    texts = [text.encode("utf-16-le") for text in ("parent_linkage", f"{{{linkage}}}", "relative_path", path)]
    places, at = [], 20 + 2 * 12
    for text in texts:
        places.append(at)
        at += len(text)
    records = b"".join(struct.pack("<IIHH", places[n], places[n + 1], len(texts[n]), len(texts[n + 1])) for n in (0, 2))
    return LOCATOR_TYPE.bytes_le + struct.pack("<HH", 0, 2) + records + b"".join(texts)


def log_entry(sequence: int, tail: int, changes: Sequence[tuple[int, bytes | int]], end: int) -> bytes:
    """changes: (offset, page of 4096 bytes or number of zeros)."""
    descriptors = sectors = b""
    for at, content in changes:
        if isinstance(content, int):
            descriptors += struct.pack("<4sIQQQ", b"zero", 0, content, at, sequence)
            continue
        descriptors += struct.pack("<4s4s8sQQ", b"desc", content[-4:], content[:8], at, sequence)
        sectors += struct.pack("<4sI4084sI", b"data", sequence >> 32, content[8:-4], sequence & 0xFFFFFFFF)
    length = -(-(64 + len(descriptors)) // 4096) * 4096 + len(sectors)
    head = struct.pack("<4sIIIQII16sQQ", b"loge", 0, length, tail, sequence, len(changes), 0, LOG.bytes_le, end, end)
    return vhdx_sealed((head + descriptors).ljust(length - len(sectors), b"\0") + sectors)


def vhdx_sealed(block: bytes) -> bytes:
    return block[:4] + struct.pack("<I", crc32c(block[8:], crc32c(block[:4] + bytes(4)))) + block[8:]


def vhdx_file(
    name: str,
    size: int,
    entries: Sequence[int],
    *,
    block_size: int = MIB,
    sector_size: int = 512,
    flags: int = 0,
    parent: str | None = None,
    log: Sequence[bytes] = (),
    bitmap: tuple[int, bytes] | None = None,
    file_mib: int = 8,
    bat_mib: int = 1,
) -> File:
    """entries: the BAT from its first on; bitmap: its place and first bytes. Every MiB after the metadata is filled."""
    items = vhdx.standard_items(size, block_size, sector_size, flags=flags)
    if parent is not None:
        items.append((LOCATOR, 4, locator(DATA_WRITE, parent)))
    metadata_at = BAT_AT + bat_mib * MIB
    regions = ((vhdx.BAT, BAT_AT, bat_mib * MIB, 1), (vhdx.METADATA, metadata_at, MIB, 1))
    guid = LOG if log else vhdx.NO_LOG
    region = metadata_at + MIB
    table = vhdx.metadata(items)
    pieces = {
        0: b"vhdxfile" + "builder".encode("utf-16-le"),
        **{at: vhdx.header(sequence, log_guid=guid) for sequence, at in enumerate(HEADERS, 1)},
        **{at: fast_region_table(*regions) for at in REGION_TABLES},
        metadata_at: table[: 64 << 10],
        metadata_at + (64 << 10): table[64 << 10 :],
        BAT_AT: b"".join(struct.pack("<Q", entry) for entry in entries),
        **{at * MIB: pattern(at, 4096) for at in range(region // MIB, file_mib)},
    }
    structures = [
        Structure("identifier", (0,), ((0, 8),)),
        Structure("header", HEADERS, HEADER_FIELDS, "crc"),
        Structure("region table", REGION_TABLES, REGION_FIELDS, "crc"),
        Structure("metadata table", (metadata_at,), TABLE_FIELDS),
        Structure("metadata items", (metadata_at + (64 << 10),), ITEM_FIELDS),
        Structure("BAT", (BAT_AT,), every(0, len(entries), 8, (0, 8))),
    ]
    if parent is not None:
        structures.append(Structure("locator", (metadata_at + (64 << 10),), LOCATOR_FIELDS))
    at = MIB
    for entry in log:
        fields = ENTRY_FIELDS + DESCRIPTOR_FIELDS + (SECTOR_FIELDS if len(entry) > 4096 else ())
        structures.append(Structure("log entry", (at,), fields, "entry"))
        pieces[at] = entry
        at += len(entry)
    if bitmap is not None:
        pieces[bitmap[0]] = bitmap[1]
        structures.append(Structure("sector bitmap", (bitmap[0],), every(0, len(bitmap[1]) // 8, 8, (0, 8))))
    return File(name, file_mib * MIB, pieces, tuple(structures))


def fast_region_table(*regions: tuple[UUID, int, int, int]) -> bytes:
    body = b"".join(struct.pack("<16sQII", guid.bytes_le, *rest) for guid, *rest in regions)
    return vhdx_sealed((struct.pack("<4sIII", b"regi", 0, len(regions), 0) + body).ljust(64 << 10, b"\0"))


def at(mib: int, state: int = 6) -> int:
    return mib * MIB | state


def replayed_log() -> list[bytes]:
    """Two entries: the BAT's first page twice, and zeros over a payload page."""
    page = struct.pack("<QQQ", at(4), at(5), at(6)).ljust(4096, b"\0")
    first = log_entry(1, 0, [(BAT_AT, page), (5 * MIB, 4096)], 8 * MIB)
    later = struct.pack("<QQQ", at(4), 2, at(6)).ljust(4096, b"\0")
    return [first, log_entry(2, len(first), [(BAT_AT, later), (7 * MIB, 8192)], 8 * MIB)]


def differencing_entries() -> list[int]:
    """Blocks present, partial, the parent's, zero; the bitmap's entry follows the chunk's 4096."""
    return [at(4), at(5, 7), 0, 2, *[0] * 4092, at(6)]


# VHD ----------------------------------------------------------------------------------------------------------------

FOOTER_FIELDS = (
    *((8, 4), (12, 4), (16, 8), (24, 4), (28, 4), (36, 4), (40, 8), (48, 8), (56, 2), (58, 1), (59, 1), (60, 4)),
    *((68, 8), (76, 8), (84, 1)),
)
DYNAMIC_FIELDS = (
    *((0, 8), (8, 8), (16, 8), (24, 4), (28, 4), (32, 4), (40, 8), (56, 4), (60, 4), (64, 8), (72, 8)),
    *every(576, 2, 24, (0, 4), (4, 4), (8, 4), (12, 4), (16, 8)),
)


def vhd_sealed(block: bytes, place: int) -> bytes:
    total = sum(block) - sum(block[place : place + 4])
    return block[:place] + struct.pack(">I", ~total & 0xFFFFFFFF) + block[place + 4 :]


def footer(size: int, kind: int, disk_id: UUID = VHD_ID) -> bytes:
    offset = (1 << 64) - 1 if kind == 2 else 512
    head = struct.pack(">8sIIQI4sI4sQQ", b"conectix", 2, 0x10000, offset, 0, b"win ", 0xA0000, b"Wi2k", size, size)
    return vhd_sealed((head + struct.pack(">HBBII16s", 90, 4, 17, kind, 0, disk_id.bytes)).ljust(512, b"\0"), 64)


def dynamic_header(entries: int, block_size: int, parent: str | None, parent_id: UUID, text_at: int) -> bytes:
    head = struct.pack(">8sQQIII4x16sI4x", b"cxsparse", (1 << 64) - 1, 1536, 0x10000, entries, block_size, bytes(16), 0)
    if parent is not None:
        head = head[:40] + parent_id.bytes + head[56:] + parent.encode("utf-16-be").ljust(512, b"\0")
        text = f".\\{parent}".encode("utf-16-le")
        head += struct.pack(">4sIIIQ", b"W2ru", 512, len(text), 0, text_at)
    return vhd_sealed(head.ljust(1024, b"\0"), 36)


def vhd_file(name: str, kind: int, *, parent: str | None = None, disk_id: UUID = VHD_ID) -> File:
    """Type `kind`, of 64 KiB in blocks of 16 KiB: the first and third are there, in this order in the file."""
    size, block, text_at = 64 << 10, 16 << 10, 2048
    if kind == 2:
        data = pattern(0, size)
        structure = Structure("footer", (size,), FOOTER_FIELDS, "footer", big=True)
        return File(name, size + SECTOR, {0: data, size: footer(size, 2, disk_id)}, (structure,))
    first = 2560
    second = first + SECTOR + block
    end = second + SECTOR + block
    bits = b"\xff" if kind == 3 else b"\x5a"
    table = struct.pack(">IIII", second // SECTOR, 0xFFFFFFFF, first // SECTOR, 0xFFFFFFFF).ljust(SECTOR, b"\xff")
    pieces = {
        0: footer(size, kind, disk_id),
        512: dynamic_header(4, block, parent, VHD_ID, text_at),
        1536: table,
        first: bits * 4,
        first + SECTOR: pattern(2, block),
        second: bits * 4,
        second + SECTOR: pattern(0, block),
        end: footer(size, kind, disk_id),
    }
    structures = [
        Structure("footer", (0, end), FOOTER_FIELDS, "footer", big=True),
        Structure("dynamic header", (512,), DYNAMIC_FIELDS, "dynamic", big=True),
        Structure("BAT", (1536,), every(0, 5, 4, (0, 4)), big=True),
        Structure("sector bitmap", (first,), ((0, 1), (2, 2)), big=True),
    ]
    if parent is not None:
        text = f".\\{parent}".encode("utf-16-le")
        pieces[text_at] = text
        structures.append(Structure("locator", (text_at,), every(0, len(text) // 2, 2, (0, 2)), big=True))
    return File(name, end + SECTOR, pieces, tuple(structures))


def seeds() -> list[Seed]:
    """Every kind of image once; each opens."""
    other = UUID(int=7)
    base = vhdx_file("base.vhdx", 4 * MIB, [at(4), at(5), 0, at(6)])
    child = vhdx_file(
        "child.vhdx",
        4 * MIB,
        differencing_entries(),
        flags=2,
        parent=".\\base.vhdx",
        bitmap=(6 * MIB, bytes(range(64)).ljust(4096, b"\x0f")),
    )
    grandchild = vhdx_file("leaf.vhdx", 4 * MIB, [0, at(4), 0, 0], flags=2, parent="child.vhdx", bat_mib=1)
    base4 = vhdx_file("base.vhdx", 4 * MIB, [at(4), 0, at(5)], sector_size=4096)
    child4 = vhdx_file("child.vhdx", 4 * MIB, [2, at(4), 0, 0], sector_size=4096, flags=2, parent="base.vhdx")
    return [
        Seed("dynamic", "vhdx", (vhdx_file("d.vhdx", 3 * MIB, [at(4), 0, at(5, 3)]),)),
        Seed(
            "dynamic 4096",
            "vhdx",
            (vhdx_file("d.vhdx", 6 * MIB, [at(6), 0, at(4)], block_size=2 * MIB, sector_size=4096),),
        ),
        Seed("fixed", "vhdx", (vhdx_file("d.vhdx", 2 * MIB + 512, [at(5), at(4), at(6)], flags=1),)),
        Seed("large", "vhdx", (vhdx_file("d.vhdx", 1 << 40, [at(0, 0), at(8, 6)], block_size=32 * MIB, file_mib=40),)),
        Seed("dirty", "vhdx", (vhdx_file("d.vhdx", 3 * MIB, [at(4)], log=replayed_log()),)),
        Seed("differencing", "vhdx", (child, base)),
        Seed("chain", "vhdx", (grandchild, child, base)),
        Seed("differencing 4096", "vhdx", (child4, base4)),
        Seed("fixed", "vhd", (vhd_file("d.vhd", 2),)),
        Seed("dynamic", "vhd", (vhd_file("d.vhd", 3),)),
        Seed("differencing", "vhd", (vhd_file("c.vhd", 4, parent="base.vhd", disk_id=other), vhd_file("base.vhd", 3))),
        Seed(
            "differencing fixed",
            "vhd",
            (vhd_file("c.vhd", 4, parent="base.vhd", disk_id=other), vhd_file("base.vhd", 2)),
        ),
    ]


# Changes ------------------------------------------------------------------------------------------------------------

NUMBERS = (
    *(
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        9,
        16,
        126,
        127,
        128,
        252,
        253,
        254,
        255,
        256,
        257,
        511,
        512,
        513,
        1023,
        1024,
        2047,
        2048,
    ),
    *(
        4095,
        4096,
        4097,
        8192,
        65535,
        65536,
        65537,
        MIB - 1,
        MIB,
        MIB + 1,
        2 * MIB,
        3 * MIB,
        32 * MIB,
        256 * MIB,
        512 * MIB,
    ),
    *(
        (1 << 31) - 1,
        1 << 31,
        (1 << 32) - 4096,
        (1 << 32) - 1,
        1 << 32,
        64 << 40,
        (64 << 40) + 512,
        65 << 40,
        2040 << 30,
    ),
    *((1 << 44) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - MIB, (1 << 64) - 4096, (1 << 64) - 512, (1 << 64) - 1),
)


def chosen(value: int, before: int, file_size: int) -> int:
    """A number that is likely to matter, for any value."""
    kind, rest = value & 7, value >> 3
    if kind <= 2:
        return NUMBERS[rest % len(NUMBERS)]
    if kind == 3:
        return before + (rest % 9 - 4) * (1, 512, 4096, MIB)[rest // 9 % 4]
    if kind == 4:
        return before ^ 1 << rest % 64
    if kind == 5:  # a place in MiB with the state of a block; the file's end is among them
        return (rest // 8 % (file_size // MIB + 3)) * MIB | rest % 8
    if kind == 6:  # a place in sectors
        return rest % (file_size // SECTOR + 5)
    return rest


def sealed(raw: bytes, seal: str) -> bytes:
    if seal == "crc":
        return vhdx_sealed(raw)
    if seal == "entry":
        length = int.from_bytes(raw[8:12], "little")
        if not 8 <= length <= len(raw):
            length = len(raw)
        return vhdx_sealed(raw[:length]) + raw[length:]
    if seal == "footer":
        return vhd_sealed(raw, 64)
    return vhd_sealed(raw, 36) if seal == "dynamic" else raw


def written(folder: Path, seed: Seed, changes: Sequence[Change]) -> Path:
    """The image with the changes made, and its parents beside it; files of these names are replaced."""
    sizes = [file.size for file in seed.files]
    pieces = [dict(file.pieces) for file in seed.files]
    for which, where, value, copies in changes:
        number, structure = seed.targets[which % len(seed.targets)]
        if structure is None:
            sizes[number] = max(0, min(chosen(value, sizes[number], sizes[number]), 1 << 30))
            continue
        offset, width = structure.fields[where % len(structure.fields)]
        order: Any = "big" if structure.big else "little"
        for copy, place in enumerate(structure.places):
            raw = pieces[number][place]
            if (copies >> copy) & 1 and len(structure.places) > 1:
                continue  # only the other copy
            before = int.from_bytes(raw[offset : offset + width], order)
            after = chosen(value, before, sizes[number]) % (1 << 8 * width)
            raw = raw[:offset] + after.to_bytes(width, order) + raw[offset + width :]
            pieces[number][place] = raw if copies & 12 == 12 else sealed(raw, structure.seal)
    for number, file in enumerate(seed.files):
        fd = os.open(folder / file.name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            for place, raw in pieces[number].items():
                os.pwrite(fd, raw, place)
            os.ftruncate(fd, sizes[number])
        finally:
            os.close(fd)
    return folder / seed.files[0].name
