"""A child partition without drivers: guest memory, event page, doorbell, and the rings of its storage channels.

Driven by hand against a hvcore.dispatch.host.Dispatch. It sends what it is told, right or wrong, and waits by looking.
"""

import contextlib
import os
import select
import struct
import time
from collections.abc import Sequence

from hvcore.dispatch.host import Dispatch
from hvcore.dispatch.pool import MediaPool
from hvcore.memory.region import Region
from hvcore.scsi import Target
from hvcore.vmbus import Packet, Ring
from tests.reference import ring as twin

PAGE = 4096
PATIENCE_S = 20.0  # far beyond any answer; only a lost one takes as long
DATA_PFN = 512  # rings lie below, data buffers from here on
TO_GUEST, FROM_GUEST, NO_DATA = 1, 0, 2
FLAGS = {TO_GUEST: 0x14A, FROM_GUEST: 0x18A, NO_DATA: 0x10A}  # storvsp.md 5.2
WORDS = {"in_": 0, "out": 4, "mask": 8, "pending": 12, "features": 64}  # vmbus.md 1.2
DISK_ID = bytes.fromhex("00112233445566778899aabbccddeeff")


def until(condition):
    """What `condition` returns as soon as it is true or not None; fails the test when that does not come."""
    end = time.monotonic() + PATIENCE_S
    while True:
        found = condition()
        if found is not None and found is not False:
            return found
        assert time.monotonic() < end, "the host did not do what it must"
        os.sched_yield()


def vstor(operation: int, union: bytes = b"", *, flags: int = 1, length: int = 64) -> bytes:
    return struct.pack("<3I", operation, flags, 0).ljust(12) + union.ljust(length - 12, b"\0")[: length - 12]


def srb(cdb: bytes, length: int = 0, data_in: int | None = None, *, size: int = 64, **fields: int) -> bytes:
    """An EXECUTE_SRB packet as a Linux guest fills it; `length`: bytes of its buffer."""
    if data_in is None:
        data_in = TO_GUEST if length else NO_DATA
    struct_length = fields.get("struct_length", 0x34 if size >= 64 else 0x24)
    union = struct.pack(
        "<H10BI",
        struct_length, 0, 0, 0, fields.get("path", 0), fields.get("target", 0), fields.get("lun", 0),
        fields.get("cdb_length", len(cdb)), fields.get("sense_length", 0x14), data_in, 0, length,
    )  # fmt: skip
    union += cdb.ljust(20, b"\0") + struct.pack("<HBBIII", 0, 0xFF, 0x20, FLAGS.get(data_in, 0x10A), 60, 0)
    return vstor(3, union, length=size)


def in_band(payload: bytes, tid: int = 1, flags: int = 1) -> bytes:
    return twin.encode(twin.Packet(6, flags, tid, payload))


def direct(
    payload: bytes, pfns: Sequence[int], length: int, offset: int = 0, tid: int = 1, *, surplus: int = 0, flags: int = 1
) -> bytes:
    """A GPA-direct packet with one range, and `surplus` unused PFNs behind those that it needs."""
    header = twin.gpa_direct_header([(length, offset, [*pfns, *[0] * surplus])])
    return twin.encode(twin.Packet(9, flags, tid, payload, header))


def read10(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB", 0x28, 0, lba, 0, blocks, 0)


def write10(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    return struct.pack(">BBIBHB", 0x2A, 8 if fua else 0, lba, 0, blocks, 0)


TEST_UNIT_READY = bytes(6)
INQUIRY = bytes.fromhex("120000002400")


class Answer:
    """The fields of a completion that tests look at."""

    def __init__(self, packet: Packet) -> None:
        self.packet = packet
        self.tid = packet.transaction_id
        self.operation, self.flags, self.status = struct.unpack_from("<3I", packet.payload)
        # Of an SRB; zeros where a reply is too short to have them.
        scsi = packet.payload.ljust(64, b"\0")
        self.srb_status, self.scsi_status = scsi[14], scsi[15]
        (self.length,) = struct.unpack_from("<I", scsi, 24)
        self.sense = scsi[28:46]

    @property
    def key(self) -> tuple[int, int, int]:
        return self.sense[2], self.sense[12], self.sense[13]


class Guest:
    """Guest memory of `memory` bytes (sparse) and the host's data path; close() in any case."""

    def __init__(self, memory: int = 16 << 20, pool_threads: int = 1, pool: MediaPool | None = None) -> None:
        self.memory = Region.create(memory, "guest")
        self.events = Region.create(PAGE, "events")
        self.doorbell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.own_pool = MediaPool(pool_threads) if pool is None else None
        self.pool = self.own_pool if pool is None else pool
        self.dispatch = Dispatch(self.pool)
        self.channels: list[Channel] = []
        self.next_pfn = 1
        self.attached = False

    def add(self, image: object, path: str = "synthetic", *, ring_pages: int = 8, open: bool = True, **options: int):
        """A disk, as LUN 0 of a controller of its own, and its channel."""
        target = Target(image, id=DISK_ID, serial="0123456789ABCDEF")
        drive = {name: options.pop(name) for name in ("channel", "drive", "mode", "vm") if name in options}
        disk = self.dispatch.add_disk(target, path, **drive)
        index = self.dispatch.add_controller(**options)
        self.dispatch.attach_unit(index, 0, disk)
        channel = Channel(self, index, ring_pages)
        self.channels.append(channel)
        if open:
            assert channel.open()
        return channel

    def add_sub(self, primary: "Channel", sub: int, ring_pages: int = 2) -> "Channel":
        """A sub-channel of the primary's controller, opened."""
        channel = Channel(self, primary.index, ring_pages, sub)
        self.channels.append(channel)
        assert channel.open()
        return channel

    def attach(self) -> None:
        if not self.attached:
            self.dispatch.attach(self.memory, self.events, self.doorbell)
            self.attached = True

    def pages(self, count: int) -> list[int]:
        first, self.next_pfn = self.next_pfn, self.next_pfn + count
        assert self.next_pfn <= DATA_PFN
        return list(range(first, first + count))

    def read(self, gpa: int, length: int) -> bytes:
        with memoryview(self.memory) as view:
            return bytes(view[gpa : gpa + length])

    def write(self, gpa: int, data: bytes) -> None:
        with memoryview(self.memory) as view:
            view[gpa : gpa + len(data)] = data

    def store32(self, gpa: int, value: int) -> None:
        """One aligned store, as a ring's words need it (RB-39)."""
        with memoryview(self.memory) as view, view.cast("I") as words:
            words[gpa // 4] = value & 0xFFFFFFFF

    def load32(self, gpa: int) -> int:
        with memoryview(self.memory) as view, view.cast("I") as words:
            return words[gpa // 4]

    def signal(self, relid: int) -> None:
        """Flag and doorbell, whether or not the host sleeps: Python has no fence between the two, and a signal too
        many is allowed (EV, docs/vmbus-user.md)."""
        with memoryview(self.events) as view:
            view[256 + relid // 8] |= 1 << relid % 8
        with contextlib.suppress(BlockingIOError):  # the counter was filled on purpose
            os.write(self.doorbell, (1).to_bytes(8, "little"))

    def close(self) -> None:
        self.dispatch.close()
        if self.own_pool is not None:
            self.own_pool.close()
        for channel in self.channels:
            channel.release()
        os.close(self.doorbell)
        self.events.close()
        self.memory.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Channel:
    """One storage channel: `ring_pages` data pages in each direction. sub: 0 for the primary of controller `index`."""

    def __init__(self, guest: Guest, index: int, ring_pages: int, sub: int = 0) -> None:
        self.guest, self.index, self.sub, self.relid = guest, index, sub, index + 1 + 64 * sub
        self.size = ring_pages * PAGE
        # Not adjacent, so that packets cross from page to page elsewhere.
        self.pfns = guest.pages(2 * (ring_pages + 1))[::-1]
        self.downstream = ring_pages + 1
        self.to_host: Ring | None = None
        self.to_guest: Ring | None = None

    @property
    def control(self) -> tuple[int, int]:
        """Addresses of the control pages: of the ring to the host, of the ring to the guest."""
        return self.pfns[0] * PAGE, self.pfns[self.downstream] * PAGE

    def open(self) -> bool:
        """Fresh rings, offered to the host."""
        self.guest.attach()
        self.release()
        for page in self.control:
            self.guest.write(page, bytes(PAGE))
        self.to_host = Ring.attach(self.guest.memory, pages=self.pfns[: self.downstream], role="guest")
        self.to_guest = Ring.attach(self.guest.memory, pages=self.pfns[self.downstream :], role="guest")
        return self.guest.dispatch.open_channel(self.index, self.sub, self.relid, self.pfns, self.downstream)

    def release(self) -> None:
        for ring in (self.to_host, self.to_guest):
            if ring is not None:
                ring.close()
        self.to_host = self.to_guest = None

    def close(self, timeout: float = PATIENCE_S) -> bool:
        return self.guest.dispatch.close_channel(self.index, self.sub, timeout)

    def reopen(self) -> None:
        assert self.close()
        assert self.open()

    def inspect(self) -> dict[str, object]:
        return self.guest.dispatch.inspect(self.index, self.sub)

    def signal(self) -> None:
        self.guest.signal(self.relid)

    # Sending.

    def send(self, packet: bytes) -> None:
        """A well-formed packet; RingFull when it does not fit."""
        kind, offset, _, flags, tid = struct.unpack_from("<4HQ", packet)
        assert self.to_host is not None
        self.to_host.send(packet[8 * offset :], tid, flags, kind, header=packet[16 : 8 * offset])
        self.signal()

    def scribble(self, packet: bytes, *, published: int | None = None) -> None:
        """Any bytes as the next packet, and In moved by `published` (None: behind the trailer)."""
        control = self.control[0]
        start = self.guest.load32(control)
        slot = packet + bytes(-len(packet) % 8) + struct.pack("<II", 0, start)
        for at, byte in enumerate(slot):
            place = (start + at) % self.size
            self.guest.write(self.pfns[1 + place // PAGE] * PAGE + place % PAGE, bytes([byte]))
        self.guest.store32(control, (start + (len(slot) if published is None else published)) % self.size)
        # The ring object keeps an index of its own (RB-42): one that starts from this In follows.
        if self.to_host is not None:
            self.to_host.close()
        self.to_host = Ring.attach(self.guest.memory, pages=self.pfns[: self.downstream], role="guest")
        self.signal()

    def words(self, ring: int, **values: int) -> None:
        """Scribbles on the control page of the ring to the host (0) or to the guest (1)."""
        for name, value in values.items():
            self.guest.store32(self.control[ring] + WORDS[name], value)
        self.signal()

    # Receiving.

    def poll(self) -> Answer | None:
        """The next completion if there is one, and the signal if the host waits for room."""
        assert self.to_guest is not None
        packet = self.to_guest.receive()
        if self.to_guest.signal_due:
            self.signal()
        return None if packet is None else Answer(packet)

    def receive(self) -> Answer:
        return until(self.poll)

    def ask(self, packet: bytes) -> Answer:
        self.send(packet)
        return self.receive()

    def fault(self) -> str:
        """Waits until the channel is dead; why."""
        return until(lambda: self.inspect()["fault"])

    # Using.

    def negotiate(self, version: int = 0x600) -> None:
        for operation, union in ((7, b""), (9, struct.pack("<H", version)), (10, b""), (8, b"")):
            assert self.ask(in_band(vstor(operation, union))).status == 0

    def read_disk(self, lba: int, blocks: int, pfns: Sequence[int], offset: int = 0, tid: int = 1) -> Answer:
        length = 512 * blocks
        return self.ask(direct(srb(read10(lba, blocks), length), pfns, length, offset, tid))

    def write_disk(self, lba: int, blocks: int, pfns: Sequence[int], offset: int = 0, tid: int = 1) -> Answer:
        length = 512 * blocks
        return self.ask(direct(srb(write10(lba, blocks), length, FROM_GUEST), pfns, length, offset, tid))

    def answers(self, tid: int = 0x7E57) -> None:
        """Fails unless the channel serves a request."""
        answer = self.ask(in_band(srb(TEST_UNIT_READY), tid))
        assert (answer.tid, answer.srb_status, answer.scsi_status) == (tid, 1, 0)


def readable(descriptor: int, timeout_s: float = PATIENCE_S) -> bool:
    return bool(select.select([descriptor], [], [], timeout_s)[0])
