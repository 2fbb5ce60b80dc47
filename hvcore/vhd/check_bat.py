"""The block allocation table of a VHDX, all of it, in bounded memory (disk-formats.md 6, 7).

A table has up to 67 million entries. They are judged in pieces of whole chunks; what is kept of each block is where it
lies: four bytes, half of its entry (eight in files of more than 4 PiB).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from hvcore.disk.medium import ImageFile
from hvcore.disk.vhdx.layout import bitmap_index
from hvcore.disk.vhdx.structures import MIB, PAGE
from hvcore.progress import Progress
from hvcore.vhd.finding import DAMAGE, LISTED, NOTE, WARNING, Finding, Findings
from hvcore.vhd.holes import next_data
from hvcore.vhd.survey import DROP_OFFSETS

ENTRIES_AT_ONCE = 1 << 20
STATE, RESERVED, PLACE_SHIFT = 7, 0xFFFF8, 20
NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, FULLY_PRESENT, PARTIALLY_PRESENT = 0, 1, 2, 3, 6, 7

Entries = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Table:
    """What the entries are judged against. Offsets, lengths and sizes are bytes.

    used: (name, offset, length) of the log and all regions. holes: those of the file may be taken for zeros.
    """

    offset: int
    entries: int
    blocks: int
    ratio: int
    block_size: int
    size: int
    sector_size: int
    has_parent: bool
    fixed: bool
    file_size: int
    used: list[tuple[str, int, int]]
    holes: bool

    @property
    def block_mib(self) -> int:
        return self.block_size // MIB

    @property
    def chunks(self) -> int:
        return -(-self.entries // (self.ratio + 1))


@dataclass
class Space:
    """What the entries say. pages: places in the file, each of 4096 bytes, of table pages with a block of zeros that
    has an offset. unreferenced: bytes of the file that nothing refers to."""

    allocated: int = 0
    unreferenced: int = 0
    pages: list[int] = field(default_factory=list)


def read_entries(file: ImageFile, table: Table, progress: Progress) -> Iterator[tuple[int, Entries]]:
    """(index of the first, entries) of the pieces that may have entries other than 0; each begins with a chunk."""
    chunk = table.ratio + 1
    step = max(1, ENTRIES_AT_ONCE // chunk) * chunk
    first = 0
    while first < table.entries:
        progress("checking the block allocation table", first / table.entries)
        if table.holes:
            end = table.offset + 8 * table.entries
            found = (next_data(file.fileno(), table.offset + 8 * first, end) - table.offset) // 8
            first = max(first, min(found, table.entries) // chunk * chunk)
            if found >= table.entries:
                break
        count = min(step, table.entries - first)
        yield first, np.frombuffer(file.read(table.offset + 8 * first, 8 * count), "<u8")
        first += count
    progress("checking the block allocation table", 1.0)


class Judge:
    """One pass over the table."""

    def __init__(self, file: ImageFile, table: Table, findings: Findings) -> None:
        self.file = file
        self.table = table
        self.findings = findings
        self.space = Space()
        # Blocks of files that could not hold them are damage and kept nowhere, so that a place fits its type.
        self.limit = -(-table.file_size // MIB)
        self.type = np.uint32 if self.limit < 1 << 32 else np.uint64
        # Room for all; only what is filled takes memory.
        self.payload: Array = np.empty(table.blocks, self.type)
        self.bitmaps: Array = np.empty(table.chunks, self.type)
        self.owners = self.maps = 0  # how many of them are filled
        self.partial = np.full(table.chunks, -1, np.int64)  # the first entry of the chunk in state 7
        self.mapped = np.zeros(table.chunks, np.bool_)  # whether the chunk has a sector bitmap
        self.last_bitmap = 0

    def offset(self, index: int) -> int:
        return self.table.offset + 8 * index

    def report(
        self, kind: str, severity: str, indices: Indices, entries: Entries, words: str, repair: str | None = None
    ) -> None:
        """One finding for each of the entries; in `words`, {block} is what the entry is for, {mib} its offset."""
        count = len(indices)
        if not count:
            return
        shown = min(count, max(1, self.findings.room(kind)))
        for index, entry in zip(indices[:shown].tolist(), entries[:shown].tolist(), strict=True):
            chunk, within = divmod(index, self.table.ratio + 1)
            what = f"the bitmap of chunk {chunk}" if within == self.table.ratio else f"block {index - chunk}"
            message = words.format(block=what, mib=entry >> PLACE_SHIFT, state=entry & STATE)
            place = self.offset(index)
            self.findings.many(kind, Finding(f"BAT entry {index}", place, message, severity, repair))
        self.findings.more(kind, count - shown)

    def piece(self, first: int, entries: Entries) -> None:
        at = np.flatnonzero(entries)
        if not len(at):
            return
        entries = entries[at]
        indices: Indices = at + first
        ratio = self.table.ratio
        chunks = indices // (ratio + 1)
        bitmap = indices - chunks * (ratio + 1) == ratio
        blocks: Indices = indices - chunks
        reserved = (entries & np.uint64(RESERVED)) != 0
        chosen = np.flatnonzero(reserved)
        self.report("reserved", DAMAGE, indices[chosen], entries[chosen], "the entry of {block} has reserved bits set")
        beyond = ~bitmap & (blocks >= self.table.blocks)
        chosen = np.flatnonzero(beyond)
        words = "the entry lies past the end of the disk and is not 0"
        self.report("beyond", DAMAGE, indices[chosen], entries[chosen], words)
        self.judge_payload(np.flatnonzero(~bitmap & ~beyond), entries, indices, blocks, chunks, reserved)
        self.judge_bitmaps(np.flatnonzero(bitmap), entries, indices, chunks)

    def judge_payload(
        self, at: Indices, entries: Entries, indices: Indices, blocks: Indices, chunks: Indices, reserved: Array
    ) -> None:
        table = self.table
        entries, indices, blocks, reserved = entries[at], indices[at], blocks[at], reserved[at]
        states = (entries & np.uint64(STATE)).astype(np.uint8)
        places: Entries = entries >> np.uint64(PLACE_SHIFT)

        def found(kind: str, severity: str, mask: Array, words: str, repair: str | None = None) -> None:
            chosen = np.flatnonzero(mask)
            self.report(kind, severity, indices[chosen], entries[chosen], words, repair)

        found("state", DAMAGE, (states == 4) | (states == 5), "{block} has the reserved state {state}")
        partly = states == PARTIALLY_PRESENT
        if table.has_parent:
            late = np.flatnonzero(partly)[::-1]  # the last assignment is the first entry
            self.partial[chunks[at][late]] = indices[late]
        else:
            found("partial", DAMAGE, partly, "{block} is partially present, but the disk has no parent")
        full = partly | (states == FULLY_PRESENT)
        placed = places != 0
        zeros = (states == ZERO) & placed
        words = "{block} is zero but has an offset, MiB {mib}: some readers refuse that"
        found("zero", WARNING, zeros & ~reserved, words, DROP_OFFSETS)
        found("zero, reserved", WARNING, zeros & reserved, words)
        pages = np.unique((indices[zeros & ~reserved] * 8 + table.offset) // PAGE * PAGE)
        self.space.pages += [page for page in pages.tolist() if page not in self.space.pages[-1:]]
        words = "{block} is not present but has an offset, MiB {mib}"
        found("absent", WARNING, (states == NOT_PRESENT) & placed & ~reserved, words)
        found("head", DAMAGE, full & ~placed, "{block} lies at offset 0, in the header area")
        # The last block may be cut off behind the end of the disk, but not before it (disk-formats.md 7).
        last = blocks == table.blocks - 1
        left = table.size - (table.blocks - 1) * table.block_size
        needed = np.where(last, -(-left // MIB), table.block_mib).astype(np.uint64)
        inside = places + needed <= np.uint64(self.limit)
        if table.file_size % MIB:
            # The file's last MiB is not whole: only the disk's end can lie in it.
            fits = last & ((left % MIB or MIB) <= table.file_size % MIB)
            inside &= fits | (places + needed < np.uint64(self.limit))
        found("end", DAMAGE, full & placed & ~inside, "{block} at MiB {mib} ends behind the end of the file")
        short = (
            full & placed & inside & last & (places + np.uint64(table.block_mib) > np.uint64(table.file_size // MIB))
        )
        found("short", NOTE, short, "{block}, the last one, is cut off by the end of the file, behind the disk's end")
        anchored = placed & ((states == UNDEFINED) | (states == UNMAPPED))
        # Full blocks past the end of the file are damage already; they own what there is of their place all the same.
        owned = np.flatnonzero((full & placed | anchored) & (places < np.uint64(self.limit)))
        self.payload[self.owners : self.owners + len(owned)] = places[owned]
        self.owners += len(owned)
        self.space.allocated += int(np.count_nonzero(full))

    def judge_bitmaps(self, at: Indices, entries: Entries, indices: Indices, chunks: Indices) -> None:
        entries, indices, chunks = entries[at], indices[at], chunks[at]
        states = (entries & np.uint64(STATE)).astype(np.uint8)
        places: Entries = entries >> np.uint64(PLACE_SHIFT)

        def found(kind: str, severity: str, mask: Array, words: str) -> None:
            chosen = np.flatnonzero(mask)
            self.report(kind, severity, indices[chosen], entries[chosen], words)

        if not self.table.has_parent:
            found("bitmap", DAMAGE, states >= 0, "{block} is described, but the disk has no parent")
            return
        present = states == FULLY_PRESENT
        found("bitmap state", DAMAGE, ~present & (states != NOT_PRESENT), "{block} has the state {state}")
        found("bitmap absent", WARNING, (states == NOT_PRESENT) & (places != 0), "{block} is absent but has an offset")
        found("bitmap head", DAMAGE, present & (places == 0), "{block} lies at offset 0, in the header area")
        inside = places < np.uint64(self.table.file_size // MIB)
        found("bitmap end", DAMAGE, present & ~inside, "{block} at MiB {mib} ends behind the end of the file")
        self.mapped[chunks[present]] = True
        good = np.flatnonzero(present & inside & (places != 0))
        self.bitmaps[self.maps : self.maps + len(good)] = places[good]
        self.maps += len(good)
        for i in good[chunks[good] == self.table.chunks - 1].tolist():
            self.last_bitmap = int(places[i]) * MIB

    def finish(self, progress: Progress) -> None:
        table, findings = self.table, self.findings
        payload, bitmaps = self.payload[: self.owners], self.bitmaps[: self.maps]
        payload.sort()
        bitmaps.sort()
        self.judge_overlaps(payload, bitmaps, progress)
        for chunk in np.flatnonzero((self.partial >= 0) & ~self.mapped).tolist():
            index = int(self.partial[chunk])
            words = f"block {index - chunk} is partially present, but its sector bitmap, BAT entry"
            words += f" {bitmap_index(chunk, table.ratio)}, is not"
            findings.many("no bitmap", Finding(f"BAT entry {index}", self.offset(index), words, DAMAGE))
        for chunk in np.flatnonzero((self.partial < 0) & self.mapped).tolist():
            index = bitmap_index(chunk, table.ratio)
            words = f"the sector bitmap of chunk {chunk} is there, but no block of the chunk is partially present"
            findings.many("bitmap idle", Finding(f"BAT entry {index}", self.offset(index), words, NOTE))
        findings.summarise("BAT")
        if table.fixed and self.space.allocated < table.blocks:
            missing = table.blocks - self.space.allocated
            findings.note("BAT", table.offset, f"{missing} blocks of a fixed disk are not allocated")
        if self.last_bitmap:
            self.judge_last_bitmap()
        self.measure(payload, bitmaps)

    def judge_overlaps(self, payload: Array, bitmaps: Array, progress: Progress) -> None:
        """Finds the places where two things lie; who refers to them is found by another pass, which is rare."""
        size = self.table.block_mib
        ranges = [(name, offset // MIB, -(-(offset + length) // MIB)) for name, offset, length in self.table.used]
        hits: dict[int, str] = {}  # place of a payload block -> what lies there, "": another block
        bitmap_hits: dict[int, str] = {}

        def first(places: Array, into: dict[int, str], what: str) -> None:
            for place in places[: max(0, LISTED + 1 - len(into))].tolist():
                into.setdefault(place, what)

        for name, start, stop in ranges:
            if start >= self.limit:
                continue
            stop = min(stop, self.limit)  # as numbers of this type
            low, high = np.searchsorted(payload, np.array([max(0, start - size + 1), stop], self.type))
            first(payload[low:high], hits, name)
            low, high = np.searchsorted(bitmaps, np.array([start, stop], self.type))
            first(bitmaps[low:high], bitmap_hits, name)
        overlapping = 0
        for begin in range(0, len(payload), ENTRIES_AT_ONCE):
            part = payload[begin : begin + ENTRIES_AT_ONCE + 1]
            close = np.flatnonzero(part[1:] - part[:-1] < size)
            first(part[close + 1], hits, "")
            first(part[close], hits, "")
            overlapping += len(close)
        doubled = np.flatnonzero(bitmaps[1:] == bitmaps[:-1])
        first(bitmaps[doubled], bitmap_hits, "another sector bitmap")
        # The block that begins last before each bitmap's end.
        before = np.searchsorted(payload, bitmaps, side="right").astype(np.int64) - 1
        if len(payload):
            covered = (before >= 0) & (bitmaps - payload[np.maximum(before, 0)] < size)
            first(bitmaps[covered], bitmap_hits, "a block")
        if hits or bitmap_hits:
            self.name_overlaps(hits, bitmap_hits, progress)
        if overlapping > LISTED:
            self.findings.damage("BAT", self.table.offset, f"{overlapping} blocks overlap the block before them")

    def name_overlaps(self, hits: dict[int, str], bitmap_hits: dict[int, str], progress: Progress) -> None:
        size, ratio = self.table.block_mib, self.table.ratio
        places = np.array(sorted({*hits, *bitmap_hits}), np.uint64)
        seen: list[tuple[int, int, str]] = []  # place, entry, block
        for start, entries in read_entries(self.file, self.table, progress):
            chosen = np.flatnonzero(np.isin(entries >> np.uint64(PLACE_SHIFT), places) & (entries != 0))
            # Entries of one and the same place may be as many as there are blocks.
            for index in (chosen[: 4 * LISTED] + start).tolist():
                entry = int(entries[index - start])
                chunk, within = divmod(index, ratio + 1)
                place, state = entry >> PLACE_SHIFT, entry & STATE
                if within == ratio:
                    if state == FULLY_PRESENT and bitmap_hits.get(place):
                        words = f"the sector bitmap of chunk {chunk} overlaps {bitmap_hits[place]} at MiB {place}"
                        self.overlap(index, words)
                elif place in hits and state in (UNDEFINED, UNMAPPED, FULLY_PRESENT, PARTIALLY_PRESENT):
                    if index - chunk >= self.table.blocks:
                        continue
                    if hits[place]:
                        self.overlap(index, f"block {index - chunk} at MiB {place} overlaps {hits[place]}")
                    seen.append((place, index, f"block {index - chunk}"))
            if len(seen) > 16 * LISTED:
                break
        seen.sort()
        for (left, other, name), (right, index, what) in pairwise(seen):
            if right - left < size:
                self.overlap(index, f"{what} at MiB {right} overlaps {name}, BAT entry {other}, at MiB {left}")

    def overlap(self, index: int, words: str) -> None:
        finding = Finding(f"BAT entry {index}", self.offset(index), words, DAMAGE)
        self.findings.many("overlap", finding)

    def judge_last_bitmap(self) -> None:
        """Bits behind the end of the disk mean nothing; a disk that is grown must not find any."""
        sectors = self.table.size // self.table.sector_size & 0x7FFFFF
        if not sectors:
            return
        rest = self.file.read(self.last_bitmap + (sectors >> 3), MIB - (sectors >> 3))
        if rest[0] >> (sectors & 7) or rest.count(0, 1) < len(rest) - 1:
            index = bitmap_index(self.table.chunks - 1, self.table.ratio)
            words = "the last sector bitmap has bits set behind the end of the disk"
            self.findings.note(f"BAT entry {index}", self.last_bitmap, words)

    def measure(self, payload: Array, bitmaps: Array) -> None:
        """How much of the file is referred to, by blocks where they do not overlap, and where that ends."""
        size, file_size = self.table.block_size, self.table.file_size
        covered = end = 0
        for begin in range(0, len(payload), ENTRIES_AT_ONCE):
            part = payload[begin : begin + ENTRIES_AT_ONCE + 1].astype(np.int64) * MIB
            ends = np.minimum(part + size, file_size)
            end = max(end, int(ends[-1]))
            if len(part) <= ENTRIES_AT_ONCE:
                part = np.append(part, file_size)
                covered += int((np.minimum(ends, part[1:]) - part[:-1]).sum())
            else:
                covered += int((np.minimum(ends[:-1], part[1:]) - part[:-1]).sum())
        ranges = [(0, MIB), *((offset, offset + length) for _, offset, length in self.table.used)]
        ranges += [(place * MIB, place * MIB + MIB) for place in bitmaps.tolist()]
        reached = 0
        for start, stop in sorted(ranges):
            stop = min(stop, file_size)
            covered += max(0, stop - max(start, reached))
            reached = max(reached, stop)
        end = max(end, reached)
        self.space.unreferenced = max(0, file_size - covered)
        if self.space.unreferenced:
            words = f"nothing refers to {self.space.unreferenced} bytes of the file"
            if file_size > end:
                behind = file_size - end
                words += ", all at its end" if behind == self.space.unreferenced else f", {behind} of them at its end"
            self.findings.note("file", end if file_size > end else None, words)


def judge_table(file: ImageFile, table: Table, findings: Findings, progress: Progress) -> Space:
    """Judges every entry; reads the table once, a second time where blocks overlap."""
    judge = Judge(file, table, findings)
    for first, entries in read_entries(file, table, progress):
        judge.piece(first, entries)
    judge.finish(progress)
    return judge.space
