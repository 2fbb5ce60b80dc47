import threading

import pytest

from hvcore.metrics.trace import EVENT_BYTES, HEADER_BYTES, TraceReader, TraceWriter, decode

EVENTS = 2_000_000


@pytest.mark.parametrize("capacity", [2, 64, 4096])
def test_no_torn_event(capacity: int) -> None:
    buffer = bytearray(HEADER_BYTES + capacity * EVENT_BYTES)
    writer = TraceWriter.create(buffer)
    writer.enable(True)
    reader = TraceReader(buffer)
    thread = threading.Thread(target=writer.stamp_run, args=(0, EVENTS))
    thread.start()
    collected = 0
    last = -1
    last_ns = 0
    finished = False
    while not finished:
        finished = not thread.is_alive()
        for time_ns, trace_id, key, hop, channel in decode(reader.collect()):
            assert trace_id == key == hop == channel
            assert trace_id > last
            assert time_ns >= last_ns
            last, last_ns = trace_id, time_ns
            collected += 1
    thread.join()
    assert last == EVENTS - 1
    assert collected + reader.lost == EVENTS
