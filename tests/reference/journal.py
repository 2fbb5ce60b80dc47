"""The journal of image files, read back, and what a power cut may leave of them (disk-formats.md 11).

Of a file, all that completed before the beginning of its last flush that succeeded is durable. The rest is loose: any
subset of its 512-byte sectors and changes of size may be there. Files know nothing of one another's flushes.
"""

import os
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

WRITE, FLUSH, FLUSHED, PUNCH, RESIZE = 1, 2, 3, 4, 5
RECORD = struct.Struct("=IIQQ")
SECTOR = 512
PAGE = 4096
ZEROS = bytes(PAGE)


class Record(NamedTuple):
    kind: int
    file: int
    offset: int
    length: int
    data: bytes


def parse(journal: bytes) -> list[Record]:
    records = []
    at = 0
    while at < len(journal):
        kind, file, offset, length = RECORD.unpack_from(journal, at)
        assert kind in (WRITE, FLUSH, FLUSHED, PUNCH, RESIZE)
        at += RECORD.size
        data = journal[at : at + length] if kind == WRITE else bytes(length)
        assert len(data) == length
        at += length if kind == WRITE else 0
        records.append(Record(kind, file, offset, length, data))
    return records


def cut(start: bytes, records: list[Record], survives: list[bool]) -> bytearray:
    """The file after a cut behind the last of `records`.

    Sectors written before the beginning of a flush that succeeded are there; of those written later, the n-th one
    that may be lost is there when survives[n % len(survives)].
    """
    durable = 0
    begun = 0
    for index, record in enumerate(records):
        if record.kind == FLUSH:
            begun = index
        elif record.kind == FLUSHED:
            durable = begun
    image = bytearray(start)
    loose = 0
    for index, record in enumerate(records):
        if record.kind not in (WRITE, PUNCH):
            continue
        at = record.offset
        while at < record.offset + record.length:
            stop = min(at - at % SECTOR + SECTOR, record.offset + record.length)
            keep = index < durable or survives[loose % len(survives)]
            loose += index >= durable
            if keep:
                image[at:stop] = record.data[at - record.offset : stop - record.offset]
            at = stop
    return image


class Content:
    """A file: its pages that are not zero, and its size. The files of these tests are mostly holes."""

    __slots__ = ("pages", "size")

    def __init__(self, pages: dict[int, bytes] | None = None, size: int = 0) -> None:
        self.pages = pages or {}
        self.size = size

    @classmethod
    def load(cls, path: Path) -> "Content":
        content = cls()
        fd = os.open(path, os.O_RDONLY)
        try:
            end = os.fstat(fd).st_size
            at = 0
            while at < end:
                try:
                    at = os.lseek(fd, at, os.SEEK_DATA)
                except OSError:  # only a hole is left
                    break
                stop = os.lseek(fd, at, os.SEEK_HOLE)
                content.write(at, os.pread(fd, stop - at, at))
                at = stop
        finally:
            os.close(fd)
        content.size = end
        return content

    def store(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.ftruncate(fd, self.size)
            run: list[bytes] = []
            first = 0
            for number in sorted(self.pages):
                if number != first + len(run) or len(run) == 512:
                    self.put(fd, first, run)
                    first, run = number, []
                run.append(self.pages[number])
            self.put(fd, first, run)
        finally:
            os.close(fd)

    def put(self, fd: int, first: int, run: list[bytes]) -> None:
        data = b"".join(run)[: self.size - first * PAGE]
        assert not data or os.pwrite(fd, data, first * PAGE) == len(data)

    def copy(self) -> "Content":
        return Content(self.pages.copy(), self.size)

    def write(self, offset: int, data: bytes) -> None:
        """Like write: extends the file when needed."""
        self.size = max(self.size, offset + len(data))
        at = 0
        while at < len(data):
            number, skip = divmod(offset + at, PAGE)
            part = min(PAGE - skip, len(data) - at)
            page = data[at : at + part]
            if part < PAGE:
                old = self.pages.get(number, ZEROS)
                page = old[:skip] + page + old[skip + part :]
            if page == ZEROS:
                self.pages.pop(number, None)
            else:
                self.pages[number] = page
            at += part

    def punch(self, offset: int, length: int) -> None:
        """The part inside the file reads as zeros."""
        length = min(length, self.size - offset)
        if length <= 0:
            return
        whole = range(-(-offset // PAGE), (offset + length) // PAGE)
        if len(whole) < 3:
            self.write(offset, bytes(length))
            return
        self.write(offset, bytes(whole.start * PAGE - offset))
        for number in whole if len(whole) < len(self.pages) else [page for page in self.pages if page in whole]:
            self.pages.pop(number, None)
        self.write(whole.stop * PAGE, bytes(offset + length - whole.stop * PAGE))

    def resize(self, size: int) -> None:
        if size < self.size:
            self.punch(size, self.size - size)
        self.size = size

    def key(self) -> tuple[int, int]:
        """Equal for equal files, and for no others that a test will meet."""
        return self.size, hash(frozenset(self.pages.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Content) and (self.size, self.pages) == (other.size, other.pages)

    __hash__ = None  # type: ignore[assignment]


# The parts of a record that survive, in sectors from its first one on; of a change of size, anything or nothing.
Kept = list[tuple[int, int]]


def sectors(record: Record) -> int:
    """How many parts of the record may be lost each for itself."""
    if record.kind == RESIZE:
        return 1
    return (record.offset % SECTOR + record.length + SECTOR - 1) // SECTOR


class FileState:
    """One file at a point of its journal: what is durable of it, and the records that are loose."""

    def __init__(self, start: Content) -> None:
        self.durable = start.copy()
        self.durable_size = start.size
        self.loose: list[Record] = []
        self.grows: list[bool] = []  # of the loose records: whether a change of size made the file longer
        self.size = start.size  # with all that is loose
        self.touched = False
        self.begun = 0  # loose records before the beginning of the last flush

    def advance(self, record: Record) -> None:
        self.touched = True
        if record.kind == FLUSH:
            self.begun = len(self.loose)
        elif record.kind == FLUSHED:
            self.durable = self.after([[(0, sectors(each))] for each in self.loose[: self.begun]])
            del self.loose[: self.begun], self.grows[: self.begun]
            self.begun = 0
        else:
            self.loose.append(record)
            self.grows.append(record.kind == RESIZE and record.offset >= self.size)
            if record.kind == RESIZE:
                self.size = record.offset
            elif record.kind == WRITE:
                self.size = max(self.size, record.offset + record.length)

    def after(self, kept: list[Kept]) -> Content:
        """The file with these parts of the first loose records."""
        content = self.durable.copy()
        for record, grows, runs in zip(self.loose, self.grows, kept, strict=False):
            for first, stop in runs:
                if record.kind == RESIZE:
                    # The loss of another change of size does not turn growing into shrinking, or the reverse.
                    if grows == (record.offset >= content.size):
                        content.resize(record.offset)
                    continue
                skip = record.offset % SECTOR
                begin = max(0, first * SECTOR - skip)
                end = min(record.length, stop * SECTOR - skip)
                if record.kind == WRITE:
                    content.write(record.offset + begin, record.data[begin:end])
                else:
                    content.punch(record.offset + begin, end - begin)
        return content


# A way of losing: given a loose record, its place among them and how many there are, what is kept of it.
Choice = Callable[[Record, int, int], Kept]


def whole(record: Record) -> Kept:
    return [(0, sectors(record))]


def everything(record: Record, place: int, count: int) -> Kept:
    return whole(record)


def nothing(record: Record, place: int, count: int) -> Kept:
    return []


def by_chance(rng: Random, share: float) -> Choice:
    return lambda record, place, count: whole(record) if rng.random() < share else []


def parity(record: Record, odd: int) -> Kept:
    if record.kind == RESIZE:
        return [(0, 1)] if odd else []
    first = record.offset // SECTOR
    return [(n, n + 1) for n in range(sectors(record)) if (first + n) % 2 == odd]


def torn(record: Record, rng: Random) -> tuple[Kept, Kept]:
    """Both sides of a boundary inside the record."""
    boundary = rng.randrange(1, sectors(record))
    return [(0, boundary)], [(boundary, sectors(record))]


def coins(record: Record, rng: Random) -> Kept:
    """Sectors one by one; in long records, stretches of them."""
    count = sectors(record)
    stretch = max(1, count // 32)
    return [(n, min(n + stretch, count)) for n in range(0, count, stretch) if rng.random() < 0.5]


def ways(
    loose: dict[str, list[Record]], rng: Random, random: int, each: bool
) -> Iterator[tuple[str, dict[str, list[Kept]]]]:
    """Ways of losing some of the loose records of each file: what is kept of them, and how to call it.

    random: how many chosen by chance of each kind; each: every record lost, and kept, for itself.
    """

    def choose(choice: Choice) -> dict[str, list[Kept]]:
        return {
            name: [choice(record, n, len(records)) for n, record in enumerate(records)]
            for name, records in loose.items()
        }

    yield "nothing loose survives", choose(nothing)
    if not any(loose.values()):
        return
    yield "all survives", choose(everything)
    yield "only the last survives", choose(lambda record, n, count: whole(record) if n == count - 1 else [])
    yield "only the last is lost", choose(lambda record, n, count: whole(record) if n < count - 1 else [])
    yield "even sectors survive", choose(lambda record, n, count: parity(record, 0))
    yield "odd sectors survive", choose(lambda record, n, count: parity(record, 1))
    if any(record.kind == RESIZE for records in loose.values() for record in records):
        yield "only sizes are lost", choose(lambda record, n, count: [] if record.kind == RESIZE else whole(record))
        yield "only sizes survive", choose(lambda record, n, count: whole(record) if record.kind == RESIZE else [])
    if sum(map(bool, loose.values())) > 1:
        for kept in loose:
            choice = {name: [whole(r) if name == kept else [] for r in records] for name, records in loose.items()}
            yield f"only {kept} survives", choice
    singles = [(name, n, record) for name, records in loose.items() for n, record in enumerate(records)]
    long = [single for single in singles if sectors(single[2]) > 1]
    tears = long[-1:] if not each else long
    for name, n, record in tears:
        head, tail = torn(record, rng)
        for part, kept_part in (("head", head), ("tail", tail)):
            for others in (True, False):
                choice = choose(everything if others else nothing)
                choice[name][n] = kept_part
                yield f"{name}: {part} of loose record {n} {'and all others' if others else 'alone'}", choice
    if not each:
        singles = rng.sample(singles, min(random, len(singles)))
    for name, n, record in singles:
        choice = choose(everything)
        choice[name][n] = []
        yield f"{name}: only loose record {n} is lost", choice
        choice = choose(nothing)
        choice[name][n] = whole(record)
        yield f"{name}: only loose record {n} survives", choice
    for number in range(random):
        share = rng.random()
        yield f"random records {number}", choose(by_chance(rng, share))
        yield f"random sectors {number}", choose(lambda record, n, count: coins(record, rng))


def cuts(
    start: dict[str, Content],
    names: list[str],
    records: list[Record],
    *,
    first: int = 0,
    random: int = 1,
    each: bool = False,
    seed: int = 0,
) -> Iterator[tuple[int, str, dict[str, Content]]]:
    """(number of records before the cut, way of losing, the files it leaves), for every cut from `first` on.

    start: the files, by name; names: the name of each file number. A file that is not in `start` begins empty, and is
    in the answer once there are records of it. Equal states are not left out; of a file without any records so far, the
    answer has the very Content of `start`.
    """
    rng = Random(seed)
    states: dict[str, FileState] = defaultdict(lambda: FileState(Content()))
    states.update({name: FileState(content) for name, content in start.items()})
    for cut in range(len(records) + 1):
        if cut:
            record = records[cut - 1]
            states[names[record.file]].advance(record)
        if cut < first:
            continue
        for way, kept in ways({name: state.loose for name, state in states.items()}, rng, random, each):
            yield (
                cut,
                way,
                {name: state.after(kept[name]) if state.touched else start[name] for name, state in states.items()},
            )
