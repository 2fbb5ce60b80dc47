"""Host side of one VMBus connection: the state machines of vmbus.md 6.2 to 6.4, without any I/O of its own.

The server is driven by one thread (the event loop of the control path). Whatever a guest sends, receive() returns:
a message that is malformed or not allowed now is counted and dropped, or answered with a failure where the protocol
has one; no state is reachable that a later INITIATE_CONTACT or disconnect() does not leave.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from hvcore.errors import Error, ProtocolError
from hvcore.vmbus.gpadl import Gpadl, GpadlRefused, GpadlState, GpadlTable
from hvcore.vmbus.gparange import PAGE_BYTES
from hvcore.vmbus.message import (
    CONNECTION_FAILED,
    MAX_RELID,
    NO_INTERRUPTS,
    STATUS_CONNECTION_REFUSED,
    STATUS_INVALID_PARAMETER,
    STATUS_NOT_FOUND,
    STATUS_SUCCESS,
    STATUS_UNEXPECTED,
    STATUS_UNSUCCESSFUL,
    VERSIONS,
    AllOffersDelivered,
    CloseChannel,
    GpadlBody,
    GpadlCreated,
    GpadlHeader,
    GpadlTeardown,
    GpadlTorndown,
    InitiateContact,
    Message,
    ModifyChannel,
    ModifyChannelResponse,
    OpenChannel,
    OpenChannelResult,
    RelidReleased,
    RequestOffers,
    RescindChannelOffer,
    TlConnectRequest,
    TlConnectResult,
    Unload,
    UnloadResponse,
    Version,
    VersionResponse,
    decode,
    version_name,
)
from hvcore.vmbus.offers import BUSY, Channel, ChannelState, Offer, Relids
from hvcore.vmbus.synic import MULTICLIENT_CONNECTION, VMBUS_SINT


class Devices(Protocol):
    """What the server asks of the devices behind its channels. The calls come from the thread that drives the server
    and must not raise; they may call back into the server."""

    def open_channel(self, channel: Channel, gpadl: Gpadl, downstream_page_offset: int) -> int | None:
        """Open with the rings in `gpadl.pfns`: guest-to-host before the offset, host-to-guest from it on; the shape
        and the pages have been checked. Returns an NTSTATUS (0: it is open and its doorbell is connected, EV-3),
        or None: server.opened(channel, status) follows."""

    def close_channel(self, channel: Channel) -> bool:
        """Stop the device. True: from now on it touches neither the rings nor any other GPADL of this channel
        (VA-15). False: server.closed(channel) follows once that is so. May come while an open is pending: the
        device then gives that open up and never reports it."""

    def gpadl_in_use(self, channel: Channel, gpadl: Gpadl) -> bool:
        """Whether the device of a busy channel uses this GPADL, which is not its ring. If so its teardown waits
        for server.gpadl_released(channel) or the close."""

    def retarget_channel(self, channel: Channel) -> None:
        """channel.target_vp changed: when this returns no event flag is raised on the old VP any more."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one guest can make the host keep (VA-7)."""

    gpadls: int = 1024
    incomplete_gpadls: int = 32
    gpadl_words: int = 327_680  # words of all page lists: 1280 MiB of guest pages (CM-27)


class ConnectionState(Enum):
    DISCONNECTED = "disconnected"
    CONNECTED = "connected"
    DISCONNECTING = "disconnecting"


class VmbusServer:
    """One guest's VMBus. `send` takes the payload of a message to the guest and must not call back into the server;
    memory_pages is the size of guest memory in 4096-byte pages, vp_count the number of virtual processors (VA-11)."""

    def __init__(
        self,
        send: Callable[[bytes], None],
        devices: Devices,
        *,
        memory_pages: int,
        vp_count: int = 1,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits()
        self._send_bytes = send
        self._devices = devices
        self._memory_pages = memory_pages
        self._vp_count = vp_count
        self._gpadls = GpadlTable(memory_pages, limits.gpadls, limits.incomplete_gpadls, limits.gpadl_words)
        self._channels: dict[tuple[bytes, bytes, int], Channel] = {}
        self._relids = Relids()
        self.state = ConnectionState.DISCONNECTED
        self.version = 0
        self.target_vp = 0  # for messages to the guest
        self._offers_sent = False
        self._next: InitiateContact | Unload | None = None  # what ends the disconnect that is going on
        self._counts = {"received": 0, "sent": 0, "dropped": 0, "ignored": 0, "disconnects": 0}
        self._last_error = ""

    # The host's own calls

    def offer(self, offer: Offer) -> Channel:
        """Adds a channel; a connected guest that has its offers is told at once (ST-13). ValueError when such a
        channel is offered already; the channel of a device that was rescinded comes back as itself (REOFFERED)."""
        channel = self._channels.get(offer.identity)
        if channel is None:
            if len(self._channels) == MAX_RELID:
                raise Error("all channel ids are taken, some perhaps by rescinded channels that the guest keeps")
            channel = self._channels[offer.identity] = Channel(offer)
            if self.state is ConnectionState.CONNECTED and self._offers_sent:
                self._send_offer(channel)
        elif channel.revoking and channel.reoffer is None:
            channel.reoffer = offer
        elif channel.state is ChannelState.REVOKED:
            channel.offer = offer
            channel.state = ChannelState.REOFFERED
        else:
            raise ValueError(f"{offer.interface_instance} is offered already")
        return channel

    def rescind(self, channel: Channel) -> None:
        """The device goes away. It is stopped first, then the guest is told (ST-8). Twice is as good as once."""
        if self._channels.get(channel.offer.identity) is not channel:
            return
        match channel.state:
            case ChannelState.RELEASED:
                self._remove(channel)
            case ChannelState.REVOKED:
                pass
            case ChannelState.REOFFERED:
                channel.state = ChannelState.REVOKED
            case ChannelState.CLOSED:
                self._revoked(channel)
            case ChannelState.OPENING | ChannelState.OPEN:
                channel.revoking = True
                self._close_device(channel, ChannelState.CLOSING)
            case ChannelState.CLOSING | ChannelState.CLOSING_REOPEN:
                channel.state = ChannelState.CLOSING
                channel.reopen = None
                channel.revoking = True
                channel.reoffer = None
            case ChannelState.CLOSING_RELEASE:
                channel.revoking = True
                channel.reoffer = None

    def disconnect(self) -> None:
        """The guest is gone: as UNLOAD, with nobody to answer. Devices that close later report closed() as usual."""
        if self.state is ConnectionState.DISCONNECTED:
            return
        self._next = None
        if self.state is ConnectionState.CONNECTED:
            self._disconnect(None)

    def opened(self, channel: Channel, status: int) -> None:
        """A pending open is done. Without effect when the channel was closed, revoked or released meanwhile."""
        if channel.state is not ChannelState.OPENING:
            return
        channel.state = ChannelState.OPEN if status == STATUS_SUCCESS else ChannelState.CLOSED
        self._send(OpenChannelResult(channel.relid, channel.open_id, status))
        if status != STATUS_SUCCESS:
            self._let_go(channel)

    def closed(self, channel: Channel) -> None:
        """A pending close is done: the device touches no page of the channel any more (VA-15)."""
        match channel.state:
            case ChannelState.CLOSING:
                channel.state = ChannelState.CLOSED
                self._let_go(channel)
                if channel.revoking:
                    self._revoked(channel)
            case ChannelState.CLOSING_REOPEN:
                channel.state = ChannelState.CLOSED
                self._let_go(channel)
                message, channel.reopen = channel.reopen, None
                if message is not None:
                    self._open(channel, message)
            case ChannelState.CLOSING_RELEASE:
                self._released(channel)
                self._finish_disconnect()

    def gpadl_released(self, channel: Channel) -> None:
        """The device stopped using a GPADL that gpadl_in_use() had claimed."""
        self._finish_teardowns(channel)

    def inspect(self) -> dict[str, Any]:
        """State and counters, for people and for tests."""
        return {
            "state": self.state.value,
            "version": version_name(self.version) if self.version else None,
            "offers_sent": self._offers_sent,
            **self._counts,
            "last_error": self._last_error,
            "gpadls": len(self._gpadls),
            "incomplete_gpadls": self._gpadls.incomplete,
            "gpadl_words": self._gpadls.words,
            "relids": len(self._relids),
            "channels": [
                {
                    "relid": channel.relid,
                    "state": channel.state.value,
                    "interface_type": str(channel.offer.interface_type),
                    "interface_instance": str(channel.offer.interface_instance),
                    "subchannel_index": channel.offer.subchannel_index,
                    "target_vp": channel.target_vp,
                }
                for channel in self._channels.values()
            ],
        }

    # Messages of the guest

    def receive(self, message: bytes, connection_id: int = MULTICLIENT_CONNECTION) -> None:
        """One message of the guest, posted to `connection_id`. Never raises for anything that a guest can send."""
        self._counts["received"] += 1
        try:
            decoded = decode(message)
            if isinstance(decoded, InitiateContact):
                self._initiate_contact(decoded, connection_id)
                return
            if type(decoded) not in _HANDLERS:  # CM-8, 6.4 #2, #21: reserved channels and 6.0 features too
                raise ProtocolError(f"{decoded.TYPE.name} is not a message for this host (CM-8)")
            handler, minimum = _HANDLERS[type(decoded)]
            if self.state is not ConnectionState.CONNECTED:  # 6.4 #1
                raise ProtocolError(f"{decoded.TYPE.name} while {self.state.value} (6.2)")
            if self.version < minimum:
                raise ProtocolError(f"{decoded.TYPE.name} in version {version_name(self.version)} (CM-10)")
            handler(self, decoded)
        except GpadlRefused as error:
            self._dropped(error)
            self._send(GpadlCreated(error.relid, error.gpadl, error.status))
        except ProtocolError as error:
            self._dropped(error)

    def _dropped(self, error: ProtocolError) -> None:
        self._counts["dropped"] += 1
        self._last_error = str(error)

    def _send(self, message: Message) -> None:
        if self.state is ConnectionState.DISCONNECTING and not isinstance(message, VersionResponse):
            return  # 3.7: the old connection's channels are forgotten, a guest that left hears nothing of them
        self._counts["sent"] += 1
        self._send_bytes(message.encode())

    def _channel(self, message: Message, relid: int) -> Channel:
        channel = self._relids.find(relid)
        if channel is None:
            raise ProtocolError(f"{message.TYPE.name} for unknown channel {relid} (VA-9)")
        return channel

    def _initiate_contact(self, message: InitiateContact, connection_id: int) -> None:
        multiclient = message.version >= Version.V5_0 and connection_id == MULTICLIENT_CONNECTION  # CM-11
        if multiclient and (message.target_sint != VMBUS_SINT or message.target_vtl):
            self._send(VersionResponse(False))  # CM-16a, 6.4 #27: the old connection stays
        elif self.state is ConnectionState.DISCONNECTED:
            self._negotiate(message)
        elif self.state is ConnectionState.CONNECTED:
            self._disconnect(message)  # 3.7, 6.4 #3: as UNLOAD, without its answer
        else:
            self._next = message  # 6.2: replaces whatever was to follow the disconnect

    def _negotiate(self, message: InitiateContact) -> None:
        if message.version not in VERSIONS:
            self._send(VersionResponse(False))  # CM-16
            return
        if not self._contact_is_valid(message):
            self._send(VersionResponse(True, CONNECTION_FAILED))  # CM-12
            return
        self.state = ConnectionState.CONNECTED
        self.version = message.version
        # 3.3: honoured from 3.0.
        self.target_vp = message.target_vp if message.version >= Version.V3_0 else 0
        chosen = MULTICLIENT_CONNECTION if message.version >= Version.V5_0 else message.version
        self._send(VersionResponse(True, connection_id=chosen))

    def _contact_is_valid(self, message: InitiateContact) -> bool:
        pages = message.parent_to_child_page, message.child_to_parent_page
        if message.version >= Version.V3_0 and message.target_vp >= self._vp_count:  # VA-11
            return False
        if pages == (0, 0):
            return True
        # CM-12, VA-12, 6.4 #26: both or none, page-aligned guest memory.
        return all(page and not page % PAGE_BYTES and page // PAGE_BYTES < self._memory_pages for page in pages)

    def _request_offers(self, message: RequestOffers) -> None:
        if self._offers_sent:
            raise ProtocolError("REQUESTOFFERS, but the offers are sent already (6.4 #4)")
        self._offers_sent = True
        for _, channel in sorted(self._channels.items()):  # ST-12
            self._send_offer(channel)
        self._send(AllOffersDelivered())

    def _send_offer(self, channel: Channel) -> None:
        if not channel.relid:
            self._relids.assign(channel)
        channel.state = ChannelState.CLOSED
        self._send(channel.message())

    def _open_channel(self, message: OpenChannel) -> None:
        channel = self._channel(message, message.relid)
        if channel.revoking or channel.state in (ChannelState.REVOKED, ChannelState.REOFFERED):
            self._counts["ignored"] += 1  # crossed with RESCIND
        elif channel.state is ChannelState.CLOSED:
            self._open(channel, message)
        elif channel.state is ChannelState.CLOSING:
            channel.state = ChannelState.CLOSING_REOPEN  # 6.4 #28
            channel.reopen = message
        else:
            raise ProtocolError(f"OPEN_CHANNEL while channel {channel.relid} is {channel.state.value} (6.4 #6, #29)")

    def _open(self, channel: Channel, message: OpenChannel) -> None:
        gpadl = self._gpadls.find(channel.relid, message.gpadl)
        status = self._open_status(gpadl, message)
        if gpadl is None or status != STATUS_SUCCESS:
            self._send(OpenChannelResult(channel.relid, message.open_id, status))
            return
        gpadl.ring = True
        channel.state = ChannelState.OPENING
        channel.gpadl = gpadl
        channel.open_id = message.open_id
        channel.target_vp = message.target_vp
        channel.user_data = message.user_data
        result = self._devices.open_channel(channel, gpadl, message.downstream_page_offset)
        if result is not None:
            self.opened(channel, result)

    def _open_status(self, gpadl: Gpadl | None, message: OpenChannel) -> int:
        if gpadl is None:  # unknown, incomplete, foreign or being torn down: CM-29, 6.4 #7
            return STATUS_NOT_FOUND
        if message.target_vp >= self._vp_count and message.target_vp != NO_INTERRUPTS:  # VA-11
            return STATUS_INVALID_PARAMETER
        # 1.1, 6.4 #8: a control page and at least one data page on either side of the offset.
        offset = message.downstream_page_offset
        if not gpadl.is_ring_shaped or not 2 <= offset <= len(gpadl.pfns) - 2:
            return STATUS_INVALID_PARAMETER
        return STATUS_SUCCESS

    def _close_channel(self, message: CloseChannel) -> None:
        channel = self._channel(message, message.relid)
        if channel.revoking or channel.state in (ChannelState.REVOKED, ChannelState.REOFFERED):
            self._counts["ignored"] += 1  # ST-2: crossed with RESCIND
        elif channel.state is ChannelState.OPEN:
            self._close_device(channel, ChannelState.CLOSING)
        else:
            raise ProtocolError(f"CLOSE_CHANNEL while channel {channel.relid} is {channel.state.value} (6.4 #9)")

    def _close_device(self, channel: Channel, state: ChannelState) -> None:
        # The state is changed first: the device may call closed() from within.
        channel.state = state
        if self._devices.close_channel(channel):
            self.closed(channel)

    def _gpadl_header(self, message: GpadlHeader) -> None:
        if self._relids.find(message.relid) is None:
            error = f"GPADL_HEADER for unknown channel {message.relid} (CM-26)"
            raise GpadlRefused(error, message.relid, message.gpadl)
        self._gpadl_created(self._gpadls.begin(message))

    def _gpadl_body(self, message: GpadlBody) -> None:
        self._gpadl_created(self._gpadls.extend(message))

    def _gpadl_created(self, gpadl: Gpadl | None) -> None:
        if gpadl is not None:
            self._send(GpadlCreated(gpadl.relid, gpadl.handle, STATUS_SUCCESS))

    def _gpadl_teardown(self, message: GpadlTeardown) -> None:
        channel = self._channel(message, message.relid)
        gpadl = self._gpadls.find(message.relid, message.gpadl)
        if gpadl is None:  # 6.4 #12, #13
            raise ProtocolError(f"GPADL_TEARDOWN for {message.gpadl:#x}, which is not there to be torn down")
        gpadl.state = GpadlState.TEARING_DOWN
        self._finish_teardowns(channel)

    def _relid_released(self, message: RelidReleased) -> None:
        channel = self._channel(message, message.relid)
        match channel.state:
            case ChannelState.CLOSED | ChannelState.REVOKED:  # 6.4 #15
                self._released(channel)
            case ChannelState.REOFFERED:
                self._gpadls.drop(channel.relid)
                self._send_offer(channel)
            case ChannelState.CLOSING:
                channel.state = ChannelState.CLOSING_RELEASE
                self._gpadls.drop_incomplete(channel.relid)
            case _:  # 6.4 #14
                raise ProtocolError(f"RELID_RELEASED while channel {channel.relid} is {channel.state.value}")

    def _modify_channel(self, message: ModifyChannel) -> None:
        channel = self._relids.find(message.relid)
        status = STATUS_UNSUCCESSFUL
        if channel is not None and channel.state is ChannelState.OPEN:
            status = STATUS_INVALID_PARAMETER
            if message.target_vp < self._vp_count:  # VA-11: here 0xFFFFFFFF is not special (6.4 #19)
                status = STATUS_SUCCESS
                channel.target_vp = message.target_vp
                self._devices.retarget_channel(channel)
        if self.version >= Version.V5_3:
            self._send(ModifyChannelResponse(message.relid, status))
        elif status != STATUS_SUCCESS:
            raise ProtocolError(f"MODIFY_CHANNEL of channel {message.relid} failed with {status:#x} (6.4 #19)")

    def _tl_connect_request(self, message: TlConnectRequest) -> None:
        # No hvsock service is behind this host.
        self._send(TlConnectResult(message.endpoint_id, message.service_id, STATUS_CONNECTION_REFUSED))

    def _unload(self, message: Unload) -> None:
        self._disconnect(message)

    # What follows

    def _disconnect(self, then: InitiateContact | Unload | None) -> None:
        """6.2: close every open channel, tear down every GPADL, release every channel, then `then`."""
        self.state = ConnectionState.DISCONNECTING
        self._counts["disconnects"] += 1
        self._next = then
        for channel in list(self._channels.values()):
            match channel.state:
                case ChannelState.CLOSED | ChannelState.REVOKED | ChannelState.REOFFERED:
                    self._released(channel)
                case ChannelState.OPENING | ChannelState.OPEN:
                    self._close_device(channel, ChannelState.CLOSING_RELEASE)
                case ChannelState.CLOSING | ChannelState.CLOSING_REOPEN:
                    channel.state = ChannelState.CLOSING_RELEASE
                    channel.reopen = None
        self._finish_disconnect()

    def _finish_disconnect(self) -> None:
        if self.state is not ConnectionState.DISCONNECTING or len(self._relids):
            return
        self.state = ConnectionState.DISCONNECTED
        self.version = 0
        self.target_vp = 0
        self._offers_sent = False
        then, self._next = self._next, None
        if isinstance(then, InitiateContact):
            self._negotiate(then)
        elif isinstance(then, Unload):
            self._send(UnloadResponse())

    def _let_go(self, channel: Channel) -> None:
        """The device of a channel that is no longer open holds no page of it."""
        if channel.gpadl is not None:
            channel.gpadl.ring = False
            channel.gpadl = None
        self._finish_teardowns(channel)

    def _finish_teardowns(self, channel: Channel) -> None:
        """TORNDOWN for each GPADL being torn down that nobody uses any more (6.4 #11, VA-15)."""
        for gpadl in self._gpadls.tearing_down(channel.relid):
            if channel.state in BUSY and (gpadl.ring or self._devices.gpadl_in_use(channel, gpadl)):
                continue
            self._gpadls.remove(gpadl)
            self._send(GpadlTorndown(gpadl.handle))

    def _revoked(self, channel: Channel) -> None:
        """The device is gone: pending creations fail, then RESCIND, and the id stays the guest's (ST-6, ST-7)."""
        for handle in self._gpadls.drop_incomplete(channel.relid):
            self._send(GpadlCreated(channel.relid, handle, STATUS_UNEXPECTED))
        channel.state = ChannelState.REVOKED
        channel.revoking = False
        self._send(RescindChannelOffer(channel.relid))
        if channel.reoffer is not None:
            channel.offer, channel.reoffer = channel.reoffer, None
            channel.state = ChannelState.REOFFERED

    def _released(self, channel: Channel) -> None:
        """The guest does not know the channel any more; a channel without device is forgotten."""
        gone = channel.state is ChannelState.REVOKED or (channel.revoking and channel.reoffer is None)
        self._gpadls.drop(channel.relid)
        self._relids.free(channel)
        channel.state = ChannelState.RELEASED
        channel.gpadl = None
        channel.revoking = False
        if gone:
            self._remove(channel)
        elif channel.reoffer is not None:
            channel.offer, channel.reoffer = channel.reoffer, None
            if self.state is ConnectionState.CONNECTED:
                self._send_offer(channel)

    def _remove(self, channel: Channel) -> None:
        del self._channels[channel.offer.identity]


_HANDLERS: dict[type[Message], tuple[Callable[[VmbusServer, Any], None], int]] = {
    RequestOffers: (VmbusServer._request_offers, 0),
    OpenChannel: (VmbusServer._open_channel, 0),
    CloseChannel: (VmbusServer._close_channel, 0),
    GpadlHeader: (VmbusServer._gpadl_header, 0),
    GpadlBody: (VmbusServer._gpadl_body, 0),
    GpadlTeardown: (VmbusServer._gpadl_teardown, 0),
    RelidReleased: (VmbusServer._relid_released, 0),
    Unload: (VmbusServer._unload, 0),
    ModifyChannel: (VmbusServer._modify_channel, Version.V4_1),
    TlConnectRequest: (VmbusServer._tl_connect_request, Version.V4_1),  # 4.0 has no way to say no
}
