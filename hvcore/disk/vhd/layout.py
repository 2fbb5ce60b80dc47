"""What a VHD file says of itself, judged (disk-formats.md 15.5, last paragraph).

Everything here may be written by an enemy: each structure is read once, checked, and only then used. A fault is an
ImageError that says which field is wrong; the caller adds the file's name.
"""

from dataclasses import dataclass
from itertools import pairwise
from uuid import UUID

from hvcore.disk.medium import ImageFile
from hvcore.disk.vhd.footer import (
    DIFFERENCING,
    FIXED,
    FOOTER_BYTES,
    TYPES,
    Footer,
    build,
    judge_fixed,
    judge_size,
    parse,
)
from hvcore.disk.vhd.header import (
    ENCODINGS,
    HEADER_BYTES,
    MAX_BLOCK,
    MIN_BLOCK,
    DynamicHeader,
    decode_locator,
    parent_name,
    parse_header,
)
from hvcore.errors import ImageDamaged, ImageDirty, ImageError

# A Windows path has at most 32767 UTF-16 units.
MAX_LOCATOR = 64 << 10
TAIL, HEAD_ONLY, DIFFERS = "tail", "head only", "differs"


@dataclass(frozen=True)
class Footers:
    """The footer that counts, and what else there is.

    state: TAIL: the footer at the end, and its copy at the start is equal (or the disk is fixed and has none);
    DIFFERS: the footer at the end, and its copy is another or damaged; HEAD_ONLY: only the copy is sound.
    tail_offset: where the footer at the end begins; None: there is none.
    """

    footer: Footer
    state: str
    tail_offset: int | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class VhdLayout:
    """What a sound dynamic or differencing VHD says of itself. Offsets, lengths and sizes are bytes.

    entries: of the block allocation table, at least `blocks`. bitmap_bytes: what precedes the data of each block.
    locators: (code, text) of those that can be read, codes as in hvcore.disk.vhd.header. used: (offset, length) of
    headers, table and locators. tail_offset: where the file's blocks must end: the footer, or the end of the file.
    """

    size: int
    block_size: int
    table_offset: int
    entries: int
    blocks: int
    bitmap_bytes: int
    disk_type: int
    disk_id: UUID
    parent_id: UUID
    parent_timestamp: int
    parent_name: str
    locators: list[tuple[str, str]]
    footer_state: str
    used: list[tuple[int, int]]
    notes: tuple[str, ...]
    footer: Footer
    header: DynamicHeader
    file_size: int
    tail_offset: int

    @property
    def differencing(self) -> bool:
        return self.disk_type == DIFFERENCING

    @property
    def tail_lost(self) -> bool:
        return self.footer_state == HEAD_ONLY

    @property
    def head_differs(self) -> bool:
        return self.footer_state == DIFFERS


def bitmap_bytes(block_size: int) -> int:
    """One bit per sector of 512 bytes, in whole sectors (disk-formats.md 15.3)."""
    return -(-block_size // (512 * 8 * 512)) * 512


def read_tail(file: ImageFile, file_size: int) -> tuple[Footer, int] | None:
    """The footer at the end and where it begins; tools before 2004 wrote one byte less. None: there is none."""
    for length in (FOOTER_BYTES, FOOTER_BYTES - 1):
        if file_size >= length:
            footer = parse(file.read(file_size - length, length), file_size - length)
            if footer is not None:
                return footer, file_size - length
    return None


def read_head(file: ImageFile, file_size: int) -> Footer | None:
    """The copy at the start, of dynamic and differencing disks; of a fixed disk these bytes are the guest's."""
    head = parse(file.read(0, FOOTER_BYTES), 0) if file_size >= FOOTER_BYTES else None
    return head if head is not None and head.disk_type in TYPES else None


def read_footers(file: ImageFile, file_size: int, *, trust_head: bool = False) -> Footers:
    """Chooses the footer that counts. trust_head: take the copy at the start of a differencing disk for true."""
    fault: ImageError | None = None
    try:
        tail = read_tail(file, file_size)
    except ImageError as error:
        tail, fault = None, error
    if tail is not None:
        footer, offset = tail
        # Sector 0 of a fixed disk is the guest's: never looked at.
        if footer.disk_type not in TYPES:
            judge_fixed(footer, offset)
            return Footers(footer, TAIL, offset, ())
        judge_size(footer)
        return judge_copy(file, file_size, footer, offset)
    try:
        head = read_head(file, file_size)
    except ImageError as error:
        head, fault = None, fault or error
    if head is None or (fault is not None and says_fixed(file, file_size)):
        if fault is not None:
            raise fault
        raise ImageDamaged("not a VHD: there is no footer at its end (truncated?)", structure="VHD footer")
    judge_size(head)
    what = "missing" if fault is None else "damaged"
    if head.disk_type == DIFFERENCING and not trust_head:
        # A guest with a fixed disk that has lost its footer could have written this copy, and so choose a parent.
        raise ImageDirty(
            f"a differencing VHD whose footer at the end is {what}; if you trust its copy at the start,"
            ' put it back with "hvcore vhd repair --trust-head"'
        )
    return Footers(head, HEAD_ONLY, None, (f"the VHD footer at the end is {what}; its copy at the start is used",))


def says_fixed(file: ImageFile, file_size: int) -> bool:
    """Whether a damaged footer looks like that of a fixed disk, whose sector 0 must not decide anything."""
    return file_size >= FOOTER_BYTES and file.read(file_size - FOOTER_BYTES + 60, 4) == FIXED.to_bytes(4, "big")


def judge_copy(file: ImageFile, file_size: int, footer: Footer, offset: int) -> Footers:
    """Compares the footer at the end with the copy at the start, which must at least be of the same disk."""
    try:
        head = parse(file.read(0, FOOTER_BYTES), 0)
    except ImageError:
        head = None
    if head is None:
        return Footers(footer, DIFFERS, offset, ("the copy of the VHD footer at the start is damaged",))
    for field in ("disk_type", "disk_id", "data_offset"):
        if getattr(head, field) != getattr(footer, field):
            raise ImageDamaged(
                f"the VHD footer and its copy at the start are of different disks: their {FIELDS[field]} differ",
                structure="VHD footer",
                offset=offset,
            )
    if build(head) != build(footer):
        note = "the VHD footer and its copy at the start differ; the footer at the end is used"
        return Footers(footer, DIFFERS, offset, (note,))
    return Footers(footer, TAIL, offset, ())


FIELDS = {"disk_type": "types", "disk_id": "ids", "data_offset": "data offsets"}


def read_vhd_layout(
    file: ImageFile, file_size: int, *, trust_head: bool = False, footers: Footers | None = None
) -> VhdLayout:
    """Reads and judges all structures of a dynamic or differencing disk but the table's entries. ImageError: the fault.

    trust_head: open a differencing disk whose footer at the end is lost by the copy at the start (ImageDirty without).
    footers: what read_footers() gave, if it was asked before.
    """
    found = footers or read_footers(file, file_size, trust_head=trust_head)
    footer = found.footer
    if footer.disk_type not in TYPES:
        raise ImageError("a fixed VHD has no block allocation table")
    limit = file_size if found.tail_offset is None else found.tail_offset
    at = footer.data_offset
    if at % 512 or at < FOOTER_BYTES or at > limit - HEADER_BYTES:
        raise ImageDamaged(
            f"the VHD footer places the dynamic header at {at}, where it cannot be",
            structure="VHD footer",
            offset=found.tail_offset,
        )
    header = parse_header(file.read(at, HEADER_BYTES), at)
    block_size = header.block_size
    if not MIN_BLOCK <= block_size <= MAX_BLOCK or block_size & (block_size - 1):
        raise damaged(f"the block size {block_size} is not a power of two from 4 KiB to 256 MiB", at)
    blocks = -(-footer.size // block_size)
    if header.entries < blocks:
        raise damaged(f"the block allocation table has {header.entries} entries, the disk {blocks} blocks", at)
    table = header.table_offset
    if table % 512:
        raise damaged(f"the block allocation table's offset {table} is not a multiple of 512", at)
    # Padded to whole sectors, as entries are written by sectors (disk-formats.md 15.3).
    table_bytes = -(-header.entries * 4 // 512) * 512
    parts = [
        ("the copy of the footer", 0, FOOTER_BYTES),
        ("the dynamic header", at, HEADER_BYTES),
        ("the block allocation table", table, table_bytes),
    ]
    locators: list[tuple[str, str]] = []
    if footer.disk_type == DIFFERENCING:
        for number, each in enumerate(header.locators):
            if each.code == bytes(4) or each.length == 0:
                continue
            name = f"parent locator {number}"
            if each.length > MAX_LOCATOR:
                raise damaged(f"{name} has {each.length} bytes, more than {MAX_LOCATOR}", at)
            within(name, each.offset, each.length, limit, at)
            parts.append((name, each.offset, each.length))
            code = each.code.decode("latin-1")
            if code in ENCODINGS:
                locators.append((code, decode_locator(code, file.read(each.offset, each.length))))
    for name, offset, length in parts:
        within(name, offset, length, limit, at)
    for (left, start, length), (right, following, _) in pairwise(sorted(parts, key=lambda part: part[1])):
        if start + length > following:
            raise damaged(f"{left} and {right} overlap", at)
    return VhdLayout(
        size=footer.size,
        block_size=block_size,
        table_offset=table,
        entries=header.entries,
        blocks=blocks,
        bitmap_bytes=bitmap_bytes(block_size),
        disk_type=footer.disk_type,
        disk_id=footer.disk_id,
        parent_id=header.parent_id,
        parent_timestamp=header.parent_timestamp,
        parent_name=parent_name(header) if footer.disk_type == DIFFERENCING else "",
        locators=locators,
        footer_state=found.state,
        used=[(offset, length) for _, offset, length in parts],
        notes=found.notes,
        footer=footer,
        header=header,
        file_size=file_size,
        tail_offset=limit,
    )


def damaged(fault: str, offset: int) -> ImageDamaged:
    return ImageDamaged(fault, structure="dynamic header", offset=offset)


def within(name: str, offset: int, length: int, limit: int, header: int) -> None:
    if offset + length > limit:
        raise damaged(f"truncated: {name} ends at {offset + length}, the file's content at {limit}", header)
