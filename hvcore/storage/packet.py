"""vstor packets as Python values (storvsp.md sections 3 and 5), for tests and tools; the data path has its own codec.

A packet is a header and a union of 52 bytes whose meaning depends on the operation, and for a completion on the
operation that it answers. Packet keeps the union as bytes; each class below encodes to one and decodes from one.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Self
from uuid import UUID

from hvcore.errors import ProtocolError

SCSI_INTERFACE = UUID("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f")
IDE_INTERFACE = UUID("32412632-86cb-44a2-9b5c-50d1417354f5")
FIBRE_CHANNEL_INTERFACE = UUID("2f9bcc4a-0069-4af3-b76b-6fd0be528cda")

HEADER_BYTES = 12
UNION_BYTES = 52


class Operation(IntEnum):
    """storvsp.md 3.2."""

    COMPLETE_IO = 1
    REMOVE_DEVICE = 2
    EXECUTE_SRB = 3
    RESET_LUN = 4
    RESET_ADAPTER = 5
    RESET_BUS = 6
    BEGIN_INITIALIZATION = 7
    END_INITIALIZATION = 8
    QUERY_PROTOCOL_VERSION = 9
    QUERY_PROPERTIES = 10
    ENUMERATE_BUS = 11
    FCHBA_DATA = 12
    CREATE_SUB_CHANNELS = 13
    EVENT_NOTIFICATION = 14


class Version(IntEnum):
    """storvsp.md 3.5; packet_bytes is the size of a packet at this version."""

    WIN6 = 0x0200
    WIN7 = 0x0402
    WIN8 = 0x0501
    WIN8_1 = 0x0600
    WIN10 = 0x0602

    @property
    def packet_bytes(self) -> int:
        return 64 if self >= Version.WIN8 else 48


class NtStatus(IntEnum):
    """storvsp.md 5.5."""

    SUCCESS = 0
    BUFFER_OVERFLOW = 0x80000005
    DEVICE_BUSY = 0x80000011
    UNSUCCESSFUL = 0xC0000001
    INVALID_PARAMETER = 0xC000000D
    INVALID_DEVICE_REQUEST = 0xC0000010
    REVISION_MISMATCH = 0xC0000059
    DEVICE_NOT_CONNECTED = 0xC000009D
    IO_TIMEOUT = 0xC00000B5
    DEVICE_DOES_NOT_EXIST = 0xC00000C0
    CANCELLED = 0xC0000120
    INVALID_DEVICE_STATE = 0xC0000184
    IO_DEVICE_ERROR = 0xC0000185


class PacketFlag(IntFlag):
    REQUEST_COMPLETION = 1


class PropertyFlag(IntFlag):
    MULTI_CHANNEL = 1


class SrbFlag(IntFlag):
    """storvsp.md 5.7: those that a VSP looks at or a Linux guest sets."""

    QUEUE_ACTION_ENABLE = 0x2
    DISABLE_SYNCHRONOUS_TRANSFER = 0x8
    DISABLE_AUTOSENSE = 0x20
    DATA_IN = 0x40
    DATA_OUT = 0x80
    NO_QUEUE_FREEZE = 0x100


class DataIn(IntEnum):
    """Direction byte of a SCSI request."""

    FROM_GUEST = 0
    TO_GUEST = 1
    NONE = 2


def _fields(layout: struct.Struct, union: bytes) -> tuple[int, ...]:
    """The numbers of a union, which may be cut short (48-byte packets): what is missing is zero."""
    return layout.unpack(union[: layout.size].ljust(layout.size, b"\0"))


@dataclass(frozen=True, slots=True)
class Packet:
    """operation: an int, as a peer may send any; status: NTSTATUS; union: its bytes, without trailing zeros."""

    operation: int
    flags: int = 0
    status: int = 0
    union: bytes = b""

    def encode(self, size: int = 64) -> bytes:
        """`size` bytes: 64, or 48 for Win6 and Win7, which cuts the union."""
        if len(self.union) > UNION_BYTES:
            raise ValueError(f"a union has at most {UNION_BYTES} bytes, not {len(self.union)}")
        header = struct.pack("<III", self.operation, self.flags, self.status)
        return (header + self.union)[:size].ljust(size, b"\0")

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """What lies beyond 64 bytes is ignored. ProtocolError: shorter than the header."""
        if len(data) < HEADER_BYTES:
            raise ProtocolError(f"a vstor packet has at least {HEADER_BYTES} bytes, not {len(data)}")
        operation, flags, status = struct.unpack_from("<III", data)
        return cls(operation, flags, status, bytes(data[HEADER_BYTES : HEADER_BYTES + UNION_BYTES]))


@dataclass(frozen=True, slots=True)
class ScsiRequest:
    """storvsp.md 5.1. payload is the CDB in a request, sense data in a response; always 20 bytes once decoded."""

    payload: bytes = b""
    length: int = 0x34
    srb_status: int = 0
    scsi_status: int = 0
    port: int = 0
    path_id: int = 0
    target_id: int = 0
    lun: int = 0
    cdb_length: int = 0
    sense_length: int = 0x14
    data_in: int = DataIn.NONE
    reserved: int = 0
    data_transfer_length: int = 0
    queue_tag: int = 0
    queue_action: int = 0
    srb_flags: int = 0
    timeout_seconds: int = 0
    queue_sort_key: int = 0

    _LAYOUT = struct.Struct("<H10BI")
    _EXTENSION = struct.Struct("<HBBIII")

    def encode(self) -> bytes:
        if len(self.payload) > 20:
            raise ValueError(f"a CDB or sense has at most 20 bytes, not {len(self.payload)}")
        return (
            self._LAYOUT.pack(
                self.length, self.srb_status, self.scsi_status, self.port, self.path_id, self.target_id, self.lun,
                self.cdb_length, self.sense_length, self.data_in, self.reserved, self.data_transfer_length,
            )
            + self.payload.ljust(20, b"\0")
            + self._EXTENSION.pack(
                0, self.queue_tag, self.queue_action, self.srb_flags, self.timeout_seconds, self.queue_sort_key
            )
        )  # fmt: skip

    @classmethod
    def decode(cls, union: bytes) -> Self:
        """A Win6 or Win7 union ends at 36 bytes: the rest counts as zero."""
        if len(union) < 36:
            raise ProtocolError(f"a SCSI request has at least 36 bytes, not {len(union)}")
        head = _fields(cls._LAYOUT, union)
        _, *extension = _fields(cls._EXTENSION, union[36:])
        return cls(union[16:36], *head, *extension)


@dataclass(frozen=True, slots=True)
class VersionQuery:
    """Of QUERY_PROTOCOL_VERSION, and its reply."""

    version: int
    revision: int = 0

    _LAYOUT = struct.Struct("<HH")

    def encode(self) -> bytes:
        return self._LAYOUT.pack(self.version, self.revision)

    @classmethod
    def decode(cls, union: bytes) -> Self:
        return cls(*_fields(cls._LAYOUT, union))


@dataclass(frozen=True, slots=True)
class Properties:
    """Of the reply to QUERY_PROPERTIES."""

    max_sub_channels: int = 0
    flags: int = 0
    max_transfer_bytes: int = 0x40000

    _LAYOUT = struct.Struct("<4xH2xII8x")

    def encode(self) -> bytes:
        return self._LAYOUT.pack(self.max_sub_channels, self.flags, self.max_transfer_bytes)

    @classmethod
    def decode(cls, union: bytes) -> Self:
        return cls(*_fields(cls._LAYOUT, union))


@dataclass(frozen=True, slots=True)
class SubChannels:
    """Of CREATE_SUB_CHANNELS."""

    count: int

    _LAYOUT = struct.Struct("<H")

    def encode(self) -> bytes:
        return self._LAYOUT.pack(self.count)

    @classmethod
    def decode(cls, union: bytes) -> Self:
        return cls(*_fields(cls._LAYOUT, union))


@dataclass(frozen=True, slots=True)
class FibreChannelData:
    """Of the reply to FCHBA_DATA: world-wide names as the integers they are printed as."""

    primary_port: int
    primary_node: int
    secondary_port: int = 0
    secondary_node: int = 0
    primary_active: int = 1

    _LAYOUT = struct.Struct("<B3x")
    _NAMES = struct.Struct(">4Q")

    def encode(self) -> bytes:
        names = (self.primary_port, self.primary_node, self.secondary_port, self.secondary_node)
        return self._LAYOUT.pack(self.primary_active) + self._NAMES.pack(*names)

    @classmethod
    def decode(cls, union: bytes) -> Self:
        (active,) = _fields(cls._LAYOUT, union)
        port, node, second_port, second_node = _fields(cls._NAMES, union[4:])
        return cls(port, node, second_port, second_node, active)
