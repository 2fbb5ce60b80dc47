"""The compiled ring beside its plain-Python twin, and beside a peer that writes anything."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hvcore.errors import RingCorrupt, RingFull
from hvcore.vmbus import GpaRange, Packet, Ring, decode_packet, encode_packet
from tests.reference import ring as twin

PAGE = 4096
FIELDS = ("type", "flags", "transaction_id", "payload", "header")


def plain(packet):
    return None if packet is None else twin.Packet(*(getattr(packet, name) for name in FIELDS))


def outcome(call, *args, **kwargs):
    """The result of a call, or the exception's type: what both rings must agree on."""
    try:
        return call(*args, **kwargs)
    except (RingFull, RingCorrupt, ValueError) as error:
        return type(error)


payloads = st.one_of(
    st.binary(max_size=80),
    st.builds(lambda n, b: bytes([b]) * n, st.integers(0, 5000), st.integers(0, 255)),
)
packets = st.builds(
    twin.Packet, st.sampled_from([6, 0xB]), st.integers(0, 1), st.integers(0, 2**64 - 1), payloads, st.just(b"")
)
ranges = st.lists(
    st.tuples(st.integers(1, 9000), st.integers(0, 4095)).map(
        lambda r: (r[0], r[1], tuple(range(1, 1 + -(-(r[0] + r[1]) // PAGE))))
    ),
    min_size=1,
    max_size=4,
)


class Twins(RuleBasedStateMachine):
    @initialize(data=st.data(), data_pages=st.sampled_from([1, 2, 3, 5]), together=st.booleans(), listed=st.booleans())
    def open(self, data, data_pages, together, listed):
        order = data.draw(st.permutations(range(data_pages + 2)))[: data_pages + 1] if listed else None
        start = 8 * data.draw(st.integers(0, data_pages * PAGE // 8 - 1))
        pages = data_pages + 2 if listed else data_pages + 1
        self.buffers = bytearray(pages * PAGE), bytearray(pages * PAGE)
        for buffer in self.buffers:
            struct.pack_into("<II", buffer, order[0] * PAGE if order else 0, start, start)
        mine, others = self.buffers
        self.writer = Ring.attach(mine, pages=order)
        self.reader = self.writer if together else Ring.attach(mine, pages=order)
        self.twin_writer = twin.Ring(others, order)
        self.twin_reader = self.twin_writer if together else twin.Ring(others, order)
        self.size = data_pages * PAGE

    @rule(packet=packets)
    def send(self, packet):
        kind, flags, transaction_id, payload, _ = packet
        mine = outcome(self.writer.send, payload, transaction_id, flags, kind)
        assert mine == outcome(self.twin_writer.send, packet)

    @rule(ranges=ranges, payload=st.binary(max_size=40), transaction_id=st.integers(0, 9))
    def send_gpa_direct(self, ranges, payload, transaction_id):
        packet = twin.Packet(9, 1, transaction_id, payload, twin.gpa_direct_header(ranges))
        named = [GpaRange(*item) for item in ranges]
        assert outcome(self.writer.send_gpa_direct, named, payload, transaction_id) == outcome(
            self.twin_writer.send, packet
        )

    @rule(batch=st.lists(packets, max_size=8))
    def send_batch(self, batch):
        mine = outcome(self.writer.send_batch, [Packet(*packet) for packet in batch])
        assert mine == outcome(self.twin_writer.send_batch, batch)

    @rule()
    def receive(self):
        assert plain(self.reader.receive()) == self.twin_reader.receive()

    @rule(limit=st.one_of(st.none(), st.integers(0, 5)))
    def receive_batch(self, limit):
        mine = [plain(packet) for packet in self.reader.receive_batch(limit)]
        assert mine == self.twin_reader.receive_batch(limit)

    @rule()
    def signal_due(self):
        assert self.reader.signal_due == self.twin_reader.signal_due
        self.twin_reader.signal_due = False
        assert not self.reader.signal_due

    @rule(masked=st.booleans())
    def mask(self, masked):
        self.reader.interrupt_mask = masked
        self.twin_reader.store(twin.MASK, masked)

    @rule(data=st.data())
    def want(self, data):
        size = data.draw(st.integers(0, self.size - 1))
        assert self.writer.want(size) == self.twin_writer.want(size)

    @rule()
    def want_no_more(self):
        self.writer.pending_send_size = 0
        self.twin_writer.writer()
        self.twin_writer.store(twin.PENDING, 0)

    @precondition(lambda self: hasattr(self, "buffers"))
    @invariant()
    def same_bytes(self):
        assert self.buffers[0] == self.buffers[1]

    @precondition(lambda self: hasattr(self, "buffers"))
    @invariant()
    def used_and_free_add_up(self):
        used = (self.twin_writer.load(twin.IN) - self.twin_writer.load(twin.OUT)) % self.size
        assert (self.writer.used, self.reader.free) == (used, self.size - used)


Twins.TestCase.settings = settings(max_examples=150, stateful_step_count=40, derandomize=True, deadline=None)
test_ring_equals_its_twin = Twins.TestCase

words = st.one_of(st.integers(0, 2**32 - 1), st.integers(0, 3 * PAGE // 8).map(lambda n: n * 8))
descriptors = st.builds(
    lambda kind, offset8, length8, flags, rest: struct.pack("<4H", kind, offset8, length8, flags) + rest,
    st.sampled_from([0, 6, 7, 9, 0xB, 0xFFFF]),
    st.integers(0, 9),
    st.one_of(st.integers(0, 12), st.just(0xFFFF)),
    st.integers(0, 3),
    st.binary(max_size=64),
)
spots = st.integers(0, 2 * PAGE // 8 - 20)
whole = descriptors.map(lambda d: d[:4] + struct.pack("<H", len(d) // 8) + d[6 : len(d) & ~7])
GUARD = b"\xa5" * PAGE


@given(
    data=st.data(),
    role=st.sampled_from(["host", "guest"]),
    attacks=st.lists(
        st.one_of(
            st.tuples(st.just("word"), st.sampled_from([0, 4, 8, 12, 64]), words),
            st.tuples(st.just("data"), spots, st.one_of(descriptors, st.binary(max_size=64))),
            st.tuples(st.just("send"), st.integers(0, 3000), st.none()),
            st.tuples(st.just("receive"), st.none(), st.none()),
        ),
        max_size=30,
    ),
)
@settings(max_examples=200, derandomize=True, deadline=None)
def test_hostile_peer_is_survived(data, role, attacks):
    """RB-43, VA-1, VA-2: any bytes in shared memory end in a result or in a dead end; guard pages stay as they were."""
    buffer = bytearray(GUARD + bytes(3 * PAGE) + GUARD)
    pages = [1, *data.draw(st.permutations([2, 3]))]
    ring = Ring.attach(buffer, pages=pages, role=role)
    dead = {"send": False, "receive": False}
    for kind, where, what in attacks:
        if kind == "word":
            struct.pack_into("<I", buffer, PAGE + where, what)
        elif kind == "data":
            buffer[2 * PAGE + 8 * where : 2 * PAGE + 8 * where + len(what)] = what
        else:
            try:
                if kind == "send":
                    ring.send(bytes(where))
                else:
                    ring.receive()
                assert not dead[kind]
            except RingCorrupt:
                dead[kind] = True
            except RingFull:
                assert not dead["send"]
    assert buffer[:PAGE] == GUARD and buffer[-PAGE:] == GUARD and len(buffer) == 5 * PAGE


@given(index=words.filter(lambda i: i % 8 or i >= 2 * PAGE), end=st.sampled_from(["send", "receive"]))
@settings(max_examples=100, derandomize=True, deadline=None)
def test_invalid_index_kills_for_good(index, end):
    """RB-7, RB-43."""
    buffer = bytearray(3 * PAGE)
    ring = Ring.create(buffer)
    call = {"send": lambda: ring.send(b""), "receive": ring.receive}[end]
    call()
    if end == "receive":
        call()
    struct.pack_into("<I", buffer, {"send": 4, "receive": 0}[end], index)
    with pytest.raises(RingCorrupt):
        call()
    struct.pack_into("<II", buffer, 0, 0, 0)
    with pytest.raises(RingCorrupt):
        call()


@given(data=st.one_of(descriptors, whole), role=st.sampled_from(["host", "guest"]))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_packet_codec_equals_its_twin(data, role):
    """What decodes encodes to the same bytes; verdicts agree (vmbus.md 2.2, 2.4)."""
    if len(data) < 16 or struct.unpack_from("<H", data, 4)[0] * 8 != len(data):
        with pytest.raises(RingCorrupt):
            decode_packet(data, role)
        return
    verdict = twin.verdict(data, role == "host")
    if verdict == "corrupt":
        with pytest.raises(RingCorrupt):
            decode_packet(data, role)
    else:
        assert encode_packet(decode_packet(data, role)) == data
