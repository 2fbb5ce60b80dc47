import mmap
import os
import struct
import subprocess
import sys
import time

import pytest

from hvcore.errors import ProtocolError
from hvcore.metrics.events import AT_ONCE, EVENT_BYTES, HEADER_BYTES, KINDS, PER_SECOND, EventReader, EventWriter

SECOND = 10**9
EVENT = struct.Struct("=QQQQQQIIBBBBBBBx")


def log(capacity: int = 64) -> tuple[bytearray, EventWriter, EventReader]:
    buffer = bytearray(HEADER_BYTES + capacity * EVENT_BYTES)
    writer = EventWriter(buffer)
    return buffer, writer, EventReader(buffer)


def test_layout() -> None:
    buffer, writer, _ = log(4)
    numbers = {"transaction_id": 3, "lba": 4, "length": 5, "latency_ns": 6}
    codes = {"opcode": 7, "srb_status": 8, "scsi_status": 9, "sense_key": 10, "asc": 11, "ascq": 12}
    assert writer.write("failed", 2, time_ns=1, **numbers, **codes)
    assert struct.unpack_from("=IIIxxxxQQ", buffer) == (0x56455648, 1, 4, 1, 0)
    assert EVENT.size == EVENT_BYTES == 64
    assert HEADER_BYTES == 128
    assert EVENT.unpack_from(buffer, HEADER_BYTES) == (1, 2, 3, 4, 5, 6, KINDS["failed"], 0, 7, 8, 9, 10, 11, 12, 0)


def test_request() -> None:
    _, writer, reader = log()
    before = time.monotonic_ns()
    codes = {"srb_status": 0x84, "scsi_status": 2, "sense_key": 3, "asc": 0x11, "ascq": 4}
    trace_id = 5 << 48 | 6 << 40 | 7
    writer.write("failed", trace_id, transaction_id=8, lba=9, length=4096, opcode=0x28, **codes)
    writer.write("slow", trace_id, latency_ns=20_000_000)
    failed, slow = reader.collect()
    assert before <= failed.pop("time_ns") <= slow["time_ns"] <= time.monotonic_ns()
    assert failed == {
        "kind": "failed", "vm": 5, "disk": 6, "trace_id": trace_id, "transaction_id": 8, "opcode": 0x28, "lba": 9,
        "length": 4096, "latency_ns": None, "suppressed": 0, **codes,
    }  # fmt: skip
    assert (slow["kind"], slow["latency_ns"]) == ("slow", 20_000_000)
    assert reader.collect() == []
    assert reader.lost == 0


@pytest.mark.parametrize(("missed", "kind"), [(True, "minimum missed"), (False, "minimum met")])
def test_minimum(missed: bool, kind: str) -> None:
    _, writer, reader = log()
    figures = {"wanted_iops": 1000, "got_iops": 900, "wanted_bandwidth": 1 << 20, "got_bandwidth": 2**64 - 1}
    writer.write_minimum(missed, 1 << 48 | 2 << 40, **figures, busy_percent=97)
    (event,) = reader.collect()
    event.pop("time_ns")
    assert event == {"kind": kind, "vm": 1, "disk": 2, "suppressed": 0, "busy_percent": 97} | figures


@pytest.mark.parametrize(
    ("slow_ns", "latency", "reported"),
    [
        (0, 2**64 - 1, False), (10, 9, False), (10, 10, True), (10, 11, True), (10, 0, False), (1, 1, True),
        (2**64 - 1, 2**64 - 2, False), (2**64 - 1, 2**64 - 1, True),
    ],
)  # fmt: skip
def test_slow(slow_ns: int, latency: int, reported: bool) -> None:
    _, writer, reader = log()
    reader.slow_ns = slow_ns
    assert writer.slow_ns == reader.slow_ns == slow_ns
    assert writer.slow(latency) == reported


def test_threshold_changes_while_running() -> None:
    _, writer, reader = log()
    assert [writer.slow(10)] == [False]
    reader.slow_ns = 5
    assert writer.slow(10)
    reader.slow_ns = 0
    assert not writer.slow(10)


def test_overwritten_events_are_counted() -> None:
    _, writer, reader = log(8)
    writer.write_run(0, 20)
    assert [event["trace_id"] for event in reader.collect()] == list(range(13, 20))
    assert reader.lost == 13
    writer.write_run(20, 3)
    assert [event["trace_id"] for event in reader.collect()] == [20, 21, 22]
    assert reader.lost == 13


def test_each_reader_reads_all() -> None:
    buffer, writer, first = log(8)
    writer.write_run(0, 3)
    assert len(first.collect()) == 3
    assert len(EventReader(buffer).collect()) == 3


def test_kinds_rate() -> None:
    """A burst, then a steady share; what is held back is in the next event of the kind, and other kinds go on."""
    _, writer, reader = log(256)
    written = [writer.write("failed", number, time_ns=SECOND) for number in range(100)]
    assert written == [True] * AT_ONCE + [False] * (100 - AT_ONCE)
    assert writer.write("slow", time_ns=SECOND)
    assert reader.suppressed == dict.fromkeys(KINDS, 0) | {"failed": 100 - AT_ONCE}
    step = SECOND // PER_SECOND
    assert not writer.write("failed", time_ns=SECOND + step - 1)
    assert writer.write("failed", time_ns=SECOND + step)
    events = reader.collect()
    assert [event["suppressed"] for event in events] == [0] * (AT_ONCE + 1) + [100 - AT_ONCE + 1]
    written = [writer.write("failed", time_ns=SECOND + step + number * SECOND // 10_000) for number in range(10_000)]
    assert sum(written) == PER_SECOND - 1  # of the next second


def test_late_reader_finds_the_last_events() -> None:
    buffer, writer, _ = log(8)
    writer.write_run(0, 100)
    reader = EventReader(buffer)
    assert [event["trace_id"] for event in reader.collect()] == list(range(93, 100))
    assert reader.lost == 93


def test_unknown_kind() -> None:
    buffer, writer, reader = log()
    writer.write("slow")
    struct.pack_into("=I", buffer, HEADER_BYTES + 48, 77)
    assert reader.collect()[0]["kind"] == "kind 77"
    with pytest.raises(KeyError):
        writer.write("quick")


@pytest.mark.parametrize("size", [0, HEADER_BYTES, HEADER_BYTES + 2 * EVENT_BYTES - 1])
def test_too_small(size: int) -> None:
    with pytest.raises(ValueError, match="an event log needs 256 bytes"):
        EventWriter(bytearray(size))
    with pytest.raises(ValueError, match=f"the buffer has {size}"):
        EventReader(bytearray(size))


def test_unaligned() -> None:
    with pytest.raises(ValueError, match="aligned to 8"):
        EventWriter(memoryview(bytearray(4096))[1:])


@pytest.mark.parametrize("offset", [0, 4, 8])
def test_foreign_format(offset: int) -> None:
    buffer, _, _ = log()
    buffer[offset] ^= 1
    with pytest.raises(ProtocolError, match="no event log of version 1"):
        EventReader(buffer)


def test_sequence_that_goes_back() -> None:
    buffer, writer, reader = log(8)
    writer.write_run(0, 5)
    reader.collect()
    struct.pack_into("=Q", buffer, 16, 4)
    with pytest.raises(ProtocolError, match="went back behind event 5"):
        reader.collect()


READ = """
import mmap, sys
from hvcore.metrics.events import EventReader
with mmap.mmap(int(sys.argv[1]), 4096) as memory:
    reader = EventReader(memory)
    reader.slow_ns = 12345
    print([event["trace_id"] for event in reader.collect()])
    del reader
"""


def test_reader_in_another_process() -> None:
    fd = os.memfd_create("events")
    try:
        os.truncate(fd, 4096)
        with mmap.mmap(fd, 4096) as memory:
            writer = EventWriter(memory)
            writer.write_run(0, 10)
            found = subprocess.check_output([sys.executable, "-c", READ, str(fd)], pass_fds=(fd,), text=True)
            assert found == f"{list(range(10))}\n"
            assert writer.slow_ns == 12345
            del writer
    finally:
        os.close(fd)
