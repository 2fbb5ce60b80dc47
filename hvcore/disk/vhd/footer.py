"""The footer of a VHD: read, judged, made (disk-formats.md 15.1, 15.4)."""

import struct
from dataclasses import dataclass, replace
from uuid import UUID

from hvcore.errors import ImageDamaged, ImageError

COOKIE = b"conectix"
FOOTER_BYTES = 512
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
TYPES = {DYNAMIC: "dynamic", DIFFERENCING: "differencing"}
VERSION = 0x00010000
MAX_SIZE = 2040 << 30
EPOCH = 946_684_800  # 2000-01-01 00:00 UTC, in Unix time
NO_OFFSET = (1 << 64) - 1

# cookie, features, version, data offset, timestamp, creator, creator version, creator OS, original size, current size,
# cylinders, heads, sectors, type, checksum, id, saved state
LAYOUT = struct.Struct(">8sIIQI4sI4sQQHBBII16sB")


@dataclass(frozen=True)
class Footer:
    """A footer whose cookie, checksum and version are right.

    size: bytes of the disk (CurrentSize), original_size: when it was made (-1: as size). data_offset: where the
    dynamic header lies, NO_OFFSET for a fixed disk. timestamp: seconds since 2000. reserved: the bytes behind the
    fields.
    """

    size: int
    disk_type: int
    geometry: tuple[int, int, int]
    disk_id: UUID
    creator: bytes
    timestamp: int
    data_offset: int = NO_OFFSET
    features: int = 2
    creator_version: int = 0x000A0000
    creator_os: bytes = b"Wi2k"
    original_size: int = -1
    saved_state: int = 0
    reserved: bytes = bytes(FOOTER_BYTES - LAYOUT.size)

    def __post_init__(self) -> None:
        if self.original_size < 0:
            object.__setattr__(self, "original_size", self.size)


def byte_sum(block: bytes, field: int) -> int:
    """One's complement of the sum of all bytes, the four of the checksum's own `field` taken as zero."""
    return ~(sum(block) - sum(block[field : field + 4])) & 0xFFFFFFFF


def checksum(footer: bytes) -> int:
    return byte_sum(footer, 64)


def parse(footer: bytes, offset: int | None = None) -> Footer | None:
    """None when the bytes are no footer at all; ImageError when they are a damaged one, `offset`: where in the file.

    511 bytes are a footer, too: what stands before the last, unused byte (disk-formats.md 15.1).
    """
    if footer[:8] != COOKIE:
        return None
    if len(footer) < FOOTER_BYTES - 1:
        raise ImageDamaged("truncated: the file ends inside the VHD footer", structure="VHD footer", offset=offset)
    footer = footer.ljust(FOOTER_BYTES, b"\0")
    fields = LAYOUT.unpack_from(footer)
    _, features, version, data_offset, timestamp, creator, creator_version, creator_os = fields[:8]
    original_size, size, cylinders, heads, sectors, disk_type, stored, disk_id, saved_state = fields[8:]
    if stored != checksum(footer):
        raise ImageDamaged("the VHD footer is damaged: its checksum is wrong", structure="VHD footer", offset=offset)
    if version != VERSION:
        raise ImageError(f"VHD version {version:#010x} is not supported")
    return Footer(
        size=size,
        disk_type=disk_type,
        geometry=(cylinders, heads, sectors),
        disk_id=UUID(bytes=disk_id),
        creator=creator,
        timestamp=timestamp,
        data_offset=data_offset,
        features=features,
        creator_version=creator_version,
        creator_os=creator_os,
        original_size=original_size,
        saved_state=saved_state,
        reserved=footer[LAYOUT.size :],
    )


def build(footer: Footer) -> bytes:
    """The 512 bytes; those of a parsed footer are the ones that were read."""
    fields = [COOKIE, footer.features, VERSION, footer.data_offset, footer.timestamp, footer.creator]
    fields += [footer.creator_version, footer.creator_os, footer.original_size, footer.size, *footer.geometry]
    fields += [footer.disk_type, 0, footer.disk_id.bytes, footer.saved_state]
    raw = LAYOUT.pack(*fields) + footer.reserved
    return raw[:64] + checksum(raw).to_bytes(4, "big") + raw[68:]


def judge_size(footer: Footer) -> None:
    if not 0 < footer.size <= MAX_SIZE or footer.size % 512:
        raise ImageDamaged(
            f"the VHD size {footer.size} is not a multiple of 512 up to 2040 GiB", structure="VHD footer"
        )


def judge_fixed(footer: Footer, data_bytes: int) -> None:
    """ImageError unless the footer is that of a fixed disk whose data fill `data_bytes`, the file before the footer."""
    if footer.disk_type != FIXED:
        raise ImageError(f"VHD type {footer.disk_type} is not supported")
    if footer.size != data_bytes:
        raise ImageDamaged(
            f"the VHD footer says {footer.size} bytes, the file holds {data_bytes}",
            structure="VHD footer",
            offset=data_bytes,
        )
    judge_size(footer)


def geometry(size: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors per track for a disk of `size` bytes (disk-formats.md 15.4)."""
    total = min(size // 512, 65535 * 16 * 255)
    if total >= 65535 * 16 * 63:
        sectors, heads, tracks = 255, 16, total // 255
    else:
        sectors, tracks = 17, total // 17
        heads = max(4, (tracks + 1023) // 1024)
        if tracks >= heads * 1024 or heads > 16:
            sectors, heads, tracks = 31, 16, total // 31
        if tracks >= heads * 1024:
            sectors, heads, tracks = 63, 16, total // 63
    return tracks // heads, heads, sectors


def new_footer(size: int, disk_type: int, disk_id: UUID, timestamp: int) -> Footer:
    """The footer of a new disk; timestamp: seconds since 2000. Dynamic headers lie right behind the first copy.

    The creator is "win ": readers that trust the geometry rather than the size take the size of this creator
    (disk-formats.md 15.4).
    """
    return Footer(
        size=size,
        disk_type=disk_type,
        geometry=geometry(size),
        disk_id=disk_id,
        creator=b"win ",
        timestamp=timestamp,
        data_offset=NO_OFFSET if disk_type == FIXED else FOOTER_BYTES,
    )


def resized(footer: Footer, size: int) -> Footer:
    """The footer once the disk has another size; what it had at its creation stays."""
    return replace(footer, size=size, geometry=geometry(size))
