"""The structures at the head of a VHDX file, read and judged (disk-formats.md 2 to 6).

Everything here may be written by an enemy: each structure is read once, checked, and only then used. A fault is an
ImageError that says which field is wrong; the caller adds the file's name.
"""

import struct
from dataclasses import dataclass
from itertools import pairwise
from uuid import UUID

from hvcore.disk.crc import crc32c
from hvcore.disk.medium import ImageFile
from hvcore.errors import ImageError

MIB = 1 << 20
SIGNATURE = b"vhdxfile"

BAT_REGION = UUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
METADATA_REGION = UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")

FILE_PARAMETERS = UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
DISK_SIZE = UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
DISK_ID = UUID("BECA12AB-B2E6-4523-93EF-C309E000C746")
LOGICAL_SECTOR = UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
PHYSICAL_SECTOR = UUID("CDA348C7-445D-4471-9CC9-E9885251C556")
PARENT_LOCATOR = UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
INCOMPLETE_FILE = UUID("71CC85F0-1B69-4E28-9558-C3BF83AE75D3")
CHS_PARAMETERS = UUID("DA02D7BC-3D3A-423C-AC88-2A36AB21479B")
PMEM_LABEL = UUID("10E1AE8A-4B7E-4169-A40F-CD70DE928393")

MANDATORY = {
    FILE_PARAMETERS: ("file parameters", 8),
    DISK_SIZE: ("virtual disk size", 8),
    DISK_ID: ("virtual disk id", 16),
    LOGICAL_SECTOR: ("logical sector size", 4),
    PHYSICAL_SECTOR: ("physical sector size", 4),
}
KNOWN = {*MANDATORY, PARENT_LOCATOR, INCOMPLETE_FILE, CHS_PARAMETERS, PMEM_LABEL}

MAX_DISK = 64 << 40
MAX_LOG = 1 << 30
MAX_METADATA = 128 * MIB
MAX_ENTRIES = 2047
MAX_USER_ITEMS = 1024
# The table is held in memory: enough for 16 TiB in blocks of 1 MiB, or 64 TiB in blocks of 4 MiB.
MAX_BAT = 129 * MIB


@dataclass(frozen=True)
class VhdxLayout:
    """What a sound VHDX file says of itself. Offsets, lengths and sizes are bytes."""

    size: int
    sector_size: int
    physical_sector_size: int
    block_size: int
    fixed: bool
    disk_id: UUID
    file_size: int
    bat_offset: int
    bat_entries: int
    blocks: int
    chunk_ratio: int
    used: list[tuple[int, int]]  # (offset, length) of the log and all regions
    notes: tuple[str, ...]  # what was found wrong but could be worked around


def read_layout(file: ImageFile, file_size: int) -> VhdxLayout:
    """Reads and judges all structures but the BAT's entries. ImageError: the fault."""
    if file_size < MIB:
        raise ImageError(f"truncated: a VHDX has at least {MIB} bytes, this file {file_size}")
    if read(file, 0, 8, "file identifier") != SIGNATURE:
        raise ImageError("not a VHDX: the file identifier is missing")
    log = read_log(file, file_size)
    regions, notes = read_regions(file, file_size)
    disjoint([("the log", *log)] + [(name, offset, length) for _, name, offset, length in regions])
    places = {guid: (offset, length) for guid, _, offset, length in regions}
    for guid, name in ((BAT_REGION, "BAT"), (METADATA_REGION, "metadata")):
        if guid not in places:
            raise ImageError(f"the region table has no {name} region")
    items = read_metadata(file, *places[METADATA_REGION])

    block_size, flags = struct.unpack("<II", items[FILE_PARAMETERS])
    if not MIB <= block_size <= 256 * MIB or block_size & (block_size - 1):
        raise ImageError(f"the block size {block_size} is not a power of two from 1 to 256 MiB")
    if flags & ~3:
        raise ImageError("the file parameters have reserved bits set")
    if flags & 2:
        raise ImageError("a differencing disk: not supported yet, open a merged copy")
    if PARENT_LOCATOR in items:
        raise ImageError("a parent locator in a disk that says it has no parent")
    (sector_size,) = struct.unpack("<I", items[LOGICAL_SECTOR])
    (physical_sector_size,) = struct.unpack("<I", items[PHYSICAL_SECTOR])
    for name, value in (("logical", sector_size), ("physical", physical_sector_size)):
        if value not in (512, 4096):
            raise ImageError(f"the {name} sector size is {value}, not 512 or 4096")
    (size,) = struct.unpack("<Q", items[DISK_SIZE])
    if not 0 < size <= MAX_DISK or size % sector_size:
        raise ImageError(f"the disk size {size} is not a multiple of {sector_size} from {sector_size} to 64 TiB")

    # Every chunk_ratio payload entries are followed by one for a sector bitmap, in all types of disk.
    ratio = (1 << 23) * sector_size // block_size
    blocks = -(-size // block_size)
    entries = blocks + (blocks - 1) // ratio
    offset, length = places[BAT_REGION]
    if 8 * entries > length:
        raise ImageError(f"the BAT region of {length} bytes is too small for {entries} entries")
    if 8 * entries > MAX_BAT:
        raise ImageError(
            f"the block allocation table has {entries} entries; more than {MAX_BAT // 8} are not supported"
            " (a larger block size needs fewer)"
        )
    return VhdxLayout(
        size=size,
        sector_size=sector_size,
        physical_sector_size=physical_sector_size,
        block_size=block_size,
        fixed=bool(flags & 1),
        disk_id=UUID(bytes_le=items[DISK_ID]),
        file_size=file_size,
        bat_offset=offset,
        bat_entries=entries,
        blocks=blocks,
        chunk_ratio=ratio,
        used=[log, *places.values()],
        notes=notes,
    )


def read(file: ImageFile, offset: int, length: int, what: str) -> bytes:
    if offset + length > file.size():
        raise ImageError(f"truncated: the file ends inside the {what}")
    return file.read(offset, length)


def sound(block: bytes, signature: bytes) -> bool:
    """Signature and checksum, the checksum's own field taken as zero (disk-formats.md 1)."""
    stored = int.from_bytes(block[4:8], "little")
    return block[:4] == signature and stored == crc32c(block[8:], crc32c(block[:4] + bytes(4)))


def read_log(file: ImageFile, file_size: int) -> tuple[int, int]:
    """Chooses the current header (disk-formats.md 3) and returns the log's place."""
    copies = [read(file, offset, 4096, "headers") for offset in (64 << 10, 128 << 10)]
    valid = [copy for copy in copies if sound(copy, b"head")]
    if not valid:
        raise ImageError("both headers are damaged")
    numbers = [int.from_bytes(copy[8:16], "little") for copy in valid]
    if len(valid) == 2 and numbers[0] == numbers[1] and valid[0] != valid[1]:
        raise ImageError("both headers have the same sequence number but differ")
    header = valid[numbers.index(max(numbers))]
    log_guid = header[48:64]
    version, log_length, log_offset = struct.unpack_from("<HIQ", header, 66)
    if version != 1:
        raise ImageError(f"header version {version} is not supported")
    if log_guid != bytes(16):
        raise ImageError("the disk was not closed cleanly: it has a log to replay and needs repair")
    if log_length % MIB or not MIB <= log_length <= MAX_LOG:
        raise ImageError(f"the log length {log_length} is not a multiple of 1 MiB up to 1 GiB")
    if log_offset % MIB or log_offset < MIB:
        raise ImageError(f"the log offset {log_offset} is not a multiple of 1 MiB")
    within("the log", log_offset, log_length, file_size)
    return log_offset, log_length


def within(name: str, offset: int, length: int, file_size: int) -> None:
    if offset + length > file_size:
        raise ImageError(f"truncated: {name} ends at {offset + length}, the file at {file_size}")


def disjoint(ranges: list[tuple[str, int, int]]) -> None:
    ordered = sorted(ranges, key=lambda item: item[1])
    for (left, start, length), (right, following, _) in pairwise(ordered):
        if start + length > following:
            raise ImageError(f"{left} and {right} overlap")


def read_regions(file: ImageFile, file_size: int) -> tuple[list[tuple[UUID, str, int, int]], tuple[str, ...]]:
    """[(guid, name, offset, length)] of the region table, and what is to be reported (disk-formats.md 4)."""
    first, second = (read(file, offset, 64 << 10, "region tables") for offset in (192 << 10, 256 << 10))
    tables = [table for table in (first, second) if sound(table, b"regi")]
    if not tables:
        raise ImageError("both region tables are damaged")
    table = tables[0]
    notes: tuple[str, ...] = ()
    if len(tables) == 1:
        notes = (f"region table {1 if table is second else 2} is damaged",)
    elif first != second:
        notes = ("the two region tables differ; the first is used",)
    (count,) = struct.unpack_from("<I", table, 8)
    if count > MAX_ENTRIES:
        raise ImageError(f"the region table has {count} entries, more than {MAX_ENTRIES}")
    regions = []
    names = {BAT_REGION: "the BAT region", METADATA_REGION: "the metadata region"}
    seen = set()
    for raw, offset, length, flags in struct.iter_unpack("<16sQII", table[16 : 16 + 32 * count]):
        guid = UUID(bytes_le=raw)
        name = names.get(guid, f"region {guid}")
        if guid in seen:
            raise ImageError(f"{name} is listed twice")
        seen.add(guid)
        if flags & ~1:
            raise ImageError(f"{name} has reserved bits set")
        if flags and guid not in names:
            raise ImageError(f"{name} is required but unknown")
        if offset % MIB or offset < MIB or length % MIB or not length:
            raise ImageError(f"{name} is not placed in whole MiB ({length} bytes at {offset})")
        within(name, offset, length, file_size)
        regions.append((guid, name, offset, length))
    return regions, notes


def read_metadata(file: ImageFile, region: int, region_length: int) -> dict[UUID, bytes]:
    """The contents of the known items (disk-formats.md 5)."""
    if region_length > MAX_METADATA:
        raise ImageError(f"the metadata region has {region_length} bytes, more than {MAX_METADATA}")
    table = read(file, region, 64 << 10, "metadata table")
    if table[:8] != b"metadata":
        raise ImageError("the metadata table's signature is missing")
    (count,) = struct.unpack_from("<H", table, 10)
    if count > MAX_ENTRIES:
        raise ImageError(f"the metadata table has {count} entries, more than {MAX_ENTRIES}")
    places: dict[UUID, tuple[int, int]] = {}
    ranges = []
    seen = set()
    users = 0
    for raw, offset, length, flags, reserved in struct.iter_unpack("<16sIIII", table[32 : 32 + 32 * count]):
        guid = UUID(bytes_le=raw)
        name = f"metadata item {guid}"
        user, required = bool(flags & 1), bool(flags & 4)
        if flags & ~7 or reserved:
            raise ImageError(f"{name} has reserved bits set")
        if (guid, user) in seen:
            raise ImageError(f"{name} is listed twice")
        seen.add((guid, user))
        users += user
        if user and required:
            raise ImageError(f"{name} is a user's and required at once")
        if required and guid not in KNOWN:
            raise ImageError(f"{name} is required but unknown")
        if length > MIB or (length == 0) != (offset == 0):
            raise ImageError(f"{name} has {length} bytes at {offset}")
        if length:
            if offset < 64 << 10 or offset + length > region_length:
                raise ImageError(f"{name} lies outside the metadata region")
            ranges.append((name, offset, length))
        if not user:
            places[guid] = (offset, length)
    if users > MAX_USER_ITEMS:
        raise ImageError(f"the metadata table has {users} items of users, more than {MAX_USER_ITEMS}")
    disjoint(ranges)
    if INCOMPLETE_FILE in places:
        raise ImageError("the file is marked incomplete: its creation or merge did not finish")
    items = {}
    for guid, (name, expected) in MANDATORY.items():
        if guid not in places:
            raise ImageError(f"the metadata has no {name}")
        offset, length = places[guid]
        if length != expected:
            raise ImageError(f"the {name} has {length} bytes, not {expected}")
        items[guid] = read(file, region + offset, length, name)
    if PARENT_LOCATOR in places:
        items[PARENT_LOCATOR] = b""
    return items
