"""Codec of the VMBus control messages (vmbus.md section 3): bytes to frozen dataclasses and back.

`decode(payload)` gives the message or raises ProtocolError naming what is wrong; `message.encode()` gives the exact
bytes of the wire form (CM-7). Reserved and padding fields are ignored on the way in and zero on the way out (VA-16),
bytes beyond a message's form are ignored (CM-9), so encode(decode(x)) == x for every x without such leftovers.
Status fields are NTSTATUS values as unsigned 32-bit integers. Nothing here knows a connection's state: whether a
message is allowed now is the business of hvcore.vmbus.server and hvcore.vmbus.client.
"""

import struct
from dataclasses import dataclass, fields
from enum import IntEnum
from struct import Struct
from typing import Any, ClassVar, Self
from uuid import UUID

from hvcore.errors import ProtocolError

MAX_PAYLOAD = 240
MAX_RELID = 2047
NO_INTERRUPTS = 0xFFFFFFFF  # target VP of OPENCHANNEL: the host raises no event flag
HEADER_WORDS = 27  # u64 words of page list in one GPADL_HEADER
BODY_WORDS = 28  # and in one GPADL_BODY
USER_BYTES = 120

STATUS_SUCCESS = 0
STATUS_UNEXPECTED = 0x8000FFFF  # CM-26: what a host says of a page list it does not take
STATUS_UNSUCCESSFUL = 0xC0000001
STATUS_INVALID_PARAMETER = 0xC000000D
STATUS_QUOTA_EXCEEDED = 0xC0000044  # CM-26
STATUS_NOT_FOUND = 0xC0000225  # CM-29
STATUS_CONNECTION_REFUSED = 0xC0000236

CONNECTION_OK = 0
CONNECTION_LOW_RESOURCES = 1
CONNECTION_FAILED = 2

FEATURE_SIGNAL_PARAMETERS = 0x01
FEATURE_INTERRUPT_REDIRECTION = 0x02
FEATURE_MODIFY_CONNECTION = 0x04
FEATURE_CLIENT_ID = 0x08

_HEADER = Struct("<II")


class Version(IntEnum):
    """Protocol versions, major << 16 | minor (vmbus.md 3.3)."""

    V0_13 = 0x0000000D
    V1_1 = 0x00010001
    V2_4 = 0x00020004
    V3_0 = 0x00030000
    V4_0 = 0x00040000
    V4_1 = 0x00040001
    V5_0 = 0x00050000
    V5_1 = 0x00050001
    V5_2 = 0x00050002
    V5_3 = 0x00050003
    V6_0 = 0x00060000


# What both ends of hvcore speak, newest first: without dedicated interrupts (before 2.4) or feature flags (6.0).
VERSIONS = tuple(sorted((v for v in Version if Version.V2_4 <= v <= Version.V5_3), reverse=True))


def version_name(version: int) -> str:
    return f"{version >> 16}.{version & 0xFFFF}"


class MessageType(IntEnum):
    OFFER_CHANNEL = 1
    RESCIND_CHANNEL_OFFER = 2
    REQUEST_OFFERS = 3
    ALL_OFFERS_DELIVERED = 4
    OPEN_CHANNEL = 5
    OPEN_CHANNEL_RESULT = 6
    CLOSE_CHANNEL = 7
    GPADL_HEADER = 8
    GPADL_BODY = 9
    GPADL_CREATED = 10
    GPADL_TEARDOWN = 11
    GPADL_TORNDOWN = 12
    RELID_RELEASED = 13
    INITIATE_CONTACT = 14
    VERSION_RESPONSE = 15
    UNLOAD = 16
    UNLOAD_RESPONSE = 17
    OPEN_RESERVED_CHANNEL = 18
    CLOSE_RESERVED_CHANNEL = 19
    CLOSE_RESERVED_RESPONSE = 20
    TL_CONNECT_REQUEST = 21
    MODIFY_CHANNEL = 22
    TL_CONNECT_RESULT = 23
    MODIFY_CHANNEL_RESPONSE = 24
    MODIFY_CONNECTION = 25
    MODIFY_CONNECTION_RESPONSE = 26
    PAUSE = 27
    PAUSE_RESPONSE = 28
    RESUME = 29


@dataclass(frozen=True, slots=True)
class Message:
    """Base of all control messages. BODY is the smallest form after the 8-byte header."""

    TYPE: ClassVar[MessageType]
    BODY: ClassVar[Struct] = Struct("<")

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """The message in `payload`, which decode() found to be long enough for BODY."""
        make: Any = cls
        message: Self = make(*cls.BODY.unpack_from(payload, _HEADER.size))
        return message

    def body(self) -> bytes:
        return self.BODY.pack(*(getattr(self, field.name) for field in fields(self)))

    def encode(self) -> bytes:
        """The bytes on the wire; ValueError when a field does not fit its place."""
        try:
            return _HEADER.pack(self.TYPE, 0) + self.body()
        except struct.error as error:
            raise ValueError(f"{type(self).__name__}: {error}") from None


@dataclass(frozen=True, slots=True)
class OfferChannel(Message):
    """dedicated_interrupt and connection_id are None in the 190-byte form of versions before 1.1."""

    TYPE = MessageType.OFFER_CHANNEL
    BODY = Struct("<16s16sQQHH120sHHIBB")
    TAIL: ClassVar[Struct] = Struct("<HI")
    interface_type: UUID
    interface_instance: UUID
    flags: int
    mmio_megabytes: int
    user_defined: bytes
    subchannel_index: int
    optional_mmio_megabytes: int
    relid: int
    monitor_id: int
    monitor_allocated: bool
    dedicated_interrupt: bool | None
    connection_id: int | None

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        # Bytes 40..55 may be non-zero from old hosts and mean nothing any more.
        kind, instance, _, _, flags, mmio, user, index, optional, relid, monitor, allocated = cls.BODY.unpack_from(
            payload, _HEADER.size
        )
        dedicated, connection = None, None
        if len(payload) >= _HEADER.size + cls.BODY.size + cls.TAIL.size:
            word, connection = cls.TAIL.unpack_from(payload, _HEADER.size + cls.BODY.size)
            dedicated = bool(word & 1)
        return cls(
            UUID(bytes_le=kind),
            UUID(bytes_le=instance),
            flags,
            mmio,
            user,
            index,
            optional,
            relid,
            monitor,
            bool(allocated & 1),
            dedicated,
            connection,
        )

    def body(self) -> bytes:
        if len(self.user_defined) > USER_BYTES:
            raise ValueError(f"OfferChannel: {len(self.user_defined)} bytes of user data, room for {USER_BYTES}")
        body = self.BODY.pack(
            self.interface_type.bytes_le,
            self.interface_instance.bytes_le,
            0,
            0,
            self.flags,
            self.mmio_megabytes,
            self.user_defined,
            self.subchannel_index,
            self.optional_mmio_megabytes,
            self.relid,
            self.monitor_id,
            self.monitor_allocated,
        )
        if self.connection_id is None:
            return body
        return body + self.TAIL.pack(bool(self.dedicated_interrupt), self.connection_id)


@dataclass(frozen=True, slots=True)
class RescindChannelOffer(Message):
    TYPE = MessageType.RESCIND_CHANNEL_OFFER
    BODY = Struct("<I")
    relid: int


@dataclass(frozen=True, slots=True)
class RequestOffers(Message):
    TYPE = MessageType.REQUEST_OFFERS


@dataclass(frozen=True, slots=True)
class AllOffersDelivered(Message):
    TYPE = MessageType.ALL_OFFERS_DELIVERED


@dataclass(frozen=True, slots=True)
class OpenChannel(Message):
    """The last three fields are None in the 148-byte form; with 6.0 features the form has 156 bytes."""

    TYPE = MessageType.OPEN_CHANNEL
    BODY = Struct("<IIIII120s")
    TAIL: ClassVar[Struct] = Struct("<IHH")
    relid: int
    open_id: int
    gpadl: int
    target_vp: int
    downstream_page_offset: int
    user_data: bytes = bytes(USER_BYTES)
    connection_id: int | None = None
    event_flag: int | None = None
    flags: int | None = None

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        head = cls.BODY.unpack_from(payload, _HEADER.size)
        if len(payload) < _HEADER.size + cls.BODY.size + cls.TAIL.size:
            return cls(*head)
        return cls(*head, *cls.TAIL.unpack_from(payload, _HEADER.size + cls.BODY.size))

    def body(self) -> bytes:
        if len(self.user_data) > USER_BYTES:
            raise ValueError(f"OpenChannel: {len(self.user_data)} bytes of user data, room for {USER_BYTES}")
        body = self.BODY.pack(
            self.relid, self.open_id, self.gpadl, self.target_vp, self.downstream_page_offset, self.user_data
        )
        if self.connection_id is None:
            return body
        return body + self.TAIL.pack(self.connection_id, self.event_flag or 0, self.flags or 0)


@dataclass(frozen=True, slots=True)
class OpenChannelResult(Message):
    TYPE = MessageType.OPEN_CHANNEL_RESULT
    BODY = Struct("<III")
    relid: int
    open_id: int
    status: int


@dataclass(frozen=True, slots=True)
class CloseChannel(Message):
    TYPE = MessageType.CLOSE_CHANNEL
    BODY = Struct("<I")
    relid: int


def _words(payload: bytes, offset: int) -> tuple[int, ...]:
    return struct.unpack_from(f"<{(len(payload) - offset) // 8}Q", payload, offset)


@dataclass(frozen=True, slots=True)
class GpadlHeader(Message):
    """words: the u64 words of the page list that came with it; the rest follows in GPADL_BODY messages (CM-22)."""

    TYPE = MessageType.GPADL_HEADER
    BODY = Struct("<IIHH")
    relid: int
    gpadl: int
    range_buffer_bytes: int
    range_count: int
    words: tuple[int, ...]

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        relid, gpadl, range_buffer_bytes, range_count = cls.BODY.unpack_from(payload, _HEADER.size)
        return cls(relid, gpadl, range_buffer_bytes, range_count, _words(payload, _HEADER.size + cls.BODY.size))

    def body(self) -> bytes:
        if len(self.words) > HEADER_WORDS:
            raise ValueError(f"GpadlHeader: {len(self.words)} words, room for {HEADER_WORDS}")
        head = self.BODY.pack(self.relid, self.gpadl, self.range_buffer_bytes, self.range_count)
        return head + struct.pack(f"<{len(self.words)}Q", *self.words)


@dataclass(frozen=True, slots=True)
class GpadlBody(Message):
    TYPE = MessageType.GPADL_BODY
    BODY = Struct("<II")
    message_number: int
    gpadl: int
    words: tuple[int, ...]

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        number, gpadl = cls.BODY.unpack_from(payload, _HEADER.size)
        return cls(number, gpadl, _words(payload, _HEADER.size + cls.BODY.size))

    def body(self) -> bytes:
        if len(self.words) > BODY_WORDS:
            raise ValueError(f"GpadlBody: {len(self.words)} words, room for {BODY_WORDS}")
        return self.BODY.pack(self.message_number, self.gpadl) + struct.pack(f"<{len(self.words)}Q", *self.words)


@dataclass(frozen=True, slots=True)
class GpadlCreated(Message):
    TYPE = MessageType.GPADL_CREATED
    BODY = Struct("<III")
    relid: int
    gpadl: int
    status: int


@dataclass(frozen=True, slots=True)
class GpadlTeardown(Message):
    TYPE = MessageType.GPADL_TEARDOWN
    BODY = Struct("<II")
    relid: int
    gpadl: int


@dataclass(frozen=True, slots=True)
class GpadlTorndown(Message):
    TYPE = MessageType.GPADL_TORNDOWN
    BODY = Struct("<I")
    gpadl: int


@dataclass(frozen=True, slots=True)
class RelidReleased(Message):
    TYPE = MessageType.RELID_RELEASED
    BODY = Struct("<I")
    relid: int


@dataclass(frozen=True, slots=True)
class InitiateContact(Message):
    """interrupt_page exists before 5.0 only; target_sint from 5.0, target_vtl from 5.1, feature_flags from 6.0 lie in
    its place. client_id is there exactly when feature_flags asks for it (56 bytes)."""

    TYPE = MessageType.INITIATE_CONTACT
    BODY = Struct("<IIQQQ")
    OVERLAY: ClassVar[Struct] = Struct("<BBHI")
    version: int
    target_vp: int = 0
    interrupt_page: int = 0
    target_sint: int = 0
    target_vtl: int = 0
    feature_flags: int = 0
    parent_to_child_page: int = 0
    child_to_parent_page: int = 0
    client_id: UUID | None = None

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        version, vp, page, parent_to_child, child_to_parent = cls.BODY.unpack_from(payload, _HEADER.size)
        if version < Version.V5_0:
            return cls(version, vp, page, 0, 0, 0, parent_to_child, child_to_parent)
        sint, vtl, _, features = cls.OVERLAY.unpack(page.to_bytes(8, "little"))
        vtl = vtl if version >= Version.V5_1 else 0
        features = features if version >= Version.V6_0 else 0
        client = None
        if features & FEATURE_CLIENT_ID:
            if len(payload) < 56:
                raise ProtocolError(f"INITIATE_CONTACT with a client id needs 56 bytes, has {len(payload)} (3.5, N18)")
            client = UUID(bytes_le=payload[40:56])
        return cls(version, vp, 0, sint, vtl, features, parent_to_child, child_to_parent, client)

    def body(self) -> bytes:
        page = self.interrupt_page
        if self.version >= Version.V5_0:
            overlay = self.OVERLAY.pack(self.target_sint, self.target_vtl, 0, self.feature_flags)
            page = int.from_bytes(overlay, "little")
        body = self.BODY.pack(self.version, self.target_vp, page, self.parent_to_child_page, self.child_to_parent_page)
        return body if self.client_id is None else body + self.client_id.bytes_le


@dataclass(frozen=True, slots=True)
class VersionResponse(Message):
    """connection_id is the selected version below 5.0. features: 20-byte form; the pages: 40-byte form; else None."""

    TYPE = MessageType.VERSION_RESPONSE
    BODY = Struct("<BBHI")
    FEATURES: ClassVar[Struct] = Struct("<I")
    PAGES: ClassVar[Struct] = Struct("<IQQ")
    supported: bool
    connection_state: int = CONNECTION_OK
    connection_id: int = 0
    features: int | None = None
    parent_to_child_page: int | None = None
    child_to_parent_page: int | None = None

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        supported, state, _, connection = cls.BODY.unpack_from(payload, _HEADER.size)
        features, parent_to_child, child_to_parent = None, None, None
        if len(payload) >= 20:
            (features,) = cls.FEATURES.unpack_from(payload, 16)
        if len(payload) >= 40:
            _, parent_to_child, child_to_parent = cls.PAGES.unpack_from(payload, 20)
        return cls(bool(supported), state, connection, features, parent_to_child, child_to_parent)

    def body(self) -> bytes:
        body = self.BODY.pack(self.supported, self.connection_state, 0, self.connection_id)
        if self.features is not None:
            body += self.FEATURES.pack(self.features)
            if self.parent_to_child_page is not None:
                body += self.PAGES.pack(0, self.parent_to_child_page, self.child_to_parent_page or 0)
        return body


@dataclass(frozen=True, slots=True)
class Unload(Message):
    TYPE = MessageType.UNLOAD


@dataclass(frozen=True, slots=True)
class UnloadResponse(Message):
    TYPE = MessageType.UNLOAD_RESPONSE


@dataclass(frozen=True, slots=True)
class OpenReservedChannel(Message):
    TYPE = MessageType.OPEN_RESERVED_CHANNEL
    BODY = Struct("<IIIII")
    relid: int
    target_vp: int
    target_sint: int
    gpadl: int
    downstream_page_offset: int


@dataclass(frozen=True, slots=True)
class CloseReservedChannel(Message):
    TYPE = MessageType.CLOSE_RESERVED_CHANNEL
    BODY = Struct("<III")
    relid: int
    target_vp: int
    target_sint: int


@dataclass(frozen=True, slots=True)
class CloseReservedResponse(Message):
    TYPE = MessageType.CLOSE_RESERVED_RESPONSE
    BODY = Struct("<I")
    relid: int


@dataclass(frozen=True, slots=True)
class TlConnectRequest(Message):
    """silo_id is None in the 40-byte form (before 5.2)."""

    TYPE = MessageType.TL_CONNECT_REQUEST
    BODY = Struct("<16s16s")
    endpoint_id: UUID
    service_id: UUID
    silo_id: UUID | None = None

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        endpoint, service = cls.BODY.unpack_from(payload, _HEADER.size)
        silo = UUID(bytes_le=payload[40:56]) if len(payload) >= 56 else None
        return cls(UUID(bytes_le=endpoint), UUID(bytes_le=service), silo)

    def body(self) -> bytes:
        body = self.endpoint_id.bytes_le + self.service_id.bytes_le
        return body if self.silo_id is None else body + self.silo_id.bytes_le


@dataclass(frozen=True, slots=True)
class ModifyChannel(Message):
    TYPE = MessageType.MODIFY_CHANNEL
    BODY = Struct("<II")
    relid: int
    target_vp: int


@dataclass(frozen=True, slots=True)
class TlConnectResult(Message):
    TYPE = MessageType.TL_CONNECT_RESULT
    BODY = Struct("<16s16sI")
    endpoint_id: UUID
    service_id: UUID
    status: int

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        endpoint, service, status = cls.BODY.unpack_from(payload, _HEADER.size)
        return cls(UUID(bytes_le=endpoint), UUID(bytes_le=service), status)

    def body(self) -> bytes:
        return self.BODY.pack(self.endpoint_id.bytes_le, self.service_id.bytes_le, self.status)


@dataclass(frozen=True, slots=True)
class ModifyChannelResponse(Message):
    TYPE = MessageType.MODIFY_CHANNEL_RESPONSE
    BODY = Struct("<II")
    relid: int
    status: int


@dataclass(frozen=True, slots=True)
class ModifyConnection(Message):
    TYPE = MessageType.MODIFY_CONNECTION
    BODY = Struct("<QQ")
    parent_to_child_page: int
    child_to_parent_page: int


@dataclass(frozen=True, slots=True)
class ModifyConnectionResponse(Message):
    TYPE = MessageType.MODIFY_CONNECTION_RESPONSE
    BODY = Struct("<B")
    connection_state: int


@dataclass(frozen=True, slots=True)
class Pause(Message):
    TYPE = MessageType.PAUSE


@dataclass(frozen=True, slots=True)
class PauseResponse(Message):
    TYPE = MessageType.PAUSE_RESPONSE


@dataclass(frozen=True, slots=True)
class Resume(Message):
    TYPE = MessageType.RESUME


_CLASSES: tuple[type[Message], ...] = (
    OfferChannel,
    RescindChannelOffer,
    RequestOffers,
    AllOffersDelivered,
    OpenChannel,
    OpenChannelResult,
    CloseChannel,
    GpadlHeader,
    GpadlBody,
    GpadlCreated,
    GpadlTeardown,
    GpadlTorndown,
    RelidReleased,
    InitiateContact,
    VersionResponse,
    Unload,
    UnloadResponse,
    OpenReservedChannel,
    CloseReservedChannel,
    CloseReservedResponse,
    TlConnectRequest,
    ModifyChannel,
    TlConnectResult,
    ModifyChannelResponse,
    ModifyConnection,
    ModifyConnectionResponse,
    Pause,
    PauseResponse,
    Resume,
)
MESSAGES: dict[int, type[Message]] = {cls.TYPE: cls for cls in _CLASSES}


def decode(payload: bytes) -> Message:
    """The control message in `payload` (SynIC message payload or HvPostMessage payload, at most 240 bytes)."""
    if len(payload) > MAX_PAYLOAD:
        raise ProtocolError(f"control message of {len(payload)} bytes, the limit is {MAX_PAYLOAD} (3.1)")
    if len(payload) < _HEADER.size:
        raise ProtocolError(f"control message of {len(payload)} bytes has no header (3.2)")
    kind, _ = _HEADER.unpack_from(payload)
    cls = MESSAGES.get(kind)
    if cls is None:
        raise ProtocolError(f"control message type {kind} does not exist (3.2)")
    if len(payload) < _HEADER.size + cls.BODY.size:
        need = _HEADER.size + cls.BODY.size
        raise ProtocolError(f"{cls.TYPE.name} needs {need} bytes, has {len(payload)} (CM-9)")
    return cls.parse(payload)
