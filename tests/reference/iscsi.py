"""An iSCSI front end (RFC 7143) over hvcore.scsi: what lets foreign initiators and conformance suites reach the engine.

One process, one target, LUN 0; a thread per connection, one connection per session, error recovery level 0, no
digests, no authentication. An initiator (its name and ISID) is a nexus of the logical unit.
"""

import hashlib
import socket
import struct
import threading
from collections import deque
from contextlib import suppress

from hvcore.scsi import LogicalUnit, ScsiResult, Target, absent, report_luns

NAME = "iqn.2026-01.example:disk"
SEGMENT = 262144  # bytes of data in one PDU, and of one burst
WINDOW = 64  # commands that an initiator may have under way
NONE = 0xFFFFFFFF
IMMEDIATE = 0x40
BAD_ORDER = bytes.fromhex("70000b00 0000000a 00000000 47050000 0000")  # aborted: protocol service CRC error
FINAL = 0x80

NOP_OUT, COMMAND, TASK_MANAGEMENT, LOGIN, TEXT, DATA_OUT, LOGOUT = range(7)
NOP_IN, RESPONSE, TASK_DONE, LOGGED_IN, TEXT_ANSWER, DATA_IN, LOGGED_OUT = range(0x20, 0x27)
READY_TO_TRANSFER, REJECT = 0x31, 0x3F

ANSWERS = {
    "HeaderDigest": "None", "DataDigest": "None", "MaxConnections": "1", "InitialR2T": "Yes", "ImmediateData": "Yes",
    "MaxBurstLength": str(SEGMENT), "FirstBurstLength": "65536", "DefaultTime2Wait": "2", "DefaultTime2Retain": "0",
    "MaxOutstandingR2T": "1", "DataPDUInOrder": "Yes", "DataSequenceInOrder": "Yes", "ErrorRecoveryLevel": "0",
    "IFMarker": "No", "OFMarker": "No", "AuthMethod": "None",
}  # fmt: skip


class Ended(Exception):
    """The connection is over."""


def keys_of(data):
    return dict(pair.split("=", 1) for pair in data.decode("ascii").split("\0") if "=" in pair)


def text_of(keys):
    return "".join(f"{name}={value}\0" for name, value in keys).encode("ascii")


def blocks_of(cdb):
    """Blocks that a READ, a WRITE or a command like them asks to move, None for others."""
    op = cdb[0]
    if op in (0x08, 0x0A):
        return cdb[4] or 256
    if op in (0x28, 0x2A, 0x2E):
        return int.from_bytes(cdb[7:9])
    if op in (0x88, 0x8A, 0x8E):
        return int.from_bytes(cdb[10:14])
    if op in (0xA8, 0xAA, 0xAE):
        return int.from_bytes(cdb[6:10])
    return None


class Connection:
    """One session: reads PDUs in order, executes commands one after the other."""

    def __init__(self, server, link):
        self.server = server
        self.link = link
        self.waiting = deque()
        self.expected = self.status_number = 0
        self.segment = 8192  # what the initiator takes in one PDU
        self.target = None
        self.discovery = False

    # ---- PDUs

    def take(self, count):
        data = bytearray()
        while len(data) < count:
            part = self.link.recv(count - len(data))
            if not part:
                raise Ended
            data += part
        return bytes(data)

    def receive(self):
        head = self.take(48)
        self.take(4 * head[4])
        length = int.from_bytes(head[5:8])
        if length > 16 << 20:
            raise Ended
        return head, self.take(length + -length % 4)[:length]

    def send(self, opcode, *, flags=FINAL, second=0, third=0, lun=bytes(8), tag=NONE, words=(), data=b"", counts=True):
        """words: seven big-endian words from byte 20 on; the numbers of 24, 28 and 32 are filled in."""
        words = list(words) + [0] * (7 - len(words))
        words[1:4] = [self.status_number, self.expected & NONE, (self.expected + WINDOW - 1) & NONE]
        if counts:
            self.status_number = (self.status_number + 1) & NONE
        head = struct.pack(">BBBBI8sI7I", opcode, flags, second, third, len(data), lun, tag, *words)
        self.link.sendall(head + data + bytes(-len(data) % 4))

    def reject(self, head, reason):
        self.send(REJECT, second=reason, data=head)

    # ---- login

    def login(self):
        """From the first PDU to the full feature phase."""
        found = {}
        first = True
        while True:
            head, data = self.receive()
            if head[0] & 0x3F != LOGIN:
                raise Ended
            asked = keys_of(data)
            found |= asked
            if first:
                self.expected = int.from_bytes(head[24:28])
                first = False
            stage = head[1] >> 2 & 3
            answers = [(name, ANSWERS[name]) for name in asked if name in ANSWERS]
            if stage == 1:
                answers.append(("MaxRecvDataSegmentLength", str(SEGMENT)))
            if "TargetName" in asked or stage == 0:
                answers.append(("TargetPortalGroupTag", "1"))
            tsih = 1 if head[1] & FINAL and head[1] & 3 == 3 else 0
            tag = int.from_bytes(head[16:20])
            lun = head[8:14] + tsih.to_bytes(2)
            self.send(LOGGED_IN, flags=head[1] & 0x8F | stage << 2, lun=lun, tag=tag, data=text_of(answers))
            if tsih:
                break
        self.segment = int(found.get("MaxRecvDataSegmentLength", 8192))
        self.discovery = found.get("SessionType") == "Discovery"
        if not self.discovery:
            nexus = hashlib.md5(found.get("InitiatorName", "").encode() + head[8:14]).digest()
            self.target = self.server.nexus(nexus, self)

    # ---- commands

    def absorb(self, tag, lun, data, total):
        """The rest of the data of a write: asked for in bursts. None: its pieces came in no order."""
        data = bytearray(data)
        number = 0
        good = True
        while len(data) < total:
            burst = min(SEGMENT, total - len(data))
            end = len(data) + burst
            self.send(READY_TO_TRANSFER, lun=lun, tag=tag, words=(tag, 0, 0, 0, number, len(data), burst), counts=False)
            number += 1
            sequence = 0
            while len(data) < end:
                head, part = self.receive()
                if head[0] & 0x3F != DATA_OUT or int.from_bytes(head[16:20]) != tag:
                    self.waiting.append((head, part))
                    continue
                if int.from_bytes(head[36:40]) != sequence or int.from_bytes(head[40:44]) != len(data):
                    good = False
                sequence += 1
                data += part
        return bytes(data) if good else None

    def execute(self, lun, cdb, data, length):
        """ScsiResult, and the bytes that the command would have moved had the buffer been as large as it asks."""
        if cdb[0] == 0xA0:
            return report_luns([0], cdb, max(length, 4096), strict_alloc=False)
        if any(lun):
            return absent(cdb, lun[1], length)
        if data:
            return self.target.execute(cdb, data)
        blocks = blocks_of(cdb)
        asked = 0 if blocks is None else blocks * self.target.image.sector_size
        return self.target.execute(cdb, allocation=max(length, min(asked, 16 << 20), 65536))

    def overlong(self, cdb, data, length):
        """Of a write that asks for more blocks than the initiator sends: what is sent is done, the rest is residual."""
        blocks = blocks_of(cdb)
        size = self.target.image.sector_size
        if blocks is None or cdb[0] in (0x08, 0x28, 0x88, 0xA8) or blocks * size <= length:
            return cdb, data[: length - length % size] if blocks is not None and cdb[0] not in (8, 40, 136) else data, 0
        given = length // size
        cut = bytearray(cdb)
        if cdb[0] >> 5 == 0:
            cut[4] = given
        elif cdb[0] >> 5 == 4:
            cut[10:14] = given.to_bytes(4)
        elif cdb[0] >> 5 == 5:
            cut[6:10] = given.to_bytes(4)
        else:
            cut[7:9] = given.to_bytes(2)
        return bytes(cut), data[: given * size], blocks * size - given * size

    def command(self, head, data):
        tag, lun, cdb = int.from_bytes(head[16:20]), head[8:16], head[32:48]
        length = int.from_bytes(head[20:24])
        if head[1] & 0x20:
            if len(data) > length:
                raise Ended
            data = self.absorb(tag, lun, data, length)
            if data is None:
                self.answer(tag, lun, ScsiResult(2, sense=BAD_ORDER, srb_status=0x84), length, 0, True)
                return
        more = 0
        if head[1] & 0x20 and not any(lun):
            cdb, data, more = self.overlong(cdb, data, length)
        result = self.execute(lun, cdb, data, 0 if head[1] & 0x20 else length)
        self.answer(tag, lun, result, length, more, bool(head[1] & 0x20))

    def answer(self, tag, lun, result: ScsiResult, length, more, writes):
        moved = result.transferred + more if writes else len(result.data_in)
        sent = b"" if writes else result.data_in[:length]
        flags, residual = 0, 0
        if moved > length:
            flags, residual = 0x04, moved - length
        elif moved < length:
            flags, residual = 0x02, length - moved
        for number, start in enumerate(range(0, len(sent), self.segment)):
            part = sent[start : start + self.segment]
            last = FINAL if start + len(part) == len(sent) else 0
            self.send(DATA_IN, flags=last, lun=lun, tag=tag, words=(NONE, 0, 0, 0, number, start), data=part,
                      counts=False)  # fmt: skip
        sense = len(result.sense).to_bytes(2) + result.sense if result.sense else b""
        self.send(RESPONSE, flags=FINAL | flags, third=result.status, tag=tag, data=sense,
                  words=(0, 0, 0, 0, -(-len(sent) // self.segment), 0, residual))  # fmt: skip

    def manage(self, head):
        """Commands are over before the next PDU is read: there is nothing to abort, and resets are of the unit."""
        function = head[1] & 0x7F
        answer = 0
        if function in (5, 6, 7):
            self.server.unit.reset()
        elif function == 1:
            answer = 1  # the task is done
        elif function not in (2, 3, 4):
            answer = 5
        self.send(TASK_DONE, second=answer, tag=int.from_bytes(head[16:20]))

    # ---- the session

    def in_window(self, head):
        """Numbers outside the window are ignored (RFC 7143 4.2.2.1)."""
        if head[0] & IMMEDIATE:
            return True
        number = int.from_bytes(head[24:28])
        if (number - self.expected) & NONE >= WINDOW:
            return False
        self.expected = (number + 1) & NONE
        return True

    def serve(self, head, data):
        opcode, tag = head[0] & 0x3F, int.from_bytes(head[16:20])
        if opcode == DATA_OUT:
            return  # of a command that has all its data
        if not self.in_window(head):
            return
        if opcode == NOP_OUT:
            if tag != NONE:
                self.send(NOP_IN, tag=tag, words=(NONE,), data=data)
        elif opcode == COMMAND and not self.discovery:
            self.command(head, data)
        elif opcode == TASK_MANAGEMENT and not self.discovery:
            self.manage(head)
        elif opcode == TEXT:
            text = text_of([("TargetName", NAME), ("TargetAddress", f"{self.server.address},1")])
            self.send(TEXT_ANSWER, tag=tag, words=(NONE,), data=text if "SendTargets" in keys_of(data) else b"")
        elif opcode == LOGOUT:
            self.send(LOGGED_OUT, tag=tag)
            raise Ended
        else:
            self.reject(head, 5)

    def run(self):
        try:
            self.login()
            while True:
                self.serve(*(self.waiting.popleft() if self.waiting else self.receive()))
        except (Ended, OSError):
            pass
        finally:
            self.server.gone(self)
            self.link.close()


class Server:
    """Serves one disk on a port of the loopback interface until close()."""

    def __init__(self, image, **options):
        self.image = image
        self.options = {"strict_alloc": False, **options}
        self.unit = LogicalUnit(image)
        self.lock = threading.Lock()
        self.sessions = {}
        self.threads = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.start(self.accept)

    @property
    def url(self):
        return f"iscsi://{self.address}/{NAME}/0"

    def start(self, function):
        thread = threading.Thread(target=function, daemon=True)
        self.threads.append(thread)
        thread.start()

    def accept(self):
        with suppress(OSError):
            while True:
                link, _ = self.listener.accept()
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.start(Connection(self, link).run)

    def nexus(self, nexus, connection):
        """The Target of an initiator; a session that it had before ends (session reinstatement)."""
        with self.lock:
            before = self.sessions.get(nexus)
            if before is not None:
                with suppress(OSError):
                    before.link.shutdown(socket.SHUT_RDWR)
            self.sessions[nexus] = connection
            return Target(self.image, unit=self.unit, nexus=nexus, **self.options)

    def gone(self, connection):
        if connection.target is None:
            return
        with self.lock:
            nexus = connection.target.nexus
            if self.sessions.get(nexus) is connection:
                del self.sessions[nexus]
        connection.target.close()

    def close(self):
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        with self.lock:
            for connection in self.sessions.values():
                with suppress(OSError):
                    connection.link.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
