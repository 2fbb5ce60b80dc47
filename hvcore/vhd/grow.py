"""Making a VHDX larger (disk-formats.md 14). Whatever interrupts it, the disk has the old size or the new one, and up
to the old one reads the same."""

import array
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from hvcore.disk.image import Judged, build
from hvcore.disk.medium import ImageFile
from hvcore.disk.vhdx.disk import VhdxDisk
from hvcore.disk.vhdx.layout import VhdxLayout, bat_entries, bitmap_index, payload_index, region_bytes
from hvcore.disk.vhdx.structures import BAT_REGION, DISK_SIZE, MIB, REGION_TABLES, Region, build_region_table
from hvcore.progress import Progress
from hvcore.vhd.locked import Pages

NOT_PRESENT, ZERO, FULL, PARTIAL = 0, 2, 6, 7
PLACE = ~0xFFFFF & (1 << 64) - 1
BATCH = 200  # pages of one log entry, which holds 252


@dataclass(frozen=True)
class NewBlocks:
    """What a table of `blocks` blocks says of those behind the first `old`.

    zeros: they are zeros, whatever a parent holds. place: where those of a fixed disk begin, one behind the other.
    """

    old: int
    blocks: int
    ratio: int
    block_size: int
    zeros: bool = False
    place: int | None = None

    def entries(self, first: int, count: int) -> bytes:
        """The table's entries from number `first` on; those of sector bitmaps are empty."""
        if self.place is None and not self.zeros:
            return bytes(8 * count)
        result = array.array("Q", bytes(8 * count))
        for at in range(count):
            index = first + at
            block = index - index // (self.ratio + 1)
            if index % (self.ratio + 1) == self.ratio or not self.old <= block < self.blocks:
                continue
            if self.place is not None:
                result[at] = self.place + (block - self.old) * self.block_size | FULL
            else:
                result[at] = ZERO
        if sys.byteorder == "big":
            result.byteswap()
        return result.tobytes()


def grow_vhdx(chain: list[Judged], size: int, guid: UUID | None, progress: Progress) -> None:
    """Grows the first image of the chain, which is open for writing, and closes all files.

    guid: the DataWriteGuid that it gets, None: a new one. Its parents stay as they are.
    """
    image, layout = chain[0], chain[0].layout
    assert isinstance(layout, VhdxLayout)
    disk = build(chain)
    assert isinstance(disk, VhdxDisk)
    with disk:
        disk.begin(guid)
        progress("growing", 0.0)
        clean_tail(disk, image.file, layout)
        blocks = -(-size // layout.block_size)
        place = None
        if layout.fixed and blocks > layout.blocks:
            length = (blocks - layout.blocks) * layout.block_size
            place = disk.allocate(length)
            # A full file system is noticed before the table says that the blocks are there (rule 14).
            os.posix_fallocate(image.file.fileno(), place, length)
        # What a larger parent holds behind the old end must not appear; and of a smaller one other readers are not sure
        # that nothing is there.
        new = NewBlocks(layout.blocks, blocks, layout.chunk_ratio, layout.block_size, layout.has_parent, place)
        entries = bat_entries(blocks, layout.chunk_ratio, layout.has_parent)
        last = Pages(image.file)
        last.put(size_place(layout), struct.pack("<Q", size))
        # Entries that the table has already, of its last chunk, cannot be changed before the size: they move as well.
        if 8 * entries > layout.bat_length or (layout.has_parent and blocks > layout.blocks):
            move_table(disk, image.file, layout, new, entries, last, progress)
        else:
            extend_table(disk, image.file, layout, new, entries, progress)
        # The entry that makes the disk larger: nothing before it is seen by anyone, everything before it is durable.
        disk.commit(last.changed())
    progress("growing", 1.0)


def size_place(layout: VhdxLayout) -> int:
    """Where the disk's size stands in the file."""
    return layout.metadata_offset + next(item.offset for item in layout.items if item.known and item.guid == DISK_SIZE)


def clean_tail(disk: VhdxDisk, file: ImageFile, layout: VhdxLayout) -> None:
    """The part of the last block that lies behind the disk's end reads as zeros from now on, durably."""
    size, block_size = layout.size, layout.block_size
    if size % block_size == 0:
        return
    block = layout.blocks - 1
    index = payload_index(block, layout.chunk_ratio)
    entry = disk.entry(index)
    if entry & 7 == NOT_PRESENT and layout.has_parent:
        # A block of its own, with the parent's content: its last sector is written as it is.
        sector = size - layout.sector_size
        disk.write(sector, disk.read(sector, layout.sector_size))
        disk.flush()
        entry = disk.entry(index)
    if entry & 7 not in (FULL, PARTIAL):
        return
    write_zeros(file, (entry & PLACE) + size % block_size, (entry & PLACE) + block_size)
    file.flush()  # before a bit or a size leads there
    if entry & 7 == PARTIAL:
        chunk = block // layout.chunk_ratio
        bitmap = disk.entry(bitmap_index(chunk, layout.chunk_ratio)) & PLACE
        base = chunk * layout.chunk_ratio * block_size
        first, stop = (size - base) // layout.sector_size, ((block + 1) * block_size - base) // layout.sector_size
        bits = int.from_bytes(file.read(bitmap + first // 8, -(-stop // 8) - first // 8), "little")
        bits |= (1 << stop - first // 8 * 8) - (1 << first % 8)
        pages = Pages(file)
        pages.put(bitmap + first // 8, bits.to_bytes(-(-stop // 8) - first // 8, "little"))
        if changed := pages.changed():
            disk.commit(changed)


def write_zeros(file: ImageFile, offset: int, end: int) -> None:
    while offset < end:
        step = min(MIB, end - offset)
        file.write(offset, bytes(step))
        offset += step


def pieces(start: int, end: int) -> Iterator[tuple[int, int]]:
    """(first entry, number of entries), in pieces that end at whole MiB of the table."""
    while start < end:
        count = min(end - start, MIB // 8 - start % (MIB // 8))
        yield start, count
        start += count


def extend_table(
    disk: VhdxDisk, file: ImageFile, layout: VhdxLayout, new: NewBlocks, entries: int, progress: Progress
) -> None:
    """Entries behind those that count. They may hold anything up to now, and are logged as all of the table is."""
    batch: list[tuple[int, bytes]] = []
    for first, count in pieces(layout.bat_entries, entries):
        progress("growing", first / entries)
        wanted = new.entries(first, count)
        if file.read(layout.bat_offset + 8 * first, 8 * count) == wanted:
            continue
        pages = Pages(file)
        pages.put(layout.bat_offset + 8 * first, wanted)
        batch += pages.changed()
        while len(batch) >= BATCH:
            disk.commit(batch[:BATCH])
            del batch[:BATCH]
    if batch:
        disk.commit(batch)


def move_table(
    disk: VhdxDisk,
    file: ImageFile,
    layout: VhdxLayout,
    new: NewBlocks,
    entries: int,
    last: Pages,
    progress: Progress,
) -> None:
    """A copy with the new entries at the end of the file, durable, and the region tables that lead to it in `last`.

    From here on nothing may change the table: it would be written to the old place (rule 21).
    """
    disk.flush()
    length = max(layout.bat_length, region_bytes(8 * entries))
    offset = disk.allocate(length)
    kept = payload_index(new.old - 1, layout.chunk_ratio) + 1  # entries that stay as they are
    for first, count in pieces(0, entries):
        progress("growing", first / entries)
        content = new.entries(first, count) if first + count > kept else bytes(8 * count)
        here = min(count, layout.bat_entries - first)
        if here > 0:
            old = file.read(layout.bat_offset + 8 * first, 8 * here)
            # Of the last chunk's bitmap the entry is kept; those of blocks that are not there yet are empty.
            content = either(old, content) if first + count > kept else old
        if content != bytes(8 * count):
            file.write(offset + 8 * first, content)
    file.flush()
    regions = [
        Region(guid, offset if guid == BAT_REGION else at, length if guid == BAT_REGION else size, int(required))
        for guid, at, size, required in layout.regions
    ]
    for place in REGION_TABLES:
        last.put(place, build_region_table(regions))


def either(old: bytes, new: bytes) -> bytes:
    """Entries of which at most one of the two is not empty."""
    return (int.from_bytes(old, "little") | int.from_bytes(new, "little")).to_bytes(len(new), "little")
