"""What a guest can do to the memory and descriptors it shares with the host, and that the host goes on."""

import ctypes
import errno
import fcntl
import os

import pytest

from hvcore.disk.ram import RamDisk
from tests.reference.guest import DATA_PFN, FROM_GUEST, PAGE, Guest, direct, in_band, read10, srb, until, vstor, write10

PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def punch(region, offset, length):
    if LIBC.fallocate(region.fd, PUNCH_HOLE, offset, length):
        raise OSError(ctypes.get_errno(), "fallocate")


@pytest.fixture
def guest():
    with Guest() as guest:
        yield guest


@pytest.fixture
def disk():
    return RamDisk(1 << 20)


@pytest.fixture
def channels(guest, disk):
    """The channel under attack, and one of another disk of the same VM."""
    pair = guest.add(disk, open=False), guest.add(RamDisk(1 << 20), open=False)
    for channel in pair:
        assert channel.open()
        channel.negotiate()
    return pair


# ---- holes


def test_a_hole_in_a_buffer_reads_as_zeros(guest, channels, disk):
    disk.write(0, b"\xa5" * 4 * PAGE)
    guest.write(DATA_PFN * PAGE, b"\xee" * 4 * PAGE)
    punch(guest.memory, (DATA_PFN + 1) * PAGE, 2 * PAGE)
    assert channels[0].write_disk(0, 32, range(DATA_PFN, DATA_PFN + 4)).srb_status == 1
    assert disk.read(0, 4 * PAGE) == b"\xee" * PAGE + bytes(2 * PAGE) + b"\xee" * PAGE


def test_a_hole_in_a_buffer_is_filled_by_a_read(guest, channels, disk):
    disk.write(0, b"\xa5" * PAGE)
    guest.write(DATA_PFN * PAGE, b"\xee" * PAGE)
    punch(guest.memory, DATA_PFN * PAGE, PAGE)
    assert channels[0].read_disk(0, 8, [DATA_PFN]).srb_status == 1
    assert guest.read(DATA_PFN * PAGE, PAGE) == b"\xa5" * PAGE


@pytest.mark.parametrize("page", range(18))
def test_a_hole_in_a_ring_is_the_guests_own_loss(guest, channels, page):
    """Any page of the rings, control pages included, between two requests."""
    channel, other = channels
    punch(guest.memory, channel.pfns[page] * PAGE, PAGE)
    channel.signal()
    other.answers()
    channel.reopen()
    channel.negotiate()
    channel.answers()


def test_the_host_sees_zeros_where_the_whole_memory_was_punched(guest, channels):
    punch(guest.memory, 0, guest.memory.size)
    for channel in channels:
        channel.signal()
        # In is 0 and the host's Out is not: what lies there is no packet.
        assert channel.fault() == "ring"
        channel.reopen()
        channel.negotiate()
        channel.answers()


def test_a_hole_in_the_event_page(guest, channels):
    punch(guest.events, 0, PAGE)
    for channel in channels:
        channel.answers()


@pytest.mark.parametrize("seal", [fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_WRITE, fcntl.F_SEAL_SEAL, 0x10])
def test_no_seal_can_be_added(guest, channels, seal):
    for region in (guest.memory, guest.events):
        with pytest.raises(PermissionError) as caught:
            fcntl.fcntl(region.fd, fcntl.F_ADD_SEALS, seal)
        assert caught.value.errno == errno.EPERM
    channels[0].answers()


@pytest.mark.parametrize("size", [0, PAGE, 1 << 30])
def test_the_size_cannot_change(guest, channels, size):
    for region in (guest.memory, guest.events):
        if size != region.size:
            with pytest.raises(PermissionError):
                os.ftruncate(region.fd, size)
    channels[0].answers()


# ---- the doorbell


@pytest.mark.parametrize("blocking", [False, True])
def test_a_full_doorbell_counter_blocks_nobody(guest, channels, blocking):
    """The counter and the flags of a shared eventfd are the guest's: the host neither reads nor writes it."""
    if blocking:
        flags = fcntl.fcntl(guest.doorbell, fcntl.F_GETFL)
        fcntl.fcntl(guest.doorbell, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
    # The wake-up of this write is the last that the guest has: the requests go into the rings first.
    for channel in channels:
        channel.to_host.send(srb(bytes(6)), 5, 1)
    os.read(guest.doorbell, 8)
    os.write(guest.doorbell, (2**64 - 2).to_bytes(8, "little"))
    for channel in channels:
        assert channel.receive().tid == 5
    # Calls of the host's owner need no doorbell of the guest.
    assert channels[0].close()
    guest.dispatch.close()
    assert os.read(guest.doorbell, 8) == (2**64 - 2).to_bytes(8, "little")


def test_a_guest_may_read_its_own_doorbell(guest, channels):
    for tid in range(50):
        channels[0].send(in_band(srb(bytes(6)), tid))
        try:
            os.read(guest.doorbell, 8)
        except BlockingIOError:
            pytest.fail("the host read the doorbell")
        # The wake-up may be lost with the count, so another follows.
        channels[0].signal()
        assert channels[0].receive().tid == tid


def test_doorbells_without_data_are_no_work(guest, channels):
    before = [guest.dispatch.counters(n) for n in (0, 1)]
    for _ in range(20000):
        os.write(guest.doorbell, (1).to_bytes(8, "little"))
    after = [guest.dispatch.counters(n) for n in (0, 1)]
    for counters in (*before, *after):
        counters.pop("blocking_waits")
    assert before == after
    for channel in channels:
        channel.answers()
        assert channel.inspect()["fault"] is None


def test_signals_of_all_channels_that_there_are_not(guest, channels):
    for relid in (0, 3, 64, 1000, 2047):
        guest.signal(relid)
        channels[1].answers()


# ---- the event page


@pytest.mark.parametrize("byte", [0xFF, 0x01, 0x80, 0xAA])
def test_an_event_page_full_of_anything(guest, channels, byte):
    for _ in range(20):
        with memoryview(guest.events) as view:
            view[:] = bytes([byte]) * PAGE
        for channel in channels:
            channel.answers()


def test_an_event_page_that_always_changes_cannot_keep_close_waiting(guest, channels):
    with memoryview(guest.events) as view:
        for _ in range(200):
            view[256:512] = b"\xff" * 256
            guest.signal(1)
    for channel in channels:
        channel.answers()
        assert channel.close()


# ---- closing with requests in flight


def test_close_waits_for_requests_in_flight_and_answers_none(guest, disk):
    """VA-15: after close_channel the guest's memory is unreferenced. Nobody serves the emulated disk."""
    channel = guest.add(disk, "emulated", open=False)
    other = guest.add(RamDisk(1 << 20), open=False)
    for each in (channel, other):
        assert each.open()
        each.negotiate()
    guest.write(DATA_PFN * PAGE, b"\xee" * PAGE)
    for tid in range(20):
        channel.send(direct(srb(write10(tid, 8), PAGE, FROM_GUEST), [DATA_PFN], PAGE, tid=tid))
    assert until(lambda: channel.inspect()["in_flight"] == 20)
    was = guest.load32(channel.control[1])
    assert channel.close()
    assert channel.inspect()["in_flight"] == 0 and not channel.inspect()["open"]
    assert guest.load32(channel.control[1]) == was
    assert disk.read(0, 1 << 20) == bytes(1 << 20)
    other.answers()
    assert channel.open()
    channel.negotiate()
    assert channel.poll() is None


def test_detach_and_attach_again(guest, channels, disk):
    for channel in channels:
        channel.send(direct(srb(read10(0, 8), PAGE), [DATA_PFN], PAGE))
    guest.dispatch.detach()
    guest.dispatch.detach()
    assert not any(channel.inspect()["open"] for channel in channels)
    guest.write(DATA_PFN * PAGE, b"\xee" * PAGE)
    guest.attached = False
    for channel in channels:
        assert channel.open()
        channel.negotiate()
        channel.answers()
    assert guest.read(DATA_PFN * PAGE, PAGE) == b"\xee" * PAGE


def test_close_in_every_state_of_negotiation(guest, channels):
    channel, other = channels
    for steps in range(5):
        channel.reopen()
        for operation, union in ((7, b""), (9, b"\x00\x06"), (10, b""), (8, b""))[:steps]:
            assert channel.ask(in_band(vstor(operation, union))).status == 0
        assert channel.close() and channel.close()
        assert channel.open()
        other.answers()
