"""Making a new VHD in an empty file (disk-formats.md 15, vector V20)."""

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from hvcore.disk.medium import ImageFile
from hvcore.disk.vhd.footer import DIFFERENCING, DYNAMIC, FIXED, FOOTER_BYTES, MAX_SIZE, Footer, build, new_footer
from hvcore.disk.vhd.header import (
    EMPTY,
    ENCODINGS,
    HEADER_BYTES,
    LOCATORS,
    MAX_BLOCK,
    MIN_BLOCK,
    NO_ID,
    DynamicHeader,
    Locator,
    build_header,
    encode_locator,
    encode_name,
)
from hvcore.disk.vhd.layout import bitmap_bytes

DISK_TYPES = {"fixed": FIXED, "dynamic": DYNAMIC, "differencing": DIFFERENCING}
DEFAULT_BLOCK = 2 << 20
TABLE_AT = FOOTER_BYTES + HEADER_BYTES


@dataclass(frozen=True)
class Parent:
    """What a differencing disk says of its parent. timestamp: of the parent file's last change, in seconds since 2000.

    locators: (code, text), codes as in hvcore.disk.vhd.header, in the order in which they are written.
    """

    disk_id: uuid.UUID
    timestamp: int
    name: str
    locators: Sequence[tuple[str, str]] = field(default=())


def sectors(length: int) -> int:
    """The length in bytes, rounded up to whole sectors."""
    return -(-length // 512) * 512


def build_vhd(
    file: ImageFile,
    *,
    size: int,
    type: str,
    block_size: int | None = None,
    disk_id: uuid.UUID | None = None,
    timestamp: int = 0,
    parent: Parent | tuple[uuid.UUID, int, str, Sequence[tuple[str, str]]] | None = None,
    preallocate: bool = True,
) -> None:
    """Makes a disk of `size` bytes of zeros, or of its parent's content, in an empty file; durable on return.

    type: "fixed", "dynamic" or "differencing" (which needs a parent). block_size: bytes, a power of two from 4 KiB to
    256 MiB, 2 MiB unless said; not for fixed disks. timestamp: seconds since 2000. preallocate: reserve the space of a
    fixed disk now. ValueError: the arguments make no sense; OSError: the file system refused.
    """
    if type not in DISK_TYPES:
        raise ValueError(f"the type of a VHD is one of {', '.join(DISK_TYPES)}, not {type!r}")
    if size <= 0 or size % 512:
        raise ValueError(f"the size is a positive multiple of 512, not {size}")
    if size > MAX_SIZE:
        raise ValueError(f"a VHD has at most {MAX_SIZE} bytes (2040 GiB), not {size}")
    if (parent is not None) != (type == "differencing"):
        raise ValueError(f"a {type} disk has {'a' if type == 'differencing' else 'no'} parent")
    if not 0 <= timestamp < 1 << 32:
        raise ValueError(f"the timestamp {timestamp} is not in seconds from 2000 to 2136")
    if file.size():
        raise ValueError("the file is not empty")
    footer = new_footer(size, DISK_TYPES[type], disk_id or uuid.uuid4(), timestamp)
    if type == "fixed":
        if block_size is not None:
            raise ValueError("a fixed disk has no blocks")
        if preallocate:
            os.posix_fallocate(file.fileno(), 0, size + FOOTER_BYTES)
        file.write(size, build(footer))
        file.flush()
        return
    if block_size is None:
        block_size = DEFAULT_BLOCK
    if not MIN_BLOCK <= block_size <= MAX_BLOCK or block_size & (block_size - 1):
        raise ValueError(f"the block size is a power of two from 4 KiB to 256 MiB, not {block_size}")
    if parent is not None and not isinstance(parent, Parent):
        parent = Parent(*parent)
    build_dynamic(file, footer, block_size, parent)


def build_dynamic(file: ImageFile, footer: Footer, block_size: int, parent: Parent | None) -> None:
    blocks = -(-footer.size // block_size)
    table_bytes = sectors(4 * blocks)
    end = TABLE_AT + table_bytes
    texts = [(code, encoded(code, text)) for code, text in parent.locators] if parent is not None else []
    if len(texts) > LOCATORS:
        raise ValueError(f"a VHD has room for {LOCATORS} parent locators, not {len(texts)}")
    locators = []
    places = []
    for code, raw in texts:
        space = sectors(len(raw))
        locators.append(Locator(code.encode(), space, len(raw), end))
        places.append((end, raw.ljust(space, b"\0")))
        end += space
    # Sector numbers have 32 bits; all ones mean that there is no block (15.3).
    if end + blocks * (bitmap_bytes(block_size) + block_size) > 0xFFFFFFFF * 512:
        raise ValueError(f"{footer.size} bytes in blocks of {block_size} do not fit into a VHD: use larger blocks")
    header = DynamicHeader(
        table_offset=TABLE_AT,
        entries=blocks,
        block_size=block_size,
        parent_id=NO_ID if parent is None else parent.disk_id,
        parent_timestamp=0 if parent is None else parent.timestamp,
        name=encode_name("" if parent is None else parent.name),
        locators=(*locators, *[EMPTY] * (LOCATORS - len(locators))),
    )
    # Nothing is a VHD before it has a footer: that comes last, once what it leads to is durable.
    at = TABLE_AT
    while at < TABLE_AT + table_bytes:
        step = min(1 << 20, TABLE_AT + table_bytes - at)
        file.write(at, b"\xff" * step)
        at += step
    for at, raw in places:
        file.write(at, raw)
    file.write(footer.data_offset, build_header(header))
    file.flush()
    raw = build(footer)
    # Directly behind: QEMU puts its next block there, and would take a footer further on for the guest's data.
    file.write(sectors(end), raw)
    file.flush()
    file.write(0, raw)
    file.flush()


def encoded(code: str, text: str) -> bytes:
    if code not in ENCODINGS:
        raise ValueError(f"a parent locator's code is one of {', '.join(ENCODINGS)}, not {code!r}")
    if not text:
        raise ValueError(f"the parent locator {code} is empty")
    return encode_locator(code, text)
