"""Making the file of a dynamic or differencing VHD smaller (disk-formats.md 15.3, 15.5).

A block is durable at its new place before its entry leads there, and what it leaves is not used again. Entries are
written by sectors, each of which a cut keeps whole.
"""

from collections.abc import Iterator, Sequence

from hvcore.disk.image import Judged
from hvcore.disk.medium import ImageFile
from hvcore.disk.vhd.footer import DIFFERENCING
from hvcore.disk.vhd.layout import VhdLayout
from hvcore.errors import ImageDamaged
from hvcore.progress import Progress
from hvcore.vhd.copy import CHUNK
from hvcore.vhd.tail import cut, settle

NONE = 0xFFFFFFFF
BATCH_BYTES = 64 << 20
ALIGNED = 4096


def compact_vhd(chain: list[Judged], zeros: bool, progress: Progress) -> tuple[int, int]:
    """Compacts the first image, which is open for writing. (blocks given up, blocks moved)."""
    layout, file = chain[0].layout, chain[0].file
    assert isinstance(layout, VhdLayout)
    tail = settle(file, layout)
    table = Table(file, layout)
    slot = layout.bitmap_bytes + layout.block_size
    held = sorted((entry * 512, block) for block, entry in table.allocated())
    judge(layout, held, slot)
    kept, gone = [], []
    for number, (place, block) in enumerate(held):
        progress("looking for zeros", 0.5 * number / len(held))
        if zeros and says_nothing(file, layout, place):
            gone.append((block, NONE))
        else:
            kept.append((place, block))
    # Their space is used by others once no entry leads to it.
    table.write(gone)
    gaps = iter(list(free_ranges(layout, kept, slot, tail)))
    moved = 0
    batch: list[tuple[int, int]] = []
    gap = next(gaps, None)
    places = dict((block, place) for place, block in kept)
    for number, (place, block) in enumerate(reversed(kept)):
        progress("moving", 0.5 + 0.5 * number / len(kept))
        target = None
        while gap is not None and gap[0] < place:
            target = fitting(gap, slot, layout.bitmap_bytes)
            if target is not None and target < place:
                break
            target, gap = None, next(gaps, None)
        if target is None or gap is None:
            break
        gap = (target + slot, gap[1])
        copy(file, place, target, slot)
        places[block] = target
        batch.append((block, target // 512))
        moved += 1
        if len(batch) * slot >= BATCH_BYTES:
            table.write(batch)
            batch = []
    table.write(batch)
    top = max([at + length for at, length in layout.used] + [place + slot for place in places.values()])
    cut(file, top, tail, layout.footer)
    return len(gone), moved


class Table:
    """The block allocation table of a file that nobody else uses."""

    def __init__(self, file: ImageFile, layout: VhdLayout) -> None:
        self.file = file
        self.offset = layout.table_offset
        self.blocks = layout.blocks

    def allocated(self) -> Iterator[tuple[int, int]]:
        """(block, entry)."""
        for first in range(0, 4 * self.blocks, CHUNK):
            raw = self.file.read(self.offset + first, min(CHUNK, 4 * self.blocks - first))
            if raw.count(0xFF) == len(raw):
                continue
            for at, entry in enumerate(memoryview(raw).cast("I")):
                if entry != NONE:
                    yield first // 4 + at, int.from_bytes(raw[4 * at : 4 * at + 4], "big")

    def write(self, changes: Sequence[tuple[int, int]]) -> None:
        """Changes entries (block, entry), durably; what they lead to is made durable first."""
        if not changes:
            return
        self.file.flush()
        sectors: dict[int, bytearray] = {}
        for block, entry in changes:
            at = self.offset + block // 128 * 512
            if at not in sectors:
                sectors[at] = bytearray(self.file.read(at, 512))
            sectors[at][block % 128 * 4 : block % 128 * 4 + 4] = entry.to_bytes(4, "big")
        for at, content in sorted(sectors.items()):
            self.file.write(at, content)
        self.file.flush()


def judge(layout: VhdLayout, held: Sequence[tuple[int, int]], slot: int) -> None:
    """ImageDamaged unless all blocks lie inside the file and apart from each other and from all structures."""
    ranges = sorted([(place, slot) for place, _ in held] + layout.used)
    end = 0
    for at, length in ranges:
        if at < end or at + length > layout.tail_offset:
            raise ImageDamaged(
                f"the block allocation table is damaged: a block at {at} overlaps something, or the end of the file",
                structure="block allocation table",
                offset=layout.table_offset,
            )
        end = at + length


def says_nothing(file: ImageFile, layout: VhdLayout, place: int) -> bool:
    """Whether the disk reads the same without the block: of a differencing disk only if no sector is in it, as all
    others hide the parent's; of a dynamic one if all data are zeros."""
    if layout.disk_type == DIFFERENCING:
        return file.read(place, layout.bitmap_bytes).count(0) == layout.bitmap_bytes
    offset, end = place + layout.bitmap_bytes, place + layout.bitmap_bytes + layout.block_size
    while offset < end:
        step = min(CHUNK, end - offset)
        if file.read(offset, step).count(0) != step:
            return False
        offset += step
    return True


def free_ranges(layout: VhdLayout, kept: Sequence[tuple[int, int]], slot: int, tail: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of what nothing uses, ascending."""
    at = 512
    for start, length in sorted([(place, slot) for place, _ in kept] + layout.used):
        if start > at:
            yield at, start
        at = max(at, start + length)
    if at < tail:
        yield at, tail


def fitting(gap: tuple[int, int], slot: int, bitmap_bytes: int) -> int | None:
    """Where in the gap a block may begin, its data aligned if that is possible (15.6)."""
    start = -(-gap[0] // 512) * 512
    aligned = start + -(start + bitmap_bytes) % ALIGNED
    for place in (aligned, start):
        if place + slot <= gap[1]:
            return place
    return None


def copy(file: ImageFile, source: int, target: int, length: int) -> None:
    at = 0
    while at < length:
        step = min(CHUNK, length - at)
        file.write(target + at, file.read(source + at, step))
        at += step
