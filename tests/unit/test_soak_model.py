"""The soak's model can fail: what must not be on a disk is found, and what may be is not."""

import pytest

from tests.soak.model import BEGUN, ENDED, FLUSH, FOREIGN, SECTOR, TRIM, WRITE, DiskModel, Record, Wrong, pattern
from tests.soak.model import generations as parsed

DISK = 3
ZEROS = bytes(16 * SECTOR)


class Story:
    """A disk of 16 sectors, and what its guest said."""

    def __init__(self) -> None:
        self.model = DiskModel(DISK, 16)

    def begin(self, kind: str, generation: int, first: int = 0, sectors: int = 16) -> None:
        self.model.follow(Record(kind, BEGUN, 0, DISK, first, sectors, generation))

    def end(self, kind: str, generation: int, first: int = 0, sectors: int = 16, status: int = 1) -> None:
        self.model.follow(Record(kind, ENDED, status, DISK, first, sectors, generation))

    def done(self, kind: str, generation: int, first: int = 0, sectors: int = 16, status: int = 1) -> None:
        self.begin(kind, generation, first, sectors)
        self.end(kind, generation, first, sectors, status)

    def holds(self, data: bytes) -> bool:
        try:
            self.model.verify(0, data)
        except Wrong:
            return False
        return True


def of(generation: int, first: int = 0, sectors: int = 16) -> bytes:
    return pattern(DISK, first, sectors, generation)


def test_sectors_say_what_they_are() -> None:
    assert list(parsed(DISK, 4, of(9, 4, 2) + bytes(SECTOR))) == [9, 9, 0]
    torn = of(8)[: SECTOR // 2] + of(9)[SECTOR // 2 : SECTOR]
    elsewhere, other = pattern(DISK, 1, 1, 9), pattern(DISK + 1, 0, 1, 9)
    for bad in (torn, elsewhere, other, b"\1" * SECTOR, bytes(8) + of(9)[8:SECTOR], of(9)[: SECTOR - 8] + bytes(8)):
        assert list(parsed(DISK, 0, bad)) == [FOREIGN]


def test_records_travel() -> None:
    record = Record(TRIM, ENDED, 0x84, 31, (1 << 32) - 1, 8, 1 << 60)
    assert list(Record.parse(record.pack() * 2)) == [record, record]


def test_answered_writes_are_seen() -> None:
    story = Story()
    assert story.holds(ZEROS)
    story.done(WRITE, 1)
    assert not story.holds(ZEROS)
    assert story.holds(of(1))
    story.done(WRITE, 2, 3, 2)
    assert not story.holds(of(1))
    assert story.holds(of(1)[: 3 * SECTOR] + of(2, 3, 2) + of(1)[5 * SECTOR :])


@pytest.mark.parametrize("answered", [False, True])
def test_a_failed_or_unanswered_write_is_old_or_new_by_sector(answered: bool) -> None:
    for data, allowed in ((of(1), True), (of(2), True), (of(1)[:SECTOR] + of(2)[SECTOR:], True), (of(3), False)):
        story = Story()
        story.done(WRITE, 1)
        story.begin(WRITE, 2)
        if answered:
            story.end(WRITE, 2, status=2)
        story.model.guest_ended()
        assert story.holds(data) == allowed
    assert not story.holds(ZEROS)


def test_what_was_read_stays() -> None:
    story = Story()
    story.begin(WRITE, 1)
    story.model.guest_ended()
    assert story.holds(of(1))
    assert not story.holds(ZEROS)


def test_a_trim_leaves_zeros_or_what_was_there() -> None:
    for data, allowed in ((ZEROS, True), (of(1), True), (of(2), False)):
        story = Story()
        story.done(WRITE, 1)
        story.done(TRIM, 2)
        assert story.holds(data) == allowed


def test_a_killed_host_loses_only_what_was_not_flushed() -> None:
    story = Story()
    story.done(WRITE, 1)
    story.done(FLUSH, 0, 0, 0)
    story.model.host_killed()
    assert not story.holds(ZEROS)
    story.done(WRITE, 2)
    story.done(WRITE, 3, 0, 8)
    story.model.host_killed()
    assert not story.holds(of(4))
    assert story.holds(of(3, 0, 4) + of(2, 4, 4) + of(1, 8, 8))
    assert not story.holds(of(1))  # that it was lost is known now


def test_a_flush_that_failed_promises_nothing() -> None:
    for status, allowed in ((2, True), (1, False)):
        story = Story()
        story.done(WRITE, 1)
        story.done(FLUSH, 0, 0, 0, status=status)
        story.model.host_killed()
        assert story.holds(ZEROS) == allowed


def test_a_flush_keeps_doubts() -> None:
    """What a failed write left is not known, but it is durable."""
    story = Story()
    story.done(WRITE, 1)
    story.done(WRITE, 2, status=2)
    story.done(FLUSH, 0, 0, 0)
    story.model.host_killed()
    assert not story.holds(ZEROS)
    assert story.holds(of(1, 0, 8) + of(2, 8, 8))


def test_what_a_new_host_has_read_is_in_the_file() -> None:
    for seen, allowed in ((of(1), False), (of(2), True), (ZEROS, False)):
        story = Story()
        story.done(WRITE, 1)
        story.done(FLUSH, 0, 0, 0)
        story.done(WRITE, 2)
        story.model.host_killed()
        assert story.holds(of(2))
        story.model.opened()
        story.model.host_killed()
        assert story.holds(seen) == allowed
