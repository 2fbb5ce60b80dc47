"""The hypervisor's envelope around control messages (vmbus.md 3.1, 3.8, 4.2, 5.3 to 5.5): blocks and statuses."""

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from hvcore.errors import ProtocolError
from hvcore.vmbus.message import MAX_PAYLOAD, MAX_RELID

CONNECTION_MASK = 0x00FFFFFF  # CM-17: connection ids have 24 bits
MESSAGE_CONNECTION = 1  # control messages of versions before 5.0
MULTICLIENT_CONNECTION = 4  # INITIATE_CONTACT from 5.0 on, and what VERSION_RESPONSE names
MESSAGE_PORT = 1  # the sender that the guest sees
VMBUS_MESSAGE = 1  # SynIC message type
VMBUS_SINT = 2
FLAG_COUNT = 2048  # event flags of one SINT; a channel's flag is its relid, 0 is unused
SLOT_BYTES = 256

_POST = Struct("<IIII")
_SIGNAL = Struct("<IHH")
_SLOT = Struct("<IBBHQ")


class HypercallStatus(IntEnum):
    SUCCESS = 0x00
    INVALID_HYPERCALL_CODE = 0x02
    INVALID_HYPERCALL_INPUT = 0x03
    INVALID_ALIGNMENT = 0x04
    INVALID_PARAMETER = 0x05
    ACCESS_DENIED = 0x06
    OPERATION_DENIED = 0x08
    INSUFFICIENT_MEMORY = 0x0B
    INVALID_VP_INDEX = 0x0E
    INVALID_PORT_ID = 0x11
    INVALID_CONNECTION_ID = 0x12
    INSUFFICIENT_BUFFERS = 0x13
    INVALID_SYNIC_STATE = 0x18
    OBJECT_IN_USE = 0x19
    TIMEOUT = 0x78
    CALL_PENDING = 0x79


def signal_connection(relid: int, sint: int = VMBUS_SINT, vtl: int = 0) -> int:
    """The signal connection id that a host puts into an offer (CM-18); a guest copies it and never computes it."""
    if not 0 < relid <= MAX_RELID:
        raise ValueError(f"channel id {relid} is not in 1..{MAX_RELID}")
    return relid | sint << 12 | vtl << 16


@dataclass(frozen=True, slots=True)
class PostMessage:
    """Input block of HvCallPostMessage: 256 bytes (5.4)."""

    connection_id: int
    payload: bytes
    message_type: int = VMBUS_MESSAGE

    def encode(self) -> bytes:
        if len(self.payload) > MAX_PAYLOAD:
            raise ValueError(f"message payload of {len(self.payload)} bytes, the limit is {MAX_PAYLOAD}")
        head = _POST.pack(self.connection_id, 0, self.message_type, len(self.payload))
        return (head + self.payload).ljust(SLOT_BYTES, b"\0")

    @classmethod
    def decode(cls, block: bytes) -> "PostMessage":
        if len(block) != SLOT_BYTES:
            raise ProtocolError(f"post message block of {len(block)} bytes, not {SLOT_BYTES} (5.4)")
        connection, _, kind, size = _POST.unpack_from(block)
        if size > MAX_PAYLOAD:
            raise ProtocolError(f"message payload of {size} bytes, the limit is {MAX_PAYLOAD} (5.4)")
        return cls(connection, block[_POST.size : _POST.size + size], kind)


@dataclass(frozen=True, slots=True)
class SignalEvent:
    """Input of HvCallSignalEvent: 8 bytes (4.2)."""

    connection_id: int
    flag: int = 0

    def encode(self) -> bytes:
        return _SIGNAL.pack(self.connection_id, self.flag, 0)

    @classmethod
    def decode(cls, block: bytes) -> "SignalEvent":
        if len(block) != _SIGNAL.size:
            raise ProtocolError(f"signal event input of {len(block)} bytes, not {_SIGNAL.size} (4.2)")
        connection, flag, _ = _SIGNAL.unpack(block)
        return cls(connection, flag)


@dataclass(frozen=True, slots=True)
class SynicMessage:
    """One slot of the SynIC message page: 256 bytes (3.1). sender is a port or partition id."""

    message_type: int
    payload: bytes
    sender: int = MESSAGE_PORT
    pending: bool = False

    def encode(self) -> bytes:
        if len(self.payload) > MAX_PAYLOAD:
            raise ValueError(f"message payload of {len(self.payload)} bytes, the limit is {MAX_PAYLOAD}")
        head = _SLOT.pack(self.message_type, len(self.payload), self.pending, 0, self.sender)
        return (head + self.payload).ljust(SLOT_BYTES, b"\0")

    @classmethod
    def decode(cls, slot: bytes) -> "SynicMessage":
        """CM-2: of a private copy of the slot; the payload size is checked before it is used."""
        if len(slot) != SLOT_BYTES:
            raise ProtocolError(f"message slot of {len(slot)} bytes, not {SLOT_BYTES} (3.1)")
        kind, size, flags, _, sender = _SLOT.unpack_from(slot)
        if size > MAX_PAYLOAD:
            raise ProtocolError(f"message payload of {size} bytes, the limit is {MAX_PAYLOAD} (CM-2)")
        return cls(kind, slot[_SLOT.size : _SLOT.size + size], sender, bool(flags & 1))
