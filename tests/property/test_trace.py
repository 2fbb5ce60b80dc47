import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore.errors import ProtocolError
from hvcore.metrics.trace import EVENT_BYTES, HEADER_BYTES, TraceReader, TraceWriter, decode
from tests.reference.trace import TraceTwin

quick = settings(derandomize=True, deadline=None, max_examples=150)
steps = st.lists(st.one_of(st.integers(0, 40), st.sampled_from(["collect", "on", "off"])), max_size=30)


@quick
@given(st.integers(2, 40), steps)
def test_agrees_with_twin(places: int, steps: list[int | str]) -> None:
    buffer = bytearray(HEADER_BYTES + places * EVENT_BYTES)
    writer = TraceWriter.create(buffer)
    reader = TraceReader(buffer)
    twin = TraceTwin(places)
    next_id = 0
    for step in [*steps, "collect"]:
        if step == "collect":
            assert [event[1:] for event in decode(reader.collect())] == twin.collect()
            assert reader.lost == twin.lost
        elif isinstance(step, str):
            reader.enable(step == "on")
            twin.enabled = step == "on"
        else:
            writer.stamp_run(next_id, step)
            for i in range(next_id, next_id + step):
                twin.stamp(i, i, i, i)
            next_id += step


@quick
@given(st.binary(min_size=64, max_size=64), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8), st.booleans())
def test_hostile_header(header: bytes, heads: list[int], valid: bool) -> None:
    buffer = bytearray(HEADER_BYTES + 8 * EVENT_BYTES)
    TraceWriter.create(buffer)
    if not valid:
        buffer[: len(header)] = header
    try:
        reader = TraceReader(buffer)
    except ProtocolError:
        return
    total = 0
    for head in heads:
        struct.pack_into("=Q", buffer, 16, head)
        back = head < total
        try:
            events = decode(reader.collect())
        except ProtocolError:
            assert back
            continue
        assert not back
        assert len(events) <= 7
        total = head
    assert reader.lost <= total
