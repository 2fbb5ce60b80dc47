"""The crash harness can fail: each wrong order is caught, and the right one is not."""

import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hvcore.disk.medium import ImageFile
from hvcore.disk.probe import PROBE
from hvcore.errors import ImageError
from tests.reference import journal
from tests.reference.crash import LIGHT, Scenario, Tally, explore, fast_folder, fresh, operation, record
from tests.reference.journal import (
    FLUSH,
    FLUSHED,
    PUNCH,
    RESIZE,
    SECTOR,
    WRITE,
    Content,
    FileState,
    Record,
    cuts,
    whole,
)
from tests.reference.scenarios import FLAT, differencing, growth, restart, trims
from tests.reference.writer import WRONGS, Writer

SECTORS = 200
ONLY_REPLAY = replace(LIGHT, overlay=1 << 30)  # the reference's writer cannot read over an unreplayed log
TABLE = struct.Struct(f"<{SECTORS}I")


@dataclass
class Shadow:
    """A small disk that never overwrites: sectors go to new places, a flush makes the table in sectors 0 and 1 point
    there. `wrong` leaves out one precaution."""

    file: ImageFile
    wrong: str
    size: int = SECTORS * SECTOR

    def __post_init__(self) -> None:
        self.table = list(TABLE.unpack(self.file.read(0, TABLE.size)))
        self.end = max(*self.table, 1) + 1
        if self.file.size() < self.end * SECTOR:
            self.file.close()
            raise ImageError("the table points behind the end of the file")
        self.free: list[int] = []
        self.dropped: list[int] = []

    def read(self, offset: int, length: int) -> bytes:
        first = offset // SECTOR
        places = self.table[first : first + length // SECTOR]
        return b"".join(self.file.read(place * SECTOR, SECTOR) if place else bytes(SECTOR) for place in places)

    def write(self, offset: int, data: object) -> None:
        assert isinstance(data, bytes)
        for n in range(len(data) // SECTOR):
            if self.free:
                place = self.free.pop()
            else:
                place = self.end
                self.end += 1
                if self.wrong == "size":
                    self.file.resize(self.end * SECTOR)
            self.file.write(place * SECTOR, data[n * SECTOR : (n + 1) * SECTOR])
            old = self.table[offset // SECTOR + n]
            if old:
                (self.free if self.wrong == "reuse" else self.dropped).append(old)
            self.table[offset // SECTOR + n] = place

    def trim(self, offset: int, length: int) -> None:
        raise AssertionError

    def flush(self) -> None:
        if self.wrong == "never":
            return
        if self.wrong not in ("order", "size"):
            self.file.flush()
        self.file.write(0, TABLE.pack(*self.table))
        self.file.flush()
        self.free += self.dropped
        self.dropped = []

    def close(self) -> None:
        self.file.close()


def shadow(wrong: str) -> Scenario:
    def build(folder: Path) -> bytes:
        (folder / "disk").write_bytes(bytes((2 if wrong == "size" else 400) * SECTOR))
        return bytes(SECTORS * SECTOR)

    def open_shadow(path: Path, mode: str) -> Shadow:
        fd = os.open(path, os.O_RDWR if mode == "r+" else os.O_RDONLY)
        return Shadow(ImageFile(fd, probe=PROBE.get(), name=str(path)), wrong)

    flush = ("flush", 0, 0)
    again = (("write", 3, 2), ("write", 190, 2), flush)
    steps = (("write", 0, 2), ("write", 3, 1), flush, *again, *again, ("write", 1, 8), flush, *again)
    return Scenario("shadow", "disk", build, steps, open=open_shadow, trims=False)


def explored(scenario: Scenario) -> Tally:
    tally = Tally()
    with fast_folder() as folder:
        explore(scenario, record(scenario, folder), folder, tally)
    return tally


def test_a_sound_disk_passes() -> None:
    assert explored(shadow("")).states > 80


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("order", "holds zeros; allowed"),  # the table is written before the data are durable
        ("reuse", "as of step"),  # space that the durable table names is written
        ("never", "holds zeros; allowed: sector"),  # a flush that does nothing
        ("size", "the table points behind the end"),  # the table relies on a size that is not durable
    ],
)
def test_a_wrong_order_is_caught(wrong: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        explored(shadow(wrong))


@pytest.mark.parametrize("scenario", FLAT, ids=lambda scenario: scenario.name)
def test_lost_flushes_are_caught(scenario: Scenario) -> None:
    """Each without its flush records, and with nothing but the order of its writes."""
    with fast_folder() as folder:
        recording = record(scenario, folder)
        records = [each if each.kind != FLUSHED else each._replace(kind=FLUSH) for each in recording.records]
        with pytest.raises(AssertionError, match="cut after"):
            explore(scenario, replace(recording, records=records), folder, Tally(), LIGHT)


def written(scenario: Scenario, wrong: str) -> Scenario:
    """The scenario with the reference's writer, which breaks a rule."""

    def open_written(path: Path, mode: str) -> Writer:
        base = path.parent / "base.vhdx"
        return Writer(path, mode, wrong, Writer(base, "r") if base.exists() else None)

    return replace(scenario, open=open_written)


@pytest.mark.parametrize(
    ("wrong", "scenario"),
    [
        ("header first", trims()),
        ("no data flush", trims()),
        ("no data flush", differencing()),
        ("applied before logged", differencing()),
        ("tail too early", restart()),
        ("head overwritten", growth()),
        ("space reused at once", trims()),
        ("replay forgets to flush", trims()),
        ("stale space", growth()),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_a_broken_rule_of_the_log_is_caught(wrong: str, scenario: Scenario) -> None:
    assert wrong in WRONGS
    with fast_folder() as folder:
        broken = written(scenario, wrong)
        with pytest.raises(AssertionError, match=r"cut after|without any cut"):
            explore(broken, record(broken, folder), folder, Tally(), ONLY_REPLAY)


def test_every_rule_kept_passes() -> None:
    with fast_folder() as folder:
        sound = written(trims(), "")
        explore(sound, record(sound, folder), folder, Tally(), ONLY_REPLAY)


def test_a_tool_that_stops_half_way_is_caught() -> None:
    scenario = FLAT[0]
    with fast_folder() as folder:
        content = fresh(0, 0, 32) + bytes(32 * SECTOR)

        def copied(path: Path) -> None:
            disk = scenario.open(path, "r+")
            disk.write(0, content[: 4 * SECTOR][::-1])
            disk.flush()
            disk.close()

        recording = operation(
            scenario, folder, copied, lambda before: before[: 4 * SECTOR][::-1] + before[4 * SECTOR :]
        )
        with pytest.raises(AssertionError, match="none of 2 allowed contents"):
            explore(scenario, recording, folder, Tally())


def made(kind: int, offset: int, length: int = 0, data: bytes = b"", file: int = 0) -> Record:
    return Record(kind, file, offset, length or len(data), data)


def left(start: bytes, *records: Record) -> set[bytes]:
    """Every content that a cut behind the last record may leave, of a file that begins as `start`."""
    first = Content()
    first.write(0, start)
    found = set()
    for cut, _, files in cuts({"a": first}, ["a"], list(records), random=30, each=True):
        if cut == len(records):
            content = files["a"]
            whole_pages = b"".join(content.pages.get(n, bytes(4096)) for n in range(-(-content.size // 4096)))
            found.add(whole_pages[: content.size])
    return found


A, B = b"a" * SECTOR, b"b" * SECTOR
NONE = bytes(SECTOR)


def test_what_a_cut_may_leave() -> None:
    flush, flushed = made(FLUSH, 0), made(FLUSHED, 0)
    write = made(WRITE, 0, data=B + B)
    assert left(A + A, write) == {A + A, A + B, B + A, B + B}
    assert left(A + A, write, flush, flushed) == {B + B}
    assert left(A + A, write, flush) == left(A + A, flush, write, flushed) == {A + A, A + B, B + A, B + B}
    assert left(A, made(WRITE, SECTOR, data=B)) == {A, A + B}
    assert left(A, made(WRITE, 2 * SECTOR, data=B)) == {A, A + NONE + B}
    assert left(A + A, made(PUNCH, 0, 2 * SECTOR)) == {A + A, A + NONE, NONE + A, NONE + NONE}
    assert left(A, made(RESIZE, 3 * SECTOR)) == {A, A + NONE + NONE}
    assert left(A, made(RESIZE, 3 * SECTOR), made(WRITE, SECTOR, data=B)) == {
        A,
        A + B,
        A + NONE + NONE,
        A + B + NONE,
    }
    assert left(A + B, made(RESIZE, SECTOR)) == {A, A + B}
    assert left(A + B, made(RESIZE, SECTOR), made(RESIZE, 2 * SECTOR)) == {A, A + B, A + NONE}


def test_a_flush_of_one_file_says_nothing_of_another() -> None:
    start = {"a": Content({}, SECTOR), "b": Content({}, SECTOR)}
    records = [
        made(WRITE, 0, data=A, file=0),
        made(WRITE, 0, data=B, file=1),
        made(FLUSH, 0, file=1),
        made(FLUSHED, 0, file=1),
    ]
    states = [files for cut, _, files in cuts(start, ["a", "b"], records) if cut == 4]
    assert {bool(files["a"].pages) for files in states} == {True, False}
    assert all(files["b"].pages for files in states)


def test_content_of_a_file(tmp_path: Path) -> None:
    content = Content()
    content.write(4000, b"x" * 200)
    content.write(3 << 20, b"y")
    content.resize(5 << 20)
    content.store(tmp_path / "file")
    stored = (tmp_path / "file").read_bytes()
    assert stored == (bytes(4000) + b"x" * 200).ljust(3 << 20, b"\0") + b"y" + bytes((2 << 20) - 1)
    assert Content.load(tmp_path / "file") == content
    content.punch(0, 1 << 20)
    content.resize((3 << 20) + 1)
    content.store(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == bytes(3 << 20) + b"y"
    assert len(content.pages) == 1
    state = FileState(content)
    assert state.after([]).key() == content.key()
    state.advance(made(WRITE, 0, data=A))
    assert state.after([journal.Kept()]).key() == content.key() != state.after([whole(state.loose[0])]).key()
