"""What a guest may find after a power cut or a fault, and the machinery that looks at every such state.

A Scenario says how the files are made and what the guest does. record() does it under a probe; explore() rebuilds the
files that a cut anywhere may leave, opens each of them and asks the Oracle: every sector holds what it held at the last
completed flush, or something written since (disk-formats.md 11). disturb() does it with a failing medium.
"""

import gc
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import NamedTuple, Protocol

import numpy as np

from hvcore.disk.image import open_image
from hvcore.disk.medium import Probe
from hvcore.disk.probe import probing
from hvcore.errors import DiskError, ImageError
from tests.reference import journal
from tests.reference.journal import SECTOR, Content, FileState, Record

STAMP = struct.Struct("<8sII")
ZERO = bytes(SECTOR)
# (verb, first sector, sectors). Verbs: write, trim, flush; reopen: close and open again; here: cuts begin.
Step = tuple[str, int, int]


class Disk(Protocol):
    """What a Backend can, as far as it is needed here."""

    @property
    def size(self) -> int: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: object) -> None: ...
    def flush(self) -> None: ...
    def trim(self, offset: int, length: int) -> None: ...
    def close(self) -> None: ...


def stamped(step: int, sector: int) -> bytes:
    """A sector as step `step` writes it: no two are equal, and every part of one tells which it is."""
    return STAMP.pack(b"hvcore\0\0", step, sector) * (SECTOR // STAMP.size)


def fresh(step: int, first: int, sectors: int) -> bytes:
    return b"".join(stamped(step, sector) for sector in range(first, first + sectors))


def reading(data: bytes) -> str:
    """In words, what a sector holds."""
    if data == ZERO:
        return "zeros"
    mark, step, sector = STAMP.unpack_from(data)
    if mark != b"hvcore\0\0":
        return f"foreign bytes {data[:16].hex()}"
    return f"sector {sector} as of step {step}" + ("" if data == stamped(step, sector) else ", torn")


class Change(NamedTuple):
    """One call of the guest: written (data; of a trim, zeros), or flushed (data is None)."""

    begin: int  # bytes of the journal before the call
    end: int  # and when it had returned
    sector: int
    data: bytes | None
    failed: bool

    def sectors(self) -> Iterator[tuple[int, bytes]]:
        for at in range(0, len(self.data or b""), SECTOR):
            assert self.data is not None
            yield self.sector + at // SECTOR, self.data[at : at + SECTOR]


class Oracle:
    """What each sector may hold after a cut, for cuts that come later and later."""

    def __init__(self, start: bytes, changes: list[Change]) -> None:
        self.flushed = bytearray(start)
        self.uncertain: dict[int, list[bytes]] = {}  # written by a call that failed, before the last flush
        self.newer: dict[int, list[bytes]] = {}  # written since
        self.changes = changes
        self.begun = self.returned = self.folded = 0
        self.flushes = 0

    def advance(self, position: int) -> None:
        """To a cut behind `position` bytes of the journal."""
        while self.begun < len(self.changes):
            change = self.changes[self.begun]
            if change.begin >= position and change.end > position:
                break
            for sector, data in change.sectors():
                self.newer.setdefault(sector, []).append(data)
            self.begun += 1
        while self.returned < self.begun and self.changes[self.returned].end <= position:
            change = self.changes[self.returned]
            self.returned += 1
            if change.data is None and not change.failed:
                self.fold(self.returned)

    def fold(self, stop: int) -> None:
        """A flush after the changes before number `stop` has returned."""
        self.flushes += 1
        for change in self.changes[self.folded : stop]:
            for sector, data in change.sectors():
                if change.failed:
                    self.uncertain.setdefault(sector, []).append(data)
                else:
                    self.uncertain.pop(sector, None)
                    self.flushed[sector * SECTOR : (sector + 1) * SECTOR] = data
        self.folded = stop
        self.newer = {}
        for change in self.changes[stop : self.begun]:
            for sector, data in change.sectors():
                self.newer.setdefault(sector, []).append(data)

    def judge(self, found: bytes) -> str:
        """What is wrong with the content of a disk; "": nothing."""
        if found == self.flushed:
            return ""
        if len(found) != len(self.flushed):
            return f"the disk has {len(found)} bytes, not {len(self.flushed)}"
        rows = (-1, SECTOR // 8)
        equal = np.frombuffer(found, np.uint64).reshape(rows) == np.frombuffer(self.flushed, np.uint64).reshape(rows)
        for sector in np.flatnonzero(~equal.all(axis=1)).tolist():
            data = found[sector * SECTOR : (sector + 1) * SECTOR]
            newer = self.uncertain.get(sector, []) + self.newer.get(sector, [])
            if data not in newer:
                flushed = reading(bytes(self.flushed[sector * SECTOR : (sector + 1) * SECTOR]))
                also = ", or ".join([flushed, *dict.fromkeys(map(reading, newer))])
                return f"sector {sector} holds {reading(data)}; allowed: {also}"
        return ""


class Whole:
    """The Oracle of a tool: the content is `before` or `after`, and `after` once the tool has returned (at `end`)."""

    def __init__(self, before: bytes, after: bytes, end: int) -> None:
        self.allowed = [before, after]
        self.after = after
        self.end = end
        self.flushes = 0

    def advance(self, position: int) -> None:
        if position >= self.end:
            self.allowed = [self.after]
            self.flushes = 1

    def judge(self, found: bytes) -> str:
        if found in self.allowed:
            return ""
        likely = Oracle(self.allowed[-1], [])
        return f"none of {len(self.allowed)} allowed contents; compared with the last one: {likely.judge(found)}"


class Judge(Protocol):
    flushes: int

    def advance(self, position: int) -> None: ...
    def judge(self, found: bytes) -> str: ...


def open_disk(path: Path, mode: str) -> Disk:
    return open_image(path, mode=mode)


def nothing_to_say(path: Path) -> str:
    return ""


@dataclass(frozen=True)
class Scenario:
    """disk: name of the file that is opened. build: makes the files in a folder and returns the disk's content.

    mend: done to the disk's file before it is opened after a cut, where opening alone does not recover. check: what is
    wrong with an image, in words; "": nothing. block: sectors that are allocated together; grain: of which requests are
    multiples; trims: whether the disk can. lacks: what hvcore has not got that this needs, in words.
    """

    name: str
    disk: str
    build: Callable[[Path], bytes]
    steps: tuple[Step, ...] = ()
    block: int = 8
    grain: int = 1
    trims: bool = True
    lacks: str = ""
    open: Callable[[Path, str], Disk] = open_disk
    mend: Callable[[Path], object] = nothing_to_say
    check: Callable[[Path], str] = nothing_to_say


@dataclass(frozen=True)
class Recording:
    start: dict[str, Content]
    names: list[str]  # of the files by their numbers in the journal
    records: list[Record]
    positions: list[int]  # bytes of the journal before each record, and at its end
    judge: Callable[[], Judge]
    first: int = 0  # records before the first cut of interest


@dataclass(frozen=True)
class Effort:
    """How much explore() does. Every n-th state: overlay: is read without replay first; check: is
    opened once more and checked; life: lives on, and is cut again `depth` times, at most `lives` of them."""

    random: int = 3
    each: bool = False
    overlay: int = 5
    check: int = 3
    life: int = 40
    lives: int = 2
    depth: int = 1


LIGHT = Effort()
QUICK = Effort(random=1, overlay=8, check=4, lives=1)
THOROUGH = Effort(random=8, each=True, overlay=3, check=1, life=60, lives=8, depth=2)


@dataclass
class Tally:
    """Distinct states that were looked at, each once."""

    states: int = 0  # after cuts of the scenario
    later: int = 0  # after cuts of a recovery, or of the life after it
    cuts: int = 0
    records: int = 0
    seen: set[object] = field(default_factory=set)


@contextmanager
def fast_folder() -> Iterator[Path]:
    """A folder in memory where there is one: the states are many, and none has to last."""
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="hvcore-crash-", dir=place) as name:
        yield Path(name)


@contextmanager
def journal_file() -> Iterator[int]:
    fd = os.memfd_create("journal")
    try:
        yield fd
    finally:
        os.close(fd)


def lay_out(folder: Path, files: dict[str, Content], laid: dict[str, Content] | None = None) -> None:
    """Makes the folder hold these files, and no others. laid: those that are there and need not be written again."""
    laid = {} if laid is None else laid
    for path in folder.iterdir():
        if path.name not in files:
            path.unlink()
    for name, content in files.items():
        if laid.get(name) is not content:
            content.store(folder / name)
            laid[name] = content


def taken(folder: Path) -> dict[str, Content]:
    return {path.name: Content.load(path) for path in sorted(folder.iterdir())}


def parsed(fd: int, names: list[str]) -> tuple[list[Record], list[int], list[str]]:
    records = journal.parse(os.pread(fd, os.fstat(fd).st_size, 0))
    positions = [0]
    for record in records:
        length = record.length if record.kind == journal.WRITE else 0
        positions.append(positions[-1] + journal.RECORD.size + length)
    return records, positions, [Path(name).name for name in names]


class Session(NamedTuple):
    changes: list[Change]
    disk: Disk | None  # still open
    here: int  # the position of the step of this name

    def wrong(self, content: bytes) -> str:
        """What is wrong with what the open disk shows."""
        oracle = Oracle(content, self.changes)
        oracle.begun = len(self.changes)
        oracle.fold(oracle.begun)
        assert self.disk is not None
        return oracle.judge(self.disk.read(0, self.disk.size))


def doubt(changes: list[Change]) -> None:
    """What was not flushed before the disk was given up may be lost, whatever its calls returned."""
    for number in range(len(changes) - 1, -1, -1):
        if changes[number].data is None and not changes[number].failed:
            break
        changes[number] = changes[number]._replace(failed=True)


def perform(
    scenario: Scenario, folder: Path, position: Callable[[], int], *, tolerate: bool = False, base: int = 0
) -> Session:
    """Does the steps, and leaves the disk open.

    tolerate: calls may fail with DiskError or ImageError; the guest goes on, and opens the disk again if it has none.
    base: added to the numbers of the steps, so that their data differ from any before.
    """
    faults = (DiskError, ImageError) if tolerate else ()
    path = folder / scenario.disk
    changes: list[Change] = []
    disk: Disk | None = None
    here = failures = 0
    for number, (verb, sector, length) in enumerate((("open", 0, 0), *scenario.steps), base):
        if verb == "here":
            here = position()
            continue
        if verb == "reopen" and disk is not None:
            closing, disk = disk, None
            try:
                closing.close()
            except faults:
                failures += 1
            del closing
        if disk is None:
            try:
                if failures:
                    doubt(changes)
                disk = scenario.open(path, "r+")
            except faults:
                failures += 1
                continue
        if verb in ("open", "reopen"):
            continue
        begin = position()
        data = None
        failed = False
        try:
            if verb == "write":
                data = fresh(number, sector, length)
                disk.write(sector * SECTOR, data)
            elif verb == "trim":
                data = bytes(length * SECTOR)
                disk.trim(sector * SECTOR, length * SECTOR)
            else:
                assert verb == "flush"
                disk.flush()
        except faults:
            failed = True
            failures += 1
        changes.append(Change(begin, position(), sector, data, failed))
    return Session(changes, disk, here)


def record(scenario: Scenario, folder: Path) -> Recording:
    """The scenario in a folder of its own, closed at its end."""
    return lived(scenario, folder, scenario.build(folder))


def lived(scenario: Scenario, folder: Path, content: bytes, base: int = 0) -> Recording:
    """The scenario on the files that are there; content: of the disk."""
    start = taken(folder)
    with journal_file() as log, probing(Probe(log)) as probe:
        changes, disk, here = session = perform(scenario, folder, lambda: os.fstat(log).st_size, base=base)
        assert disk is not None
        try:
            wrong = session.wrong(content)
        finally:
            disk.close()
        assert not wrong, f"{scenario.name}: without any cut: {wrong}"
        records, positions, names = parsed(log, probe.names)
    complete(start, names, records, folder)
    return Recording(start, names, records, positions, lambda: Oracle(content, changes), positions.index(here))


def operation(
    scenario: Scenario, folder: Path, function: Callable[[Path], object], after: Callable[[bytes], bytes]
) -> Recording:
    """A tool's `function` on the disk's path: inside it, the content is as before or `after` that; once it has
    returned, the latter. It works in place: the journal knows nothing of renamed files."""
    before = scenario.build(folder)
    start = taken(folder)
    with journal_file() as log, probing(Probe(log)) as probe:
        function(folder / scenario.disk)
        records, positions, names = parsed(log, probe.names)
    complete(start, names, records, folder)
    return Recording(start, names, records, positions, lambda: Whole(before, after(before), positions[-1]))


def complete(start: dict[str, Content], names: list[str], records: list[Record], folder: Path) -> None:
    """The journal missed nothing: with all of it, the files are as they are."""
    states = {name: FileState(content) for name, content in start.items()}
    for each in records:
        states.setdefault(names[each.file], FileState(Content())).advance(each)
    for name, state in states.items():
        path = folder / name
        if path.exists():
            assert state.after([journal.whole(each) for each in state.loose]) == Content.load(path), name


def story(recording: Recording, cut: int) -> str:
    """The last records before a cut, in words."""
    kinds = {1: "write", 2: "flush begins", 3: "flushed", 4: "punch", 5: "resize to"}
    first = max(recording.first, cut - 40)
    lines = [] if first == 0 else [f"  ... {first} records before"]
    for number in range(first, cut):
        each = recording.records[number]
        what = f"{number}: {recording.names[each.file]}: {kinds[each.kind]}"
        if each.kind in (journal.WRITE, journal.PUNCH):
            what += f" {each.offset:#x}+{each.length:#x}"
            if each.kind == journal.WRITE:
                what += f" ({reading(each.data.ljust(SECTOR, bytes(1))[:SECTOR])})"
        elif each.kind == journal.RESIZE:
            what += f" {each.offset:#x}"
        lines.append("  " + what)
    return "\n".join(lines)


def look(scenario: Scenario, folder: Path, mode: str) -> bytes:
    """The whole content, and a clean end."""
    disk = scenario.open(folder / scenario.disk, mode)
    try:
        return disk.read(0, disk.size)
    finally:
        disk.close()


def recover(
    scenario: Scenario,
    folder: Path,
    files: dict[str, Content],
    judge: Judge,
    *,
    overlay: bool,
    check: bool,
    laid: dict[str, Content] | None = None,
) -> bytes:
    """Opens what a cut has left. Returns the content; AssertionError: what is wrong. laid: see lay_out()."""
    if laid is not None:
        laid.pop(scenario.disk, None)
    lay_out(folder, files, laid)
    path = folder / scenario.disk
    try:
        scenario.mend(path)
        shown = None
        if overlay:
            before = taken(folder)
            shown = look(scenario, folder, "r")
            assert taken(folder) == before, "reading alone has changed the file"
            wrong = judge.judge(shown)
            assert not wrong, f"opened for reading: {wrong}"
        found = look(scenario, folder, "r+")
        wrong = judge.judge(found)
        assert not wrong, wrong
        assert shown is None or shown == found, "read-only and recovered content differ: " + differing(shown, found)
        if check:
            again = look(scenario, folder, "r")
            assert again == found, "opened again, the content differs: " + differing(found, again)
            wrong = scenario.check(path)
            assert not wrong, f"after the recovery, check says: {wrong}"
    except (DiskError, ImageError) as error:
        raise AssertionError(f"{type(error).__name__}: {error}") from error
    return found


def differing(left: bytes, right: bytes) -> str:
    return Oracle(left, []).judge(right)


def explore(
    scenario: Scenario, recording: Recording, folder: Path, tally: Tally, effort: Effort = LIGHT, base: int = 1000
) -> None:
    """Looks at every state that a cut may leave. AssertionError: the first bad one, told with the records before it."""
    judge = recording.judge()
    known = tally.seen
    epochs: set[object] = set()
    lives: list[tuple[dict[str, Content], bytes]] = []
    tally.records += len(recording.records)
    later = base > 1000
    seen = 0
    last = -1
    laid: dict[str, Content] = {}
    ways = journal.cuts(
        recording.start,
        recording.names,
        recording.records,
        first=recording.first,
        random=effort.random,
        each=effort.each,
        seed=base,
    )
    for cut, way, files in ways:
        judge.advance(recording.positions[cut])
        tally.cuts += cut != last
        last = cut
        state = tuple((name, content.key()) for name, content in sorted(files.items()))
        # Later in the same epoch more is allowed: an equal state has been judged more strictly already.
        if (judge.flushes, state) in epochs:
            continue
        epochs.add((judge.flushes, state))
        if state not in known:
            known.add(state)
            tally.later += later
            tally.states += not later
        seen += 1
        try:
            found = recover(
                scenario,
                folder,
                files,
                judge,
                overlay=seen % effort.overlay == 0,
                check=seen % effort.check == 0,
                laid=laid,
            )
        except AssertionError as error:
            text = f"{scenario.name}: cut after {cut} records; {way}: {error}\n{story(recording, cut)}"
            raise AssertionError(text) from error
        if effort.depth and seen % effort.life == 0:
            lives.append((files, found))
    # Spread over the whole scenario.
    for number, (files, content) in enumerate(lives[:: -(-len(lives) // effort.lives)] if lives else []):
        lay_out(folder, files)
        scenario.mend(folder / scenario.disk)
        again = base + 1000 * (number + 1)
        life = replace(scenario, steps=wander(scenario, len(content) // SECTOR, Random(again), 9))
        explore(
            life,
            lived(life, folder, content, base=again),
            folder,
            tally,
            replace(effort, random=0, each=False, depth=effort.depth - 1, lives=2),
            base=again * 10,
        )


def wander(scenario: Scenario, sectors: int, rng: Random, number: int) -> tuple[Step, ...]:
    """So many steps by chance, all over a disk of `sectors`; about half of them in one block, and the last no flush."""

    def grained(value: int) -> int:
        return value // scenario.grain * scenario.grain

    favourite = rng.randrange(sectors // scenario.block) * scenario.block
    steps: list[Step] = []
    for _ in range(number):
        what = rng.random()
        first = favourite if rng.random() < 0.5 else rng.randrange(sectors) // scenario.block * scenario.block
        if what < 0.25:
            steps.append(("flush", 0, 0))
        elif what < 0.28:
            steps.append(("reopen", 0, 0))
        elif what < 0.4 and scenario.trims:
            steps.append(("trim", first, min(sectors - first, scenario.block * rng.randrange(1, 3))))
        else:
            # Often over the edge of a block, seldom a whole one.
            first = grained(max(0, first + rng.choice((-2, 0, 1, rng.randrange(scenario.block)))))
            length = scenario.block if what < 0.45 else grained(rng.randrange(8)) + scenario.grain
            length = min(sectors - first, length)
            verb = "trim" if what > 0.95 and scenario.trims else "write"
            steps.append((verb, first, length))
    return (*steps, ("write", grained(sectors // 2), scenario.grain))


class Fault(NamedTuple):
    error: int  # errno; 0: a write stops half-way
    stays: bool


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def disturb(
    scenario: Scenario,
    folder: Path,
    start: dict[str, Content],
    content: bytes,
    call: int,
    fault: Fault,
    close: bool,
) -> bool:
    """The scenario with a fault at one call of the medium. False: it ended before that call.

    Errors must come as DiskError or ImageError; whatever fails, all that was flushed is there afterwards.
    """
    lay_out(folder, start)
    before = descriptors()
    with journal_file() as log, probing(Probe(log)) as probe:
        probe.fail(call, fault.error, fault.stays)
        session = perform(scenario, folder, lambda: os.fstat(log).st_size, tolerate=True)
        changes, disk, _ = session
        try:
            if disk is not None:
                try:
                    wrong = session.wrong(content)
                except DiskError:
                    wrong = ""
                assert not wrong, f"before it was closed: {wrong}"
                if close:
                    with suppress(DiskError, ImageError):
                        disk.close()
            happened = probe.calls >= call
            del session
            disk = None
            gc.collect()  # an error that was caught may hold the disk in a circle of frames
            assert descriptors() == before + 1, "a descriptor is left"
            records, _, names = parsed(log, probe.names)
            judge = Oracle(content, changes)
            judge.advance(1 << 62)
            left = [taken(folder)]
            if fault.error:  # a cut on top of it; of a sector written in two halves no promise is made
                states = {name: FileState(each) for name, each in start.items()}
                for each in records:
                    states.setdefault(names[each.file], FileState(Content())).advance(each)
                left.append({name: state.durable for name, state in states.items()})
            with probing(Probe()):
                for files in left:
                    recover(scenario, folder, files, judge, overlay=False, check=True)
        except AssertionError as error:
            what = os.strerror(fault.error) if fault.error else "half a write"
            how = f"call {call} fails ({what}{', and all later ones' if fault.stays else ''})"
            end = "closed" if close else "dropped"
            told = [f"{n}: {step}" for n, step in enumerate(scenario.steps, 1)]
            text = f"{scenario.name}: {how}, {end}: {error}\n{told}"
            raise AssertionError(text) from error
    return happened


def calls(scenario: Scenario, folder: Path) -> int:
    """How many calls of the medium the scenario makes, with a read of the whole disk and the close at its end."""
    with probing(Probe()) as probe:
        _, disk, _ = perform(scenario, folder, lambda: 0)
        assert disk is not None
        disk.read(0, disk.size)
        disk.close()
        return int(probe.calls)


def copy_failed(folder: Path, target: Path) -> None:
    """Keeps the files of a failure, to be looked at."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
