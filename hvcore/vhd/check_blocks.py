"""The block allocation table and the bitmaps of a VHD, all of them, in bounded memory (disk-formats.md 15.3)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from hvcore.disk.medium import ImageFile
from hvcore.progress import Progress
from hvcore.vhd.finding import DAMAGE, LISTED, WARNING, Finding, Findings
from hvcore.vhd.holes import next_data

ENTRIES_AT_ONCE = 1 << 20
BYTES_AT_ONCE = 2 << 20
UNALLOCATED = 0xFFFFFFFF
SECTOR = 512

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Blocks:
    """What the entries are judged against. bitmap_bytes: what precedes the data of each block. limit: where the content
    of the file must end. used: (name, offset, length) of everything that is no block."""

    table_offset: int
    blocks: int
    block_size: int
    bitmap_bytes: int
    size: int
    differencing: bool
    limit: int
    used: list[tuple[str, int, int]]

    @property
    def sectors(self) -> int:
        """Of a whole block, its bitmap included."""
        return (self.bitmap_bytes + self.block_size) // SECTOR


@dataclass(frozen=True)
class Space:
    """referenced: bytes of the file that something refers to; end: where the last of them ends."""

    allocated: int
    referenced: int
    end: int


def read_entries(file: ImageFile, blocks: Blocks, progress: Progress) -> Iterator[tuple[int, Array]]:
    """(index of the first, entries) of all pieces of the table. Entries behind the disk's end are not looked at."""
    for first in range(0, blocks.blocks, ENTRIES_AT_ONCE):
        progress("checking the block allocation table", first / blocks.blocks)
        count = min(ENTRIES_AT_ONCE, blocks.blocks - first)
        yield first, np.frombuffer(file.read(blocks.table_offset + 4 * first, 4 * count), ">u4").astype(np.uint32)
    progress("checking the block allocation table", 1.0)


def judge_blocks(file: ImageFile, blocks: Blocks, findings: Findings, progress: Progress) -> Space:
    """Judges every entry, and for a dynamic disk every bitmap; of the data only what a bitmap says is not there."""
    last = blocks.limit // SECTOR - blocks.sectors  # where the last block may begin, sectors
    starts: Array = np.empty(blocks.blocks, np.uint32)  # room for all; only what is filled takes memory
    count = 0
    for first, entries in read_entries(file, blocks, progress):
        allocated = entries != UNALLOCATED
        # These need no place in memory: a table that was never written, one hole, would have nothing else.
        zero = np.flatnonzero(entries == 0)
        words = "block {block} at sector 0 overlaps the copy of the footer"
        report("zero", zero + first, entries[zero], words, blocks, findings)
        allocated[zero] = False
        outside = np.flatnonzero(allocated & (entries.astype(np.int64) > last))
        words = "block {block} at sector {sector} ends behind the content's end"
        report("end", outside + first, entries[outside], words, blocks, findings)
        found = entries[allocated]
        starts[count : count + len(found)] = found
        count += len(found)
    starts = starts[:count]
    starts.sort()
    places = judge_overlaps(starts, blocks)
    if places:
        name_overlaps(file, blocks, places, findings, progress)
    findings.summarise("BAT")
    misaligned = sum(
        # Of sectors: eight make a page.
        int(np.count_nonzero((starts[begin : begin + ENTRIES_AT_ONCE] % 8 + blocks.bitmap_bytes // SECTOR) % 8))
        for begin in range(0, count, ENTRIES_AT_ONCE)
    )
    if misaligned:
        words = f"the data of {misaligned} blocks do not begin at a multiple of 4096: slow on disks of such sectors"
        findings.note("BAT", blocks.table_offset, words)
    if not blocks.differencing and not places:  # overlapping blocks may be without number
        judge_bitmaps(file, blocks, findings, progress)
        findings.summarise("bitmaps")
    return measure(starts, blocks)


def report(kind: str, indices: Array, entries: Array, words: str, blocks: Blocks, findings: Findings) -> None:
    count = len(indices)
    if not count:
        return
    shown = min(count, max(1, findings.room(kind)))
    for index, entry in zip(indices[:shown].tolist(), entries[:shown].tolist(), strict=True):
        message = words.format(block=index, sector=entry)
        findings.many(kind, Finding(f"BAT entry {index}", blocks.table_offset + 4 * index, message, DAMAGE))
    findings.more(kind, count - shown)


def judge_overlaps(starts: Array, blocks: Blocks) -> dict[int, str]:
    """Sectors at which blocks begin that lie over something, and what that is; "": another block. Not all of many."""
    places: dict[int, str] = {}
    size = blocks.sectors
    for name, offset, length in blocks.used:
        low, high = offset // SECTOR - size + 1, -(-(offset + length) // SECTOR)
        if low > UNALLOCATED:
            continue
        bounds = np.array([max(0, low), min(high, UNALLOCATED)], np.uint32)
        begin, end = np.searchsorted(starts, bounds)
        for place in starts[begin : min(end, begin + LISTED + 1)].tolist():
            places.setdefault(place, name)
    for begin in range(0, len(starts), ENTRIES_AT_ONCE):
        part = starts[begin : begin + ENTRIES_AT_ONCE + 1]
        close = np.flatnonzero(part[1:] - part[:-1] < size)[: max(0, LISTED + 1 - len(places))]
        for place in (*part[close].tolist(), *part[close + 1].tolist()):
            places.setdefault(place, "")
    return places


def name_overlaps(
    file: ImageFile, blocks: Blocks, places: dict[int, str], findings: Findings, progress: Progress
) -> None:
    wanted = np.array(sorted(places), np.uint32)
    seen: list[tuple[int, int]] = []
    for first, entries in read_entries(file, blocks, progress):
        for index in (np.flatnonzero(np.isin(entries, wanted))[: 4 * LISTED] + first).tolist():
            place = int(entries[index - first])
            seen.append((place, index))
            if places[place]:
                words = f"block {index} at sector {place} overlaps {places[place]}"
                overlap(index, words, blocks, findings)
        if len(seen) > 16 * LISTED:
            break
    seen.sort()
    for (left, other), (right, index) in pairwise(seen):
        if right - left < blocks.sectors:
            words = f"block {index} at sector {right} overlaps block {other} at sector {left}"
            overlap(index, words, blocks, findings)


def overlap(index: int, words: str, blocks: Blocks, findings: Findings) -> None:
    finding = Finding(f"BAT entry {index}", blocks.table_offset + 4 * index, words, DAMAGE)
    findings.many("overlap", finding)


def judge_bitmaps(file: ImageFile, blocks: Blocks, findings: Findings, progress: Progress) -> None:
    """Sectors of a dynamic disk that have data but whose bit says that they have none (15.3): most readers show the
    data, some zeros."""
    bits = blocks.block_size // SECTOR
    whole = bytes([0xFF]) * (bits // 8)
    last = blocks.limit // SECTOR - blocks.sectors
    for first, entries in read_entries(file, blocks, lambda text, fraction: None):
        inside = (entries != UNALLOCATED) & (entries != 0) & (entries.astype(np.int64) <= last)
        for index in np.flatnonzero(inside).tolist():
            block = first + index
            if block % 64 == 0:
                progress("checking the bitmaps", block / blocks.blocks)
            at = int(entries[index]) * SECTOR
            # A disk's last block is stored whole, but what lies behind the disk's end is not the disk's.
            count = min(bits, (blocks.size - block * blocks.block_size) // SECTOR)
            raw = file.read(at, len(whole))
            if raw[: count // 8] == whole[: count // 8] and count % 8 == 0:
                continue
            clear = np.flatnonzero(np.unpackbits(np.frombuffer(raw, np.uint8))[:count] == 0)
            sector = hidden_sector(file, at + blocks.bitmap_bytes, clear)
            if sector is not None:
                words = f"block {block} has data in sector {sector}, but its bitmap says that there are none"
                findings.many("hidden", Finding(f"bitmap of block {block}", at, words, WARNING))
    progress("checking the bitmaps", 1.0)


def hidden_sector(file: ImageFile, at: int, clear: Array) -> int | None:
    """The first of the sectors `clear` of the data at `at` that is not all zeros."""
    step = BYTES_AT_ONCE // SECTOR
    done = 0
    while done < len(clear):
        # A hole of any size is passed at once.
        place = at + int(clear[done]) * SECTOR
        found = next_data(file.fileno(), place, at + (int(clear[-1]) + 1) * SECTOR)
        done = int(np.searchsorted(clear, (found - at) // SECTOR))
        if done == len(clear):
            break
        begin = int(clear[done])
        stop = int(np.searchsorted(clear, begin + step))
        end = int(clear[stop - 1]) + 1
        data = np.frombuffer(file.read(at + begin * SECTOR, (end - begin) * SECTOR), np.uint64).reshape(-1, SECTOR // 8)
        wanted = clear[done:stop] - begin
        hidden = np.flatnonzero(data[wanted].any(axis=1))
        if len(hidden):
            return int(wanted[hidden[0]]) + begin
        done = stop
    return None


def measure(starts: Array, blocks: Blocks) -> Space:
    """Overlaps counted once where blocks alone overlap; they are damage anyway."""
    size = blocks.sectors
    inside = starts[: int(np.searchsorted(starts, max(0, blocks.limit // SECTOR - size), side="right"))]
    sectors = end = 0
    for begin in range(0, len(inside), ENTRIES_AT_ONCE):
        part = inside[begin : begin + ENTRIES_AT_ONCE + 1].astype(np.int64)
        sectors += int(np.minimum(np.diff(part), size).sum()) + (size if len(part) <= ENTRIES_AT_ONCE else 0)
        end = (int(part[-1]) + size) * SECTOR
    other = sum(length for _, _, length in blocks.used)
    end = max([end, *(offset + length for _, offset, length in blocks.used)])
    return Space(len(starts), sectors * SECTOR + other, end)
