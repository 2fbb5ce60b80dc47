"""A VHDX file's structures, read and judged as a whole, and the sizes that follow from them (disk-formats.md 2 to 8).

Everything here may be written by an enemy: each structure is read once, checked, and only then used. A fault is an
ImageError that says which field is wrong; the caller adds the file's name.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from hvcore.disk.medium import ImageFile
from hvcore.disk.vhdx.locator import ParentLocator, parse_locator
from hvcore.disk.vhdx.structures import (
    BAT_REGION,
    DISK_ID,
    DISK_SIZE,
    FILE_PARAMETERS,
    HEADER_BYTES,
    HEADERS,
    LOGICAL_SECTOR,
    METADATA_REGION,
    METADATA_TABLE_BYTES,
    MIB,
    NO_GUID,
    PARENT_LOCATOR,
    PHYSICAL_SECTOR,
    REGION_TABLE_BYTES,
    REGION_TABLES,
    MetadataItem,
    Region,
    judge_disjoint,
    judge_header,
    judge_metadata,
    judge_region_table,
    parse_identifier,
    parse_metadata,
    refuse,
    select_header,
    select_region_table,
)
from hvcore.disk.vhdx.structures import Header as Header
from hvcore.errors import ImageDamaged, ImageDirty, ImageError

MAX_DISK = 64 << 40
MIN_BLOCK, MAX_BLOCK = MIB, 256 * MIB
MAX_BAT = 513 * MIB  # of 64 TiB in blocks of 1 MiB
LEAVE_ALLOCATED, HAS_PARENT = 1, 2  # flags of the file parameters
SECTOR_SIZES = (512, 4096)


@dataclass(frozen=True)
class VhdxLayout:
    """What a sound VHDX file says of itself. Offsets, lengths and sizes are bytes."""

    size: int
    sector_size: int
    physical_sector_size: int
    block_size: int
    fixed: bool
    has_parent: bool
    disk_id: UUID
    file_size: int
    header: Header  # the current one; its log is empty
    bat_offset: int
    bat_length: int
    bat_entries: int
    blocks: int
    chunk_ratio: int
    metadata_offset: int
    metadata_length: int
    used: list[tuple[int, int]]  # (offset, length) of the log and all regions, known or not
    regions: list[tuple[UUID, int, int, bool]]  # (guid, offset, length, required) of all regions
    items: list[MetadataItem]  # of the metadata, known or not; the known ones with their contents
    locator: ParentLocator | None  # of a differencing disk
    notes: tuple[str, ...]  # what was found wrong but could be worked around


# Sizes and places in the block allocation table (disk-formats.md 6, 7)


def chunk_ratio(block_size: int, sector_size: int) -> int:
    """Payload blocks that share a sector bitmap block, and so payload entries before each bitmap entry."""
    return (1 << 23) * sector_size // block_size


def bat_entries(blocks: int, ratio: int, has_parent: bool) -> int:
    """Every `ratio` payload entries are followed by one for a sector bitmap, in all types of disk; only a differencing
    disk fills up its last chunk."""
    return -(-blocks // ratio) * (ratio + 1) if has_parent else blocks + (blocks - 1) // ratio


def payload_index(block: int, ratio: int) -> int:
    return block + block // ratio


def bitmap_index(chunk: int, ratio: int) -> int:
    return (chunk + 1) * ratio + chunk


def bitmap_position(sector: int) -> tuple[int, int, int]:
    """(chunk, byte, bit) of a logical sector."""
    bit = sector & 0x7FFFFF
    return sector >> 23, bit >> 3, bit & 7


def bat_entry(state: int, offset: int) -> bytes:
    """offset: in the file, a multiple of 1 MiB."""
    return (offset | state).to_bytes(8, "little")


def region_bytes(length: int) -> int:
    """The region that holds `length` bytes: whole MiB."""
    return -(-length // MIB) * MIB


# What the metadata items say of the disk


@dataclass(frozen=True)
class Parameters:
    block_size: int
    flags: int
    size: int
    disk_id: UUID
    sector_size: int
    physical_sector_size: int
    locator: bytes | None
    locator_at: int | None  # in the metadata region

    @property
    def has_parent(self) -> bool:
        return bool(self.flags & HAS_PARENT)

    @property
    def fixed(self) -> bool:
        return bool(self.flags & LEAVE_ALLOCATED) and not self.has_parent


def parse_parameters(items: Sequence[MetadataItem]) -> Parameters:
    """items: as judge_metadata wants them, the known ones with their contents."""
    known = {item.guid: item for item in items if item.known}

    def number(guid: UUID) -> int:
        return int.from_bytes(known[guid].content or b"", "little")

    block_size_and_flags = number(FILE_PARAMETERS)
    locator = known.get(PARENT_LOCATOR)
    return Parameters(
        block_size=block_size_and_flags & 0xFFFFFFFF,
        flags=block_size_and_flags >> 32,
        size=number(DISK_SIZE),
        disk_id=UUID(bytes_le=known[DISK_ID].content),
        sector_size=number(LOGICAL_SECTOR),
        physical_sector_size=number(PHYSICAL_SECTOR),
        locator=(locator.content or b"") if locator is not None else None,
        locator_at=locator.offset if locator is not None else None,
    )


def judge_parameters(found: Parameters, bat_length: int, region: int) -> Iterator[ImageError]:
    """bat_length: of the BAT region; region: where the metadata region begins."""

    def fault(words: str) -> ImageDamaged:
        return ImageDamaged(words, structure="metadata items", offset=region)

    sound = True
    if not MIN_BLOCK <= found.block_size <= MAX_BLOCK or found.block_size & (found.block_size - 1):
        yield fault(f"the block size {found.block_size} is not a power of two from 1 to 256 MiB")
        sound = False
    if found.flags & ~(LEAVE_ALLOCATED | HAS_PARENT):
        yield fault("the file parameters have reserved bits set")
    if found.has_parent and found.locator is None:
        yield fault("a differencing disk without a parent locator")
    if not found.has_parent and found.locator is not None:
        yield fault("a parent locator in a disk that says it has no parent")
    for name, value in (("logical", found.sector_size), ("physical", found.physical_sector_size)):
        if value not in SECTOR_SIZES:
            yield fault(f"the {name} sector size is {value}, not 512 or 4096")
            sound = False
    if sound and (not 0 < found.size <= MAX_DISK or found.size % found.sector_size):
        yield fault(
            f"the disk size {found.size} is not a multiple of {found.sector_size} from {found.sector_size} to 64 TiB"
        )
        sound = False
    if bat_length > MAX_BAT:
        yield fault(f"the BAT region has {bat_length} bytes, more than {MAX_BAT}")
    if sound:
        ratio = chunk_ratio(found.block_size, found.sector_size)
        entries = bat_entries(-(-found.size // found.block_size), ratio, found.has_parent)
        if 8 * entries > bat_length:
            yield fault(f"the BAT region of {bat_length} bytes is too small for {entries} entries")


# Reading


def read(file: ImageFile, offset: int, length: int, file_size: int, what: str) -> bytes:
    if offset + length > file_size:
        words = f"truncated: the file ends inside the {what}"
        raise ImageDamaged(words, structure=what, offset=offset)
    return file.read(offset, length)


def read_header(file: ImageFile, file_size: int) -> Header:
    """The current header of what is a VHDX, judged; a log may wait for its replay, and nothing else be valid before."""
    if file_size < MIB:
        raise ImageDamaged(f"truncated: a VHDX has at least {MIB} bytes, this file {file_size}", structure="file")
    if parse_identifier(read(file, 0, 8, file_size, "file identifier")) is None:
        raise ImageDamaged("not a VHDX: the file identifier is missing", structure="file identifier", offset=0)
    header = select_header([read(file, offset, HEADER_BYTES, file_size, "headers") for offset in HEADERS])
    refuse(judge_header(header, file_size))
    return header


def read_content(file: ImageFile, region: int, item: MetadataItem) -> MetadataItem:
    """The item with its bytes; region: where the metadata region begins. The item's place must have been judged."""
    return replace(item, content=file.read(region + item.offset, item.length) if item.length else b"")


def read_items(file: ImageFile, region: Region, file_size: int) -> list[MetadataItem]:
    """All metadata items, judged, the known ones with their contents (disk-formats.md 5)."""
    raw = read(file, region.offset, METADATA_TABLE_BYTES, file_size, "metadata table")
    table = parse_metadata(raw)
    if table is None:
        words = "the metadata table's signature is missing"
        raise ImageDamaged(words, structure="metadata table", offset=region.offset)
    refuse(judge_metadata(table, region.offset, region.length))
    return [read_content(file, region.offset, item) if item.known else item for item in table.items]


def read_layout(
    file: ImageFile, file_size: int, header: Header | None = None, notes: tuple[str, ...] = ()
) -> VhdxLayout:
    """Reads and judges all structures but the BAT's entries. ImageError: the fault.

    header: the current one, whose log was replayed into the file or over it (hvcore.disk.vhdx.log.settle_log), and
    notes of that; None: it is read here, and a log that waits for its replay is refused.
    """
    if header is None:
        header = read_header(file, file_size)
        if header.log_guid != NO_GUID:
            raise ImageDirty("the disk was not closed cleanly: it has a log to replay and needs repair")
    copies = [read(file, offset, REGION_TABLE_BYTES, file_size, "region tables") for offset in REGION_TABLES]
    table, copy, damage = select_region_table(copies)
    refuse(judge_region_table(table, copy, file_size))
    log = ("the log", header.log_offset, header.log_length)
    refuse(judge_disjoint([log, *((region.name, region.offset, region.length) for region in table.regions)]))
    places = {region.guid: region for region in table.regions}
    bat, metadata = places[BAT_REGION], places[METADATA_REGION]
    items = read_items(file, metadata, file_size)
    found = parse_parameters(items)
    refuse(judge_parameters(found, bat.length, metadata.offset))
    locator = None
    if found.locator is not None:
        locator = parse_locator(found.locator, metadata.offset + (found.locator_at or 0))
    blocks = -(-found.size // found.block_size)
    ratio = chunk_ratio(found.block_size, found.sector_size)
    return VhdxLayout(
        size=found.size,
        sector_size=found.sector_size,
        physical_sector_size=found.physical_sector_size,
        block_size=found.block_size,
        fixed=found.fixed,
        has_parent=found.has_parent,
        disk_id=found.disk_id,
        file_size=file_size,
        header=replace(header, log_guid=NO_GUID),
        bat_offset=bat.offset,
        bat_length=bat.length,
        bat_entries=bat_entries(blocks, ratio, found.has_parent),
        blocks=blocks,
        chunk_ratio=ratio,
        metadata_offset=metadata.offset,
        metadata_length=metadata.length,
        used=[log[1:], *((region.offset, region.length) for region in table.regions)],
        regions=[(region.guid, region.offset, region.length, region.required) for region in table.regions],
        items=items,
        locator=locator,
        notes=(*notes, *damage),
    )
