"""The ring of vmbus.md section 1 in plain Python, rule by rule: what the compiled ring must equal, byte for byte.

It always looks at shared memory anew where the compiled ring may use what it looked up before.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hvcore.errors import RingCorrupt, RingFull

PAGE = 4096
IN, OUT, MASK, PENDING, FEATURES = 0, 4, 8, 12, 64  # vmbus.md 1.2
KNOWN_TYPES = (6, 7, 9, 0xB)


class Packet(NamedTuple):
    type: int = 6
    flags: int = 0
    transaction_id: int = 0
    payload: bytes = b""
    header: bytes = b""


def encode(packet: Packet) -> bytes:
    offset = 16 + len(packet.header)
    padding = bytes(-len(packet.payload) % 8)  # RB-19
    length = offset + len(packet.payload) + len(padding)
    if length // 8 > 0xFFFF:  # PK-1
        raise ValueError("length8 has 16 bits")
    head = struct.pack("<4HQ", packet.type, offset // 8, length // 8, packet.flags, packet.transaction_id)
    return head + packet.header + packet.payload + padding


def gpa_direct_header(ranges: Sequence[tuple[int, int, Sequence[int]]]) -> bytes:
    parts = [struct.pack("<II", 0, len(ranges))]
    parts += [struct.pack(f"<II{len(pfns)}Q", count, offset, *pfns) for count, offset, pfns in ranges]
    return b"".join(parts)


def gpa_direct_verdict(packet: bytes) -> str:
    """ "ok", "failed" or "corrupt": vmbus.md 2.4 and 8.4, for a packet whose descriptor is good."""
    (offset8,) = struct.unpack_from("<H", packet, 2)
    if offset8 < 3:
        return "corrupt"
    (range_count,) = struct.unpack_from("<I", packet, 20)
    if range_count == 0:
        return "corrupt"
    at, end = 24, offset8 * 8
    for _ in range(range_count):
        if at + 8 > end:
            return "failed"
        byte_count, byte_offset = struct.unpack_from("<II", packet, at)
        pages = -(-(byte_offset + byte_count) // PAGE)
        at += 8 + 8 * pages
        if byte_count == 0 or byte_offset >= PAGE or pages > 0xFFFFF or at > end:
            return "failed"
    return "ok"


def transfer_pages_verdict(packet: bytes) -> str:
    (offset8,) = struct.unpack_from("<H", packet, 2)
    if offset8 < 3:
        return "corrupt"
    return "ok" if 24 + 8 * struct.unpack_from("<I", packet, 20)[0] <= offset8 * 8 else "corrupt"  # PK-7


def verdict(packet: bytes, host: bool) -> str:
    kind, offset8, length8, flags = struct.unpack_from("<4H", packet)
    if length8 < 2 or offset8 < 2 or offset8 > length8:
        return "corrupt"
    if host and (flags & ~1 or kind not in KNOWN_TYPES):
        return "corrupt"
    if len(packet) < length8 * 8:
        return "corrupt"
    if kind == 9:
        return gpa_direct_verdict(packet)
    return transfer_pages_verdict(packet) if kind == 7 else "ok"


class Ring:
    """Writer and reader of one ring, in one thread."""

    def __init__(self, buffer: bytearray, pages: Sequence[int] | None = None, host: bool = True) -> None:
        self.memory = memoryview(buffer)
        control, *data = pages or range(len(buffer) // PAGE)
        self.control = control * PAGE
        self.data = data
        self.size = len(data) * PAGE
        self.host = host
        self.in_: int | None = None  # private indices (RB-42)
        self.out: int | None = None
        self.signal_due = False

    def load(self, word: int) -> int:
        value: int = struct.unpack_from("<I", self.memory, self.control + word)[0]
        if word in (IN, OUT) and (value >= self.size or value % 8):  # RB-7
            raise RingCorrupt("not an offset of the ring")
        return value

    def store(self, word: int, value: int) -> None:
        struct.pack_into("<I", self.memory, self.control + word, value)

    def pieces(self, offset: int, length: int) -> Iterator[slice]:
        while length:
            page, start = divmod(offset % self.size, PAGE)
            n = min(length, PAGE - start)
            yield slice(self.data[page] * PAGE + start, self.data[page] * PAGE + start + n)
            offset, length = offset + n, length - n

    def writer(self) -> int:
        if self.in_ is None:
            self.in_ = self.load(IN)
            self.store(FEATURES, 1)
            self.store(PENDING, 0)
        return self.in_

    def reader(self) -> int:
        if self.out is None:
            self.out = self.load(OUT)
        return self.out

    def free_at(self, in_: int, out: int) -> int:
        return self.size - (in_ - out) % self.size  # RB-10 free_raw

    def stage(self, packet: Packet, in_: int) -> int | None:
        """Writes one packet at `in_`; the index behind it, or None when it does not fit."""
        data = encode(packet) + struct.pack("<II", 0, in_)  # RB-16
        if len(data) > self.size - 16:  # RB-13
            raise ValueError("can never fit")
        if self.free_at(in_, self.load(OUT)) <= len(data):  # RB-11
            return None
        done = 0
        for piece in self.pieces(in_, len(data)):
            n = piece.stop - piece.start
            self.memory[piece] = data[done : done + n]
            done += n
        return (in_ + len(data)) % self.size

    def publish(self, in_: int) -> bool:
        old = self.in_
        self.in_ = in_
        self.store(IN, in_)
        return in_ != old and not self.load(MASK) and self.load(OUT) == old  # 1.5 steps 4, 5

    def send(self, packet: Packet) -> bool:
        in_ = self.stage(packet, self.writer())
        if in_ is None:
            raise RingFull
        return self.publish(in_)

    def send_batch(self, packets: Sequence[Packet]) -> tuple[int, bool]:
        in_, sent = self.writer(), 0
        for packet in packets:
            behind = self.stage(packet, in_)
            if behind is None:
                break
            in_, sent = behind, sent + 1
        return sent, self.publish(in_)

    def want(self, size: int) -> bool:
        """vmbus.md 1.8, writer steps 1 and 2."""
        in_ = self.writer()
        self.store(PENDING, size)
        if self.free_at(in_, self.load(OUT)) <= size:
            return False
        self.store(PENDING, 0)
        return True

    def take(self, out: int) -> tuple[Packet, int] | None:
        used = (self.load(IN) - out) % self.size  # RB-9
        if used == 0:
            return None
        data = b"".join(bytes(self.memory[piece]) for piece in self.pieces(out, used - 8))
        if used < 24 or verdict(data, self.host) == "corrupt":
            raise RingCorrupt("a packet breaks a rule")
        kind, offset8, length8, flags, transaction_id = struct.unpack_from("<4HQ", data)
        payload, header = data[offset8 * 8 : length8 * 8], data[16 : offset8 * 8]
        return Packet(kind, flags, transaction_id, payload, header), (out + length8 * 8 + 8) % self.size

    def receive_batch(self, limit: int | None = None) -> list[Packet]:
        old = out = self.reader()
        packets: list[Packet] = []
        while limit is None or len(packets) < limit:
            taken = self.take(out)
            if taken is None:
                break
            packets.append(taken[0])
            out = taken[1]
        if out != old:
            self.out = out
            self.store(OUT, out)
            pending, in_ = self.load(PENDING), self.load(IN)
            before, after = self.free_at(in_, old), self.free_at(in_, out)
            self.signal_due |= pending != 0 and before <= pending < after  # 1.8, form L
        return packets

    def receive(self) -> Packet | None:
        packets = self.receive_batch(1)
        return packets[0] if packets else None
