import mmap
import struct
import time

import pytest

from hvcore.errors import ProtocolError
from hvcore.metrics.trace import EVENT_BYTES, EVENT_FORMAT, HEADER_BYTES, TraceReader, TraceWriter, decode

HEADER = struct.Struct("=IIIIQ40x")  # magic, version, capacity, enabled, head
HEAD = 16


def ring(capacity: int, on: bool = True) -> tuple[bytearray, TraceWriter, TraceReader]:
    buffer = bytearray(HEADER_BYTES + capacity * EVENT_BYTES)
    writer = TraceWriter.create(buffer)
    writer.enable(on)
    return buffer, writer, TraceReader(buffer)


def test_layout() -> None:
    buffer, writer, _ = ring(4)
    writer.stamp(0x1111, key=0x2222, hop=3, channel=4)
    assert HEADER.size == HEADER_BYTES == 64
    assert HEADER.unpack_from(buffer) == (0x52545648, 1, 4, 1, 1)
    assert struct.calcsize(EVENT_FORMAT) == EVENT_BYTES == 32
    assert struct.unpack_from(EVENT_FORMAT, buffer, HEADER_BYTES)[1:] == (0x1111, 0x2222, 3, 4)


def test_stamp_and_collect() -> None:
    _, writer, reader = ring(8)
    before = time.monotonic_ns()
    writer.stamp(1, key=2, hop=3, channel=4)
    writer.stamp(2**64 - 1, 2**64 - 1, 2**32 - 1, 2**32 - 1)
    first, second = decode(reader.collect())
    assert first[1:] == (1, 2, 3, 4)
    assert second[1:] == (2**64 - 1, 2**64 - 1, 2**32 - 1, 2**32 - 1)
    assert before <= first.time_ns <= second.time_ns <= time.monotonic_ns()
    assert reader.collect() == b""
    assert reader.lost == 0


def test_off_at_first() -> None:
    buffer, writer, reader = ring(4, on=False)
    writer.stamp(1)
    assert not reader.enabled
    assert reader.collect() == b""
    assert buffer[HEADER_BYTES:] == bytes(4 * EVENT_BYTES)


def test_reader_turns_it_on_and_off() -> None:
    _, writer, reader = ring(4, on=False)
    reader.enable(True)
    writer.stamp(1)
    reader.enable(False)
    writer.stamp(2)
    assert [event.trace_id for event in decode(reader.collect())] == [1]


def test_overwritten_events_counted() -> None:
    _, writer, reader = ring(4)
    for trace_id in range(10):
        writer.stamp(trace_id)
    # The place of event 6 may already be the one of event 10: it counts as lost.
    assert [event.trace_id for event in decode(reader.collect())] == [7, 8, 9]
    assert reader.lost == 7
    writer.stamp(10)
    assert [event.trace_id for event in decode(reader.collect())] == [10]
    assert reader.lost == 7


@pytest.mark.parametrize(("extra", "capacity"), [(2, 2), (3, 2), (4, 4), (7, 4), (8, 8)])
def test_capacity_is_the_buffers(extra: int, capacity: int) -> None:
    _, writer, reader = ring(extra)
    assert writer.capacity == reader.capacity == capacity


@pytest.mark.parametrize("size", [0, 63, 64, 127])
def test_too_small(size: int) -> None:
    for maker in (TraceWriter.create, TraceWriter.attach, TraceReader):
        with pytest.raises(ValueError, match="needs 128 bytes"):
            maker(bytearray(size))


def test_not_aligned() -> None:
    view = memoryview(bytearray(256))[4:]
    for maker in (TraceWriter.create, TraceWriter.attach, TraceReader):
        with pytest.raises(ValueError, match="aligned to 8"):
            maker(view)


def test_read_only_refused() -> None:
    with pytest.raises(BufferError):
        TraceReader(bytes(256))


@pytest.mark.parametrize(
    "header",
    [(0x52545649, 1, 4, 0, 0), (0x52545648, 2, 4, 0, 0), (0x52545648, 1, 2, 0, 0), (0x52545648, 1, 8, 0, 0),
     (0x52545648, 1, 0, 0, 0), (0x52545648, 1, 2**31, 0, 0)],
)  # fmt: skip
def test_foreign_header_refused(header: tuple[int, ...]) -> None:
    buffer = bytearray(HEADER_BYTES + 4 * EVENT_BYTES)
    HEADER.pack_into(buffer, 0, *header)
    for maker in (TraceWriter.attach, TraceReader):
        with pytest.raises(ProtocolError, match="no trace ring"):
            maker(buffer)


def test_sequence_that_goes_back() -> None:
    buffer, writer, reader = ring(4)
    writer.stamp(1)
    writer.stamp(2)
    reader.collect()
    struct.pack_into("=Q", buffer, HEAD, 1)
    with pytest.raises(ProtocolError, match="went back behind event 2"):
        reader.collect()


@pytest.mark.parametrize("head", [4, 5, 2**32, 2**64 - 1])
def test_sequence_that_leaps(head: int) -> None:
    buffer, _, reader = ring(4)
    struct.pack_into("=Q", buffer, HEAD, head)
    assert len(decode(reader.collect())) == 3
    assert reader.lost == head - 3


def test_capacity_rewritten_later_is_ignored() -> None:
    buffer, writer, reader = ring(4)
    struct.pack_into("=I", buffer, 8, 2**31)
    for trace_id in range(10):
        writer.stamp(trace_id)
    assert len(decode(reader.collect())) == 3


def test_attach_goes_on() -> None:
    buffer, writer, reader = ring(8)
    writer.stamp(1)
    TraceWriter.attach(buffer).stamp(2)
    assert [event.trace_id for event in decode(reader.collect())] == [1, 2]


def test_buffer_is_kept() -> None:
    memory = mmap.mmap(-1, 4096)
    writer = TraceWriter.create(memory)
    with pytest.raises(BufferError):
        memory.close()
    del writer
    memory.close()
