"""The footer of a VHD: read, judged, made (disk-formats.md 15)."""

import struct
from dataclasses import dataclass
from uuid import UUID

from hvcore.errors import ImageError

COOKIE = b"conectix"
FOOTER_BYTES = 512
FIXED = 2
TYPES = {3: "dynamic", 4: "differencing"}
MAX_SIZE = 2040 << 30
EPOCH = 946_684_800  # 2000-01-01 00:00 UTC, in Unix time
NO_OFFSET = (1 << 64) - 1

# cookie, features, version, data offset, timestamp, creator, creator version, creator OS, original size, current size,
# cylinders, heads, sectors, type, checksum, id
LAYOUT = struct.Struct(">8sIIQI4sI4sQQHBBII16s")


@dataclass(frozen=True)
class Footer:
    """A footer whose cookie, checksum and version are right. size: bytes of the disk (CurrentSize)."""

    size: int
    disk_type: int
    geometry: tuple[int, int, int]
    disk_id: UUID
    creator: bytes
    timestamp: int


def checksum(footer: bytes) -> int:
    """One's complement of the byte sum, the checksum's own field taken as zero."""
    return ~(sum(footer) - sum(footer[64:68])) & 0xFFFFFFFF


def parse(footer: bytes) -> Footer | None:
    """None when the bytes are no footer at all; ImageError when they are a damaged one."""
    if footer[:8] != COOKIE:
        return None
    fields = LAYOUT.unpack_from(footer)
    _, _, version, _, timestamp, creator, _, _, _, size, cylinders, heads, sectors, disk_type, stored, disk_id = fields
    if stored != checksum(footer):
        raise ImageError("the VHD footer is damaged: its checksum is wrong")
    if version != 0x00010000:
        raise ImageError(f"VHD version {version:#010x} is not supported")
    return Footer(size, disk_type, (cylinders, heads, sectors), UUID(bytes=disk_id), creator, timestamp)


def judge_fixed(footer: Footer, data_bytes: int) -> None:
    """ImageError unless the footer is that of a fixed disk whose data fill `data_bytes`, the file before the footer."""
    if footer.disk_type in TYPES:
        raise ImageError(f"a {TYPES[footer.disk_type]} VHD: not supported yet, only fixed VHDs are")
    if footer.disk_type != FIXED:
        raise ImageError(f"VHD type {footer.disk_type} is not supported, only fixed VHDs are")
    if footer.size != data_bytes:
        raise ImageError(f"the VHD footer says {footer.size} bytes, the file holds {data_bytes}")
    if not 0 < footer.size <= MAX_SIZE or footer.size % 512:
        raise ImageError(f"the VHD size {footer.size} is not a multiple of 512 up to 2040 GiB")


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


def build_fixed(size: int, disk_id: UUID, timestamp: int) -> bytes:
    """The footer of a fixed disk; timestamp: seconds since 2000.

    The creator is "win ": readers that trust the geometry rather than the size take the size of this creator
    (disk-formats.md 15.4).
    """
    cylinders, heads, sectors = geometry(size)
    fields = [COOKIE, 2, 0x00010000, NO_OFFSET, timestamp, b"win ", 0x000A0000, b"Wi2k", size, size]
    fields += [cylinders, heads, sectors, FIXED, 0, disk_id.bytes]
    footer = LAYOUT.pack(*fields).ljust(FOOTER_BYTES, b"\0")
    return footer[:64] + checksum(footer).to_bytes(4, "big") + footer[68:]
