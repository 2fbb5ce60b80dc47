import threading

import pytest

from hvcore.metrics.events import EVENT_BYTES, HEADER_BYTES, EventReader, EventWriter

EVENTS = 500_000


@pytest.mark.parametrize("capacity", [2, 64, 4096])
def test_no_torn_event(capacity: int) -> None:
    buffer = bytearray(HEADER_BYTES + capacity * EVENT_BYTES)
    writer, reader = EventWriter(buffer), EventReader(buffer)
    thread = threading.Thread(target=writer.write_run, args=(0, EVENTS))
    thread.start()
    collected = 0
    last = -1
    finished = False
    while not finished:
        finished = not thread.is_alive()
        reader.slow_ns = collected
        for event in reader.collect():
            number = event["trace_id"]
            assert number > last
            assert event["time_ns"] == (number + 1) * 10**9
            assert event["transaction_id"] == event["lba"] == event["length"] == number
            assert (event["latency_ns"] or 0) == number
            assert event["opcode"] == event["asc"] == event["ascq"] == number % 256
            last = number
            collected += 1
    thread.join()
    assert last == EVENTS - 1
    assert collected + reader.lost == EVENTS
    assert not any(reader.suppressed.values())
