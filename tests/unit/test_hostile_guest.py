"""The host against a guest at work on its memory while requests run; requests in flight when a channel ends."""

import ctypes
import random
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvcore.disk.ram import RamDisk
from hvcore.errors import RingFull
from tests.reference.guest import (
    DATA_PFN,
    FROM_GUEST,
    PAGE,
    TEST_UNIT_READY,
    Channel,
    Guest,
    direct,
    in_band,
    srb,
    until,
    write10,
)
from tests.reference.hanging import Gate

FLUSH_CDB = bytes.fromhex("35") + bytes(9)
IN, OUT, PENDING = 0, 4, 12  # vmbus.md 1.2
DISK_BYTES = 1 << 20
CONTENT = random.Random(7).randbytes(DISK_BYTES)


def disk() -> RamDisk:
    made = RamDisk(DISK_BYTES)
    made.write(0, CONTENT)
    return made


class Pair(Guest):
    """`channel` is misused, `bystander` must not notice. `threads`: of the host's data path."""

    def __init__(self, **options: int) -> None:
        before = set(Path("/proc/self/task").iterdir())
        super().__init__()
        self.threads = set(Path("/proc/self/task").iterdir()) - before
        self.channel = self.add(disk(), open=False, **options)
        self.bystander = self.add(disk(), open=False)
        for channel in (self.channel, self.bystander):
            assert channel.open()
            channel.negotiate()

    def naps(self) -> list[str] | None:
        """How often each thread of the host was switched out; None while one of them runs."""
        status = [(thread / "status").read_text() for thread in self.threads]
        if not all("State:\tS" in text for text in status):
            return None
        return [line for text in status for line in text.splitlines() if "ctxt_switches" in line]

    def becomes_idle(self) -> None:
        """The host's threads sleep, and wake no more while this process does other work."""

        def still() -> bool:
            before = self.naps()
            with Guest() as other:
                channel = other.add(RamDisk(PAGE))
                channel.negotiate()
                for _ in range(20):
                    channel.answers()
            return before is not None and self.naps() == before

        until(still)


@pytest.fixture
def guest() -> Iterator[Pair]:
    with Pair() as guest:
        yield guest


@pytest.fixture
def channel(guest: Pair) -> Channel:
    return guest.channel


# ---- rings


def test_scribbled_while_in_use(guest, channel):
    """Both control pages and all data pages turn into noise, over and over, while the host works on them."""
    noise = random.Random(9)
    for _ in range(60):
        for _ in range(20):
            page = noise.choice(channel.pfns) * PAGE
            guest.store32(page + 4 * noise.randrange(1024), noise.choice([0, 8, 88, 0x10000, 0x00020006, 0xFFFFFFFF]))
        with memoryview(guest.memory) as view:
            at = noise.choice(channel.pfns) * PAGE
            view[at : at + PAGE] = noise.randbytes(PAGE)
        channel.signal()
        guest.bystander.answers()
        channel.reopen()
        channel.negotiate()
        channel.answers()


def fill(channel: Channel) -> None:
    """Sends until the host takes no more: its own ring is full and it waits for room."""

    def full() -> bool:
        try:
            channel.send(in_band(srb(TEST_UNIT_READY)))
        except RingFull:
            return channel.guest.load32(channel.control[1] + PENDING) != 0
        return False

    until(full)


def test_packet_taken_back_from_a_stalled_channel():
    """The host waits for room for a packet that then is no more: it sleeps."""
    with Pair(ring_pages=1) as guest:
        channel = guest.channel
        fill(channel)
        guest.store32(channel.control[0] + IN, guest.load32(channel.control[0] + OUT))
        while channel.poll() is not None:
            pass
        channel.signal()
        guest.bystander.answers()
        guest.becomes_idle()


# ---- doorbell and event page


def test_doorbells_without_data(guest, channel):
    before = [guest.dispatch.counters(n)["requests"] for n in (0, 1)]
    for n in range(5000):
        guest.signal(n % 2048)
    guest.becomes_idle()
    assert [guest.dispatch.counters(n)["requests"] for n in (0, 1)] == before
    channel.answers()
    guest.bystander.answers()


def test_event_page_of_ones(guest, channel):
    with memoryview(guest.events) as view:
        view[:] = b"\xff" * PAGE
    guest.bystander.answers()
    channel.answers()
    guest.becomes_idle()
    for _ in range(3):
        with memoryview(guest.events) as view:
            view[:] = b"\xff" * PAGE
        channel.answers()


# ---- the memory itself


def punch(fd: int, offset: int, length: int) -> None:
    """FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, 3, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


def test_holes_punched_during_requests(guest, channel):
    """The pages of running requests vanish and come back as zeros: the requests end well, the loss is the guest's."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def puncher() -> None:
        try:
            while not stop.is_set():
                punch(guest.memory.fd, DATA_PFN * PAGE, 512 * PAGE)
                punch(guest.events.fd, 0, PAGE)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=puncher)
    thread.start()
    try:
        for n in range(300):
            pages = [600 + (n + k) % 300 for k in range(16)]
            answer = channel.read_disk(n % 128, 128, pages, tid=n)
            assert (answer.tid, answer.srb_status, answer.length) == (n, 1, 16 * PAGE)
            answer = guest.bystander.write_disk(n % 128, 128, pages, tid=n)
            assert (answer.tid, answer.srb_status, answer.length) == (n, 1, 16 * PAGE)
    finally:
        stop.set()
        thread.join()
    assert not failed
    channel.read_disk(0, 8, [600])
    assert guest.read(600 * PAGE, PAGE) == CONTENT[:PAGE]


# ---- ends


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate", CONTENT)
    yield gate
    gate.close()


@pytest.fixture
def slow(gate: Gate) -> Iterator[Channel]:
    """A channel whose forced writes and flushes wait for the gate."""
    with Guest(pool_threads=2) as guest:
        try:
            channel = guest.add(gate.disk, open=False)
            other = guest.add(disk(), open=False)
            for each in (channel, other):
                assert each.open()
                each.negotiate()
            yield channel
        finally:
            gate.open()


def busy(channel: Channel, count: int) -> None:
    """`count` requests in flight, of every kind that goes through the pool."""
    for tid in range(count):
        if tid % 2:
            channel.send(in_band(srb(FLUSH_CDB), tid))
        else:
            packet = srb(write10(tid, 8, fua=True), PAGE, FROM_GUEST)
            channel.send(direct(packet, [600 + tid], PAGE, 0, tid))
    until(lambda: channel.inspect()["in_flight"] == count)


def test_closing_waits_for_requests_in_flight(slow, gate):
    """VA-15: closed means that nothing touches the memory any more."""
    guest = slow.guest
    busy(slow, 40)
    for _ in range(2):
        assert not slow.close(timeout=0)
        assert slow.inspect()["in_flight"] > 0
        assert not guest.dispatch.open_channel(0, 0, 1, slow.pfns, slow.downstream)
    guest.channels[1].answers()
    rings = [guest.read(pfn * PAGE, PAGE) for pfn in slow.pfns]
    gate.open()
    assert slow.close()
    assert slow.inspect()["in_flight"] == 0
    assert [guest.read(pfn * PAGE, PAGE) for pfn in slow.pfns] == rings  # and no answers to a closed channel
    pages = [*slow.pfns, *range(DATA_PFN, 1024)]
    for pfn in pages:
        guest.write(pfn * PAGE, b"\xcc" * PAGE)
    guest.dispatch.close()  # ends every thread of the host
    assert all(guest.read(pfn * PAGE, PAGE) == b"\xcc" * PAGE for pfn in pages)


def test_channel_reopens_after_requests_in_flight(slow, gate):
    busy(slow, 40)
    assert not slow.close(timeout=0)
    gate.open()
    slow.reopen()
    slow.negotiate()
    slow.answers()
    assert slow.poll() is None


def test_fault_with_requests_in_flight(slow, gate):
    """Section 13: they end in guarded memory and are not answered."""
    busy(slow, 20)
    slow.guest.store32(slow.control[0] + IN, 4)
    slow.signal()
    assert slow.fault() == "ring"
    rings = [slow.guest.read(pfn * PAGE, PAGE) for pfn in slow.pfns]
    gate.open()
    until(lambda: slow.inspect()["in_flight"] == 0)
    assert [slow.guest.read(pfn * PAGE, PAGE) for pfn in slow.pfns] == rings
    slow.guest.channels[1].answers()
    slow.reopen()
    slow.negotiate()
    slow.answers()


def test_more_than_the_depth_waits_in_the_ring(gate):
    """Section 13: no request is taken beyond the depth."""
    with Guest() as guest:
        try:
            channel = guest.add(gate.disk, depth=3)
            channel.negotiate()
            for tid in range(20):
                channel.send(in_band(srb(FLUSH_CDB), tid))
            until(lambda: channel.inspect()["in_flight"] == 3)
            gate.open()
            assert sorted(channel.receive().tid for _ in range(20)) == list(range(20))
        finally:
            gate.open()


def test_reset_overtakes_requests_in_flight(slow, gate):
    """Section 12: success at once, the requests run on."""
    busy(slow, 10)
    for operation in (4, 5, 6):
        answer = slow.ask(in_band(struct.pack("<3I", operation, 1, 0).ljust(64, b"\0"), 100 + operation))
        assert (answer.tid, answer.status) == (100 + operation, 0)
    gate.open()
    assert sorted(slow.receive().tid for _ in range(10)) == list(range(10))
