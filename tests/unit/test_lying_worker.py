"""The emulated path with a worker that lies: the test plays it by hand on the memory it shares with the host.

The layout is that of pyx/hvcore/dispatch/handover.pxd.
"""

import os
import random
import struct

import pytest

from hvcore.disk.file import FileDisk
from hvcore.disk.medium import ImageFile
from hvcore.disk.ram import RamDisk
from hvcore.dispatch.host import HANDOVER_SIZE
from hvcore.memory.region import Region
from tests.reference.guest import (
    DATA_PFN,
    FROM_GUEST,
    INQUIRY,
    PAGE,
    Guest,
    direct,
    in_band,
    read10,
    readable,
    srb,
    until,
    write10,
)

CHANNELS, CHANNEL_BYTES, ANSWER, PIO = 66 * 4096, 4096 + 131072, 2048, 4096
COMMAND, MEDIA_DONE, MEDIA, RESULT = 1, 2, 3, 4
READ, WRITE, FLUSH, IDENTIFY = 1, 2, 3, 4
DISK_BYTES = 1 << 20
ADDRESS = DATA_PFN * PAGE
AREA = 8 * PAGE  # what a test looks at: the request's pages are in its middle
ABORTED = (0x0B, 0, 0)
SENTINEL = b"\xee" * AREA
REGIONS = []  # of the running test's workers


class Worker:
    """What the host sees as a worker process."""

    def __init__(self, guest):
        self.guest = guest
        self.shared = Region.create(HANDOVER_SIZE, "worker")
        REGIONS.append(self.shared)
        self.seen = [0, 0]
        guest.dispatch.worker_attached(self.shared)

    def load(self, offset, layout):
        with memoryview(self.shared) as view:
            return struct.unpack_from(layout, view, offset)

    def store(self, offset, data):
        with memoryview(self.shared) as view:
            view[offset : offset + len(data)] = data

    def base(self, channel):
        return CHANNELS + channel * CHANNEL_BYTES

    def ring(self):
        os.write(self.guest.dispatch.worker_bell, (1).to_bytes(8, "little"))

    def take(self, channel=0):
        """The host's next message: (operation, kind, mode, drive, sectors, lba, media status, segments)."""
        base = self.base(channel)
        until(lambda: self.load(base, "<I")[0] != self.seen[channel])
        self.seen[channel] += 1
        posted, operation, kind, mode, drive, sectors, lba, _, status, count = self.load(base, "<6IQQiI")
        assert posted == self.seen[channel]
        segments = [self.load(base + 48 + 8 * n, "<II") for n in range(count)]
        return operation, kind, mode, drive, sectors, lba, status, segments

    def command(self, channel=0):
        message = self.take(channel)
        assert message[0] == COMMAND
        return message

    def answer(self, operation, channel=0, *, kind=0, drive=0, sectors=0, dma=0, lba=0, ata_status=0, ata_error=0,
               segments=(), count=None, answered=None):  # fmt: skip
        """Writes the worker's half, then the number that hands it over."""
        base = self.base(channel) + ANSWER
        count = len(segments) if count is None else count
        body = struct.pack(
            "<5IQIIIIQQ", operation, kind, drive, sectors, dma, lba, ata_status, ata_error, count, 0, 7, 9
        )
        self.store(base + 4, body + b"".join(struct.pack("<II", *segment) for segment in segments))
        with memoryview(self.shared) as view, view.cast("I") as words:
            words[base // 4] = self.seen[channel] if answered is None else answered
        self.ring()

    def media(self, message, channel=0, **lies):
        """Asks for the media of the whole command as an honest worker does, but for `lies`."""
        _, kind, mode, drive, sectors, lba, _, segments = message
        honest = {"kind": kind, "drive": drive, "sectors": sectors, "lba": lba, "dma": int(mode == 0)}
        if mode == 0:
            honest["segments"] = segments
        self.answer(MEDIA, channel, **(honest | lies))

    def serve(self, channel=0):
        """One command from start to end."""
        message = self.command(channel)
        if message[1] in (READ, WRITE, FLUSH):
            self.media(message, channel)
            assert self.take(channel)[0] == MEDIA_DONE
        self.answer(RESULT, channel, ata_status=0x50)

    def close(self):
        self.guest.dispatch.worker_lost()
        self.shared.close()


@pytest.fixture
def guest():
    with Guest() as guest:
        yield guest
    for region in REGIONS:
        region.close()
    REGIONS.clear()


@pytest.fixture
def disk():
    return RamDisk(DISK_BYTES)


def two_disks(guest, disk, mode=0, channel=0, drive=0):
    """The emulated disk under attack, and a synthetic one that must go on."""
    emulated = guest.add(disk, "emulated", open=False, mode=mode, channel=channel, drive=drive)
    other = guest.add(RamDisk(1 << 20), open=False)
    for each in (emulated, other):
        assert each.open()
        each.negotiate()
    guest.write(ADDRESS - 2 * PAGE, SENTINEL)
    return emulated, other


def area(guest):
    return guest.read(ADDRESS - 2 * PAGE, AREA)


def ask_read(channel, tid=1, blocks=16, offset=0x200):
    """Two scattered pages and a bit."""
    size = 512 * blocks
    channel.send(direct(srb(read10(8, blocks), size), [DATA_PFN, DATA_PFN + 2, DATA_PFN + 1], size, offset, tid))


def ask_write(channel, tid=1, blocks=16, offset=0x200, fua=False):
    size = 512 * blocks
    packet = srb(write10(8, blocks, fua=fua), size, FROM_GUEST)
    channel.send(direct(packet, [DATA_PFN, DATA_PFN + 2, DATA_PFN + 1], size, offset, tid))


def scattered(data, offset=0x200):
    """SENTINEL with `data` in the pages of ask_read."""
    memory = bytearray(SENTINEL)
    for page, part in ((0, data[: PAGE - offset]), (2, data[PAGE - offset :][:PAGE]), (1, data[2 * PAGE - offset :])):
        start = (2 + page) * PAGE + (offset if page == 0 else 0)
        memory[start : start + len(part)] = part
    return bytes(memory)


def caught(guest, channel, other, worker):
    """The lie was seen: the worker must be ended, its request is aborted, a new worker goes on."""
    assert readable(guest.dispatch.broken_fd)
    os.read(guest.dispatch.broken_fd, 8)
    other.answers()
    assert channel.inspect()["in_flight"] == 1 and channel.poll() is None
    # Not even a correct answer is taken from it now.
    worker.answer(RESULT, ata_status=0x50)
    other.answers()
    assert channel.poll() is None
    worker.close()
    answer = channel.receive()
    assert (answer.tid, answer.srb_status, answer.scsi_status, answer.key) == (1, 0x82, 2, ABORTED)
    assert (answer.status, answer.length) == (0xC0000120, 0)
    served_by_another(guest, channel)


def served_by_another(guest, channel):
    worker = Worker(guest)
    channel.send(direct(srb(read10(0, 1), 512), [DATA_PFN + 5], 512, tid=99))
    worker.serve()
    answer = channel.receive()
    assert (answer.tid, answer.srb_status, answer.length) == (99, 1, 512)
    worker.close()


# ---- an honest worker, to know that the test speaks its language


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_honest_worker_reads_and_writes(guest, disk, place):
    channel, _ = two_disks(guest, disk, channel=place[0], drive=place[1])
    disk.write(8 * 512, b"\xa5" * 8192)
    worker = Worker(guest)
    ask_read(channel)
    worker.serve(place[0])
    answer = channel.receive()
    assert (answer.srb_status, answer.length) == (1, 8192)
    assert area(guest) == scattered(b"\xa5" * 8192)
    guest.write(ADDRESS, b"\x3c" * 3 * PAGE)
    ask_write(channel)
    worker.serve(place[0])
    assert channel.receive().srb_status == 1
    assert disk.read(0, DISK_BYTES) == bytes(4096) + b"\x3c" * 8192 + bytes(DISK_BYTES - 12288)
    worker.close()


def test_honest_worker_by_the_data_port(guest, disk):
    channel, _ = two_disks(guest, disk, mode=1)
    disk.write(8 * 512, b"\xa5" * 8192)
    worker = Worker(guest)
    ask_read(channel)
    worker.serve()
    assert channel.receive().srb_status == 1
    assert worker.load(CHANNELS + PIO, "8192s") == (b"\xa5" * 8192,)
    assert area(guest) == SENTINEL  # moving it there is the worker's part
    worker.close()


def test_forced_write_is_written_then_flushed(guest, disk):
    channel, _ = two_disks(guest, disk)
    worker = Worker(guest)
    ask_write(channel, fua=True)
    message = worker.command()
    assert message[1] == WRITE
    worker.media(message)
    assert worker.take()[0] == MEDIA_DONE
    worker.answer(RESULT, ata_status=0x50)
    assert channel.poll() is None
    message = worker.command()
    assert message[1] == FLUSH
    worker.media(message, dma=0, segments=())
    assert worker.take()[0] == MEDIA_DONE
    worker.answer(RESULT, ata_status=0x50)
    answer = channel.receive()
    assert (answer.srb_status, answer.length) == (1, 8192)
    worker.close()


# ---- lies about the media


LIES = {
    "other drive": {"drive": 1},
    "drive that does not exist": {"drive": 0xFFFFFFFF},
    "flush": {"kind": FLUSH},
    "trim": {"kind": 4},
    "no kind": {"kind": 0},
    "kind that does not exist": {"kind": 99},
    "sector before": {"lba": 7},
    "sector behind": {"lba": 9},
    "first sector": {"lba": 0},
    "behind the disk": {"lba": DISK_BYTES // 512},
    "48 bits": {"lba": 1 << 48},
    "offset that wraps": {"lba": (1 << 55) + 8},
    "last sector of all": {"lba": (1 << 64) - 1},
    "no sectors": {"sectors": 0},
    "one sector more": {"sectors": 17},
    "beyond the buffer": {"sectors": 129},
    "all sectors": {"sectors": 0xFFFFFFFF},
    "length that wraps": {"sectors": 0x00800010},
}
SEGMENT_LIES = {
    "no segments": [],
    "page before": lambda given: [(given[0][0] - PAGE, given[0][1]), *given[1:]],
    "other order": lambda given: given[::-1],
    "first missing": lambda given: given[1:],
    "last missing": lambda given: given[:-1],
    "one more": lambda given: [*given, (ADDRESS + 4 * PAGE, 512)],
    "longer": lambda given: [*given[:-1], (given[-1][0], given[-1][1] + 512)],
    "shorter": lambda given: [*given[:-1], (given[-1][0], given[-1][1] - 512)],
    "outside memory": lambda given: [(0xFFFFF000, given[0][1]), *given[1:]],
    "all bytes there are": lambda given: [(given[0][0], 0xFFFFFFFF)],
    "address that wraps": lambda given: [(given[0][0], 0xFFFFFFFF), (given[0][0] - 1, 1), *given],
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
@pytest.mark.parametrize("mode", [0, 1], ids=["dma", "pio"])
@pytest.mark.parametrize("ask", [ask_read, ask_write], ids=["read", "write"])
def test_lies_about_the_media_are_seen(guest, disk, ask, mode, lie):
    channel, other = two_disks(guest, disk, mode=mode)
    worker = Worker(guest)
    ask(channel)
    worker.media(worker.command(), **lie)
    caught(guest, channel, other, worker)
    assert area(guest)[: 7 * PAGE] == SENTINEL[: 7 * PAGE]
    assert disk.read(0, DISK_BYTES) == bytes(DISK_BYTES)


@pytest.mark.parametrize("ask, kind", [(ask_read, WRITE), (ask_write, READ)], ids=["read", "write"])
@pytest.mark.parametrize("mode", [0, 1], ids=["dma", "pio"])
def test_the_direction_cannot_be_turned(guest, disk, ask, kind, mode):
    channel, other = two_disks(guest, disk, mode=mode)
    worker = Worker(guest)
    ask(channel)
    worker.media(worker.command(), kind=kind)
    caught(guest, channel, other, worker)
    assert area(guest)[: 7 * PAGE] == SENTINEL[: 7 * PAGE]
    assert disk.read(0, DISK_BYTES) == bytes(DISK_BYTES)


@pytest.mark.parametrize("change", SEGMENT_LIES.values(), ids=SEGMENT_LIES.keys())
@pytest.mark.parametrize("ask", [ask_read, ask_write], ids=["read", "write"])
def test_segments_must_be_the_pages_of_the_request(guest, disk, ask, change):
    channel, other = two_disks(guest, disk)
    worker = Worker(guest)
    ask(channel)
    message = worker.command()
    worker.media(message, segments=change(message[7]) if callable(change) else change)
    caught(guest, channel, other, worker)
    assert area(guest)[: 7 * PAGE] == SENTINEL[: 7 * PAGE]
    assert disk.read(0, DISK_BYTES) == bytes(DISK_BYTES)


@pytest.mark.parametrize("count", [73, 1 << 31, 0xFFFFFFFF])
def test_more_segments_than_there_can_be(guest, disk, count):
    channel, other = two_disks(guest, disk)
    worker = Worker(guest)
    ask_read(channel)
    worker.media(worker.command(), count=count)
    caught(guest, channel, other, worker)


@pytest.mark.parametrize("operation", [0, COMMAND, MEDIA_DONE, 5, 99, 0xFFFFFFFF])
def test_operations_that_no_worker_has(guest, disk, operation):
    channel, other = two_disks(guest, disk)
    worker = Worker(guest)
    ask_read(channel)
    worker.media(worker.command())
    assert worker.take()[0] == MEDIA_DONE
    worker.answer(operation, ata_status=0x50)
    caught(guest, channel, other, worker)


@pytest.mark.parametrize("second", [8, 11, 13, 24], ids=["again", "overlapping", "gap", "behind the end"])
@pytest.mark.parametrize("ask", [ask_read, ask_write], ids=["read", "write"])
def test_media_is_accessed_in_order(guest, disk, ask, second):
    channel, other = two_disks(guest, disk, mode=1)
    worker = Worker(guest)
    ask(channel)
    message = worker.command()
    worker.media(message, sectors=4)
    assert worker.take()[0] == MEDIA_DONE
    worker.media(message, lba=second, sectors=4)
    caught(guest, channel, other, worker)


@pytest.mark.parametrize("mode", [0, 1], ids=["dma", "pio"])
@pytest.mark.parametrize("flushes", [0, 1, 3])
def test_nothing_is_written_during_the_flush_of_a_forced_write(guest, disk, mode, flushes):
    channel, other = two_disks(guest, disk, mode=mode)
    worker = Worker(guest)
    ask_write(channel, fua=True)
    message = worker.command()
    worker.media(message)
    worker.take()
    worker.answer(RESULT, ata_status=0x50)
    worker.command()
    written = disk.read(0, DISK_BYTES)
    for _ in range(flushes):
        worker.answer(MEDIA, kind=FLUSH)
        assert worker.take()[0] == MEDIA_DONE
    worker.store(CHANNELS + PIO, b"\x66" * 65536)
    worker.media(message, lba=8 + 16 * (1 + flushes))
    # The flush too is the worker's request in hand.
    caught(guest, channel, other, worker)
    assert disk.read(0, DISK_BYTES) == written


@pytest.mark.parametrize("sequence", [-1, 1, 2, 1 << 31])
def test_answers_with_another_number_are_none(guest, disk, sequence):
    channel, other = two_disks(guest, disk)
    worker = Worker(guest)
    ask_read(channel)
    message = worker.command()
    worker.answer(RESULT, ata_status=0x50, answered=(worker.seen[0] + sequence) & 0xFFFFFFFF)
    other.answers()
    assert channel.poll() is None
    worker.media(message)
    assert worker.take()[0] == MEDIA_DONE
    worker.answer(RESULT, ata_status=0x50)
    assert channel.receive().srb_status == 1
    worker.close()


# ---- lies about the result


@pytest.mark.parametrize(
    "ask, sense", [(ask_read, (0x03, 0x11, 0)), (ask_write, (0x03, 0x03, 0))], ids=["read", "write"]
)
@pytest.mark.parametrize("sectors", [0, 4, 15])
def test_success_without_the_media_is_none(guest, disk, ask, sense, sectors):
    channel, other = two_disks(guest, disk, mode=1)
    worker = Worker(guest)
    ask(channel)
    message = worker.command()
    if sectors:
        worker.media(message, sectors=sectors)
        assert worker.take()[0] == MEDIA_DONE
    worker.answer(RESULT, ata_status=0x50)
    answer = channel.receive()
    assert (answer.srb_status, answer.scsi_status, answer.key, answer.length) == (0x84, 2, sense, 0)
    worker.close()
    served_by_another(guest, channel)
    other.answers()


@pytest.mark.parametrize("kind", [0, READ, WRITE, 4])
def test_a_flush_reaches_the_medium_or_is_none(guest, disk, kind):
    """0: a success at once; else: anything but the flush is asked for."""
    channel, other = two_disks(guest, disk)
    worker = Worker(guest)
    channel.send(in_band(srb(bytes.fromhex("35") + bytes(9)), 1))
    assert worker.command()[1] == FLUSH
    if kind:
        worker.answer(MEDIA, kind=kind, sectors=1)
        caught(guest, channel, other, worker)
        return
    worker.answer(RESULT, ata_status=0x50)
    answer = channel.receive()
    assert (answer.srb_status, answer.scsi_status, answer.key) == (0x84, 2, (0x03, 0x03, 0))
    worker.close()
    served_by_another(guest, channel)


def test_a_forced_write_without_its_flush_is_none(guest, disk):
    channel, _ = two_disks(guest, disk)
    worker = Worker(guest)
    ask_write(channel, fua=True)
    worker.media(worker.command())
    assert worker.take()[0] == MEDIA_DONE
    worker.answer(RESULT, ata_status=0x50)
    assert worker.command()[1] == FLUSH
    worker.answer(RESULT, ata_status=0x50)
    answer = channel.receive()
    assert (answer.srb_status, answer.key, answer.length) == (0x84, (0x03, 0x03, 0), 0)
    worker.close()
    served_by_another(guest, channel)


@pytest.mark.parametrize("result", [{"ata_status": 0x50}, {"ata_status": 0x51, "ata_error": 0x10}])
def test_a_failed_access_stays_one(guest, tmp_path, result):
    """The storage stack's status stands, whatever the worker says; this file ends before its disk does."""
    path = tmp_path / "short"
    path.write_bytes(bytes(PAGE))
    with FileDisk(ImageFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC)), DISK_BYTES) as short:
        channel, _ = two_disks(guest, short)
        worker = Worker(guest)
        ask_read(channel)
        worker.media(worker.command())
        operation, *_, status, _ = worker.take()
        assert operation == MEDIA_DONE and status != 0
        worker.answer(RESULT, **result)
        answer = channel.receive()
        assert (answer.srb_status, answer.scsi_status, answer.key) == (0x84, 2, (0x03, 0x11, 0))
        worker.close()
        guest.dispatch.close()  # before the disk


@pytest.mark.parametrize(
    "status, error, sense",
    [
        (0x51, 0x10, (0x05, 0x21, 0)),
        (0x51, 0x40, (0x03, 0x11, 0)),
        (0x51, 0x04, (0x03, 0x11, 0)),
        (0x80, 0, (0x03, 0x11, 0)),
        (0xFFFFFFFF, 0xFFFFFFFF, (0x05, 0x21, 0)),
        (0x01, 0, (0x03, 0x11, 0)),
    ],
)
def test_errors_of_the_drive_fail_the_request(guest, disk, status, error, sense):
    channel, _ = two_disks(guest, disk)
    worker = Worker(guest)
    ask_read(channel)
    worker.command()
    worker.answer(RESULT, ata_status=status, ata_error=error)
    answer = channel.receive()
    assert (answer.srb_status, answer.scsi_status, answer.key, answer.length) == (0x84, 2, sense, 0)
    assert area(guest) == SENTINEL
    worker.close()


def test_identification_goes_through_the_drive(guest, disk):
    channel, other = two_disks(guest, disk)
    worker = Worker(guest)
    for status, verdict in ((0x50, (1, 0, 36)), (0x51, (0x84, 2, 0))):
        channel.send(direct(srb(INQUIRY, 36), [DATA_PFN], 36))
        assert worker.command()[1] == IDENTIFY
        worker.answer(RESULT, ata_status=status)
        answer = channel.receive()
        assert (answer.srb_status, answer.scsi_status, answer.length) == verdict
    channel.send(direct(srb(INQUIRY, 36), [DATA_PFN], 36))
    worker.media(worker.command(), kind=READ, sectors=1)
    caught(guest, channel, other, worker)


# ---- workers that end


def test_a_lost_worker_takes_only_what_it_had_in_hand(guest, disk):
    channel, other = two_disks(guest, disk)
    worker = Worker(guest)
    for tid in range(1, 5):
        ask_read(channel, tid)
    worker.command()
    worker.close()
    answer = channel.receive()
    assert (answer.tid, answer.srb_status, answer.scsi_status, answer.key) == (1, 0x82, 2, ABORTED)
    other.answers()
    assert channel.poll() is None
    worker = Worker(guest)
    for tid in range(2, 5):
        worker.serve()
        answer = channel.receive()
        assert (answer.tid, answer.srb_status) == (tid, 1)
    worker.close()


def test_requests_wait_for_the_first_worker(guest, disk):
    channel, other = two_disks(guest, disk)
    ask_read(channel)
    assert until(lambda: channel.inspect()["in_flight"] == 1)
    other.answers()
    worker = Worker(guest)
    worker.serve()
    assert channel.receive().srb_status == 1
    worker.close()


def test_without_any_worker_requests_are_aborted(guest, disk):
    channel, _ = two_disks(guest, disk)
    ask_read(channel, 1)
    guest.dispatch.worker_unavailable()
    ask_read(channel, 2)
    for tid in (1, 2):
        answer = channel.receive()
        assert (answer.tid, answer.srb_status, answer.key) == (tid, 0x82, ABORTED)
    channel.answers()
    served_by_another(guest, channel)


def test_the_other_ide_channel_goes_on(guest, disk):
    liar = guest.add(disk, "emulated", open=False, channel=0)
    second = guest.add(RamDisk(DISK_BYTES), "emulated", open=False, channel=1)
    for each in (liar, second):
        assert each.open()
        each.negotiate()
    worker = Worker(guest)
    ask_read(liar)
    worker.media(worker.command(0), lba=0)
    assert readable(guest.dispatch.broken_fd)
    ask_read(second, 2)
    worker.serve(1)
    assert second.receive().srb_status == 1
    worker.close()
    assert liar.receive().srb_status == 0x82


def test_a_worker_that_never_answers_does_not_hold_close_for_ever(guest, disk):
    channel, other = two_disks(guest, disk)
    worker = Worker(guest)
    ask_read(channel)
    worker.command()
    assert not channel.close(timeout=0.01)
    other.answers()
    worker.close()
    assert channel.close()
    assert area(guest) == SENTINEL
    assert channel.open()
    channel.negotiate()
    served_by_another(guest, channel)


def test_memory_full_of_ones(guest, disk):
    """The host's own half included: it reads nothing of that back."""
    channel, other = two_disks(guest, disk)
    worker = Worker(guest)
    ask_read(channel)
    worker.command()
    worker.store(0, b"\xff" * HANDOVER_SIZE)
    worker.ring()
    other.answers()
    worker.close()
    assert channel.receive().srb_status == 0x82
    served_by_another(guest, channel)


def outcome(guest, channel, worker):
    """What the host made of an answer: another message, the end of this worker, or an answer to the guest."""
    if worker.load(CHANNELS, "<I")[0] != worker.seen[0]:
        return "message"
    if readable(guest.dispatch.broken_fd, 0):
        return "broken"
    return None if channel.inspect()["in_flight"] else "answered"


def test_random_answers(guest, disk):
    """Whatever the answer: the request's own pages and sectors at most, and a verdict in the end."""
    channel, other = two_disks(guest, disk, mode=1)
    choice = random.Random(11)
    worker = Worker(guest)
    names = ("kind", "drive", "sectors", "dma", "count")
    numbers = [0, 1, 2, 3, 4, 8, 16, 17, 72, 128, 0x50, 0x51, 1 << 31, 0xFFFFFFFF]
    for turn in range(150):
        choice.choice([ask_read, ask_write])(channel)
        message = worker.command()
        while channel.inspect()["in_flight"]:
            fields = {name: choice.choice(numbers) for name in (*names, "ata_status")}
            lies = {name: fields[name] for name in names if choice.randrange(3) == 0}
            operation = choice.choice([MEDIA, MEDIA, RESULT, choice.choice(numbers)])
            if operation == MEDIA:
                worker.media(message, **lies)
            else:
                worker.answer(operation, **fields)
            verdict = until(lambda worker=worker: outcome(guest, channel, worker))
            if verdict == "message":
                worker.take()
            elif verdict == "broken":
                os.read(guest.dispatch.broken_fd, 8)
                worker.close()
                worker = Worker(guest)
        assert channel.receive().tid == 1, turn
        assert area(guest) == SENTINEL
        sectors = disk.read(0, DISK_BYTES)
        assert not any(sectors[:4096]) and not any(sectors[4096 + 8192 :])
    other.answers()
    channel.send(in_band(srb(bytes(6)), 3))
    assert channel.receive().srb_status == 1
    worker.close()
