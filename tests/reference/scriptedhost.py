"""A host of one storage channel that answers each SRB as a test says."""

import os
import struct
import threading
from collections.abc import Callable

from hvcore.memory.region import Region
from hvcore.storage.vsc import Channel
from hvcore.storage.watch import Watcher
from hvcore.vmbus import Packet, Ring


def completion(srb_status: int, scsi_status: int = 0, sense: str = "", length: int = 0) -> bytes:
    packet = struct.pack("<3IH10BI", 1, 0, 0, 0x34, srb_status, scsi_status, 0, 0, 0, 0, 16, 20, 0, 0, length)
    return packet + bytes.fromhex(sense).ljust(36, b"\0")


FULL, BUSY = completion(0x05, 0x28), completion(0x05, 0x08)
GOOD = completion(0x01)


def attention(asc: int, ascq: int) -> bytes:
    return completion(0x84, 0x02, f"700006000000000a00000000{asc:02x}{ascq:02x}00000000")


class Scripted:
    """The host's end of a channel, and the VSC's. answer(n): the payload of the completion of SRB number n."""

    PAGES = 5

    def __init__(self, answer: Callable[[int], bytes], patience: float = 30) -> None:
        self.memory, self.events = Region.create(4 << 20), Region.create(4096)
        first, second = list(range(1, 1 + self.PAGES)), list(range(1 + self.PAGES, 1 + 2 * self.PAGES))
        self.free = 32
        self.answer, self.srbs, self.stop = answer, 0, False
        self.doorbell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.waker = Watcher(self.events)  # closing it wakes whoever sleeps on the event page
        self.incoming = Ring.attach(self.memory, pages=first, role="host")
        self.outgoing = Ring.attach(self.memory, pages=second, role="host")
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()
        try:
            self.channel = Channel(
                self.memory, self.events, self.doorbell, 1, first + second, self.PAGES,
                self.allocate, depth=16, patience=patience,
            )  # fmt: skip
            self.channel.start()
        except BaseException:
            self.close()
            raise

    def allocate(self, count: int) -> int:
        self.free += count
        return self.free - count

    def serve(self) -> None:
        while not self.stop:
            packet = self.incoming.receive()
            if packet is not None:
                self.outgoing.send(self.reply(packet), packet.transaction_id, 0, 0x0B)
                self.waker.close()

    def reply(self, packet: Packet) -> bytes:
        (operation,) = struct.unpack_from("<I", packet.payload)
        if operation == 10:
            return struct.pack("<3I", 1, 0, 0) + struct.pack("<IHHII", 0, 0, 0, 0, 0x40000).ljust(52, b"\0")
        if operation != 3:
            return struct.pack("<3I", 1, 0, 0).ljust(64, b"\0")
        self.srbs += 1
        return self.answer(self.srbs - 1)

    def close(self) -> None:
        self.stop = True
        self.thread.join()
        for ring in (self.incoming, self.outgoing):
            ring.close()
        os.close(self.doorbell)
