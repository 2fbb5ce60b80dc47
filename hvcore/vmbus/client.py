"""Guest side of one VMBus connection (vmbus.md 3.7, 6.1, 6.5).

One thread reads the transport and feeds receive(), refused() and gone(); those never block. Any other threads make
the calls, which wait on one condition for the host's answer. Every wait ends by the answer, a rescind, the end of
the connection or its timeout (VA-26): nothing a host does or leaves undone hangs a caller (ST-4).
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from enum import Enum
from threading import Condition
from typing import Any

from hvcore.errors import Error, GuestGone, HostError, ProtocolError
from hvcore.vmbus.gparange import GpaRange, fragment
from hvcore.vmbus.message import (
    CONNECTION_OK,
    MAX_RELID,
    STATUS_SUCCESS,
    VERSIONS,
    AllOffersDelivered,
    CloseChannel,
    GpadlCreated,
    GpadlTeardown,
    GpadlTorndown,
    InitiateContact,
    Message,
    ModifyChannel,
    ModifyChannelResponse,
    OfferChannel,
    OpenChannel,
    OpenChannelResult,
    RelidReleased,
    RequestOffers,
    RescindChannelOffer,
    Unload,
    UnloadResponse,
    Version,
    VersionResponse,
    decode,
    version_name,
)
from hvcore.vmbus.synic import MESSAGE_CONNECTION, MULTICLIENT_CONNECTION, VMBUS_SINT, HypercallStatus

FIRST_GPADL = 0xE1E10  # CM-24
TIMEOUT = 10.0


class ChannelRescinded(Error):
    """The host took the channel back (RESCIND): no answer about it will come any more."""


class ClientState(Enum):
    OFFERED = "offered"
    OPENING = "opening"  # also after an open that timed out: only unload or a rescind leaves it then
    OPEN = "open"
    RELEASED = "released"  # given back, or of a connection that ended


class ClientChannel:
    """An offered channel. `offer` is the host's message; `rescinded` says that the host took it back. Only the client
    writes; reading is free."""

    __slots__ = ("offer", "rescinded", "state")

    def __init__(self, offer: OfferChannel) -> None:
        self.offer = offer
        self.state = ClientState.OFFERED
        self.rescinded = False

    @property
    def relid(self) -> int:
        return self.offer.relid

    @property
    def connection_id(self) -> int:
        """Event connection for signals to the host, as the offer says (CM-18)."""
        assert self.offer.connection_id is not None  # offers without it are not accepted
        return self.offer.connection_id


class VmbusClient:
    """The guest's VMBus. `send(payload, connection_id)` posts one message and may block; receive() never calls it.

    on_offer and on_rescind are called by the thread that feeds receive(): they must neither wait nor post, but leave
    it to another thread to open a channel, or to release() a rescinded one (ST-4). Timeouts are in seconds; None
    takes the default of the client. Calls may run concurrently, except that one thread at a time works on one
    channel.
    """

    def __init__(
        self,
        send: Callable[[bytes, int], None],
        *,
        versions: Sequence[int] = VERSIONS,
        target_vp: int = 0,
        timeout: float = TIMEOUT,
        on_offer: Callable[[ClientChannel], None] | None = None,
        on_rescind: Callable[[ClientChannel], None] | None = None,
    ) -> None:
        self._send_bytes = send
        self._versions = versions
        self._target_vp = target_vp
        self._timeout = timeout
        self._on_offer = on_offer
        self._on_rescind = on_rescind
        self._changed = Condition()  # guards all that follows
        self._pending: dict[Hashable, Any] = {}  # what is waited for: None until the answer came (6.5)
        self._channels: dict[int, ClientChannel] = {}
        self._gpadls: set[int] = set()
        self._next_gpadl = FIRST_GPADL
        self._open_ids = itertools.count(1)
        self._connection_id = MESSAGE_CONNECTION
        self._gone: str | None = None
        self.version = 0
        self._counts = {"received": 0, "dropped": 0}
        self._last_error = ""

    # Calls of the guest

    def connect(self, timeout: float | None = None) -> int:
        """Negotiates the newest version both know (3.7). HostError when there is none."""
        deadline = self._deadline(timeout)
        if self.version:
            raise ValueError("connected already")
        for version in self._versions:
            newer = version >= Version.V5_0
            connection = MULTICLIENT_CONNECTION if newer else MESSAGE_CONNECTION
            contact = InitiateContact(version, self._target_vp, target_sint=VMBUS_SINT if newer else 0)
            try:
                answer = self._ask("version", contact, deadline=deadline, connection=connection)
            except TimeoutError:
                # A late answer could be taken for that to a later request: this connection has had its chance.
                self.gone("INITIATE_CONTACT was not answered")
                raise
            # 3.6: word 12 repeats the version below 5.0, or does not (CM-15).
            if isinstance(answer, VersionResponse) and answer.supported and answer.connection_state == CONNECTION_OK:
                with self._changed:
                    self._connection_id = answer.connection_id if newer else MESSAGE_CONNECTION
                    self.version = version
                return version
        raise HostError(f"the host speaks no version of {', '.join(map(version_name, self._versions))}")

    def request_offers(self, timeout: float | None = None) -> list[ClientChannel]:
        """All channels offered now; once per connection. Later ones come by on_offer."""
        self._ask("offers", RequestOffers(), deadline=self._deadline(timeout))
        return self.channels

    @property
    def channels(self) -> list[ClientChannel]:
        with self._changed:
            return list(self._channels.values())

    def wait_for_channel(self, wanted: Callable[[ClientChannel], bool], timeout: float | None = None) -> ClientChannel:
        """The first offered channel that is wanted; waits for its offer, which may come at any time (ST-13, CM-20)."""
        deadline = self._deadline(timeout)
        with self._changed:
            while True:
                self._check(None)
                for channel in self._channels.values():
                    if wanted(channel):
                        return channel
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError("the host did not offer the channel in time")
                self._changed.wait(left)

    def create_gpadl(self, channel: ClientChannel, pfns: Iterable[int], timeout: float | None = None) -> int:
        """Gives the host whole pages, in this order; the handle. HostError when the host refuses. After a timeout
        the pages may be the host's until the connection ends."""
        return self.create_gpadl_ranges(channel, [GpaRange.whole_pages(pfns)], timeout)

    def create_gpadl_ranges(
        self, channel: ClientChannel, ranges: Sequence[GpaRange], timeout: float | None = None
    ) -> int:
        """As create_gpadl(), for ranges that need not be whole pages."""
        deadline = self._deadline(timeout)
        with self._changed:
            handle = self._next_gpadl
            while handle == 0 or handle in self._gpadls:
                handle = (handle + 1) & 0xFFFFFFFF
            self._next_gpadl = (handle + 1) & 0xFFFFFFFF
        messages = fragment(channel.relid, handle, ranges)
        key = "created", channel.relid, handle
        with self._changed:
            self._gpadls.add(handle)
        answer = self._ask(key, *messages, deadline=deadline, channel=channel)
        if answer != STATUS_SUCCESS:
            with self._changed:
                self._gpadls.discard(handle)
            raise HostError(f"the host refused a GPADL of channel {channel.relid} with status {answer:#x}")
        return handle

    def open_channel(
        self,
        channel: ClientChannel,
        gpadl: int,
        downstream_page_offset: int,
        user_data: bytes = b"",
        target_vp: int | None = None,
        timeout: float | None = None,
    ) -> None:
        """Opens with the rings in `gpadl`, whose control pages the caller has initialised. HostError when the host
        refuses; the channel is then offered as before."""
        deadline = self._deadline(timeout)
        vp = self._target_vp if target_vp is None else target_vp
        open_id = next(self._open_ids) & 0xFFFFFFFF  # never the same, so that no late answer can be taken for another
        message = OpenChannel(channel.relid, open_id, gpadl, vp, downstream_page_offset, user_data)
        message.encode()  # ValueError before anything changes
        with self._changed:
            self._check(channel)
            if channel.state is not ClientState.OFFERED:
                raise ValueError(f"channel {channel.relid} is {channel.state.value}")
            channel.state = ClientState.OPENING
        status = self._ask(("opened", channel.relid, open_id), message, deadline=deadline, channel=channel)
        if status != STATUS_SUCCESS:
            raise HostError(f"the host refused to open channel {channel.relid} with status {status:#x}")

    def close_channel(self, channel: ClientChannel) -> None:
        """Closes; the host answers nothing. Its rings are the host's until their GPADL is torn down (ST-1). Nothing
        is left to do for a channel that was rescinded, or whose connection ended."""
        with self._changed:
            if channel.rescinded or channel.state is ClientState.RELEASED:  # ST-2
                return
            if channel.state is not ClientState.OPEN:
                raise ValueError(f"channel {channel.relid} is {channel.state.value}")
            channel.state = ClientState.OFFERED
        self._post(CloseChannel(channel.relid))

    def teardown_gpadl(self, channel: ClientChannel, gpadl: int, timeout: float | None = None) -> None:
        """When this returns the pages are the guest's alone again. Of a rescinded channel they are so at once, as
        the host stops the device before it says RESCIND (ST-1, ST-2). After TimeoutError they are still shared."""
        deadline = self._deadline(timeout)
        with contextlib.suppress(ChannelRescinded):
            self._ask(("torn down", gpadl), GpadlTeardown(channel.relid, gpadl), deadline=deadline, channel=channel)
        with self._changed:
            self._gpadls.discard(gpadl)

    def modify_channel(self, channel: ClientChannel, target_vp: int, timeout: float | None = None) -> None:
        """Moves the channel's event flags to another VP. HostError when the host refuses or is older than 4.1; from
        4.1 to 5.2 the host does not answer."""
        deadline = self._deadline(timeout)
        message = ModifyChannel(channel.relid, target_vp)
        if self.version < Version.V4_1:
            raise HostError(f"version {version_name(self.version)} has no MODIFYCHANNEL")
        if self.version < Version.V5_3:
            self._post(message)
            return
        status = self._ask(("modified", channel.relid), message, deadline=deadline, channel=channel)
        if status != STATUS_SUCCESS:
            raise HostError(f"the host refused to move channel {channel.relid} with status {status:#x}")

    def release(self, channel: ClientChannel) -> None:
        """Gives the id of a closed or rescinded channel back: exactly once, and last (6.1)."""
        with self._changed:
            if self._channels.get(channel.relid) is not channel:
                return
            if channel.state is not ClientState.OFFERED and not channel.rescinded:
                raise ValueError(f"channel {channel.relid} is {channel.state.value}")
            channel.state = ClientState.RELEASED
            del self._channels[channel.relid]
        self._post(RelidReleased(channel.relid))

    def unload(self, timeout: float | None = None) -> None:
        """Ends the connection; all channels and GPADLs with it. connect() may follow. After TimeoutError the host may
        still use the pages."""
        deadline = self._deadline(timeout)
        self._ask("unloaded", Unload(), deadline=deadline)
        with self._changed:
            self._forget()

    def inspect(self) -> dict[str, Any]:
        with self._changed:
            return {
                "version": version_name(self.version) if self.version else None,
                "gone": self._gone,
                **self._counts,
                "last_error": self._last_error,
                "gpadls": len(self._gpadls),
                "channels": [
                    {"relid": relid, "state": channel.state.value, "rescinded": channel.rescinded}
                    for relid, channel in self._channels.items()
                ],
            }

    # Calls of the reading thread

    def receive(self, message: bytes) -> None:
        """One message of the host. What nobody asked for, or breaks a rule of 6.5, is counted and dropped (VA-20)."""
        notify: Callable[[ClientChannel], None] | None = None
        channel: ClientChannel | None = None
        with self._changed:
            self._counts["received"] += 1
            try:
                decoded = decode(message)
                match decoded:
                    case OfferChannel():
                        channel, notify = self._offered(decoded), self._on_offer
                    case RescindChannelOffer():
                        channel, notify = self._rescinded(decoded), self._on_rescind
                    case AllOffersDelivered():
                        self._answer("offers", True)
                    case VersionResponse():
                        self._answer("version", decoded)
                    case UnloadResponse():
                        self._answer("unloaded", True)
                    case GpadlCreated():
                        self._answer(("created", decoded.relid, decoded.gpadl), decoded.status)
                    case GpadlTorndown():
                        self._answer(("torn down", decoded.gpadl), True)
                    case OpenChannelResult():
                        self._opened(decoded)
                    case ModifyChannelResponse():
                        self._answer(("modified", decoded.relid), decoded.status)
                    case _:
                        raise ProtocolError(f"{decoded.TYPE.name} is not a message for this guest (6.5)")
            except ProtocolError as error:
                self._counts["dropped"] += 1
                self._last_error = str(error)
        if notify is not None and channel is not None:
            notify(channel)

    def refused(self, connection_id: int, status: int) -> None:
        """The hypervisor did not take a message that was posted (5.4). While a version is being negotiated an unknown
        connection means "try an older one" (3.7 step 3); otherwise a message is lost, and with it the connection."""
        with self._changed:
            if status == HypercallStatus.INVALID_CONNECTION_ID and self._pending.get("version", status) is None:
                self._answer("version", status)
                return
        self.gone(f"a message to connection {connection_id} was refused with hypercall status {status:#x}")

    def gone(self, reason: str) -> None:
        """The connection ended: every waiting and every later call raises GuestGone."""
        with self._changed:
            if self._gone is None:
                self._gone = reason
                self._forget()
            self._changed.notify_all()

    # Under the lock

    def _forget(self) -> None:
        self.version = 0
        self._connection_id = MESSAGE_CONNECTION
        self._gpadls.clear()
        for channel in self._channels.values():
            channel.state = ClientState.RELEASED
        self._channels.clear()

    def _answer(self, key: Hashable, value: Any) -> None:
        if self._pending.get(key, value) is not None:  # not asked, or answered already
            raise ProtocolError(f"an answer that nobody waits for: {key} (6.5)")
        self._pending[key] = value
        self._changed.notify_all()

    def _offered(self, offer: OfferChannel) -> ClientChannel:
        if not self.version:
            raise ProtocolError("an offer before the version is settled (6.2)")
        if not 0 < offer.relid <= MAX_RELID:  # VA-28
            raise ProtocolError(f"an offer with channel id {offer.relid} (6.5)")
        if offer.relid in self._channels:
            raise ProtocolError(f"a second offer of channel {offer.relid} (6.5)")
        if offer.connection_id is None:
            raise ProtocolError("an offer without signal connection (3.9)")
        channel = self._channels[offer.relid] = ClientChannel(offer)
        self._changed.notify_all()
        return channel

    def _rescinded(self, message: RescindChannelOffer) -> ClientChannel:
        channel = self._channels.get(message.relid)
        if channel is None or channel.rescinded:
            raise ProtocolError(f"RESCIND of channel {message.relid}, which is not offered (6.5)")
        channel.rescinded = True
        self._changed.notify_all()
        return channel

    def _opened(self, message: OpenChannelResult) -> None:
        self._answer(("opened", message.relid, message.open_id), message.status)
        # Here, not in the waiting thread: the state is right before any message that follows.
        channel = self._channels.get(message.relid)
        if channel is not None and channel.state is ClientState.OPENING:
            channel.state = ClientState.OPEN if message.status == STATUS_SUCCESS else ClientState.OFFERED

    def _check(self, channel: ClientChannel | None) -> None:
        if self._gone is not None:
            raise GuestGone(self._gone)
        if channel is not None:
            if channel.rescinded:
                raise ChannelRescinded(f"channel {channel.relid} was rescinded")
            if channel.state is ClientState.RELEASED:
                raise GuestGone(f"channel {channel.relid} belongs to a connection that ended")

    def _post(self, message: Message, connection: int | None = None) -> None:
        with self._changed:
            self._check(None)
            if connection is None:
                if not self.version:
                    raise ValueError("not connected")
                connection = self._connection_id
        # Outside the lock: a full transport must not keep receive() from emptying the other direction.
        self._send_bytes(message.encode(), connection)

    def _deadline(self, timeout: float | None) -> float:
        return time.monotonic() + (self._timeout if timeout is None else timeout)

    def _ask(
        self,
        key: Hashable,
        *messages: Message,
        deadline: float,
        channel: ClientChannel | None = None,
        connection: int | None = None,
    ) -> Any:
        """Posts the messages and waits for the answer `key`: at most one is pending per key."""
        with self._changed:
            self._check(channel)
            if key in self._pending:
                raise ValueError(f"{key} is being waited for already")
            self._pending[key] = None
        try:
            for number, message in enumerate(messages):
                if number and time.monotonic() > deadline:  # a host that takes messages slowly (VA-26)
                    raise TimeoutError(f"the host did not take {messages[0].TYPE.name} in time")
                self._post(message, connection)
            with self._changed:
                while self._pending[key] is None:
                    self._check(channel)
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise TimeoutError(f"the host did not answer {messages[-1].TYPE.name} in time")
                    self._changed.wait(left)
                return self._pending[key]
        finally:
            with self._changed:
                del self._pending[key]
