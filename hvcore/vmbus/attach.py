"""Byte layouts of the vmbus-user protocol (docs/vmbus-user.md): handshake, datagrams, event page."""

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import ClassVar
from uuid import UUID

from hvcore.errors import ProtocolError
from hvcore.vmbus.message import MAX_PAYLOAD

MAGIC = b"VMBUSUSR"
OLDEST_VERSION = 1
LAYOUT_VERSION = 2  # from 2 on with port intercepts
EVENT_PAGE_BYTES = 4096
INTERCEPT_BYTES = 16384
HOST_TO_GUEST_FLAGS = 0
GUEST_TO_HOST_FLAGS = 256
GUEST_SLEEP_WORD = 512
HOST_SLEEP_WORD = 576
POST_STATUS = 0xC0000001  # message type of no SynIC message
_NO_VM = UUID(int=0)

MESSAGE_HEADER = Struct("<II")  # connection or port id, message type
MAX_DATAGRAM = MESSAGE_HEADER.size + MAX_PAYLOAD


class Refusal(IntEnum):
    ACCEPTED = 0
    VERSION = 1
    MALFORMED = 2
    NOT_PERMITTED = 3
    BUSY = 4
    NOT_RUNNING = 5
    NO_MEMORY = 6


@dataclass(frozen=True, slots=True)
class Hello:
    lowest_version: int = OLDEST_VERSION
    highest_version: int = LAYOUT_VERSION

    def encode(self) -> bytes:
        return _HELLO.pack(MAGIC, self.lowest_version, self.highest_version, 0)

    @classmethod
    def decode(cls, datagram: bytes) -> "Hello":
        if len(datagram) != _HELLO.size:
            raise ProtocolError(f"HELLO of {len(datagram)} bytes, not {_HELLO.size}")
        magic, lowest, highest, _ = _HELLO.unpack(datagram)
        if magic != MAGIC or lowest > highest:
            raise ProtocolError("not a HELLO of vmbus-user")
        return cls(lowest, highest)


@dataclass(frozen=True, slots=True)
class Accept:
    """The host's answer to HELLO; with another status than ACCEPTED only version and status mean something."""

    status: int
    memory_bytes: int = 0
    message_rate: int = 0
    message_burst: int = 0
    vm_id: UUID = _NO_VM
    vp_count: int = 0
    event_page_bytes: int = 0
    version: int = LAYOUT_VERSION
    intercept_bytes: int = 0

    def encode(self) -> bytes:
        return _ACCEPT.pack(
            MAGIC,
            self.version,
            0,
            self.status,
            self.memory_bytes,
            self.event_page_bytes,
            self.vp_count,
            self.message_rate,
            self.message_burst,
            self.vm_id.bytes_le,
            self.intercept_bytes,
            0,
        )

    @classmethod
    def decode(cls, datagram: bytes) -> "Accept":
        if len(datagram) != _ACCEPT.size:
            raise ProtocolError(f"ACCEPT of {len(datagram)} bytes, not {_ACCEPT.size}")
        magic, version, _, status, memory, page, vps, rate, burst, vm_id, intercepts, _ = _ACCEPT.unpack(datagram)
        if magic != MAGIC:
            raise ProtocolError("not an ACCEPT of vmbus-user")
        if version < 2:
            intercepts = 0  # reserved
        return cls(status, memory, rate, burst, UUID(bytes_le=vm_id), vps, page, version, intercepts)


@dataclass(frozen=True, slots=True)
class PostStatus:
    """A datagram of the guest that was not taken: hypercall status and the datagram's number, from 1."""

    BYTES: ClassVar[int] = 16
    connection_id: int
    status: int
    number: int

    def encode(self) -> bytes:
        return _STATUS.pack(self.connection_id, self.status, self.number)

    @classmethod
    def decode(cls, payload: bytes) -> "PostStatus":
        if len(payload) < cls.BYTES:
            raise ProtocolError(f"POST STATUS of {len(payload)} bytes, not {cls.BYTES}")
        return cls(*_STATUS.unpack_from(payload))


_HELLO = Struct("<8sHHI")
_ACCEPT = Struct("<8sHHIQIIII16sII")
_STATUS = Struct("<IIQ")
assert (_HELLO.size, _ACCEPT.size, _STATUS.size) == (16, 64, PostStatus.BYTES)
