"""The structures of a VHDX file as bytes and as objects: file identifier, headers, region tables, metadata
(disk-formats.md 2 to 5).

parse_... turns bytes into an object and judges nothing but signature and checksum: None where these are wrong.
judge_... yields the fault of every rule that is broken, so that a reader can refuse the file at the first one
(`refuse`) and a checker can list them all. build_... is the inverse of parse_...; what it makes is sealed.
Offsets, lengths and sizes are bytes.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from uuid import UUID

from hvcore.disk.crc import crc32c
from hvcore.errors import ImageDamaged, ImageError

MIB = 1 << 20
PAGE = 4096  # the unit of the log
SIGNATURE = b"vhdxfile"
CREATOR_BYTES = 512

HEADERS = (64 << 10, 128 << 10)
HEADER_BYTES = 4096
REGION_TABLES = (192 << 10, 256 << 10)
REGION_TABLE_BYTES = 64 << 10
METADATA_TABLE_BYTES = 64 << 10  # the items follow behind

BAT_REGION = UUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
METADATA_REGION = UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")
REGION_NAMES = {BAT_REGION: "the BAT region", METADATA_REGION: "the metadata region"}

FILE_PARAMETERS = UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
DISK_SIZE = UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
DISK_ID = UUID("BECA12AB-B2E6-4523-93EF-C309E000C746")
LOGICAL_SECTOR = UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
PHYSICAL_SECTOR = UUID("CDA348C7-445D-4471-9CC9-E9885251C556")
PARENT_LOCATOR = UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
INCOMPLETE_FILE = UUID("71CC85F0-1B69-4E28-9558-C3BF83AE75D3")
CHS_PARAMETERS = UUID("DA02D7BC-3D3A-423C-AC88-2A36AB21479B")
PMEM_LABEL = UUID("10E1AE8A-4B7E-4169-A40F-CD70DE928393")

USER, VIRTUAL_DISK, REQUIRED = 1, 2, 4  # flags of a metadata item
# name, length and flags of the items that every file has
MANDATORY = {
    FILE_PARAMETERS: ("file parameters", 8, REQUIRED),
    DISK_SIZE: ("virtual disk size", 8, VIRTUAL_DISK | REQUIRED),
    DISK_ID: ("virtual disk id", 16, VIRTUAL_DISK | REQUIRED),
    LOGICAL_SECTOR: ("logical sector size", 4, VIRTUAL_DISK | REQUIRED),
    PHYSICAL_SECTOR: ("physical sector size", 4, VIRTUAL_DISK | REQUIRED),
}
KNOWN = {*MANDATORY, PARENT_LOCATOR, INCOMPLETE_FILE, CHS_PARAMETERS, PMEM_LABEL}

MAX_LOG = 1 << 30
MAX_METADATA = 128 * MIB
MAX_ENTRIES = 2047
MAX_USER_ITEMS = 1024
MAX_ITEM = MIB

NO_GUID = UUID(int=0)

HEADER_LAYOUT = struct.Struct("<4sIQ16s16s16sHHIQ")
REGION_LAYOUT = struct.Struct("<16sQII")
ITEM_LAYOUT = struct.Struct("<16sIIII")


def refuse(faults: Iterable[ImageError]) -> None:
    """Raises the first fault, if there is one."""
    for fault in faults:
        raise fault


def sound(block: bytes, signature: bytes) -> bool:
    """Signature and checksum, the checksum's own field taken as zero (disk-formats.md 1)."""
    stored = int.from_bytes(block[4:8], "little")
    return block[:4] == signature and stored == crc32c(block[8:], crc32c(block[:4] + bytes(4)))


def sealed(block: bytes) -> bytes:
    """The block with its checksum at 4."""
    checksum = crc32c(block[8:], crc32c(block[:4] + bytes(4)))
    return block[:4] + checksum.to_bytes(4, "little") + block[8:]


def judge_place(name: str, offset: int, length: int, file_size: int) -> Iterator[ImageError]:
    if offset + length > file_size:
        words = f"truncated: {name} ends at {offset + length}, the file at {file_size}"
        yield ImageDamaged(words, structure=name, offset=offset)


def judge_disjoint(ranges: Iterable[tuple[str, int, int]], base: int = 0) -> Iterator[ImageError]:
    """ranges: (name, offset, length), none of length 0; base: where in the file the offsets count from."""
    ordered = sorted(ranges, key=lambda item: item[1])
    for (left, start, length), (right, following, _) in pairwise(ordered):
        if start + length > following:
            yield ImageDamaged(f"{left} and {right} overlap", structure=right, offset=base + following)


# File identifier


def parse_identifier(raw: bytes) -> str | None:
    """The creator's name; None: the signature is missing. raw: at least the file's first 8 bytes."""
    if raw[:8] != SIGNATURE:
        return None
    # Informative only: a text that is none must not keep a disk from its owner.
    return raw[8 : 8 + CREATOR_BYTES].decode("utf-16-le", errors="replace").partition("\0")[0]


def build_identifier(creator: str) -> bytes:
    text = creator.encode("utf-16-le")
    if len(text) > CREATOR_BYTES:
        raise ValueError(f"the creator has {len(text)} bytes, more than {CREATOR_BYTES}")
    return SIGNATURE + text.ljust(CREATOR_BYTES, b"\0")


# Headers


@dataclass(frozen=True)
class Header:
    """A header; copy: 0 is the one at 64 KiB, 1 the one at 128 KiB. log_guid: zero while the log is empty."""

    sequence: int
    file_write_guid: UUID
    data_write_guid: UUID
    log_guid: UUID
    log_version: int
    version: int
    log_offset: int
    log_length: int
    copy: int


def parse_header(raw: bytes, copy: int) -> Header | None:
    if len(raw) != HEADER_BYTES or not sound(raw, b"head"):
        return None
    _, _, sequence, file_write, data_write, log, log_version, version, log_length, log_offset = (
        HEADER_LAYOUT.unpack_from(raw)
    )
    return Header(
        sequence,
        UUID(bytes_le=file_write),
        UUID(bytes_le=data_write),
        UUID(bytes_le=log),
        log_version,
        version,
        log_offset,
        log_length,
        copy,
    )


def build_header(header: Header) -> bytes:
    fields = HEADER_LAYOUT.pack(
        b"head",
        0,
        header.sequence,
        header.file_write_guid.bytes_le,
        header.data_write_guid.bytes_le,
        header.log_guid.bytes_le,
        header.log_version,
        header.version,
        header.log_length,
        header.log_offset,
    )
    return sealed(fields.ljust(HEADER_BYTES, b"\0"))


def select_header(copies: Sequence[bytes]) -> Header:
    """The current one of the two copies (disk-formats.md 3). ImageDamaged: there is none."""
    valid = [header for copy, raw in enumerate(copies) if (header := parse_header(raw, copy)) is not None]
    if not valid:
        raise ImageDamaged("both headers are damaged", structure="headers", offset=HEADERS[0])
    if len(valid) == 2 and valid[0].sequence == valid[1].sequence and copies[0] != copies[1]:
        words = "both headers have the same sequence number but differ"
        raise ImageDamaged(words, structure="headers", offset=HEADERS[0])
    return max(valid, key=lambda header: header.sequence)  # of equal ones the first


def judge_header(header: Header, file_size: int) -> Iterator[ImageError]:
    """The rules for the current header. Its log must be inside the file at any time, replayed or not."""
    offset = HEADERS[header.copy]
    if header.version != 1:
        yield ImageError(f"header version {header.version} is not supported")
        return
    if header.log_guid != NO_GUID and header.log_version != 0:
        yield ImageError(f"the disk has a log to replay, but log version {header.log_version} is not supported")
    if header.log_length % MIB or not MIB <= header.log_length <= MAX_LOG:
        words = f"the log length {header.log_length} is not a multiple of 1 MiB up to 1 GiB"
        yield ImageDamaged(words, structure="header", offset=offset)
    if header.log_offset % MIB or header.log_offset < MIB:
        words = f"the log offset {header.log_offset} is not a multiple of 1 MiB"
        yield ImageDamaged(words, structure="header", offset=offset)
    yield from judge_place("the log", header.log_offset, header.log_length, file_size)


# Region tables


@dataclass(frozen=True)
class Region:
    guid: UUID
    offset: int
    length: int
    flags: int = 1

    @property
    def required(self) -> bool:
        return bool(self.flags & 1)

    @property
    def name(self) -> str:
        return REGION_NAMES.get(self.guid, f"region {self.guid}")


@dataclass(frozen=True)
class RegionTable:
    """count: as the table says; the regions are at most the first MAX_ENTRIES."""

    count: int
    regions: tuple[Region, ...]


def parse_region_table(raw: bytes) -> RegionTable | None:
    if len(raw) != REGION_TABLE_BYTES or not sound(raw, b"regi"):
        return None
    (count,) = struct.unpack_from("<I", raw, 8)
    entries = REGION_LAYOUT.iter_unpack(raw[16 : 16 + 32 * min(count, MAX_ENTRIES)])
    return RegionTable(count, tuple(Region(UUID(bytes_le=guid), *rest) for guid, *rest in entries))


def build_region_table(regions: Sequence[Region]) -> bytes:
    if len(regions) > MAX_ENTRIES:
        raise ValueError(f"a region table has at most {MAX_ENTRIES} entries, not {len(regions)}")
    body = b"".join(REGION_LAYOUT.pack(each.guid.bytes_le, each.offset, each.length, each.flags) for each in regions)
    head = struct.pack("<4sIII", b"regi", 0, len(regions), 0)
    return sealed((head + body).ljust(REGION_TABLE_BYTES, b"\0"))


def select_region_table(copies: Sequence[bytes]) -> tuple[RegionTable, int, tuple[str, ...]]:
    """The table that counts, which copy it is (0 or 1), and what is to be reported (disk-formats.md 4)."""
    tables = [parse_region_table(raw) for raw in copies]
    for copy, table in enumerate(tables):
        if table is None:
            continue
        notes: tuple[str, ...] = ()
        if tables[1 - copy] is None:
            notes = (f"region table {2 - copy} is damaged",)
        elif copies[0] != copies[1]:
            notes = ("the two region tables differ; the first is used",)
        return table, copy, notes
    raise ImageDamaged("both region tables are damaged", structure="region tables", offset=REGION_TABLES[0])


def judge_region_table(table: RegionTable, copy: int, file_size: int) -> Iterator[ImageError]:
    """The rules for a table by itself; that regions and log are disjoint is judge_disjoint's."""
    at = REGION_TABLES[copy]

    def fault(words: str, entry: int) -> ImageDamaged:
        return ImageDamaged(words, structure=f"region table {copy + 1}", offset=at + 16 + 32 * entry)

    if table.count > MAX_ENTRIES:
        yield fault(f"the region table has {table.count} entries, more than {MAX_ENTRIES}", 0)
    seen = set()
    for entry, region in enumerate(table.regions):
        if region.guid in seen:
            yield fault(f"{region.name} is listed twice", entry)
        seen.add(region.guid)
        if region.flags & ~1:
            yield fault(f"{region.name} has reserved bits set", entry)
        if region.required and region.guid not in REGION_NAMES:
            yield ImageError(f"{region.name} is required but unknown")
        if region.offset % MIB or region.offset < MIB or region.length % MIB or not region.length:
            yield fault(f"{region.name} is not placed in whole MiB ({region.length} bytes at {region.offset})", entry)
        else:
            yield from judge_place(region.name, region.offset, region.length, file_size)
    for guid, name in ((BAT_REGION, "BAT"), (METADATA_REGION, "metadata")):
        if guid not in seen:
            yield fault(f"the region table has no {name} region", len(table.regions))
        elif guid == METADATA_REGION:
            length = next(region.length for region in table.regions if region.guid == guid)
            if length > MAX_METADATA:
                yield fault(f"the metadata region has {length} bytes, more than {MAX_METADATA}", 0)


# Metadata


@dataclass(frozen=True)
class MetadataItem:
    """An entry of the metadata table; offset: from the beginning of the region, 0 for an item of no bytes.

    content: its bytes; None where they were not read.
    """

    guid: UUID
    flags: int
    offset: int
    length: int
    content: bytes | None = None
    reserved: int = 0

    @property
    def user(self) -> bool:
        return bool(self.flags & USER)

    @property
    def virtual_disk(self) -> bool:
        return bool(self.flags & VIRTUAL_DISK)

    @property
    def required(self) -> bool:
        return bool(self.flags & REQUIRED)

    @property
    def known(self) -> bool:
        """A user's item means what the user wants, whatever its GUID."""
        return self.guid in KNOWN and not self.user

    @property
    def name(self) -> str:
        return MANDATORY[self.guid][0] if self.known and self.guid in MANDATORY else f"metadata item {self.guid}"


@dataclass(frozen=True)
class MetadataTable:
    """count: as the table says; the items are at most the first MAX_ENTRIES."""

    count: int
    items: tuple[MetadataItem, ...]


def parse_metadata(raw: bytes) -> MetadataTable | None:
    """The table, the first 64 KiB of the region; the items' contents are not looked at."""
    if len(raw) < METADATA_TABLE_BYTES or raw[:8] != b"metadata":
        return None
    (count,) = struct.unpack_from("<H", raw, 10)
    entries = ITEM_LAYOUT.iter_unpack(raw[32 : 32 + 32 * min(count, MAX_ENTRIES)])
    items = (
        MetadataItem(UUID(bytes_le=guid), flags, offset, length, None, reserved)
        for guid, offset, length, flags, reserved in entries
    )
    return MetadataTable(count, tuple(items))


def build_metadata(items: Sequence[MetadataItem]) -> bytes:
    """Table and contents, each where its item says (see pack_items)."""
    if len(items) > MAX_ENTRIES:
        raise ValueError(f"a metadata table has at most {MAX_ENTRIES} entries, not {len(items)}")
    raw = bytearray(max([METADATA_TABLE_BYTES, *(item.offset + item.length for item in items)]))
    struct.pack_into("<8sHH", raw, 0, b"metadata", 0, len(items))
    for index, item in enumerate(items):
        content = item.content if item.content is not None else b""
        if len(content) != item.length:
            raise ValueError(f"{item.name} has {item.length} bytes, its content {len(content)}")
        fields = (item.guid.bytes_le, item.offset, item.length, item.flags, item.reserved)
        ITEM_LAYOUT.pack_into(raw, 32 + 32 * index, *fields)
        raw[item.offset : item.offset + item.length] = content
    return bytes(raw)


def pack_items(items: Iterable[MetadataItem]) -> list[MetadataItem]:
    """The items one behind the other, in this order. Each must have its content."""
    packed = []
    at = METADATA_TABLE_BYTES
    for item in items:
        if item.content is None:
            raise ValueError(f"{item.name} comes without its content")
        length = len(item.content)
        packed.append(replace(item, offset=at if length else 0, length=length))
        at += length
    return packed


def judge_metadata(table: MetadataTable, region: int, region_length: int) -> Iterator[ImageError]:
    """The rules for the table and its entries; region: where it begins in the file."""

    def fault(words: str, entry: int) -> ImageDamaged:
        return ImageDamaged(words, structure="metadata table", offset=region + 32 + 32 * entry)

    if table.count > MAX_ENTRIES:
        yield fault(f"the metadata table has {table.count} entries, more than {MAX_ENTRIES}", 0)
    ranges = []
    seen = set()
    for entry, item in enumerate(table.items):
        name = f"metadata item {item.guid}"
        if item.flags & ~7 or item.reserved:
            yield fault(f"{name} has reserved bits set", entry)
        if (item.guid, item.user) in seen:
            yield fault(f"{name} is listed twice", entry)
        seen.add((item.guid, item.user))
        if item.user and item.required:
            yield fault(f"{name} is a user's and required at once", entry)
        if item.required and item.guid not in KNOWN:
            yield ImageError(f"{name} is required but unknown")
        if item.length > MAX_ITEM or (item.length == 0) != (item.offset == 0):
            yield fault(f"{name} has {item.length} bytes at {item.offset}", entry)
        elif item.length:
            if item.offset < METADATA_TABLE_BYTES or item.offset + item.length > region_length:
                yield fault(f"{name} lies outside the metadata region", entry)
            ranges.append((name, item.offset, item.length))
        if item.known and item.guid in MANDATORY and item.length != MANDATORY[item.guid][1]:
            words = f"the {item.name} has {item.length} bytes, not {MANDATORY[item.guid][1]}"
            yield fault(words, entry)
    users = sum(item.user for item in table.items)
    if users > MAX_USER_ITEMS:
        yield fault(f"the metadata table has {users} items of users, more than {MAX_USER_ITEMS}", 0)
    yield from judge_disjoint(ranges, region)
    if (INCOMPLETE_FILE, False) in seen:
        yield ImageDamaged(
            "the file is marked incomplete: its creation or merge did not finish", structure="metadata table"
        )
    for guid, (name, _, _) in MANDATORY.items():
        if (guid, False) not in seen:
            yield fault(f"the metadata has no {name}", len(table.items))
