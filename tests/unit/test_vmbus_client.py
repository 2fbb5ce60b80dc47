"""The guest side: each wait ends, and what a hostile host sends is dropped (vmbus.md 3.7, 6.1, 6.5)."""

import threading
from uuid import UUID

import pytest

from hvcore.errors import GuestGone, HostError
from hvcore.vmbus import message as m
from hvcore.vmbus.client import ChannelRescinded, ClientState, VmbusClient
from hvcore.vmbus.synic import HypercallStatus
from tests.reference.control import SCSI

V = m.Version


def offer(relid=1, **fields):
    values = {"dedicated_interrupt": True, "connection_id": (0x2000 + relid) & 0xFFFFFF} | fields
    return m.OfferChannel(SCSI, UUID(int=relid), 0, 0, bytes(120), 0, 0, relid, 0xFF, False, **values)


class Script:
    """A host that answers from within send(): per message type what it then says."""

    def __init__(self, **answers):
        self.sent = []
        self.answers = {
            m.InitiateContact: lambda _: [m.VersionResponse(True, 0, 4)],
            m.RequestOffers: lambda _: [offer(1), offer(2), m.AllOffersDelivered()],
            m.GpadlHeader: lambda header: [m.GpadlCreated(header.relid, header.gpadl, 0)],
            m.OpenChannel: lambda opening: [m.OpenChannelResult(opening.relid, opening.open_id, 0)],
            m.GpadlTeardown: lambda teardown: [m.GpadlTorndown(teardown.gpadl)],
            m.ModifyChannel: lambda modify: [m.ModifyChannelResponse(modify.relid, 0)],
            m.Unload: lambda _: [m.UnloadResponse()],
        }
        self.events = []
        self.client = VmbusClient(
            self.send,
            timeout=30,
            on_offer=lambda channel: self.events.append(("offer", channel.relid)),
            on_rescind=lambda channel: self.events.append(("rescind", channel.relid)),
        )

    def on(self, kind, *answers):
        """From now on this message is answered so: messages, or functions to call."""
        self.answers[kind] = lambda _: answers
        return self

    def send(self, payload, connection_id):
        message = m.decode(payload)
        self.sent.append((connection_id, message))
        for answer in self.answers.get(type(message), lambda _: ())(message):
            self.says(answer) if isinstance(answer, m.Message) else answer()

    def says(self, *messages):
        for message in messages:
            self.client.receive(message.encode())

    def connected(self):
        self.client.connect()
        return self.client.request_offers()

    def opened(self):
        channel = self.connected()[0]
        gpadl = self.client.create_gpadl(channel, range(8))
        self.client.open_channel(channel, gpadl, 4)
        return channel, gpadl

    @property
    def dropped(self):
        return self.client.inspect()["dropped"]

    def types(self):
        return [type(message) for _, message in self.sent]


def refuse(count):
    """Versions: the first `count` are rejected."""
    left = [m.VersionResponse(False)] * count

    def answer(contact):
        newer = contact.version >= V.V5_0
        return [left.pop()] if left else [m.VersionResponse(True, 0, 4 if newer else contact.version)]

    return answer


OFFERED = [0x50003, 0x50002, 0x50001, 0x50000, 0x40001, 0x40000, 0x30000, 0x20004]


@pytest.mark.parametrize(("refused", "version"), list(enumerate(OFFERED)))
def test_versions_from_the_newest_down(refused, version):  # 3.7
    script = Script()
    script.answers[m.InitiateContact] = refuse(refused)
    assert script.client.connect() == version
    contacts = [(connection, message.version, message.target_sint) for connection, message in script.sent]
    assert contacts == [(4, v, 2) if v >= V.V5_0 else (1, v, 0) for v in m.VERSIONS[: refused + 1]]
    script.client.request_offers()
    assert script.sent[-1] == (4 if version >= V.V5_0 else 1, m.RequestOffers())


def test_no_common_version():
    script = Script().on(m.InitiateContact, m.VersionResponse(False))
    with pytest.raises(HostError, match=r"5\.3, .*2\.4"):
        script.client.connect()
    assert len(script.sent) == len(m.VERSIONS)


def test_a_failed_connection_state_is_a_refusal():  # CM-14
    script = Script().on(m.InitiateContact, m.VersionResponse(True, 2, 0))
    with pytest.raises(HostError):
        script.client.connect()


def test_unknown_connection_means_an_older_version():  # 3.7 step 3
    script = Script()
    modern = script.answers[m.InitiateContact]
    refused = lambda: script.client.refused(4, HypercallStatus.INVALID_CONNECTION_ID)  # noqa: E731
    script.answers[m.InitiateContact] = lambda c: [refused] if c.version >= V.V5_0 else modern(c)
    assert script.client.connect() == V.V4_1


def test_messages_go_to_the_connection_that_the_host_names():
    script = Script().on(m.InitiateContact, m.VersionResponse(True, 0, 0x1234))
    script.connected()
    assert script.sent[-1][0] == 0x1234


def test_a_life():
    script = Script()
    channel, gpadl = script.opened()
    assert (channel.state, channel.connection_id) == (ClientState.OPEN, 0x2001)
    assert script.events == [("offer", 1), ("offer", 2)]
    script.client.modify_channel(channel, 0)
    script.client.close_channel(channel)
    script.client.teardown_gpadl(channel, gpadl)
    script.client.release(channel)
    script.client.release(channel)  # once
    script.client.unload()
    assert script.types() == [
        m.InitiateContact, m.RequestOffers, m.GpadlHeader, m.OpenChannel, m.ModifyChannel, m.CloseChannel,
        m.GpadlTeardown, m.RelidReleased, m.Unload,
    ]  # fmt: skip
    assert script.client.inspect()["channels"] == []
    assert (script.client.inspect()["gpadls"], script.dropped) == (0, 0)
    assert script.client.connect() == V.V5_3


def test_handles_are_never_reused():  # CM-24
    script = Script()
    channel = script.connected()[0]
    made = [script.client.create_gpadl(channel, [1]) for _ in range(2)]
    script.client.teardown_gpadl(channel, made[0])
    made.append(script.client.create_gpadl(channel, [1]))
    assert made == [0xE1E10, 0xE1E11, 0xE1E12]


def test_host_refusals():
    script = Script()
    channel = script.connected()[0]
    script.answers[m.GpadlHeader] = lambda header: [m.GpadlCreated(header.relid, header.gpadl, 0xC0000044)]
    with pytest.raises(HostError, match="0xc0000044"):
        script.client.create_gpadl(channel, [1])
    assert script.client.inspect()["gpadls"] == 0
    script.answers[m.OpenChannel] = lambda opening: [m.OpenChannelResult(opening.relid, opening.open_id, 5)]
    with pytest.raises(HostError, match="0x5"):
        script.client.open_channel(channel, 1, 4)
    assert channel.state is ClientState.OFFERED
    script.on(m.ModifyChannel, m.ModifyChannelResponse(1, 0xC0000001))
    with pytest.raises(HostError, match="0xc0000001"):
        script.client.modify_channel(channel, 1)


CALLS = {
    "offers": (m.RequestOffers, lambda client, channel: client.request_offers(timeout=0)),
    "gpadl": (m.GpadlHeader, lambda client, channel: client.create_gpadl(channel, [1], timeout=0)),
    "open": (m.OpenChannel, lambda client, channel: client.open_channel(channel, 1, 2, timeout=0)),
    "teardown": (m.GpadlTeardown, lambda client, channel: client.teardown_gpadl(channel, 1, timeout=0)),
    "modify": (m.ModifyChannel, lambda client, channel: client.modify_channel(channel, 0, timeout=0)),
    "unload": (m.Unload, lambda client, channel: client.unload(timeout=0)),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_wait_has_a_timeout(name):  # VA-26
    kind, call = CALLS[name]
    script = Script()
    channel = script.connected()[0]
    with pytest.raises(TimeoutError, match=kind.TYPE.name):
        call(script.on(kind).client, channel)


def test_a_page_list_that_takes_too_long_to_post():  # VA-26
    script = Script()
    channel = script.connected()[0]
    with pytest.raises(TimeoutError, match="GPADL_HEADER"):
        script.on(m.GpadlHeader).client.create_gpadl(channel, range(8190), timeout=0)
    assert script.types()[-1] is m.GpadlHeader


def test_connect_that_times_out_is_the_end():
    script = Script().on(m.InitiateContact)
    with pytest.raises(TimeoutError):
        script.client.connect(timeout=0)
    with pytest.raises(GuestGone):
        script.client.connect()


@pytest.mark.parametrize("name", CALLS)
def test_every_wait_ends_with_the_connection(name):  # VA-26
    kind, call = CALLS[name]
    script = Script()
    channel = script.connected()[0]
    with pytest.raises(GuestGone, match="died"):
        call(script.on(kind, lambda: script.client.gone("the host died")).client, channel)
    with pytest.raises(GuestGone, match="died"):
        script.client.connect()


@pytest.mark.parametrize("name", ["gpadl", "open", "modify"])
def test_a_rescind_ends_the_wait(name):  # ST-4
    kind, call = CALLS[name]
    script = Script()
    channel = script.connected()[0]
    with pytest.raises(ChannelRescinded):
        call(script.on(kind, m.RescindChannelOffer(1)).client, channel)
    with pytest.raises(ChannelRescinded):
        call(script.client, channel)
    assert script.events[-1] == ("rescind", 1)


def test_waiting_threads_are_woken():
    script = Script()
    channel = script.connected()[0]
    waiting = threading.Event()
    ended = []

    def opening():
        try:
            script.client.open_channel(channel, 1, 2)
        except ChannelRescinded as error:
            ended.append(error)

    script.on(m.OpenChannel, waiting.set)
    thread = threading.Thread(target=opening)
    thread.start()
    waiting.wait()
    script.says(m.RescindChannelOffer(1))
    thread.join()
    assert len(ended) == 1


def test_teardown_of_a_rescinded_channel_is_done():  # ST-1, ST-2: nothing is sent any more
    script = Script()
    channel, gpadl = script.opened()
    script.says(m.RescindChannelOffer(1))
    count = len(script.sent)
    script.client.close_channel(channel)
    script.client.teardown_gpadl(channel, gpadl)
    assert len(script.sent) == count
    script.client.release(channel)
    script.client.release(channel)
    assert script.sent[count:] == [(4, m.RelidReleased(1))]
    script.says(offer(1))  # ST-6: the id may come back
    assert script.client.channels[-1].state is ClientState.OFFERED


def test_an_open_channel_is_not_released():
    script = Script()
    channel, _ = script.opened()
    with pytest.raises(ValueError, match="open"):
        script.client.release(channel)
    with pytest.raises(ValueError, match="open"):
        script.client.open_channel(channel, 1, 2)


def test_an_open_that_timed_out_stays_open_ended():
    script = Script().on(m.OpenChannel)
    channel = script.connected()[0]
    with pytest.raises(TimeoutError):
        script.client.open_channel(channel, 1, 2, timeout=0)
    opening = script.sent[-1][1]
    script.says(m.OpenChannelResult(1, opening.open_id, 0))  # too late: nobody waits
    assert (channel.state, script.dropped) == (ClientState.OPENING, 1)
    with pytest.raises(ValueError, match="opening"):
        script.client.close_channel(channel)


@pytest.mark.parametrize(
    "message",
    [
        offer(0), offer(2048), offer(0xFFFFFFFF), offer(1),  # VA-28: none, too large, twice
        offer(9, dedicated_interrupt=None, connection_id=None),
        m.RescindChannelOffer(0), m.RescindChannelOffer(77), m.AllOffersDelivered(), m.VersionResponse(True, 0, 4),
        m.OpenChannelResult(1, 1, 0), m.GpadlCreated(1, 0xE1E10, 0), m.GpadlTorndown(0xE1E10),
        m.ModifyChannelResponse(1, 0), m.UnloadResponse(), m.RequestOffers(), m.InitiateContact(V.V5_3), m.Unload(),
        m.GpadlHeader(1, 1, 16, 1, (4096, 1)), m.TlConnectResult(SCSI, SCSI, 1), m.PauseResponse(),
    ],
    ids=lambda message: message.TYPE.name,
)  # fmt: skip
def test_what_nobody_asked_for_is_dropped(message):  # 6.5, VA-20
    script = Script()
    channels = script.connected()
    events = len(script.events)
    script.says(message)
    assert (script.dropped, script.client.channels, len(script.events)) == (1, channels, events)


@pytest.mark.parametrize("garbage", [b"", bytes(8), bytes(241), b"\1" + bytes(100), b"\xff" * 8])
def test_garbage_is_dropped(garbage):
    script = Script()
    script.connected()
    script.client.receive(garbage)
    assert script.dropped == 1


def test_a_second_rescind_is_dropped():  # 9.1
    script = Script()
    script.connected()
    script.says(m.RescindChannelOffer(1), m.RescindChannelOffer(1))
    assert (script.dropped, script.events.count(("rescind", 1))) == (1, 1)


def test_offers_before_the_version_are_dropped():
    script = Script()
    script.says(offer(1))
    assert (script.dropped, script.client.channels) == (1, [])
    with pytest.raises(ValueError, match="not connected"):
        script.client.request_offers()


def test_answers_to_another_question_are_dropped():
    script = Script()
    channel = script.connected()[0]
    wrong = [m.OpenChannelResult(2, 1, 0), m.OpenChannelResult(1, 99, 0), m.GpadlTorndown(1)]
    with pytest.raises(TimeoutError):
        script.on(m.OpenChannel, *wrong).client.open_channel(channel, 1, 2, timeout=0)
    assert script.dropped == len(wrong)


def test_a_lost_message_is_the_end():
    script = Script()
    channel = script.connected()[0]
    lost = lambda: script.client.refused(4, HypercallStatus.INSUFFICIENT_BUFFERS)  # noqa: E731
    with pytest.raises(GuestGone, match="0x13"):
        script.on(m.GpadlHeader, lost).client.create_gpadl(channel, [1])


def test_channels_of_an_ended_connection_are_dead():
    script = Script()
    channel, gpadl = script.opened()
    script.client.unload()
    script.client.connect()
    script.client.close_channel(channel)
    with pytest.raises(GuestGone):
        script.client.teardown_gpadl(channel, gpadl)
    assert script.types()[-1] is m.InitiateContact


@pytest.mark.parametrize("version", [V.V4_0, V.V4_1, V.V5_2])
def test_modify_channel_by_version(version):
    script = Script()
    script.answers[m.InitiateContact] = lambda c: [m.VersionResponse(c.version == version, 0, 4)]
    channel = script.connected()[0]
    script.on(m.ModifyChannel)
    if version < V.V4_1:
        with pytest.raises(HostError, match=r"4\.0"):
            script.client.modify_channel(channel, 0)
    else:
        script.client.modify_channel(channel, 0)
    assert (m.ModifyChannel in script.types()) == (version >= V.V4_1)


def test_waits_for_an_offer_that_comes_later():
    """ST-13, CM-20: a sub-channel's offer differs in the index only."""
    host = Script()
    host.connected()
    sub = m.OfferChannel(SCSI, UUID(int=1), 0, 0, bytes(120), 2, 0, 9, 0xFF, False, True, 0x2009)

    def wanted(channel):
        return channel.offer.interface_instance == UUID(int=1) and channel.offer.subchannel_index == 2

    with pytest.raises(TimeoutError, match="did not offer the channel"):
        host.client.wait_for_channel(wanted, timeout=0)
    found = []
    thread = threading.Thread(target=lambda: found.append(host.client.wait_for_channel(wanted)))
    thread.start()
    host.says(sub)
    thread.join(30)
    assert [channel.relid for channel in found] == [9]
    assert host.client.wait_for_channel(wanted, timeout=0) is found[0]


def test_waiting_for_an_offer_ends_with_the_connection():
    host = Script()
    host.connected()
    host.client.gone("the host went")
    with pytest.raises(GuestGone, match="the host went"):
        host.client.wait_for_channel(lambda channel: False)
