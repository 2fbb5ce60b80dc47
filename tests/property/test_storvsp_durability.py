"""Cut the power under a VM: what its guest flushed, or wrote with FUA, is in the image, on both paths.

The disk's journal says what reached the file and when; the reference builds the files that a cut may leave.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvcore.disk.image import open_image
from hvcore.disk.medium import Probe
from hvcore.disk.probe import probing
from hvcore.storage.vsc import Channel
from hvcore.vhd import create
from tests.reference import journal
from tests.reference.onechannel import channel_to

SECTORS = 32
SIZE = SECTORS * 512
FLUSH = bytes([0x35]) + bytes(9)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "batch", "fua", "flush", "trim"]),
        st.integers(0, SECTORS - 1),
        st.integers(1, 6),
    ),
    min_size=1,
    max_size=20,
)
Sectors = list[set[bytes]]


class Subject:
    """An image behind a channel; its content goes on from example to example."""

    def __init__(self, path: Path, probe: Probe, channel: Channel, trims: bool) -> None:
        self.path = path
        self.probe = probe
        self.channel = channel
        self.trims = trims
        self.written = 0

    def new_data(self, count: int) -> list[bytes]:
        self.written += count
        return [(self.written - n).to_bytes(8, "little") * 64 for n in range(count)]

    def command(self, cdb: bytes, data: bytes = b"") -> None:
        srb, scsi, _, _ = self.channel.execute(cdb, data)
        assert (srb & 0x3F, scsi) == (1, 0)

    def perform(self, steps: list[tuple[str, int, int]]) -> tuple[list[journal.Record], list[tuple[int, Sectors]]]:
        """Does the steps. Returns the journal, and for growing numbers of records what a cut there may leave."""
        before = self.path.read_bytes()
        last = [before[at : at + 512] for at in range(0, SIZE, 512)]
        allowed: Sectors = [{value} for value in last]
        log = os.memfd_create("journal")
        self.probe.journal = log
        history = [(0, [set(values) for values in allowed])]
        for verb, sector, count in steps:
            count = min(count, SECTORS - sector)
            touched = range(sector, sector + count)
            if verb == "flush":
                self.command(FLUSH)
                allowed = [{value} for value in last]
            elif verb == "trim" and self.trims:
                descriptor = sector.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(4)
                self.command(bytes([0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]), bytes([0, 22, 0, 16, 0, 0, 0, 0]) + descriptor)
                for n in touched:
                    last[n] = bytes(512)
                    allowed[n].add(last[n])
            else:
                data = self.new_data(count)
                for n, value in zip(touched, data, strict=True):
                    last[n] = value
                    # From here a cut may leave it; the record itself comes before the completion.
                    history[-1][1][n].add(value)
                    allowed[n].add(value)
                if verb == "fua":
                    cdb = bytes([0x2A, 8]) + sector.to_bytes(4, "big") + bytes([0, 0, count, 0])
                    self.command(cdb, b"".join(data))
                    for n in touched:
                        allowed[n] = {last[n]}
                else:
                    block = 512 if verb == "batch" else count * 512
                    failure = self.channel.transfer(
                        True, None, sector * 512, block, b"".join(data), 512, queue_depth=count
                    )
                    assert failure is None
            records = os.fstat(log).st_size
            history.append((records, [set(values) for values in allowed]))
        self.probe.journal = -1
        recorded = os.pread(log, os.fstat(log).st_size, 0)
        os.close(log)
        return journal.parse(recorded), [(len(journal.parse(recorded[:size])), sectors) for size, sectors in history]


PLACES = [("raw", "synthetic"), ("raw", "dma"), ("raw", "pio-multiple"), ("vhd", "synthetic"), ("vhd", "dma")]


@pytest.fixture(scope="module", params=PLACES, ids="-".join)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    format, place = request.param
    path = tmp_path_factory.mktemp("durability") / "disk"
    create(path, SIZE, format, **({"type": "fixed"} if format == "vhd" else {}))
    with (
        probing(Probe()) as probe,
        open_image(path, mode="r+", format=format) as disk,
        channel_to(disk, place) as channel,
    ):
        yield Subject(path, probe, channel, trims=format == "raw")


def wrong(start: bytes, records: list[journal.Record], history: list[tuple[int, Sectors]], survives: list[bool]) -> int:
    """How many sectors hold, after a cut behind any record, what they must not."""
    found = 0
    for end in range(len(records) + 1):
        allowed = next(sectors for count, sectors in reversed(history) if count <= end)
        for pattern in (survives, [False]):
            image = journal.cut(start, records[:end], pattern)
            found += sum(bytes(image[n * 512 : (n + 1) * 512]) not in allowed[n] for n in range(SECTORS))
    return found


@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, survives=st.lists(st.booleans(), min_size=1, max_size=16))
def test_flushed_and_forced_writes_survive_a_cut_anywhere(
    subject: Subject, steps: list[tuple[str, int, int]], survives: list[bool]
) -> None:
    start = subject.path.read_bytes()
    records, history = subject.perform(steps)
    assert history[-1][0] == len(records)
    assert journal.cut(start, records, [True]) == subject.path.read_bytes()  # the journal missed nothing
    assert wrong(start, records, history, survives) == 0


@pytest.mark.parametrize("promise", ["flush", "fua"])
def test_a_lost_promise_is_caught(subject: Subject, promise: str) -> None:
    """The check can fail: without the journal's flushes the same writes are lost."""
    steps = [("fua", 3, 2)] if promise == "fua" else [("write", 3, 2), ("flush", 0, 1)]
    start = subject.path.read_bytes()
    records, history = subject.perform(steps)
    assert wrong(start, records, history, [False]) == 0
    kinds = [record.kind for record in records]
    assert journal.FLUSH in kinds and kinds[-1] == journal.FLUSHED
    unflushed = [record for record in records if record.kind == journal.WRITE]
    lost = bytes(journal.cut(start, unflushed, [False]))
    assert all(lost[n * 512 : (n + 1) * 512] not in history[-1][1][n] for n in (3, 4))


def test_a_write_alone_promises_nothing(subject: Subject) -> None:
    start = subject.path.read_bytes()
    records, history = subject.perform([("write", 7, 1)])
    assert [record.kind for record in records] == [journal.WRITE]
    assert len(history[-1][1][7]) == 2 and wrong(start, records, history, [False]) == 0
