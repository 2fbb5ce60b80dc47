"""A plain VHDX writer with log and replay, in the order of disk-formats.md 10, for blocks of 1 MiB and one thread.

It is the twin that tells whether a crash test bites: `wrong` names a rule that it breaks. A `lazy` one applies nothing,
so that a dropped image has its whole log to replay. Of hostile input it knows nothing.
"""

import os
import struct
from pathlib import Path
from uuid import UUID, uuid4

from hvcore.disk.crc import crc32c
from hvcore.disk.medium import ImageFile
from hvcore.disk.probe import PROBE
from hvcore.errors import ImageError
from tests.reference.vhdx import BAT, HEADERS, METADATA, MIB, NO_LOG, REGION_TABLES

PAGE = 4096
SECTOR = 512
RATIO = 4096
ABSENT, ZERO, FULL, PARTIAL = 0, 2, 6, 7
BITMAP = RATIO  # table index of the first chunk's bitmap block; no disk here has a second chunk

# What can be wrong, and the rule of disk-formats.md 11 that it breaks.
WRONGS = {
    "header first": 1,
    "no data flush": 2,
    "applied before logged": 4,
    "tail too early": 5,
    "head overwritten": 6,
    "space reused at once": 7,
    "replay forgets to flush": 10,
    "stale space": 15,
}


def sealed(block: bytes) -> bytes:
    return block[:4] + struct.pack("<I", crc32c(block[:4] + bytes(4) + block[8:])) + block[8:]


def sound(block: bytes, signature: bytes) -> bool:
    return block[:4] == signature and sealed(block) == block


class Writer:
    def __init__(
        self, path: Path, mode: str, wrong: str = "", parent: "Writer | None" = None, *, lazy: bool = False
    ) -> None:
        self.file = ImageFile(
            os.open(path, os.O_RDWR if mode == "r+" else os.O_RDONLY), probe=PROBE.get(), name=str(path)
        )
        self.wrong = wrong
        self.lazy = lazy
        self.parent = parent
        self.writes = mode == "r+"
        try:
            self.load()
        except BaseException:
            self.release()
            raise

    def load(self) -> None:
        copies = [self.file.read(offset, PAGE) for offset in HEADERS]
        valid = [n for n in (0, 1) if sound(copies[n], b"head")]
        if not valid:
            raise ImageError("both headers are damaged")
        self.copy = max(valid, key=lambda n: struct.unpack_from("<Q", copies[n], 8))
        head = copies[self.copy]
        self.sequence, *guids = struct.unpack_from("<Q16s16s16s", head, 8)
        self.guids = [UUID(bytes_le=guid) for guid in guids]  # file write, data write, log
        self.log_length, self.log_offset = struct.unpack_from("<IQ", head, 68)
        if self.guids[2] != NO_LOG:
            if not self.writes:
                raise ImageError("the log waits for its replay")
            self.replay()
        table = self.file.read(REGION_TABLES[0], 64 << 10)
        regions = {
            UUID(bytes_le=guid): (offset, length)
            for guid, offset, length, _ in struct.iter_unpack("<16sQII", table[16:80])
        }
        metadata, _ = regions[METADATA]
        flags, self.size = struct.unpack("<IQ", self.file.read(metadata + (64 << 10) + 4, 12))
        self.child = bool(flags & 2)
        self.bat_offset, bat_length = regions[BAT]
        self.blocks = -(-self.size // MIB)
        entries = RATIO + 1 if self.child else self.blocks
        # The pages that are logged, by their offsets in the file: those of the table, and of the bitmap block.
        self.pages = {
            self.bat_offset + at: bytearray(self.file.read(self.bat_offset + at, PAGE))
            for at in range(0, 8 * entries, PAGE)
        }
        places = [self.entry(n)[1] for n in [*range(self.blocks), *([BITMAP] if self.child else [])]]
        used = [self.bat_offset + bat_length, metadata + MIB, *(place + MIB for place in places if place)]
        self.end: int = max(used)
        if self.file.size() < self.end:
            raise ImageError("a block ends behind the file")
        partial = any(self.entry(n)[0] == PARTIAL for n in range(self.blocks))
        self.bitmap = self.entry(BITMAP)[1] if self.child else 0
        if partial and not self.bitmap:
            raise ImageError("a block has parts, but no bitmap")
        if self.bitmap:
            for at in range(0, self.blocks * MIB // SECTOR // 8, PAGE):
                self.pages[self.bitmap + at] = bytearray(self.file.read(self.bitmap + at, PAGE))
        # Unreferenced space may hold anything: it is zeroed before use (rule 15).
        self.clean = self.end if self.wrong == "stale space" else self.file.size()
        self.free: list[int] = []
        self.dropped: list[int] = []
        self.dirty: set[int] = set()
        self.unapplied: dict[int, bytes] = {}
        self.begun = False
        self.log = NO_LOG
        self.flushed_size = self.file.size()

    # Headers

    def update_header(self, *, flush: bool = True) -> None:
        for _ in range(2):
            self.sequence += 1
            self.copy = 1 - self.copy
            fields = b"".join(guid.bytes_le for guid in self.guids)
            body = struct.pack(
                "<4sIQ48sHHIQ", b"head", 0, self.sequence, fields, 0, 1, self.log_length, self.log_offset
            )
            self.file.write(HEADERS[self.copy], sealed(body.ljust(PAGE, b"\0")))
            if flush:
                self.file.flush()

    # Log

    def log_entry(self, pages: dict[int, bytes], tail: int | None = None) -> bytes:
        self.number += 1
        descriptors = b""
        sectors = b""
        for offset, page in pages.items():
            descriptors += struct.pack("<4s4s8sQQ", b"desc", page[-4:], page[:8], offset, self.number)
            high, low = self.number >> 32, self.number & 0xFFFFFFFF
            sectors += struct.pack("<4sI", b"data", high) + page[8:-4] + struct.pack("<I", low)
        length = PAGE + len(sectors)
        head = struct.pack(
            "<4sIIIQII16sQQ",
            b"loge",
            0,
            length,
            self.position if tail is None else tail,
            self.number,
            len(pages),
            0,
            self.guids[2].bytes_le,
            self.flushed_size // MIB * MIB,
            self.end,
        )
        return sealed((head + descriptors).ljust(PAGE, b"\0") + sectors)

    def start_log(self) -> None:
        self.number = 0
        self.position = 0
        guid = self.guids[2] = uuid4()
        if self.wrong == "header first":
            self.update_header()
        entry = self.log_entry({})
        self.file.write(self.log_offset, entry)
        self.flush_file()
        if self.wrong != "header first":
            self.update_header()
        self.log = guid
        self.position = len(entry) if self.wrong != "head overwritten" else 0

    def append(self, pages: dict[int, bytes]) -> None:
        if self.log == NO_LOG:
            self.start_log()
        if self.position + PAGE * (1 + len(pages)) > self.log_length:
            self.apply()
            self.flush_file()
            self.guids[2] = NO_LOG
            self.update_header()
            self.start_log()
        entry = self.log_entry(pages, 0 if self.lazy else None)
        if self.wrong == "applied before logged":
            self.unapplied = pages
            self.apply()
        self.file.write(self.log_offset + self.position, entry)
        self.flush_file()
        self.position += len(entry) if self.wrong != "head overwritten" else 0
        self.unapplied = pages

    def apply(self) -> None:
        for offset, page in self.unapplied.items():
            self.file.write(offset, page)
        self.unapplied = {}

    def replay(self) -> None:
        log = self.file.read(self.log_offset, self.log_length)
        best: list[tuple[int, bytes]] = []
        at = 0
        while at < len(log):
            found: list[tuple[int, bytes]] = []
            place = at
            while (entry := self.valid(log, place)) and (not found or number(entry) == number(found[-1][1]) + 1):
                found.append((place, entry))
                place += len(entry)
            tails = [place for place, _ in found]
            usable = found and struct.unpack_from("<I", found[-1][1], 12)[0] in tails
            if usable and (not best or number(found[-1][1]) > number(best[-1][1])):
                best = found
            at = place if usable else at + PAGE
        if not best:
            raise ImageError("the log has no entry to replay")
        tail, _, _, _, _, flushed, last = struct.unpack_from("<IQII16sQQ", best[-1][1], 12)
        if self.file.size() < flushed:
            raise ImageError("truncated")
        self.guids[0] = uuid4()
        self.update_header()
        for place, entry in best:
            if place >= tail:
                for n in range(struct.unpack_from("<I", entry, 24)[0]):
                    _, trailing, leading, offset, _ = struct.unpack_from("<4s4s8sQQ", entry, 64 + 32 * n)
                    data = entry[PAGE * (n + 1) : PAGE * (n + 2)]
                    self.file.write(offset, leading + data[8:-4] + trailing)
        if self.file.size() < last:
            self.file.resize(last)
        forgets = self.wrong == "replay forgets to flush"
        if not forgets:
            self.file.flush()
        self.guids[2] = NO_LOG
        self.update_header(flush=not forgets)
        self.file.flush()

    def valid(self, log: bytes, place: int) -> bytes:
        if log[place : place + 4] != b"loge" or log[place + 32 : place + 48] != self.guids[2].bytes_le:
            return b""
        (length,) = struct.unpack_from("<I", log, place + 8)
        entry = log[place : place + length]
        return entry if length % PAGE == 0 and len(entry) == length and sound(entry, b"loge") else b""

    # Data

    def entry(self, index: int) -> tuple[int, int]:
        at = self.bat_offset + 8 * index
        (value,) = struct.unpack_from("<Q", self.pages[at // PAGE * PAGE], at % PAGE)
        return value & 7, value & ~(MIB - 1)

    def point(self, index: int, state: int, place: int) -> None:
        at = self.bat_offset + 8 * index
        struct.pack_into("<Q", self.pages[at // PAGE * PAGE], at % PAGE, place | state)
        self.dirty.add(at // PAGE * PAGE)

    def bit(self, sector: int) -> bool:
        at = self.bitmap + sector // 8
        return bool(self.pages[at // PAGE * PAGE][at % PAGE] >> sector % 8 & 1)

    def mark(self, sector: int, value: bool) -> None:
        at = self.bitmap + sector // 8
        page = self.pages[at // PAGE * PAGE]
        page[at % PAGE] = page[at % PAGE] & ~(1 << sector % 8) | value << sector % 8
        self.dirty.add(at // PAGE * PAGE)

    def allocate(self) -> int:
        if self.free:
            place = self.free.pop(0)
            self.file.punch(place, MIB)
            return place
        place = self.end
        self.end += MIB
        if place < self.clean:
            self.file.punch(place, MIB)
        if self.file.size() < self.end:
            self.file.resize(self.end)
        return place

    def read(self, offset: int, length: int) -> bytes:
        parts = []
        while length:
            block, at = divmod(offset, MIB)
            part = min(length, MIB - at)
            state, place = self.entry(block)
            if state == FULL:
                parts.append(self.file.read(place + at, part))
            elif state == PARTIAL or (state == ABSENT and self.parent):
                assert self.parent is not None
                below = self.parent.read(offset, part)
                if state == PARTIAL:
                    above = self.file.read(place + at, part)
                    for n in range(0, part, SECTOR):
                        parts.append((above if self.bit((offset + n) // SECTOR) else below)[n : n + SECTOR])
                else:
                    parts.append(below)
            else:
                parts.append(bytes(part))
            offset += part
            length -= part
        return b"".join(parts)

    def begin(self) -> None:
        if not self.begun:
            self.guids[0], self.guids[1] = uuid4(), uuid4()
            self.update_header()
            self.begun = True

    def write(self, offset: int, data: object) -> None:
        assert isinstance(data, bytes)
        self.begin()
        while data:
            block, at = divmod(offset, MIB)
            part = data[: MIB - at]
            self.write_part(block, at, part)
            data = data[len(part) :]
            offset += len(part)

    def write_part(self, block: int, at: int, data: bytes) -> None:
        state, place = self.entry(block)
        sectors = range((block * MIB + at) // SECTOR, (block * MIB + at + len(data)) // SECTOR)
        if state in (FULL, PARTIAL):
            self.file.write(place + at, data)
        else:
            place = self.allocate()
            self.file.write(place + at, data)
            partial = state == ABSENT and self.child and len(data) < MIB
            if partial and not self.bitmap:
                self.bitmap = self.allocate()
                self.point(BITMAP, FULL, self.bitmap)
                for offset in range(0, self.blocks * MIB // SECTOR // 8, PAGE):
                    self.pages[self.bitmap + offset] = bytearray(PAGE)
            if partial:
                for sector in range(block * MIB // SECTOR, (block + 1) * MIB // SECTOR):
                    self.mark(sector, False)
            state = PARTIAL if partial else FULL
            self.point(block, state, place)
        if state == PARTIAL:
            for sector in sectors:
                if not self.bit(sector):
                    self.mark(sector, True)

    def trim(self, offset: int, length: int) -> None:
        self.begin()
        while length:
            block, at = divmod(offset, MIB)
            part = min(length, MIB - at)
            state, place = self.entry(block)
            if part < MIB and offset + part < self.size:
                self.write_part(block, at, bytes(part))
            elif state != ZERO:
                self.point(block, ZERO, 0)
                if place:
                    (self.free if self.wrong == "space reused at once" else self.dropped).append(place)
            offset += part
            length -= part

    def flush_file(self) -> None:
        size = self.file.size()
        self.file.flush()
        self.flushed_size = size

    def flush(self) -> None:
        if not self.dirty:
            self.file.flush()
            return
        frozen = {offset: bytes(self.pages[offset]) for offset in sorted(self.dirty)}
        dropped = self.dropped
        self.dirty = set()
        self.dropped = []
        # What is applied before this flush needs its entry no more: the next one's tail is its own place.
        if self.wrong != "tail too early" and not self.lazy:
            self.apply()
        if self.wrong != "no data flush":
            self.flush_file()
        forgotten = self.unapplied
        self.append(frozen)
        if self.wrong == "tail too early":
            self.unapplied = {**forgotten, **frozen}
        self.free += dropped

    def close(self) -> None:
        if self.begun:
            self.flush()
            self.apply()
            self.file.flush()
            if self.log != NO_LOG:
                self.guids[2] = NO_LOG
                self.update_header()
        self.release()

    def release(self) -> None:
        self.file.close()
        if self.parent is not None:
            self.parent.close()


def number(entry: bytes) -> int:
    value: int = struct.unpack_from("<Q", entry, 16)[0]
    return value
