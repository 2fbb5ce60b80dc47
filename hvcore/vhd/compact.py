"""Making the file of an image as small as what it holds."""

import array
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hvcore.disk.image import Judged, build, close_files, reported
from hvcore.disk.vhdx.disk import VhdxDisk
from hvcore.disk.vhdx.layout import VhdxLayout
from hvcore.disk.vhdx.structures import MIB
from hvcore.errors import ImageError
from hvcore.progress import Progress, silent
from hvcore.vhd.compactvhd import compact_vhd
from hvcore.vhd.copy import CHUNK
from hvcore.vhd.grow import FULL, NOT_PRESENT, PARTIAL, PLACE, ZERO
from hvcore.vhd.locked import Locked

UNDEFINED, UNMAPPED = 1, 3
# Bytes that are moved before they are made durable: few flushes, and little to do again after an interruption.
BATCH_BYTES = 256 * MIB


@dataclass(frozen=True)
class CompactResult:
    """before, after: bytes of the file."""

    path: str
    before: int
    after: int
    freed_blocks: int
    moved_blocks: int


def compact(path: str | os.PathLike[str], *, zeros: bool = True, progress: Progress = silent) -> CompactResult:
    """Gives back the space in a dynamic or differencing image that holds nothing, while nobody uses it.

    zeros: give up blocks that hold only zeros; they are read for that. Then blocks are moved from the end of the file
    into the gaps, and the file is cut. A child's blocks are given up only where the disk reads as zeros with all its
    parents; those of a differencing VHD cannot be. The disk reads the same afterwards and at every moment in between,
    whatever interrupts it, and be it `progress`; the children of the image stay valid.

    ImageError, DiskError: as open(); a fixed or raw image has nothing to give back.
    """
    with Locked(path) as image, reported(path):
        chain = image.judge_chain()
        try:
            if chain[0].info.type not in ("dynamic", "differencing"):
                raise ImageError("a fixed image has all its space for good: there is nothing to compact")
            before = os.fstat(image.fd).st_size
            if chain[0].info.format == "vhdx":
                freed, moved = compact_vhdx(chain, zeros, progress)
            else:
                freed, moved = compact_vhd(chain, zeros, progress)
        finally:
            close_files(chain)
        after = os.fstat(image.fd).st_size
    progress("compacting", 1.0)
    return CompactResult(os.fspath(Path(path)), before, after, freed, moved)


def table(image: Judged, layout: VhdxLayout) -> Iterator[tuple[int, int]]:
    """(block, entry) of all blocks whose entry is not empty; the table must be as it is in the file."""
    ratio = layout.chunk_ratio
    for first in range(0, layout.bat_entries, MIB // 8):
        count = min(MIB // 8, layout.bat_entries - first)
        raw = image.file.read(layout.bat_offset + 8 * first, 8 * count)
        if raw.count(0) == len(raw):
            continue
        entries = array.array("Q", raw)
        if sys.byteorder == "big":
            entries.byteswap()
        for at, entry in enumerate(entries):
            if entry and (first + at) % (ratio + 1) != ratio:
                yield first + at - (first + at) // (ratio + 1), entry


def compact_vhdx(chain: list[Judged], zeros: bool, progress: Progress) -> tuple[int, int]:
    """(blocks given up, blocks moved)."""
    image, layout = chain[0], chain[0].layout
    assert isinstance(layout, VhdxLayout)
    held = list(table(image, layout))
    disk = build(chain)
    assert isinstance(disk, VhdxDisk)
    with disk:
        # Nothing that anyone can see changes: the image's children stay its children.
        disk.begin(disk.data_write_guid)
        nothing = ZERO if layout.has_parent else NOT_PRESENT
        freed, kept = 0, []
        for number, (block, entry) in enumerate(held):
            progress("looking for zeros", 0.5 * number / len(held))
            if entry & 7 in (UNDEFINED, UNMAPPED) and entry & PLACE:
                disk.drop(block, 1, nothing)  # space that is kept for a block which holds nothing
            elif entry & 7 in (FULL, PARTIAL):
                if zeros and reads_as_zeros(disk, block * layout.block_size, layout.block_size):
                    disk.drop(block, 1, nothing)
                    freed += 1
                else:
                    kept.append((entry & PLACE, block))
        # Space is given to others once nothing on disk leads to it (rule 7).
        disk.flush()
        kept.sort(reverse=True)
        moved = unsaved = 0
        for number, (_, block) in enumerate(kept):
            progress("moving", 0.5 + 0.5 * number / len(kept))
            # From the highest place down into the lowest gap: the first for which there is none ends it.
            if not disk.relocate(block):
                break
            moved += 1
            unsaved += layout.block_size
            if unsaved >= BATCH_BYTES:
                disk.flush()
                unsaved = 0
    return freed, moved


def reads_as_zeros(disk: VhdxDisk, offset: int, length: int) -> bool:
    end = min(offset + length, disk.size)
    while offset < end:
        step = min(CHUNK, end - offset)
        if disk.read(offset, step).count(0) != step:
            return False
        offset += step
    return True
