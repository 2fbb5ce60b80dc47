"""Rings and packets against the vectors and tables of vmbus.md section 8."""

import re
import struct
import zlib
from pathlib import Path

import pytest

from hvcore.errors import ProtocolError, RingCorrupt, RingFull
from hvcore.vmbus import GpaRange, Packet, Ring, TransferRange, decode_packet, encode_packet, gpa_direct_header
from tests.reference import ring as twin

PAGE = 4096
HERE = Path(__file__).parent


def read_vectors():
    """{name: bytes}, each checked against its own length and CRC."""
    entries, vectors = [], {}
    for line in (HERE / "packets.txt").read_text().splitlines():
        if line.startswith(" "):
            entries[-1][1] += line
        elif not line.startswith("#"):
            entries.append([line, ""])
    for head, text in entries:
        name, length, crc = re.match(r"(\w+) +len (\d+) crc (\w+) \|", head).groups()
        text = re.sub(r"(\w\w)\*(\d+)", lambda run: run[1] * int(run[2]), text)
        vectors[name] = bytes.fromhex(text)
        assert len(vectors[name]) == int(length) and zlib.crc32(vectors[name]) == int(crc, 16), name
    return vectors


def read_tables():
    tables = {}
    for line in (HERE / "ring_tables.txt").read_text().splitlines():
        if line.startswith("["):
            rows = tables.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            rows.append([number(cell) for cell in line.split()])
    return tables


def number(cell):
    try:
        return int(cell, 0)
    except ValueError:
        return cell


VECTORS = read_vectors()
TABLES = read_tables()
PACKETS = {
    "P1": Packet(6, 1, 0x1122334455667788, b"HELLO\0\0\0"),
    "P2": Packet(6, 1, 0x1122334455667788, b"HELLO\0\0\0"),
    "P3": Packet(6),
    "P4": Packet(0xB, 0, 0x10, bytes(8)),
    "P5": Packet(9, 1, 0xABCD, bytes(range(1, 9)), VECTORS["P5"][16:72]),
    "P6": Packet(9, 1, 7, b"\xaa" * 12 + bytes(4), VECTORS["P6"][16:56]),
    "P7": Packet(9, 1, 1, b"", VECTORS["P7"][16:48]),
    "P8": Packet(7, 1, 0x55, b"\xde\xad\xbe\xef" + bytes(4), VECTORS["P8"][16:40]),
    "P9": Packet(6, 0, 0, struct.pack("<II", 1, 3) + b"abc" + bytes(5)),
    "P10": Packet(6, 0, 0, struct.pack("<II", 1, 0)),
    "P11": Packet(6, 0, 2**64 - 1, b"HELLO\0\0\0"),
}
WITH_TRAILER = {"P2": 0x40, "P3": 0, "P4": 0x18}
RANGES = {
    "P5": (GpaRange(4096, 0, (0x1000,)), GpaRange(512, 0x200, (0x1001,)), GpaRange(100, 0, (0x1002,))),
    "P6": (GpaRange(0x2800, 0x800, (0x200, 0x305, 0x201)),),
    "P7": (GpaRange(0x1001, 0xFFF, (0x10, 0x11)),),
    "P8": (TransferRange(0x5EA, 0), TransferRange(0x40, 0x800)),
}


def ring_at(in_, out, data=b"", start=0, mask=0, pending=0, role="host"):
    """A ring of 4096 data bytes with these control words and `data` (which may wrap) at ring offset `start`."""
    buffer = bytearray(2 * PAGE)
    struct.pack_into("<4I", buffer, 0, in_, out, mask, pending)
    for i, byte in enumerate(data):
        buffer[PAGE + (start + i) % PAGE] = byte
    return buffer, Ring.attach(buffer, role=role)


def packet_bytes(name):
    return VECTORS[name][: -8 if name in WITH_TRAILER else None]


@pytest.mark.parametrize("name", PACKETS)
def test_packet_vector_round_trips(name):
    packet = decode_packet(packet_bytes(name))
    assert packet == PACKETS[name]
    assert encode_packet(packet) == packet_bytes(name)


@pytest.mark.parametrize("name", PACKETS)
def test_packet_vector_is_what_send_writes(name):
    start = WITH_TRAILER.get(name, 0x20)
    packet = PACKETS[name]
    buffer, ring = ring_at(start, start)
    ring.send(packet.payload, packet.transaction_id, packet.flags, packet.type, header=packet.header)
    slot = packet_bytes(name) + struct.pack("<II", 0, start)  # RB-16
    assert buffer[PAGE + start : PAGE + start + len(slot)] == slot
    if name in WITH_TRAILER:
        assert slot == VECTORS[name]
    assert ring.receive() == packet and ring.receive() is None


@pytest.mark.parametrize("name", RANGES)
def test_ranges_of_vector(name):
    assert PACKETS[name].ranges == RANGES[name]


@pytest.mark.parametrize("name", ["P5", "P6", "P7"])
def test_gpa_direct_vector_is_what_send_gpa_direct_writes(name):
    buffer, ring = ring_at(0, 0)
    ring.send_gpa_direct(RANGES[name], PACKETS[name].payload, PACKETS[name].transaction_id)
    assert buffer[PAGE : PAGE + len(VECTORS[name])] == VECTORS[name]


@pytest.mark.parametrize(("name", "old", "new"), [("W1", 0xFF0, 0x10), ("W2", 0xFF8, 0x18), ("W3", 0xFE8, 0x8)])
def test_wrapped_packet(name, old, new):
    """RB-14."""
    tail, head = VECTORS[name + "a"], VECTORS[name + "b"]
    buffer, ring = ring_at(old, old)
    ring.send(b"HELLO", 2**64 - 1)
    assert struct.unpack_from("<I", buffer)[0] == new
    assert buffer[PAGE + old :] == tail and buffer[PAGE : PAGE + new] == head
    _, reader = ring_at(new, old, tail + head, old)
    assert reader.receive() == PACKETS["P11"]


def test_control_page_vector():
    buffer = bytearray(VECTORS["C1"].ljust(2 * PAGE, b"\0"))
    ring = Ring.attach(buffer)
    assert (ring.used, ring.interrupt_mask, ring.pending_send_size) == (8, True, 0x400)
    with pytest.raises(RingCorrupt):  # 8 bytes are no packet (2.2)
        ring.receive()
    words = struct.unpack("<17I", VECTORS["C1"])
    made, ring = ring_at(0x18, 0x18)
    ring.send(b"")
    assert (made[64], ring.used) == (words[16], 24)  # RB-4


@pytest.mark.parametrize(("name", "host", "guest"), TABLES["verdict"])
@pytest.mark.parametrize("role", ["host", "guest"])
def test_negative_vector(name, host, guest, role):
    """vmbus.md 8.4: whether the channel dies, the request fails, or a guest passes it on."""
    verdict = host if role == "host" else guest
    published = 32 if name == "N11" else len(VECTORS[name]) + 8
    buffer, ring = ring_at(published, 0, VECTORS[name], role=role)
    assert twin.verdict(VECTORS[name], role == "host") == verdict
    if verdict == "corrupt":
        with pytest.raises(RingCorrupt):
            decode_packet(VECTORS[name], role)
        for _ in range(2):
            with pytest.raises(RingCorrupt):
                ring.receive()
        assert struct.unpack_from("<I", buffer, 4)[0] == 0  # Out was not published
        return
    packet = ring.receive()
    assert packet == decode_packet(VECTORS[name], role)
    if verdict == "failed":
        with pytest.raises(ProtocolError):
            _ = packet.ranges
    assert ring.receive() is None


@pytest.mark.parametrize("in_", [0x1000, 0xFFC])
def test_invalid_index_is_corrupt(in_):
    """RB-7, the last rows of 8.4."""
    with pytest.raises(RingCorrupt):
        ring_at(in_, 0)
    buffer, ring = ring_at(0, 0)
    ring.receive()
    struct.pack_into("<I", buffer, 0, in_)
    with pytest.raises(RingCorrupt):
        ring.receive()


@pytest.mark.parametrize(("in_", "out", "used", "free", "largest"), TABLES["arithmetic"])
def test_arithmetic(in_, out, used, free, largest):
    """RB-9 to RB-13."""
    _, ring = ring_at(in_, out)
    assert (ring.used, ring.free) == (used, free)
    sendable = 16 if largest == "-" else min(largest, PAGE - 16)
    with pytest.raises(ValueError if sendable == PAGE - 16 else RingFull):
        ring.send(bytes(sendable + 8 - 24))
    if sendable >= 24:
        ring.send(bytes(sendable - 24))
        assert ring.used == used + sendable


@pytest.mark.parametrize(("old", "new", "count", "mask", "out", "signal"), TABLES["writer signal"])
def test_writer_signal(old, new, count, mask, out, signal):
    """RB-20, RB-21: Out is what the writer reads after its barrier, here stored after it looked for room."""
    buffer, ring = ring_at(old, old if out == old else 0, mask=mask)
    assert ring.want(0)
    struct.pack_into("<I", buffer, 4, out)
    size = (new - old) % PAGE // count
    assert ring.send_batch([bytes(size - 24)] * count) == (count, signal == "yes")
    assert struct.unpack_from("<I", buffer)[0] == new


@pytest.mark.parametrize(("pending", "old", "new", "before", "after", "signal"), TABLES["reader signal"])
def test_reader_signal(pending, old, new, before, after, signal):
    """RB-30 to RB-34."""
    assert (PAGE - 4088 + old, PAGE - 4088 + new) == (before, after)
    # No packet is shorter than 24 bytes: where the table frees 8, begin earlier, on the same side of the threshold.
    start = min(old, new - 24)
    packet = struct.pack("<4HQ", 6, 2, (new - start - 8) // 8, 0, 0)
    buffer, ring = ring_at(4088, start, packet, start, pending=pending)
    assert len(ring.receive_batch(1)) == 1
    assert struct.unpack_from("<I", buffer, 4)[0] == new
    assert ring.signal_due == (signal == "yes")
    assert not ring.signal_due


@pytest.mark.parametrize(("byte_offset", "byte_count", "pfns"), TABLES["pfn count"])
def test_pfn_count(byte_offset, byte_count, pfns):
    """vmbus.md 2.4, in 64 bits."""
    header = gpa_direct_header([(byte_count, byte_offset, range(pfns))])
    assert len(header) == 16 + 8 * pfns
    for wrong in (pfns - 1, pfns + 1):
        with pytest.raises(ValueError, match=f"need {pfns} PFNs"):
            gpa_direct_header([(byte_count, byte_offset, range(wrong))])
    if pfns < 1000:
        assert Packet(9, header=header).ranges == (GpaRange(byte_count, byte_offset, tuple(range(pfns))),)
        with pytest.raises(ProtocolError):
            _ = Packet(9, header=header[:-8]).ranges  # N9
