"""Port intercepts whose other side lies: a guest that writes anything into its pages, a worker that asks the host for
any media, an answer that no controller gives. Layouts: hypervisor/intercept.pxd and dispatch/handover.pxd."""

import contextlib
import ctypes
import os
import random
import struct
import threading
from collections.abc import Iterator

import pytest

from hvcore.disk.ram import RamDisk
from hvcore.dispatch.host import HANDOVER_SIZE, Dispatch
from hvcore.dispatch.pool import MediaPool
from hvcore.hypervisor.intercept import Intercepts
from hvcore.ide.requester import VirtualProcessor
from hvcore.memory.region import Region
from hvcore.partition.emulator import INTERCEPTED_PORTS
from hvcore.scsi.target import Target
from tests.reference.guest import until
from tests.reference.trapped import ANSWERED, GUEST_MEDIA, MEMORY, Bench, Ports

SLOT, EPOCH, BODY = 12288, 8192, 32
SECTORS = 0x100
READ, WRITE, FLUSH, TRIM = 1, 2, 3, 4


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with Bench([RamDisk(SECTORS * 512)], process=False) as bench:
        yield bench


@pytest.fixture
def ports(bench: Bench) -> Iterator[Ports]:
    with bench.guest() as ports:
        yield ports


class Liar:
    """Writes messages into the pages as a guest without any library would."""

    def __init__(self, ports: Ports) -> None:
        self.view = memoryview(ports.processor.intercepts)
        self.number = self.word(SLOT)

    def word(self, offset: int) -> int:
        return int(struct.unpack_from("<I", self.view, offset)[0])

    def store(self, offset: int, data: bytes) -> None:
        self.view[offset : offset + len(data)] = data

    def access(self, body: bytes, *, kind: int = 0x80010000, size: int = 128, epoch: int | None = None) -> int:
        """-> the status of the answer."""
        self.number = (self.number + 1) & 0xFFFFFFFF
        self.store(SLOT + BODY, body)
        self.store(SLOT + 16, struct.pack("<IB", kind, size))
        self.store(SLOT + 4, struct.pack("<I", self.word(EPOCH) if epoch is None else epoch))
        self.store(EPOCH + 64, struct.pack("<I", 0))
        with self.view.cast("I") as words:
            words[SLOT // 4] = self.number
        self.wake()
        until(lambda: self.word(SLOT + 192) == self.number)
        return self.word(SLOT + 196)

    def wake(self) -> None:
        """FUTEX_WAKE of the worker's word."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.view, EPOCH + 64))
        ctypes.CDLL(None).syscall(202, ctypes.c_void_p(address), 1, 1, None, None, 0)


def message(port: int, info: int, write: bool, rax: int = 0, rcx: int = 0, address: int = 0) -> bytes:
    body = bytearray(128)
    body[5] = write
    struct.pack_into("<HB", body, 40, port, info)
    struct.pack_into("<Q", body, 48, rax)
    struct.pack_into("<QQQ", body, 104, rcx, address, address)
    return bytes(body)


def test_messages_of_any_content_are_answered(bench: Bench) -> None:
    dice = random.Random(5)
    with bench.guest() as ports:
        liar = Liar(ports)
        for _ in range(2000):
            port = dice.choice([0x1F0, 0x1F7, 0x3F6, 0xC000, 0xC004, 0x1E0, 0xCF8, 0xCFC, dice.randrange(0x10000)])
            address = dice.choice([0, MEMORY - 1, MEMORY, 1 << 63, (1 << 64) - 1, dice.randrange(MEMORY)])
            count = dice.choice([0, 1, 1024, 1025, 1 << 32, (1 << 64) - 1])
            body = message(port, dice.randrange(256), dice.random() < 0.5, dice.getrandbits(64), count, address)
            assert liar.access(body if dice.random() < 0.8 else dice.randbytes(128)) == 0
        liar.view.release()
    with bench.guest() as fresh:
        assert fresh.inb(0x1F7) == 0x50


@pytest.mark.parametrize("lie", [{"kind": 0x80010001}, {"size": 127}, {"size": 0}, {"epoch": 0}, {"epoch": 999}])
def test_a_message_that_is_none_does_nothing(ports: Ports, lie: dict[str, int]) -> None:
    liar = Liar(ports)
    assert liar.access(message(0x1F2, 1, True, 0x77), **lie) == 1
    liar.view.release()
    with memoryview(ports.processor.intercepts) as view:  # the processor goes on where the liar left
        assert struct.unpack_from("<I", view, SLOT + 192)[0] == 1


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("address", [MEMORY - 300, MEMORY, 1 << 40, (1 << 64) - 100])
def test_strings_stay_in_guest_memory(ports: Ports, width: int, address: int) -> None:
    """6.3: elements without memory are lost, or read as ones; the others are moved."""
    for port, value in ((0x1F6, 0xE0), (0x1F2, 1), (0x1F3, 5), (0x1F4, 0), (0x1F5, 0), (0x1F7, 0xEC)):
        ports.outb(port, value)
    count = 512 // width
    assert ports.processor.ins(0x1F0, address, count, width) == count
    if address < MEMORY:
        assert any(ports.memory[address:MEMORY])
    assert ports.inb(0x1F7) == 0x50
    assert ports.processor.outs(0x1F1, address, 3, width) == 3


class Host:
    """A host whose worker is the test."""

    def __init__(self) -> None:
        self.pool = MediaPool()
        self.dispatch = Dispatch(self.pool)
        self.disk = RamDisk(SECTORS * 512)
        self.index = self.dispatch.add_disk(Target(self.disk), "synthetic")
        self.dispatch.attach_drive(self.index, 0, 1)
        self.memory, self.events = Region.create(MEMORY, "guest"), Region.create(4096, "events")
        self.intercepts = Intercepts(INTERCEPTED_PORTS)
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.dispatch.attach(self.memory, self.events, self.bell, self.intercepts)
        self.worker()

    def worker(self) -> None:
        self.shared = Region.create(HANDOVER_SIZE, "worker")
        self.dispatch.worker_attached(self.shared)
        self.number = 0

    def ask(
        self,
        *,
        kind: int = READ,
        drive: int = 1,
        sectors: int = 2,
        lba: int = 3,
        dma: int = 1,
        offset: int = 0,
        tail: int = 0,
        count: int | None = None,
        segments: tuple[tuple[int, int], ...] = ((0x1000, 1024),),
    ) -> int:
        """-> DiskStatus as the host answers."""
        self.number += 1
        count = len(segments) if count is None else count
        head = struct.pack("<IIIQQIIII", kind, drive, sectors, lba, 1, dma, offset, tail, count)
        with memoryview(self.shared) as view:
            view[GUEST_MEDIA + 4 : GUEST_MEDIA + 4 + len(head)] = head
            for n, segment in enumerate(segments):
                struct.pack_into("<II", view, GUEST_MEDIA + 4096 + 8 * n, *segment)
            with view.cast("I") as words:
                words[GUEST_MEDIA // 4] = self.number
        os.eventfd_write(self.dispatch.worker_bell, 1)
        broken = self.dispatch.broken_fd
        found = [0]

        def answered() -> bool:
            with memoryview(self.shared) as view:
                found[0] = struct.unpack_from("<I", view, GUEST_MEDIA + ANSWERED)[0]
            return found[0] == self.number or readable(broken)

        until(answered)
        if found[0] != self.number:
            os.eventfd_read(broken)
            raise Caught
        with memoryview(self.shared) as view:
            return int(struct.unpack_from("<i", view, GUEST_MEDIA + ANSWERED + 4)[0])

    def close(self) -> None:
        self.dispatch.close()
        self.pool.close()
        os.close(self.bell)
        for each in (self.shared, self.memory, self.events, self.intercepts):
            each.close()


class Caught(Exception):
    pass


def readable(fd: int) -> bool:
    try:
        value = os.eventfd_read(fd)
    except BlockingIOError:
        return False
    os.eventfd_write(fd, value)
    return True


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


def test_an_honest_worker_reads_and_writes(host: Host) -> None:
    host.disk.write(3 * 512, b"\xa5" * 1024)
    assert host.ask(segments=((0x1000, 512), (MEMORY - 512, 512))) == 0
    with memoryview(host.memory) as view:
        assert view[0x1000:0x1200] == view[MEMORY - 512 :] == b"\xa5" * 512
        view[0x2000:0x2400] = b"\x3c" * 1024
    assert host.ask(kind=WRITE, lba=9, segments=((0x2000, 1024),)) == 0
    assert host.disk.read(9 * 512, 1024) == b"\x3c" * 1024
    assert host.ask(kind=FLUSH, segments=()) == 0
    assert host.ask(dma=0, offset=512, segments=()) == 0
    assert host.ask(tail=100, segments=((0x1000, 924),)) == 0
    counters = host.dispatch.counters(host.index)
    assert (counters["media_accesses"], counters["hand_overs"], counters["errors"]) == (5, 10, 0)
    assert (counters["read_operations"], counters["write_operations"], counters["flushes"]) == (3, 1, 1)


LIES = {
    "drive that is not there": {"drive": 0},
    "drive that cannot be": {"drive": 2},
    "no kind": {"kind": 0},
    "kind that does not exist": {"kind": 5},
    "no sectors": {"sectors": 0},
    "beyond one chunk": {"sectors": 129},
    "48 bits": {"lba": 1 << 48},
    "last sector of all": {"lba": (1 << 64) - 1},
    "beyond memory": {"segments": ((MEMORY - 512, 1024),)},
    "address that wraps": {"segments": ((0xFFFFFFFF, 1024),)},
    "empty segment": {"segments": ((0, 0), (0, 1024))},
    "too little": {"segments": ((0, 512),)},
    "too much": {"segments": ((0, 1024), (0, 512))},
    "more segments than there may be": {"count": 1025},
    "tail of a write": {"kind": WRITE, "tail": 24, "segments": ((0, 1000),)},
    "tail of a whole sector": {"tail": 512, "segments": ((0, 512),)},
    "behind the buffer": {"dma": 0, "offset": 65536 - 512},
    "buffer offset that wraps": {"dma": 0, "offset": 0xFFFFFE00},
    "buffer with a tail": {"dma": 0, "tail": 1},
}


@pytest.mark.parametrize("name", LIES)
def test_what_no_honest_worker_asks_for_ends_it(host: Host, name: str) -> None:
    host.disk.write(0, b"\xa5" * SECTORS * 512)
    with pytest.raises(Caught):
        host.ask(**LIES[name])  # type: ignore[arg-type]
    assert host.disk.read(0, SECTORS * 512) == b"\xa5" * SECTORS * 512
    with memoryview(host.memory) as view:
        assert not any(view)
    host.dispatch.worker_lost()
    host.shared.close()
    host.worker()  # and another one is served
    assert host.ask() == 0


@pytest.mark.parametrize(
    ("request_", "status"),
    [({"lba": SECTORS}, -1), ({"lba": SECTORS - 1}, -1), ({"kind": TRIM, "sectors": 65535}, -1)],
)
def test_what_the_disk_cannot_do_is_an_error(host: Host, request_: dict[str, int], status: int) -> None:
    assert host.ask(**request_) == status  # type: ignore[arg-type]
    assert host.ask() == 0


def test_nothing_reaches_the_memory_of_a_guest_that_is_gone(host: Host) -> None:
    host.disk.write(0, b"\xa5" * 4096)
    host.dispatch.detach()
    assert host.ask() == -8
    assert host.ask(kind=FLUSH, segments=()) == -8
    with memoryview(host.memory) as view:
        assert not any(view)


@pytest.mark.parametrize(("left", "done"), [(300, 0), (301, 0), ((1 << 64) - 1, 0), (0, 300)])
def test_an_answer_that_makes_no_progress_ends_the_string(left: int, done: int) -> None:
    """The guest believes no more of an answer than how far its string came, and only if it came further."""
    memory, intercepts = Region.create(MEMORY, "guest"), Intercepts(INTERCEPTED_PORTS)
    intercepts.worker_attached()
    processor = VirtualProcessor(memory, intercepts.region)

    def answer() -> None:
        with memoryview(intercepts.region) as view, view.cast("I") as words:
            until(lambda: words[SLOT // 4] == 1)
            struct.pack_into("<QQQQ", view, SLOT + 200, 0, left, 1 << 63, 1 << 63)
            words[SLOT // 4 + 48] = 1

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with contextlib.suppress(TimeoutError):  # nobody wakes it: its own deadline does
            assert processor.ins(0x1F0, 0x1000, 300, timeout=0.5) == done
    finally:
        thread.join()
        for each in (memory, intercepts):
            each.close()
