"""Ring as its callers see it."""

import dataclasses
import mmap
import struct

import numpy as np
import pytest

from hvcore.errors import ProtocolError, RingCorrupt, RingFull
from hvcore.vmbus import COMPLETION, COMPLETION_REQUESTED, GPA_DIRECT, GpaRange, Packet, Ring, encode_packet

PAGE = 4096


def test_create_formats_every_page():
    buffer = bytearray(b"\xff" * 3 * PAGE)
    Ring.create(buffer)
    assert buffer == bytes(64) + b"\1" + bytes(3 * PAGE - 65)


def test_attach_keeps_what_it_finds():
    buffer = bytearray(2 * PAGE)
    Ring.create(buffer).send(b"old", 9)
    assert Ring.attach(buffer).receive().transaction_id == 9


@pytest.mark.parametrize("size", [0, PAGE, PAGE + 8, 3 * PAGE - 1])
def test_buffer_must_be_pages(size):
    with pytest.raises(ValueError):
        Ring.create(bytearray(size))


def test_buffer_must_be_aligned():
    with pytest.raises(ValueError, match="aligned"):
        Ring.create(memoryview(bytearray(2 * PAGE + 1))[1:])


def test_buffer_must_be_writable():
    with pytest.raises(BufferError):
        Ring.attach(bytes(2 * PAGE))


@pytest.mark.parametrize("pages", [[], [0], [0, 4], [0, -1], [5, 0]])
def test_pages_must_be_within_the_buffer(pages):
    with pytest.raises(ValueError):
        Ring.create(bytearray(4 * PAGE), pages=pages)


def test_pages_may_lie_anywhere():
    buffer = bytearray(6 * PAGE)
    ring = Ring.create(buffer, pages=[4, 5, 1, 3])
    body = bytes(range(256)) * 36
    ring.send(body)
    assert ring.receive().payload == body
    assert ring.size == 3 * PAGE and not any(buffer[:PAGE]) and not any(buffer[2 * PAGE : 3 * PAGE])


def test_aliased_pages_are_harmless():
    """VA-6: data over the control page of the same ring."""
    ring = Ring.create(bytearray(2 * PAGE), pages=[0, 0])
    with pytest.raises(RingCorrupt):
        for _ in range(3):
            ring.send(b"\xff" * 64)
            ring.receive()


@pytest.mark.parametrize("make", [bytearray, lambda size: mmap.mmap(-1, size), lambda size: np.zeros(size, np.uint8)])
def test_any_writable_buffer_serves(make):
    with Ring.create(make(2 * PAGE)) as ring:
        ring.send(b"payload!")
        assert ring.receive().payload == b"payload!"


def test_buffer_is_held_until_close():
    region = mmap.mmap(-1, 2 * PAGE)
    ring = Ring.create(region)
    with pytest.raises(BufferError):
        region.close()
    ring.close()
    ring.close()
    assert ring.closed
    region.close()


def test_buffer_is_given_back_with_the_last_reference():
    buffer = bytearray(2 * PAGE)
    Ring.create(buffer)
    with pytest.raises(ValueError):
        Ring.create(buffer, role="nobody")
    buffer.append(0)


@pytest.mark.parametrize(
    "use",
    [
        lambda r: r.send(b""),
        lambda r: r.receive(),
        lambda r: r.receive_batch(),
        lambda r: r.send_batch([]),
        lambda r: r.used,
        lambda r: r.free,
        lambda r: r.interrupt_mask,
        lambda r: r.pending_send_size,
        lambda r: r.want(8),
    ],
)
def test_closed_ring_refuses(use):
    ring = Ring.create(bytearray(2 * PAGE))
    ring.receive()
    ring.close()
    with pytest.raises(ValueError, match="closed"):
        use(ring)


def test_ring_has_no_constructor():
    with pytest.raises(TypeError):
        Ring()


def test_full_ring_sends_nothing():
    buffer = bytearray(2 * PAGE)
    ring = Ring.create(buffer)
    ring.send(bytes(3000))
    before = bytes(buffer)
    with pytest.raises(RingFull):
        ring.send(bytes(3000))
    assert buffer == before


def test_largest_packet():
    """RB-13: sent up to S - 16, received up to S - 8."""
    buffer = bytearray(2 * PAGE)
    ring = Ring.create(buffer)
    with pytest.raises(ValueError, match="4072"):
        ring.send(bytes(PAGE - 16 - 24 + 1))
    ring.send(bytes(PAGE - 16 - 24))
    struct.pack_into("<I", buffer, 0, PAGE - 8)
    struct.pack_into("<H", buffer, PAGE + 4, (PAGE - 16) // 8)
    assert len(ring.receive().payload) == PAGE - 8 - 24


def test_length_field_bounds_the_packet():
    """PK-1."""
    ring = Ring.create(bytearray(PAGE * 200))
    for body in (bytes(524280 - 16 + 1), memoryview(bytearray(2**20))):
        with pytest.raises(ValueError):
            ring.send(body)
    ring.send(bytes(524280 - 16))
    assert len(ring.receive().payload) == 524280 - 16


@pytest.mark.parametrize("wrong", [{"type": 0x10000}, {"flags": 0x10000}, {"header": b"1234567"}])
def test_fields_must_fit(wrong):
    ring = Ring.create(bytearray(2 * PAGE))
    with pytest.raises(ValueError):
        ring.send(b"", **wrong)
    assert ring.used == 0


def test_batch_sends_what_fits():
    ring = Ring.create(bytearray(2 * PAGE))
    assert ring.send_batch([bytes(1000)] * 5) == (3, True)
    assert ring.send_batch([bytes(1000)]) == (0, False)
    assert len(ring.receive_batch(2)) == 2 and len(ring.receive_batch()) == 1 and ring.receive_batch() == []


def test_bad_item_sends_nothing_of_the_batch():
    ring = Ring.create(bytearray(2 * PAGE))
    for bad, error in ((bytes(PAGE), ValueError), ("text", TypeError)):
        with pytest.raises(error):
            ring.send_batch([b"good", bad])
        assert ring.used == 0
    ring.send(b"after", 5)
    assert ring.receive().transaction_id == 5


def test_batch_before_corruption_is_returned():
    buffer = bytearray(2 * PAGE)
    ring = Ring.create(buffer)
    ring.send_batch([Packet(COMPLETION, 0, 3, b""), Packet(6, 2, 4, b"")])
    assert [packet.transaction_id for packet in ring.receive_batch()] == [3]
    with pytest.raises(RingCorrupt, match="flag"):
        ring.receive_batch()


def test_guest_passes_on_what_a_host_rejects():
    """vmbus.md 2.2: unknown type and flags."""
    ring = Ring.create(bytearray(2 * PAGE), role="guest")
    ring.send(b"", 1, flags=6, type=77)
    assert (ring.role, ring.receive()) == ("guest", Packet(77, 6, 1))


def test_signal_only_on_the_edge_and_unmasked():
    """RB-21, RB-26."""
    ring = Ring.create(bytearray(2 * PAGE))
    assert [ring.send(b""), ring.send(b"")] == [True, False]
    ring.receive_batch()
    ring.interrupt_mask = True
    assert not ring.send(b"") and ring.interrupt_mask
    ring.receive()
    ring.interrupt_mask = False
    assert ring.send(b"")


def test_room_is_signalled_once():
    """vmbus.md 1.8, masked or not (RB-26)."""
    ring = Ring.create(bytearray(2 * PAGE))
    ring.interrupt_mask = True
    sent, _ = ring.send_batch([bytes(1000)] * 4)
    assert sent == 3 and not ring.want(2048)
    due = [(ring.receive(), ring.signal_due)[1] for _ in range(sent)]
    assert due == [False, True, False]
    assert ring.want(2048) and ring.pending_send_size == 0
    ring.pending_send_size = 77
    assert ring.pending_send_size == 77


def test_want_refuses_what_never_comes():
    """RB-32."""
    ring = Ring.create(bytearray(2 * PAGE))
    assert ring.want(PAGE - 1)
    with pytest.raises(ValueError):
        ring.want(PAGE)


@pytest.mark.parametrize(("published", "words"), [(8, 2), (16, 2), (24, 3), (32, 4)])
def test_trailer_must_be_published(published, words):
    """vmbus.md 2.2: len8 * 8 + 8 <= used."""
    buffer = bytearray(2 * PAGE)
    struct.pack_into("<I", buffer, 0, published)
    struct.pack_into("<3H", buffer, PAGE, 6, 2, words)
    with pytest.raises(RingCorrupt):
        Ring.attach(buffer).receive()


def test_own_index_is_private():
    """RB-42: what a peer writes over it redirects nobody."""
    buffer = bytearray(2 * PAGE)
    ring = Ring.create(buffer)
    ring.send(b"one", 1)
    ring.receive()
    struct.pack_into("<II", buffer, 0, 2048, 0)
    ring.send(b"two", 2)
    assert struct.unpack_from("<I", buffer)[0] == 64
    assert ring.receive().transaction_id == 2
    assert struct.unpack_from("<I", buffer, 4)[0] == 64


def test_packet_is_an_immutable_dataclass():
    packet = Packet(type=GPA_DIRECT, flags=COMPLETION_REQUESTED, transaction_id=7)
    names = [field.name for field in dataclasses.fields(Packet)]
    assert names == ["type", "flags", "transaction_id", "payload", "header"]
    assert packet == Packet(9, 1, 7, b"", b"") and packet != Packet(9, 1, 8) and len({packet, Packet(9, 1, 7)}) == 1
    with pytest.raises(AttributeError):
        packet.type = 6


@pytest.mark.parametrize(
    "packet", [Packet(6, header=b"1234"), Packet(70000), Packet(6, 70000), Packet(6, payload=bytes(524280))]
)
def test_encode_refuses_what_no_packet_holds(packet):
    with pytest.raises(ValueError):
        encode_packet(packet)


def test_ranges_of_nonsense():
    assert Packet(6, header=bytes(16)).ranges == ()
    for packet in (Packet(9), Packet(9, header=bytes(8)), Packet(7), Packet(7, header=bytes(4) + b"\1" * 4)):
        with pytest.raises(ProtocolError):
            _ = packet.ranges


@pytest.mark.parametrize(
    "ranges",
    [[], [GpaRange(0, 0, ())], [GpaRange(1, 4096, (1,))], [GpaRange(4097, 0, (1,))], [(1, 0, (1, 2))], [(-1, 0, ())]],
)
def test_send_gpa_direct_refuses_bad_ranges(ranges):
    """vmbus.md 2.4."""
    ring = Ring.create(bytearray(2 * PAGE))
    with pytest.raises(ValueError):
        ring.send_gpa_direct(ranges)
    assert ring.used == 0
