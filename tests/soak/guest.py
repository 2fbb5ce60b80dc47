"""What a guest of the soak does: mixed requests on every disk at once, each one in the journal before and after it.

The journal is a FIFO: what was written to it before a SIGKILL stays to be read. It has one record per request, and a
record is in it before the disk can know of the request.
"""

import os
import threading
from random import Random

from hvcore.errors import DiskError, GuestGone
from hvcore.partition.disk import Disk
from hvcore.partition.guest import Guest
from tests.soak.model import BEGUN, ENDED, FLUSH, FOREIGN, READ, SECTOR, TRIM, WRITE, Record, generations, pattern

SPAN = 64  # sectors of the longest single request
BATCH = 16


class User:
    """One disk in one thread: no two of its requests overlap, and a flush runs alone."""

    def __init__(self, disk: Disk, number: int, seed: int, life: int, journal: int) -> None:
        self._disk = disk
        self._number = number
        self._random = Random(seed)
        self._generation = life << 32
        self._journal = journal
        self._grain = disk.sector_size // SECTOR
        self._sectors = disk.size // SECTOR
        self._mine: dict[int, int] = {}  # what this guest's own answered writes have put there

    def run(self) -> None:
        verbs = (self.write, self.write_batch, self.read, self.read_batch, self.flush, self.trim)
        while True:
            (verb,) = self._random.choices(verbs, (30, 20, 25, 10, 8, 7))
            verb()

    def say(self, *records: Record) -> None:
        data = b"".join(record.pack() for record in records)
        assert os.write(self._journal, data) == len(data)  # at most PIPE_BUF: whole, and not mixed with another's

    def some(self, most: int) -> tuple[int, int]:
        sectors = self._random.randrange(1, most // self._grain + 1) * self._grain
        first = self._random.randrange((self._sectors - sectors) // self._grain + 1) * self._grain
        return first, sectors

    def record(self, kind: str, phase: str, status: int, first: int = 0, sectors: int = 0) -> Record:
        generation = self._generation if kind != READ else 0
        return Record(kind, phase, status, self._number, first, sectors, generation)

    def attempt(self, kind: str, first: int, sectors: int, call: object) -> bool:
        """One request between its two records."""
        assert callable(call)
        self._generation += 1
        self.say(self.record(kind, BEGUN, 0, first, sectors))
        status = 1
        try:
            call()
        except DiskError as error:
            status = error.srb_status or 0xFF
        self.say(self.record(kind, ENDED, status, first, sectors))
        return status == 1

    def write(self) -> None:
        first, sectors = self.some(SPAN)
        generation = self._generation + 1
        data = pattern(self._number, first, sectors, generation)
        if self.attempt(WRITE, first, sectors, lambda: self._disk.write(first * SECTOR, data)):
            self._mine.update(dict.fromkeys(range(first, first + sectors), generation))
        else:
            self.forget(first, sectors)

    def forget(self, first: int, sectors: int) -> None:
        for sector in range(first, first + sectors):
            self._mine.pop(sector, None)

    def places(self) -> list[int]:
        """Blocks of 4 KiB, all different, by their first sector."""
        number = self._random.randrange(2, BATCH + 1)
        return [block * 8 for block in self._random.sample(range(self._sectors // 8), number)]

    def write_batch(self) -> None:
        places = self.places()
        begun, blocks = [], []
        for first in places:
            self._generation += 1
            begun.append(self.record(WRITE, BEGUN, 0, first, 8))
            blocks.append(pattern(self._number, first, 8, self._generation))
        self.say(*begun)
        statuses = [1] * len(places)
        try:
            depth = self._random.randrange(1, BATCH + 1)
            self._disk.write_batch([first * SECTOR for first in places], b"".join(blocks), queue_depth=depth)
        except DiskError as error:
            assert error.statuses is not None
            statuses = error.statuses
        self.say(*(each._replace(phase=ENDED, status=status) for each, status in zip(begun, statuses, strict=True)))
        for each, status in zip(begun, statuses, strict=True):
            if status == 1:
                self._mine.update(dict.fromkeys(range(each.first, each.first + 8), each.generation))
            else:
                self.forget(each.first, 8)

    def judge(self, first: int, data: bytes) -> None:
        """Of its own sectors a guest knows what they hold; of all others, that they are whole."""
        for sector, found in enumerate(generations(self._number, first, data), first):
            expected = self._mine.get(sector, found)
            if found == FOREIGN or found != expected:
                at = (sector - first) * SECTOR
                raise AssertionError(
                    f"disk {self._number}, sector {sector} (byte {sector * SECTOR:#x}): read generation {found:#x}, "
                    f"written was {expected:#x}; it begins {data[at : at + 24].hex()}"
                )

    def read(self) -> None:
        first, sectors = self.some(SPAN)
        try:
            data = self._disk.read(first * SECTOR, sectors * SECTOR)
        except DiskError as error:
            self.say(self.record(READ, ENDED, error.srb_status or 0xFF, first, sectors))
            return
        self.judge(first, data)
        self.say(self.record(READ, ENDED, 1, first, sectors))

    def read_batch(self) -> None:
        places = self.places()
        out = bytearray(len(places) * 8 * SECTOR)
        statuses = [1] * len(places)
        try:
            self._disk.read_batch([first * SECTOR for first in places], out, queue_depth=len(places))
        except DiskError as error:
            assert error.statuses is not None
            statuses = error.statuses
        for number, (first, status) in enumerate(zip(places, statuses, strict=True)):
            if status == 1:
                self.judge(first, bytes(out[number * 8 * SECTOR :][: 8 * SECTOR]))
        self.say(*(self.record(READ, ENDED, status, first, 8) for first, status in zip(places, statuses, strict=True)))

    def flush(self) -> None:
        self.attempt(FLUSH, 0, 0, self._disk.flush)

    def trim(self) -> None:
        first, sectors = self.some(SPAN * 8)
        self.forget(first, sectors)
        self.attempt(TRIM, first, sectors, lambda: self._disk.trim(first * SECTOR, sectors * SECTOR))


def load(guest: Guest, numbers: list[int], seed: int, life: int, fifo: str) -> str:
    """Until the host goes away, which is told by its name; anything else that goes wrong is raised."""
    os.nice(10)  # where CPUs are short, those that kill and judge go first
    journal = os.open(fifo, os.O_WRONLY | os.O_CLOEXEC)
    wrong: list[BaseException] = []
    ended = threading.Event()

    def use(disk: Disk, number: int) -> None:
        try:
            User(disk, number, hash((seed, life, number)), life, journal).run()
        except BaseException as error:
            wrong.append(error)
            ended.set()

    threads = [threading.Thread(target=use, args=each, daemon=True) for each in zip(guest.disks, numbers, strict=True)]
    for thread in threads:
        thread.start()
    ended.wait()
    for error in wrong:
        if not isinstance(error, GuestGone):
            raise error
    return "gone"
