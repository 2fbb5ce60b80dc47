"""The storage VSP on a real channel: vectors of storvsp.txt, and each cell of the negotiation table (4.1)."""

import struct
from pathlib import Path

import pytest

from hvcore.disk.ram import RamDisk
from hvcore.vmbus import encode_packet
from tests.reference import guest as rig
from tests.reference.guest import PAGE, Guest, direct, in_band, srb, vstor

MEMORY = 0x12400 * PAGE  # the vectors' pages lie up to 12345h; only what is touched takes memory
WRONG_STATE = 0xC0000184
STATES = ("begin", "query version", "query properties", "end initialization", "ready")
VERSIONS = (0x0200, 0x0402, 0x0501, 0x0600, 0x0602)
# What takes a fresh channel one state further.
STEPS = ((7, b""), (9, struct.pack("<H", 0x600)), (10, b""), (8, b""))


def unhex(text):
    words = text.split()
    return b"".join(bytes(int(word[4:])) if word.startswith("+00x") else bytes.fromhex(word) for word in words)


def load():
    lines = Path(__file__).with_name("storvsp.txt").read_text().splitlines()
    entries = (line.split(" | ") for line in lines if not line.startswith("#"))
    return {name: unhex(text) for name, _, text in entries}


V = load()


@pytest.fixture
def guest():
    with Guest(MEMORY) as guest:
        yield guest


@pytest.fixture
def channel(guest):
    return guest.add(RamDisk(32 << 30))


@pytest.fixture
def ready(channel):
    channel.negotiate()
    return channel


def payload(answer):
    return answer.packet.payload


def bring_to(channel, state):
    for operation, union in STEPS[: STATES.index(state)]:
        assert channel.ask(in_band(vstor(operation, union))).status == 0
    assert channel.inspect()["state"] == state


# ---- vectors


def test_negotiation_vectors(channel):
    assert encode_packet(channel.ask(V["V01"]).packet) == V["V02"]
    assert payload(channel.ask(in_band(V["V04a"]))) == V["V04b"]
    # This controller has no sub-channels: count and flag of the vector are zero.
    properties = V["V05b"][:16] + bytes(8) + V["V05b"][24:]
    assert payload(channel.ask(in_band(V["V05a"]))) == properties
    assert payload(channel.ask(in_band(V["V06"]))) == unhex("01000000 +00x60")
    assert payload(channel.ask(in_band(V["V07a"]))) == V["V07b"]
    assert payload(channel.ask(in_band(V["V27"]))) == unhex("01000000 +00x60")
    assert payload(channel.ask(in_band(V["V06"]))) == V["V08"]
    assert channel.inspect()["state"] == "ready"


def test_rejected_version_vector(guest):
    channel = guest.add(RamDisk(1 << 20), max_version=0x0600)
    channel.ask(V["V01"])
    assert payload(channel.ask(in_band(V["V03a"]))) == V["V03b"]
    assert (channel.inspect()["state"], channel.inspect()["version"]) == ("query version", None)
    assert payload(channel.ask(in_band(V["V04a"]))) == V["V04b"]


@pytest.mark.parametrize("vector", ["V09", "V10"])
def test_inquiry_vectors(guest, ready, vector):
    page = 0x12345 * PAGE
    guest.write(page, b"\xee" * PAGE)
    assert encode_packet(ready.ask(V[vector]).packet) == V["V12"]
    assert guest.read(page, PAGE) == V["V11"][:36] + b"\xee" * (PAGE - 36)


def test_test_unit_ready_vectors(ready):
    answer = ready.ask(V["V13a"])
    assert encode_packet(answer.packet) == unhex("0b000200 0a000000 02000000 00000000") + V["V13b"]


def test_read_vector(guest):
    disk = RamDisk(4 << 20)
    data = bytes(range(256)) * 16
    disk.write(0x1000 * 512, data)
    channel = guest.add(disk)
    channel.negotiate()
    for page in (0x8001, 0x9002):
        guest.write(page * PAGE, b"\xee" * PAGE)
    assert encode_packet(channel.ask(V["V16a"]).packet) == V["V16b"]
    assert guest.read(0x8001 * PAGE, PAGE) == b"\xee" * 0x200 + data[:0xE00]
    assert guest.read(0x9002 * PAGE, PAGE) == data[0xE00:] + b"\xee" * 0xE00


def test_range_error_vector(guest, ready):
    guest.write(0x8001 * PAGE, b"\xee" * PAGE)
    assert payload(ready.ask(direct(srb(V["V17a"], PAGE), [0x8001], PAGE))) == V["V17b"]
    assert guest.read(0x8001 * PAGE, PAGE) == b"\xee" * PAGE


def test_report_luns_vector(guest, ready):
    guest.write(0x8001 * PAGE, b"\xee" * PAGE)
    answer = ready.ask(direct(srb(V["V20a"], PAGE), [0x8001], PAGE))
    # As V20b, with LUN 0 alone.
    assert (answer.srb_status, answer.length) == (1, 16)
    assert guest.read(0x8001 * PAGE, 17) == unhex("00000008 00000000 +00x8") + b"\xee"


def test_absent_lun_vector(ready):
    assert payload(ready.ask(in_band(srb(rig.TEST_UNIT_READY, lun=9)))) == V["V24b"]


def test_windows_7_read_vector(guest):
    disk = RamDisk(1 << 20)
    disk.write(0, b"\xa5" * 512)
    channel = guest.add(disk)
    channel.negotiate(0x0402)
    answer = channel.ask(direct(V["V26"], [0x8001], 512))
    assert payload(answer) == V["V13b"][:24] + struct.pack("<I", 512) + bytes(20)
    assert guest.read(0x8001 * PAGE, 513) == b"\xa5" * 512 + b"\0"


def test_overrun_vector(ready):
    cdb = V["V14"][:10]
    assert payload(ready.ask(direct(srb(cdb, 4), [0x8001], 4))) == V["V31"]


def test_short_inquiry_vector(guest, ready):
    guest.write(0x8001 * PAGE, b"\xee" * PAGE)
    answer = ready.ask(direct(srb(bytes.fromhex("12000000ff00"), 255), [0x8001], 255))
    assert payload(answer) == V["V32"]
    assert guest.read(0x8001 * PAGE, 105) == V["V11"] + b"\xee"


# ---- versions (3.3, 3.5)


@pytest.mark.parametrize("version", VERSIONS)
def test_versions_accepted(channel, version):
    channel.negotiate(version)
    assert channel.inspect()["version"] == f"{version >> 8}.{version & 0xFF}"
    size = 64 if version >= 0x501 else 48
    answer = channel.ask(in_band(srb(rig.TEST_UNIT_READY, size=size)))
    assert (len(payload(answer)), answer.srb_status) == (size, 1)


@pytest.mark.parametrize("version", [0, 1, 0x0100, 0x0201, 0x0500, 0x0601, 0x0603, 0x0700, 0xFFFF])
def test_versions_rejected(channel, version):
    bring_to(channel, "query version")
    answer = channel.ask(in_band(vstor(9, struct.pack("<H", version))))
    assert answer.status == 0xC0000059
    assert payload(answer)[12:14] == struct.pack("<H", version)
    assert channel.inspect()["state"] == "query version"


@pytest.mark.parametrize("limit", VERSIONS)
def test_highest_version_is_configured(guest, limit):
    channel = guest.add(RamDisk(1 << 20), max_version=limit)
    channel.ask(in_band(vstor(7)))
    for version in reversed(VERSIONS):
        accepted = channel.ask(in_band(vstor(9, struct.pack("<H", version)))).status == 0
        assert accepted == (version <= limit)
        if accepted:
            return


@pytest.mark.parametrize("size", [16, 24, 48, 56, 64, 72, 128])
def test_reply_is_as_long_as_the_request(channel, size):
    answer = channel.ask(in_band(vstor(7, length=size)))
    assert len(payload(answer)) == min(size, 64)
    assert not any(payload(answer)[4:])


# ---- op x state (4.1)


def expected(operation, state):
    """(NTSTATUS, state afterwards) of an operation that carries a good union; None: the channel faults."""
    if operation in (1, 2, 11, 14, 15, 99, 0xFFFFFFFF, 0):
        return None
    if (state, operation) in {("begin", 7), ("query version", 9), ("query properties", 10), ("end initialization", 8)}:
        return 0, STATES[STATES.index(state) + 1]
    if operation == 13 and state in ("end initialization", "ready"):
        return 0xC000000D, state  # three were asked for, none are there
    if state == "ready" and operation in (3, 4, 5, 6):
        return 0, state
    return WRONG_STATE, state


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("operation", [*range(16), 99, 0xFFFFFFFF])
def test_every_operation_in_every_state(channel, operation, state):
    bring_to(channel, state)
    unions = {9: struct.pack("<H", 0x600), 13: struct.pack("<H", 3)}
    packet = srb(rig.TEST_UNIT_READY) if operation == 3 else vstor(operation, unions.get(operation, b""))
    verdict = expected(operation, state)
    channel.send(in_band(packet, tid=77))
    if verdict is None:
        assert channel.fault() == "operation"
        assert channel.poll() is None
        return
    answer = channel.receive()
    assert (answer.tid, answer.operation, answer.flags) == (77, 1, 0)
    assert (answer.status, channel.inspect()["state"]) == verdict
    if answer.status not in (0, 0xC0000059):
        assert not any(payload(answer)[12:])
    assert channel.inspect()["fault"] is None


@pytest.mark.parametrize("version", VERSIONS)
def test_sub_channels_before_ready_need_windows_8(channel, version):
    for operation, union in ((7, b""), (9, struct.pack("<H", version)), (10, b"")):
        channel.ask(in_band(vstor(operation, union)))
    none = channel.ask(in_band(vstor(13, struct.pack("<H", 0)))).status
    many = channel.ask(in_band(vstor(13, struct.pack("<H", 0xFFFF)))).status
    assert (none, many) == ((0, 0xC000000D) if version >= 0x501 else (WRONG_STATE, WRONG_STATE))
    assert channel.inspect()["state"] == "end initialization"


def test_closing_begins_anew(ready):
    ready.reopen()
    assert (ready.inspect()["state"], ready.inspect()["version"]) == ("begin", None)
    assert ready.ask(in_band(vstor(10))).status == WRONG_STATE
    ready.negotiate()
    ready.answers()


def test_bad_versions_have_no_limit(channel):
    bring_to(channel, "query version")
    for version in range(0x7000, 0x7400):
        assert channel.ask(in_band(vstor(9, struct.pack("<H", version)))).status == 0xC0000059
    assert channel.ask(in_band(vstor(9, struct.pack("<H", 0x600)))).status == 0
