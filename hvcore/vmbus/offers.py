"""Offers and channels of one connection as its host keeps them (vmbus.md 3.9, 6.3)."""

from dataclasses import dataclass
from enum import Enum
from uuid import UUID

from hvcore.vmbus.gpadl import Gpadl
from hvcore.vmbus.message import MAX_RELID, NO_INTERRUPTS, USER_BYTES, OfferChannel, OpenChannel
from hvcore.vmbus.synic import signal_connection

NO_MONITOR = 0xFF


@dataclass(frozen=True, slots=True)
class Offer:
    """What a device offers. Subchannels repeat the primary's type and instance with an index >= 1 (CM-20)."""

    interface_type: UUID
    interface_instance: UUID
    flags: int = 0
    user_defined: bytes = b""
    mmio_megabytes: int = 0
    subchannel_index: int = 0

    def __post_init__(self) -> None:
        if len(self.user_defined) > USER_BYTES:
            raise ValueError(f"{len(self.user_defined)} bytes of user data in an offer, room for {USER_BYTES}")

    @property
    def identity(self) -> tuple[bytes, bytes, int]:
        """What tells offers apart, and their order (ST-12): so channel ids are the same at each boot."""
        return self.interface_type.bytes_le, self.interface_instance.bytes_le, self.subchannel_index


class ChannelState(Enum):
    """vmbus.md 6.3. While a device that goes away is still closing, the channel is CLOSING with `revoking` set."""

    RELEASED = "released"  # no channel id; the guest does not know it
    CLOSED = "closed"
    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSING_REOPEN = "closing, reopen"
    CLOSING_RELEASE = "closing, release"  # the guest gave it up while its device is still closing
    REVOKED = "revoked"
    REOFFERED = "reoffered"


# The device may hold the ring in these.
BUSY = frozenset({ChannelState.OPENING, ChannelState.OPEN, ChannelState.CLOSING, ChannelState.CLOSING_REOPEN})


class Channel:
    """One channel. Devices read offer, relid, connection_id, user_data, target_vp; the server alone writes."""

    __slots__ = (
        "gpadl",
        "offer",
        "open_id",
        "relid",
        "reoffer",
        "reopen",
        "revoking",
        "state",
        "target_vp",
        "user_data",
    )

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.state = ChannelState.RELEASED
        self.relid = 0
        self.gpadl: Gpadl | None = None  # of the rings
        self.open_id = 0
        self.target_vp = NO_INTERRUPTS
        self.user_data = b""
        self.reopen: OpenChannel | None = None  # OPENCHANNEL that came while closing (6.4 #28)
        self.revoking = False  # its device went away and is still closing; RESCIND follows (ST-8)
        self.reoffer: Offer | None = None  # came while revoking

    @property
    def connection_id(self) -> int:
        """Event connection on which the guest signals this channel (CM-18)."""
        return signal_connection(self.relid)

    def message(self) -> OfferChannel:
        return OfferChannel(
            self.offer.interface_type,
            self.offer.interface_instance,
            self.offer.flags,
            self.offer.mmio_megabytes,
            self.offer.user_defined.ljust(USER_BYTES, b"\0"),
            self.offer.subchannel_index,
            0,
            self.relid,
            NO_MONITOR,
            False,  # EV-7: no monitored notification
            True,
            self.connection_id,
        )


class Relids:
    """Channel ids 1..2047 in use. An id is free again only after release or disconnect (ST-6)."""

    def __init__(self) -> None:
        self._channels: dict[int, Channel] = {}

    def __len__(self) -> int:
        return len(self._channels)

    def assign(self, channel: Channel) -> None:
        """The lowest free id. The server keeps at most 2047 channels, each with one id, so there is one."""
        channel.relid = next(relid for relid in range(1, MAX_RELID + 1) if relid not in self._channels)
        self._channels[channel.relid] = channel

    def find(self, relid: int) -> Channel | None:
        """The channel that the guest means: an id that it released is unknown, also while the device closes (VA-9)."""
        channel = self._channels.get(relid)
        return None if channel is None or channel.state is ChannelState.CLOSING_RELEASE else channel

    def free(self, channel: Channel) -> None:
        del self._channels[channel.relid]
        channel.relid = 0
