"""Making a new VHDX in an empty file (disk-formats.md 12)."""

import os
import struct
import uuid
from collections.abc import Iterator, Sequence
from uuid import UUID

from hvcore.disk.medium import ImageFile
from hvcore.disk.vhdx.layout import (
    HAS_PARENT,
    LEAVE_ALLOCATED,
    MAX_BLOCK,
    MAX_DISK,
    MIN_BLOCK,
    SECTOR_SIZES,
    bat_entries,
    chunk_ratio,
    region_bytes,
)
from hvcore.disk.vhdx.locator import ParentLocator
from hvcore.disk.vhdx.structures import (
    BAT_REGION,
    DISK_ID,
    DISK_SIZE,
    FILE_PARAMETERS,
    HEADERS,
    INCOMPLETE_FILE,
    LOGICAL_SECTOR,
    MANDATORY,
    MAX_ENTRIES,
    MAX_ITEM,
    MAX_LOG,
    MAX_METADATA,
    METADATA_REGION,
    MIB,
    NO_GUID,
    PARENT_LOCATOR,
    PHYSICAL_SECTOR,
    REGION_TABLES,
    REQUIRED,
    Header,
    MetadataItem,
    Region,
    build_header,
    build_identifier,
    build_metadata,
    build_region_table,
    pack_items,
)

CREATOR = "hvcore"
LOG_OFFSET = MIB
FULLY_PRESENT = 6
BAT_AT_ONCE = 1 << 17  # entries, 1 MiB

TYPES = ("fixed", "dynamic", "differencing")


def default_block_size(size: int) -> int:
    """Small blocks waste less space, large ones keep the table of a large disk small."""
    return 2 * MIB if size <= 1 << 40 else 8 * MIB if size <= 16 << 40 else 32 * MIB


def build_vhdx(
    file: ImageFile,
    *,
    size: int,
    type: str,
    block_size: int | None = None,
    sector_size: int = 512,
    physical_sector_size: int = 4096,
    disk_id: UUID | None = None,
    locator: ParentLocator | None = None,
    parent_items: Sequence[MetadataItem] = (),
    log_length: int = MIB,
    preallocate: bool = True,
) -> None:
    """Fills an empty file with a VHDX of zeros, or of its parent's content; durably, but for the file's name.

    size: bytes, a multiple of sector_size up to 64 TiB. block_size: a power of two from 1 to 256 MiB, None: by size.
    disk_id: None for a new one; a differencing disk has its parent's. locator: of a differencing disk, and only of
    one. parent_items: the parent's metadata with their contents (hvcore.disk.vhdx.layout.read_content); those of the
    virtual disk are copied. preallocate: reserve the space of all structures, and of a fixed disk's blocks.

    ValueError: the arguments break a rule. OSError: no space, or the file failed; it has no valid header then.
    """
    if block_size is None:
        block_size = default_block_size(size)
    judge_arguments(size, type, block_size, sector_size, physical_sector_size, locator, log_length)
    differencing = type == "differencing"
    blocks = -(-size // block_size)
    ratio = chunk_ratio(block_size, sector_size)
    flags = {"fixed": LEAVE_ALLOCATED, "dynamic": 0, "differencing": HAS_PARENT}[type]
    contents = {
        FILE_PARAMETERS: struct.pack("<II", block_size, flags),
        DISK_SIZE: struct.pack("<Q", size),
        DISK_ID: (disk_id or uuid.uuid4()).bytes_le,
        LOGICAL_SECTOR: struct.pack("<I", sector_size),
        PHYSICAL_SECTOR: struct.pack("<I", physical_sector_size),
    }
    items = [MetadataItem(guid, MANDATORY[guid][2], 0, 0, content) for guid, content in contents.items()]
    if locator is not None:
        items.append(MetadataItem(PARENT_LOCATOR, REQUIRED, 0, 0, locator.build()))
    items += [item for item in parent_items if inherited(item)]
    metadata = metadata_region(items)

    bat_length = region_bytes(8 * bat_entries(blocks, ratio, differencing))
    bat_offset = LOG_OFFSET + log_length
    metadata_offset = bat_offset + bat_length
    metadata_length = region_bytes(len(metadata))
    payload = metadata_offset + metadata_length  # a multiple of 1 MiB, as every block's place must be
    end = payload + blocks * block_size if type == "fixed" else payload
    file.resize(end)
    if preallocate:
        # First of all: a full file system is noticed before anything is written.
        os.posix_fallocate(file.fileno(), 0, end)

    # Anything may be written in any order before there is a valid header (disk-formats.md 9.5).
    table = build_region_table(
        [Region(BAT_REGION, bat_offset, bat_length), Region(METADATA_REGION, metadata_offset, metadata_length)]
    )
    for offset in REGION_TABLES:
        file.write(offset, table)
    file.write(metadata_offset, metadata)
    if type == "fixed":
        at = bat_offset
        for piece in fixed_bat(payload, blocks, block_size, ratio):
            file.write(at, piece)
            at += len(piece)
    file.write(0, build_identifier(CREATOR))
    file.flush()
    # The headers last: a file that has one is complete. One at a time, so that never both are half written.
    file_write_guid, data_write_guid = uuid.uuid4(), uuid.uuid4()
    for copy, offset in enumerate(HEADERS):
        header = Header(copy + 1, file_write_guid, data_write_guid, NO_GUID, 0, 1, LOG_OFFSET, log_length, copy)
        file.write(offset, build_header(header))
        file.flush()


def judge_arguments(
    size: int,
    type: str,
    block_size: int,
    sector_size: int,
    physical_sector_size: int,
    locator: ParentLocator | None,
    log_length: int,
) -> None:
    if type not in TYPES:
        raise ValueError(f'the type of a VHDX is "fixed", "dynamic" or "differencing", not {type!r}')
    for name, value in (("sector", sector_size), ("physical sector", physical_sector_size)):
        if value not in SECTOR_SIZES:
            raise ValueError(f"the {name} size is 512 or 4096, not {value}")
    if size <= 0 or size % sector_size:
        raise ValueError(f"the size is a positive multiple of {sector_size}, not {size}")
    if size > MAX_DISK:
        raise ValueError(f"a VHDX has at most {MAX_DISK} bytes (64 TiB), not {size}")
    if not MIN_BLOCK <= block_size <= MAX_BLOCK or block_size & (block_size - 1):
        raise ValueError(f"the block size is a power of two from 1 to 256 MiB, not {block_size}")
    if not MIB <= log_length <= MAX_LOG or log_length % MIB:
        raise ValueError(f"the log length is a multiple of 1 MiB up to 1 GiB, not {log_length}")
    if (type == "differencing") != (locator is not None):
        raise ValueError("a differencing VHDX, and no other, has a parent locator")


def inherited(item: MetadataItem) -> bool:
    """Whether a child takes the item from its parent (disk-formats.md 5); those that it has of its own it does not."""
    own = item.known and (item.guid in MANDATORY or item.guid in (PARENT_LOCATOR, INCOMPLETE_FILE))
    return item.virtual_disk and not own


def metadata_region(items: Sequence[MetadataItem]) -> bytes:
    packed = pack_items(items)
    if len(packed) > MAX_ENTRIES or any(item.length > MAX_ITEM for item in packed):
        raise ValueError(f"a VHDX has at most {MAX_ENTRIES} metadata items of up to {MAX_ITEM} bytes")
    raw = build_metadata(packed)
    if len(raw) > MAX_METADATA:
        raise ValueError(f"the metadata have {len(raw)} bytes, more than {MAX_METADATA}")
    return raw


def fixed_bat(payload: int, blocks: int, block_size: int, ratio: int) -> Iterator[bytes]:
    """The table of a disk whose blocks lie one behind the other from `payload` on, in pieces of about 1 MiB."""
    at_once = max(ratio, BAT_AT_ONCE // ratio * ratio)  # whole chunks
    for first in range(0, blocks, at_once):
        piece = bytearray()
        for block in range(first, min(first + at_once, blocks), ratio):
            count = min(ratio, blocks - block)
            start = (payload + block * block_size) | FULLY_PRESENT
            piece += struct.pack(f"<{count}Q", *range(start, start + count * block_size, block_size))
            if block + count < blocks:
                piece += bytes(8)  # the sector bitmap that a fixed disk never has
        yield bytes(piece)
