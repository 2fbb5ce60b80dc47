import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore.errors import ProtocolError
from hvcore.metrics.events import EVENT_BYTES, HEADER_BYTES, EventReader, EventWriter
from tests.reference.events import EventsTwin

quick = settings(derandomize=True, deadline=None, max_examples=100)
steps = st.lists(
    st.one_of(
        st.just("collect"),
        # A kind, events of it at once, ns before them (a share is one event per 20 ms).
        st.tuples(st.sampled_from(["slow", "failed"]), st.integers(1, 70), st.integers(0, 100_000_000)),
    ),
    max_size=30,
)


@quick
@given(st.integers(2, 200), steps)
def test_agrees_with_twin(places: int, steps: list[str | tuple[str, int, int]]) -> None:
    buffer = bytearray(HEADER_BYTES + places * EVENT_BYTES)
    writer, reader, twin = EventWriter(buffer), EventReader(buffer), EventsTwin(places)
    now, number = 10**15, 0
    for step in [*steps, "collect"]:
        if isinstance(step, str):
            found = [(event["kind"], event["trace_id"], event["suppressed"]) for event in reader.collect()]
            assert found == twin.collect()
            assert reader.lost == twin.lost
        else:
            kind, count, pause = step
            now += pause
            for _ in range(count):
                assert writer.write(kind, number, time_ns=now) == twin.write(kind, number, now)
                number += 1
    assert {kind: count for kind, count in reader.suppressed.items() if count} == twin.suppressed


@quick
@given(
    st.binary(min_size=128, max_size=128), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8), st.booleans()
)
def test_hostile_header(header: bytes, heads: list[int], valid: bool) -> None:
    buffer = bytearray(HEADER_BYTES + 8 * EVENT_BYTES)
    EventWriter(buffer)
    if not valid:
        buffer[: len(header)] = header
    try:
        reader = EventReader(buffer)
    except ProtocolError:
        return
    total = 0
    for head in heads:
        struct.pack_into("=Q", buffer, 16, head)
        back = head < total
        try:
            events = reader.collect()
        except ProtocolError:
            assert back
            continue
        assert not back
        assert len(events) <= 7
        total = head
    assert reader.lost <= total


@quick
@given(st.binary(min_size=4 * EVENT_BYTES, max_size=4 * EVENT_BYTES))
def test_hostile_events(content: bytes) -> None:
    buffer = bytearray(HEADER_BYTES + 4 * EVENT_BYTES)
    EventWriter(buffer)
    buffer[HEADER_BYTES:] = content
    struct.pack_into("=Q", buffer, 16, 3)
    assert len(EventReader(buffer).collect()) == 3
