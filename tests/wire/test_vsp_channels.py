"""Sub-channels and notices of the VSP, packet by packet (storvsp.md 4.1, 4.3, 4.4)."""

import os
import struct

import pytest

from hvcore.disk.ram import RamDisk
from hvcore.errors import RingFull
from hvcore.scsi import Target
from hvcore.vmbus import encode_packet
from tests.reference import guest as rig
from tests.reference.guest import DISK_ID, Guest, in_band, readable, srb, until, vstor
from tests.wire.test_vsp import STATES, WRONG_STATE, V, bring_to, payload, unhex

INVALID_PARAMETER = 0xC000000D
MOST = 3


@pytest.fixture
def guest():
    with Guest() as guest:
        yield guest


@pytest.fixture
def channel(guest):
    return guest.add(RamDisk(1 << 20), ring_pages=2, sub_channels=MOST)


@pytest.fixture
def ready(channel):
    channel.negotiate()
    return channel


def create(channel, count, tid=1):
    return channel.ask(in_band(vstor(13, struct.pack("<H", count)), tid)).status


def asked(channel):
    """How many sub-channels the host has been asked for."""
    return channel.guest.dispatch.sub_channels(channel.index)


def test_vectors(channel):
    bring_to(channel, "query properties")
    assert payload(channel.ask(in_band(V["V05a"]))) == V["V05b"]
    channel.ask(in_band(V["V06"]))
    assert payload(channel.ask(in_band(V["V07a"]))) == unhex("01000000 +00x60")
    assert asked(channel) == 3
    assert payload(channel.ask(in_band(vstor(13, struct.pack("<H", 9))))) == V["V07b"]
    assert asked(channel) == 3


@pytest.mark.parametrize("version", [0x0200, 0x0402])
def test_old_versions_hear_nothing_of_them(channel, version):
    bring_to(channel, "query version")
    channel.ask(in_band(vstor(9, struct.pack("<H", version))))
    assert not any(payload(channel.ask(in_band(vstor(10))))[16:24])
    assert create(channel, 1) == WRONG_STATE
    assert channel.ask(in_band(vstor(8))).status == 0
    assert create(channel, 1) == 0


@pytest.mark.parametrize("count", [0, 1, MOST, MOST + 1, 65535])
@pytest.mark.parametrize("state", STATES)
def test_counts_in_every_state(channel, state, count):
    bring_to(channel, state)
    good = state in ("end initialization", "ready")
    status = WRONG_STATE if not good else INVALID_PARAMETER if count > MOST else 0
    assert create(channel, count) == status
    assert channel.inspect()["state"] == state
    assert asked(channel) == (count if status == 0 else 0)
    assert readable(channel.guest.dispatch.sub_channel_fd, 0) == (status == 0 and count > 0)


def test_once_before_ready(channel):
    bring_to(channel, "end initialization")
    assert create(channel, 0) == 0
    assert create(channel, 2) == 0
    assert create(channel, 2) == WRONG_STATE
    assert channel.ask(in_band(vstor(8))).status == 0
    assert (asked(channel), channel.inspect()["state"]) == (2, "ready")


def test_again_when_ready(ready):
    """The new count replaces the old, and what is open stays."""
    assert [create(ready, count) for count in (1, 3, 2)] == [0, 0, 0]
    sub = ready.guest.add_sub(ready, 3)
    assert create(ready, 1) == 0
    sub.answers()


@pytest.mark.parametrize("order", [(13, 8), (8, 13)])
def test_both_orders(guest, channel, order):
    """4.2: before or after END_INITIALIZATION."""
    bring_to(channel, "end initialization")
    for operation in order:
        assert channel.ask(in_band(vstor(operation, struct.pack("<H", 2)))).status == 0
    for sub in (guest.add_sub(channel, 1), guest.add_sub(channel, 2), channel):
        sub.answers(sub.relid)


def test_packets_wait_unread_until_ready(guest, channel):
    bring_to(channel, "end initialization")
    assert create(channel, 1) == 0
    sub = guest.add_sub(channel, 1)
    for tid in range(5):
        sub.send(in_band(srb(rig.TEST_UNIT_READY), tid))
    assert channel.ask(in_band(vstor(10))).status == WRONG_STATE  # the host has looked at both rings
    assert sub.poll() is None
    assert channel.ask(in_band(vstor(8))).status == 0
    assert [sub.receive().tid for _ in range(5)] == list(range(5))


@pytest.mark.parametrize("operation", [7, 8, 9, 10, 13])
def test_only_the_primary_negotiates(guest, ready, operation):
    create(ready, 1)
    sub = guest.add_sub(ready, 1)
    answer = sub.ask(in_band(vstor(operation, struct.pack("<H", 1)), 9))
    assert (answer.tid, answer.status, ready.inspect()["state"]) == (9, WRONG_STATE, "ready")
    sub.answers()


@pytest.mark.parametrize("operation", [4, 5, 6])
def test_resets_on_any_channel(guest, ready, operation):
    create(ready, 1)
    assert guest.add_sub(ready, 1).ask(in_band(vstor(operation))).status == 0


@pytest.mark.parametrize("operation", [1, 2, 11, 14, 15])
def test_a_fault_is_of_its_channel_alone(guest, ready, operation):
    create(ready, 2)
    sub, other = guest.add_sub(ready, 1), guest.add_sub(ready, 2)
    sub.send(in_band(vstor(operation)))
    assert sub.fault() == "operation"
    other.answers()
    ready.answers()
    sub.reopen()
    sub.answers()


def test_completion_comes_on_the_channel_of_the_request(guest, ready):
    create(ready, MOST)
    channels = [ready, *(guest.add_sub(ready, sub) for sub in range(1, MOST + 1))]
    for tid in range(40):
        channels[tid % 4].send(in_band(srb(rig.TEST_UNIT_READY), tid))
    for first, channel in enumerate(channels):
        assert sorted(channel.receive().tid for _ in range(10)) == list(range(first, 40, 4))
        assert channel.poll() is None


def test_one_is_closed_and_opened_again(guest, ready):
    create(ready, 2)
    sub, other = guest.add_sub(ready, 1), guest.add_sub(ready, 2)
    assert sub.close()
    other.answers()
    ready.answers()
    assert sub.open()
    sub.answers()


def test_the_primary_takes_the_state_with_it(guest, ready):
    create(ready, 1)
    sub = guest.add_sub(ready, 1)
    assert ready.close()
    assert asked(ready) == 0
    sub.send(in_band(srb(rig.TEST_UNIT_READY), 3))
    assert ready.open()
    bring_to(ready, "end initialization")
    assert sub.poll() is None
    assert ready.ask(in_band(vstor(8))).status == 0
    assert sub.receive().tid == 3


# ---- notices


def more(channel, lun=1):
    """One unit more at the channel's controller."""
    disk = channel.guest.dispatch.add_disk(Target(RamDisk(1 << 20), id=DISK_ID), "synthetic")
    channel.guest.dispatch.attach_unit(channel.index, lun, disk)


def next_packet(channel):
    """The next packet of the host as it lies in the ring."""
    return encode_packet(channel.receive().packet)


def test_enumerate_bus_vector(ready):
    more(ready)
    assert next_packet(ready) == V["V25"]
    ready.guest.dispatch.detach_unit(ready.index, 1)
    assert next_packet(ready) == V["V25"]
    assert ready.poll() is None


def test_remove_device(ready):
    ready.guest.dispatch.notify(ready.index, removed=True)
    assert next_packet(ready) == V["V25"][:16] + unhex("02000000 +00x60")


@pytest.mark.parametrize(("version", "size"), [(0x0402, 48), (0x0501, 64), (0x0602, 64)])
def test_notices_have_the_negotiated_size(channel, version, size):
    channel.negotiate(version)
    more(channel)
    assert payload(channel.receive()) == unhex("0b000000").ljust(size, b"\0")


def test_windows_2008_gets_no_notice(channel):
    channel.negotiate(0x0200)
    more(channel)
    channel.answers()
    assert channel.poll() is None


@pytest.mark.parametrize("state", STATES[:-1])
def test_none_before_ready(channel, state):
    """END_INITIALIZATION clears it: the guest looks for units then anyway."""
    bring_to(channel, state)
    more(channel)
    assert channel.ask(in_band(vstor(4))).status == WRONG_STATE
    assert channel.poll() is None
    for operation, union in ((7, b""), (9, struct.pack("<H", 0x600)), (10, b""), (8, b""))[STATES.index(state) :]:
        assert channel.ask(in_band(vstor(operation, union))).status == 0
    channel.answers()
    assert channel.poll() is None


def test_never_on_a_sub_channel(guest, ready):
    create(ready, 1)
    sub = guest.add_sub(ready, 1)
    more(ready)
    assert next_packet(ready) == V["V25"]
    sub.answers()
    assert sub.poll() is None


def test_coalesced_while_the_ring_is_full(guest):
    """Many changes, one notice, once there is room; completions go first and none is lost."""
    channel = guest.add(RamDisk(1 << 20), ring_pages=1)
    channel.negotiate()
    sent = 0
    while guest.load32(channel.control[1] + 12) == 0:  # until the host asks for room
        try:
            channel.send(in_band(srb(rig.TEST_UNIT_READY), 1000 + sent))
            sent += 1
        except RingFull:
            os.sched_yield()
    for lun in range(1, 6):
        more(channel, lun)
    found = []

    def complete():
        answer = channel.poll()
        if answer is not None:
            found.append(answer)
        return sum(answer.tid != 0 for answer in found) == sent and any(answer.tid == 0 for answer in found)

    until(complete)
    assert sorted(answer.tid for answer in found) == [0, *range(1000, 1000 + sent)]
    channel.answers()
    assert channel.poll() is None
