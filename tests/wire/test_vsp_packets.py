"""What a vstor packet and its descriptor may be on a real channel: sizes, flags, gaps and left-overs."""

import struct
from collections.abc import Iterator

import pytest

from hvcore.disk.ram import RamDisk
from tests.reference import ring as twin
from tests.reference.guest import (
    PAGE,
    TEST_UNIT_READY,
    Channel,
    Guest,
    in_band,
    srb,
    vstor,
)
from tests.wire.test_storvsp import VECTORS

NEGOTIATION = (7, 9, 10, 8)  # the operation that leaves each state
STATES = ("begin", "query version", "query properties", "end initialization", "ready")
DONE = bytes.fromhex("01") + bytes(63)


def changed(packet: bytes, at: int, value: str) -> bytes:
    piece = bytes.fromhex(value)
    return packet[:at] + piece + packet[at + len(piece) :]


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest(memory=512 << 20) as guest:  # sparse; the vectors name pages up to 12345h
        yield guest


@pytest.fixture
def channel(guest: Guest) -> Channel:
    """A disk of 32 GiB, ready."""
    channel = guest.add(RamDisk(32 << 30))
    channel.negotiate()
    return channel


def reach(channel: Channel, state: int, version: int = 0x600) -> None:
    for operation in NEGOTIATION[:state]:
        union = struct.pack("<H", version) if operation == 9 else b""
        assert channel.ask(in_band(vstor(operation, union))).status == 0
    assert channel.inspect()["state"] == STATES[state]


def test_reset_vector(channel):
    """V27, also with what an older Linux leaves in the union (4.2)."""
    assert channel.ask(in_band(VECTORS["V27"])).packet.payload == DONE
    assert channel.ask(in_band(VECTORS["V27"][:12] + b"\xff" * 52)).packet.payload == DONE


@pytest.mark.parametrize("kind", [0xB, 7])
def test_other_packet_types_are_no_requests(channel, kind):
    """4.1: completions and transfer pages."""
    channel.scribble(twin.encode(twin.Packet(kind, 1, 1, vstor(7), bytes(8) if kind == 7 else b"")))
    assert channel.fault() in ("packet", "ring")


@pytest.mark.parametrize("state", range(5))
def test_request_without_completion_flag(guest, state):
    """2.4: nobody could be answered."""
    channel = guest.add(RamDisk(1 << 20))
    reach(channel, state)
    channel.send(in_band(vstor(7), flags=0))
    assert channel.fault() == "packet"


@pytest.mark.parametrize("operation, size, fault", [
    (3, 8, "packet"), (3, 16, "packet"), (3, 40, "packet"), (3, 48, None), (3, 56, None), (3, 72, None),
    (3, 4000, None), (7, 0, "packet"), (7, 8, "packet"), (7, 16, None), (9, 8, "packet"), (9, 16, None),
    (13, 16, None), (6, 16, None),
])  # fmt: skip
def test_payload_sizes(guest, operation, size, fault):
    """3.3: too short for its fields is malformed, too long is cut; the reply is as long as the request, 64 at most."""
    channel = guest.add(RamDisk(1 << 20))
    channel.negotiate(0x402)
    packet = srb(TEST_UNIT_READY, size=48) if operation == 3 else vstor(operation)
    channel.send(in_band(packet[:size].ljust(size, b"\xff")))
    if fault:
        assert channel.fault() == fault
    else:
        answer = channel.receive()
        assert len(answer.packet.payload) == min(size, 64)
        assert answer.status == (0 if operation in (3, 6, 13) else 0xC0000184)


def test_unknown_vstor_flags_are_ignored(channel):
    assert channel.ask(in_band(vstor(6, flags=0xFFFFFFFF))).packet.payload == DONE


def test_union_without_input_is_ignored(guest):
    channel = guest.add(RamDisk(1 << 20))
    for operation, union in zip(
        NEGOTIATION, (b"\xff" * 52, b"\0\6" + b"\xff" * 50, b"\xff" * 52, b"\xff" * 52), strict=True
    ):
        assert channel.ask(in_band(vstor(operation, union))).status == 0
    channel.answers()


def test_sub_channels_are_counted_in_16_bits(guest):
    channel = guest.add(RamDisk(1 << 20))
    reach(channel, 3)
    for count in (1, 0xFFFF):
        answer = channel.ask(in_band(vstor(13, struct.pack("<H", count))))
        assert answer.packet.payload == VECTORS["V07b"]
    assert channel.ask(in_band(vstor(13))).packet.payload == DONE


def test_descriptor_above_32_pages_does_the_same(guest):
    """Checklist 3: 64 pages in one packet, as two packets of 32."""
    disk = RamDisk(1 << 20)
    data = bytes(n * 11 >> 3 & 255 for n in range(64 * PAGE))
    disk.write(0, data)
    channel = guest.add(disk)
    channel.negotiate()
    pages = [1000 - 2 * n for n in range(64)]
    assert channel.read_disk(0, 512, pages).length == 64 * PAGE
    whole = [guest.read(page * PAGE, PAGE) for page in pages]
    for page in pages:
        guest.write(page * PAGE, bytes(PAGE))
    for part in (0, 1):
        assert channel.read_disk(256 * part, 256, pages[32 * part : 32 * part + 32]).length == 32 * PAGE
    assert [guest.read(page * PAGE, PAGE) for page in pages] == whole
    assert b"".join(whole) == data


def test_reserved_words_of_the_range_header_are_ignored(channel):
    """2.2: they may hold garbage."""
    channel.scribble(changed(VECTORS["V09"], 16, "deadbeef"))
    assert channel.receive().packet.payload == VECTORS["V12"][16:]


def test_payload_may_start_behind_a_gap(channel):
    """data_offset8 says where the vstor packet begins, in an in-band packet too."""
    channel.send(twin.encode(twin.Packet(6, 1, 7, srb(TEST_UNIT_READY), b"\xff" * 24)))
    assert channel.receive().packet.payload == VECTORS["V13b"]
