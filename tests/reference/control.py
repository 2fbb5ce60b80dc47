"""A scripted device and a bare guest around VmbusServer: every message as sent, nothing of the client's code."""

from uuid import UUID

from hvcore.vmbus import message as m
from hvcore.vmbus.gpadl import Gpadl
from hvcore.vmbus.gparange import GpaRange, fragment
from hvcore.vmbus.offers import Channel, Offer
from hvcore.vmbus.server import Limits, VmbusServer

SCSI = UUID("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f")
MEMORY_PAGES = 16384
RING = 0xE1E10


def scsi(number: int = 1) -> Offer:
    return Offer(SCSI, UUID(int=number))


class ScriptedDevices:
    """Answers as told and writes down what was asked. open_status None and close_now False: it takes its time."""

    def __init__(self, log: list[object]) -> None:
        self.log = log
        self.open_status: int | None = 0
        self.close_now = True
        self.in_use: set[int] = set()
        self.holds: set[Channel] = set()  # channels whose rings a device may touch

    def open_channel(self, channel: Channel, gpadl: Gpadl, downstream_page_offset: int) -> int | None:
        assert channel not in self.holds
        if self.open_status in (0, None):
            self.holds.add(channel)
        self.log.append(("open", channel.relid, list(gpadl.pfns), downstream_page_offset))
        return self.open_status

    def close_channel(self, channel: Channel) -> bool:
        self.log.append(("close", channel.relid))
        if self.close_now:
            self.holds.remove(channel)
        return self.close_now

    def gpadl_in_use(self, channel: Channel, gpadl: Gpadl) -> bool:
        return gpadl.handle in self.in_use

    def retarget_channel(self, channel: Channel) -> None:
        self.log.append(("retarget", channel.relid, channel.target_vp))


class Rig:
    """log holds, in order, the messages sent to the guest and the calls to the devices since the last `take()`."""

    def __init__(self, *offers: Offer, vp_count: int = 4, limits: Limits | None = None) -> None:
        self.log: list[object] = []
        self.devices = ScriptedDevices(self.log)
        self.server = VmbusServer(
            lambda payload: self.log.append(m.decode(payload)),
            self.devices,
            memory_pages=MEMORY_PAGES,
            vp_count=vp_count,
            limits=limits,
        )
        self.channels = [self.server.offer(offer) for offer in offers]

    def take(self) -> list[object]:
        log = self.log[:]
        self.log.clear()
        return log

    def says(self, *messages: m.Message) -> list[object]:
        """The guest sends these; what happened."""
        self.take()
        for message in messages:
            self.server.receive(message.encode())
        return self.take()

    def connect(self, version: int = m.Version.V5_3) -> None:
        sint = 2 if version >= m.Version.V5_0 else 0
        self.says(m.InitiateContact(version, target_sint=sint), m.RequestOffers())

    def gpadl(self, relid: int, handle: int = RING, pages: int = 8, first: int = 100) -> list[object]:
        return self.says(*fragment(relid, handle, [GpaRange.whole_pages(range(first, first + pages))]))

    def open(self, relid: int, handle: int = RING, offset: int = 4, vp: int = 0, open_id: int = 77) -> list[object]:
        return self.says(m.OpenChannel(relid, open_id, handle, vp, offset))

    def closed(self, channel: Channel) -> list[object]:
        """The device has finished its close."""
        self.take()
        self.devices.holds.discard(channel)
        self.server.closed(channel)
        return self.take()

    @property
    def dropped(self) -> int:
        dropped: int = self.server.inspect()["dropped"]
        return dropped


# How a lone channel with a complete GPADL (RING) gets into each state of vmbus.md 6.3.
def in_state(state: str, version: int = m.Version.V5_3) -> tuple[Rig, Channel]:
    rig = Rig(scsi())
    (channel,) = rig.channels
    rig.connect(version)
    rig.gpadl(1)
    rig.devices.close_now = state not in ("revoked", "reoffered")
    match state:
        case "closed":
            pass
        case "opening":
            rig.devices.open_status = None
            rig.open(1)
        case "open" | "closing" | "closing, reopen" | "closing, release":
            rig.open(1)
            rig.devices.close_now = False
            if state != "open":
                rig.says(m.CloseChannel(1))
            if state == "closing, reopen":
                rig.open(1, open_id=78)
            if state == "closing, release":
                rig.says(m.RelidReleased(1))
        case "revoked" | "reoffered":
            rig.server.rescind(channel)
            if state == "reoffered":
                rig.server.offer(scsi())
        case _:
            raise ValueError(state)
    assert channel.state.value == state
    rig.take()
    return rig, channel
