"""What each sector of a disk may hold, whatever was killed, and the patterns by which a sector tells what it is.

A write gives every sector it covers one generation, a number that its disk never sees again; generation 0 is zeros. The
promises, sector by sector (disk-formats.md 11; a sector is 512 bytes, and a request of several may be done in part):

- A sector is never torn: it holds all of one generation, and one that was written to this very sector of this disk.
- A request that was answered with success is seen by every later read, also after its guest or the worker was killed.
- A request that failed, or was never answered, has happened or not; by the next answer it is over.
- A trim leaves what was there, or zeros.
- A host that is killed may lose what was not flushed: every sector holds what it held at the last flush that was
  answered, or anything written since. What the next host then reads stays, whoever is killed, until it is written.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

SECTOR = 512
WORDS = SECTOR // 8
FOREIGN = -1  # instead of a generation: torn, of another place, or not ours
_PLACE, _GENERATION, _WORD = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))

BEGUN, ENDED = "begun", "ended"
WRITE, TRIM, FLUSH, READ, FAILED = "write", "trim", "flush", "read", "failed"
KINDS = (WRITE, TRIM, FLUSH, READ)
# kind, phase, status (an SRB status, or 0 of what has none), disk, first sector, sectors, generation
_RECORD = struct.Struct("<BBBxIIIQ")
RECORD_BYTES = _RECORD.size


class Record(NamedTuple):
    """One line of a guest's journal: a request before it is given to the disk, or its answer."""

    kind: str
    phase: str
    status: int  # of an answer: 1 = success
    disk: int
    first: int  # sectors of 512 bytes
    sectors: int
    generation: int

    def pack(self) -> bytes:
        return _RECORD.pack(KINDS.index(self.kind), self.phase == ENDED, *self[2:])

    @classmethod
    def parse(cls, data: bytes) -> Iterator["Record"]:
        for kind, phase, *rest in _RECORD.iter_unpack(data):
            yield cls(KINDS[kind], ENDED if phase else BEGUN, *rest)


def pattern(disk: int, first: int, sectors: int, generation: int) -> bytes:
    """Sectors as a write of that generation leaves them. Every word depends on place and generation, so that no mixture
    of two is taken for either; the first two say in clear what they are."""
    with np.errstate(over="ignore"):
        place = np.arange(first, first + sectors, dtype=np.uint64) | np.uint64((disk + 1) << 32)
        mixed = place * _PLACE + np.uint64(generation) * _GENERATION
        found = mixed[:, None] + np.arange(WORDS, dtype=np.uint64) * _WORD
    found[:, 0] = place
    found[:, 1] = generation
    return found.tobytes()


def generations(disk: int, first: int, data: bytes) -> np.ndarray[Any, Any]:
    """Of each sector of `data`, which begins at sector `first`: its generation, or FOREIGN."""
    words = np.frombuffer(data, dtype=np.uint64).reshape(-1, WORDS)
    with np.errstate(over="ignore"):
        place = np.arange(first, first + len(words), dtype=np.uint64) | np.uint64((disk + 1) << 32)
        mixed = place * _PLACE + words[:, 1] * _GENERATION
        sound = (words[:, 2:] == mixed[:, None] + np.arange(2, WORDS, dtype=np.uint64) * _WORD).all(axis=1)
    sound &= (words[:, 0] == place) & (words[:, 1] != 0)
    found = np.where(sound, words[:, 1].astype(np.int64), FOREIGN)
    found[~words.any(axis=1)] = 0
    return found


class Wrong(AssertionError):
    """A sector holds what it must not."""


Allowed = dict[int, frozenset[int]]


@dataclass
class DiskModel:
    """now: the generation of each sector, where it is known; may: all that a sector may hold, where it is not.

    flushed, unsure: the same as they were at the last flush that was answered; since: what came after it, as first
    sector, sectors, generation.
    """

    number: int  # unique among all disks, as in the patterns
    sectors: int
    now: np.ndarray[Any, Any] = field(init=False)
    may: Allowed = field(default_factory=dict)
    flushed: np.ndarray[Any, Any] = field(init=False)
    unsure: Allowed = field(default_factory=dict)
    since: list[tuple[int, int, int]] = field(default_factory=list)
    open: dict[tuple[str, int, int], Record] = field(default_factory=dict)  # begun, not answered

    def __post_init__(self) -> None:
        self.now = np.zeros(self.sectors, dtype=np.int64)
        self.flushed = self.now.copy()

    def follow(self, record: Record) -> None:
        """One line of the journal, in order. Requests that are open at the same time must not overlap, and none is
        while a flush is."""
        key = (record.kind, record.first, record.generation)
        if record.phase == BEGUN:
            self.open[key] = record
            return
        begun = self.open.pop(key)
        if begun.kind == FLUSH:
            if record.status == 1:
                # What a sector holds that may hold several things is durable, whichever it is.
                self.flushed[:] = self.now
                self.unsure = self.may.copy()
                self.since.clear()
        elif begun.kind == WRITE and record.status == 1:
            self.now[begun.first : begun.first + begun.sectors] = begun.generation
            for sector in range(begun.first, begun.first + begun.sectors) if self.may else ():
                self.may.pop(sector, None)
            self.since.append((begun.first, begun.sectors, begun.generation))
        else:
            self._doubt(begun)

    def _doubt(self, begun: Record) -> None:
        generation = 0 if begun.kind == TRIM else begun.generation
        for sector in range(begun.first, begun.first + begun.sectors):
            self.may[sector] = self.may.get(sector, frozenset((int(self.now[sector]),))) | {generation}
        self.since.append((begun.first, begun.sectors, generation))

    def guest_ended(self) -> None:
        """What it had not been answered has happened or not."""
        for begun in self.open.values():
            if begun.kind in (WRITE, TRIM):
                self._doubt(begun)
        self.open.clear()

    def host_killed(self) -> None:
        """guest_ended() was called before."""
        assert not self.open
        self.may = self._without_host()

    def opened(self) -> None:
        """Every sector was verified since the image was opened: what was read is in the file, as good as flushed."""
        assert not self.may and not self.open
        self.flushed[:] = self.now
        self.unsure = {}
        self.since.clear()

    def _without_host(self) -> Allowed:
        """What a sector may hold once the host was killed, where it is not as flushed."""
        found = {sector: set(values) for sector, values in self.unsure.items()}
        for first, sectors, generation in self.since:
            for sector in range(first, first + sectors):
                found.setdefault(sector, {int(self.flushed[sector])}).add(generation)
        return {sector: frozenset(values) for sector, values in found.items()}

    def verify(self, first: int, data: bytes) -> None:
        """Against what was read from sector `first` on, while no request is open. What was read is known from now on.

        Wrong: names the first bad sector, what it holds and what it may hold.
        """
        found = generations(self.number, first, data)
        bad = found != self.now[first : first + len(found)]
        for sector in np.flatnonzero(bad) + first:
            if int(found[sector - first]) not in self.may.get(int(sector), ()):
                raise Wrong(self._tell(int(sector), found[sector - first], data[(sector - first) * SECTOR :][:SECTOR]))
        for sector in [each for each in self.may if first <= each < first + len(found)]:
            if int(found[sector - first]) not in self.may[sector]:
                raise Wrong(self._tell(sector, found[sector - first], data[(sector - first) * SECTOR :][:SECTOR]))
            self.now[sector] = found[sector - first]
            del self.may[sector]

    def _tell(self, sector: int, found: int, data: bytes) -> str:
        def name(generation: int) -> str:
            return "zeros" if generation == 0 else f"generation {generation:#x}"

        allowed = sorted(self.may.get(sector, {int(self.now[sector])}))
        place, said = struct.unpack_from("<QQ", data)
        holds = name(int(found)) if found != FOREIGN else f"a torn or foreign sector (place {place:#x}, {name(said)})"
        flushed = sorted(self._without_host().get(sector, {int(self.flushed[sector])}))
        return (
            f"disk {self.number}, sector {sector} (byte {sector * SECTOR:#x}) holds {holds}; "
            f"allowed: {', '.join(map(name, allowed))}; since the last flush: {', '.join(map(name, flushed))}"
        )
