"""Nothing a guest posts makes the host's side raise, leak, grow beyond its caps or let go of a ring in use."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore.errors import ProtocolError
from hvcore.vmbus import message as m
from hvcore.vmbus.gparange import GpaRange, fragment
from hvcore.vmbus.server import Limits
from tests.reference.control import MEMORY_PAGES, Rig, scsi

LIMITS = Limits(gpadls=6, incomplete_gpadls=2, gpadl_words=100)
CHANNELS = 3

relids = st.integers(0, CHANNELS + 1)
# The handles of a channel are its own, so that a TORNDOWN, which has no relid, says whose it was.
handles = st.builds(lambda relid, n: relid << 8 | n, relids, st.integers(0, 3))
pages = st.one_of(st.integers(0, 40), st.just(MEMORY_PAGES))


def header(handle, count, first):
    return fragment(handle >> 8, handle, [GpaRange.whole_pages(range(first, first + count))])


@st.composite
def gpadls(draw):
    messages = header(draw(handles), draw(st.integers(1, 60)), draw(pages))
    return draw(st.permutations(messages)) if draw(st.booleans()) else messages


versions = st.sampled_from([m.Version.V2_4, m.Version.V4_0, m.Version.V5_3, m.Version.V6_0])
live = st.integers(1, CHANNELS)
# A guest that does it right, so that the rest finds every state: a ring for each channel, opened at the first try.
START = [m.InitiateContact(m.Version.V5_3, target_sint=2), m.RequestOffers()]
START += [message for relid in range(1, CHANNELS + 1) for message in header(relid << 8, 8, 8)]


def ends(version):
    """Seldom, as each of them begins anew."""
    contact = m.InitiateContact(version, target_sint=2)
    return {0: [contact], 1: [m.Unload(), *START], 2: START, 3: [m.RequestOffers()], 4: [None]}


messages = st.one_of(
    st.builds(lambda version, n: ends(version).get(n, []), versions, st.integers(0, 12)),
    st.builds(lambda relid: [m.OpenChannel(relid, 1, relid << 8, 0, 4)], live),
    st.builds(lambda relid: [m.OpenChannel(relid, 1, relid << 8, 0, 4)], live),
    st.builds(lambda relid: [m.OpenChannel(relid, 1, relid << 8, 0, 4), m.CloseChannel(relid)], live),
    st.builds(lambda relid: [m.CloseChannel(relid)], live),
    st.builds(lambda relid: [m.GpadlTeardown(relid, relid << 8)], live),
    st.builds(lambda relid: header(relid << 8, 8, 8), live),
    gpadls(),
    st.builds(lambda h, o: [m.OpenChannel(h >> 8, 1, h, 0, o)], handles, st.sampled_from([0, 2, 2, 4, 1 << 31])),
    st.builds(lambda relid: [m.CloseChannel(relid)], relids),
    st.builds(lambda h: [m.GpadlTeardown(h >> 8, h)], handles),
    st.builds(lambda relid: [m.RelidReleased(relid)], relids),
    st.builds(lambda relid, vp: [m.ModifyChannel(relid, vp)], relids, st.integers(0, 5)),
)
steps = st.one_of(
    st.tuples(st.just("post"), messages),
    st.tuples(st.just("post"), messages),
    st.tuples(st.just("post"), messages),
    st.tuples(st.just("raw"), st.binary(max_size=240)),
    st.tuples(st.sampled_from(["rescind", "offer", "opened", "closed"]), st.integers(1, CHANNELS)),
    st.tuples(st.just("device"), st.tuples(st.sampled_from([0, None, 5]), st.booleans())),
)


class Watched(Rig):
    """Checks each message at the moment it is sent."""

    def __init__(self):
        super().__init__(*(scsi(n) for n in range(1, CHANNELS + 1)), limits=LIMITS)
        self.held = {}
        self.devices.open_channel = self.opening
        self.devices.close_channel = self.closing
        self.server._send_bytes = self.sent
        self.offered = set()

    def opening(self, channel, gpadl, offset):
        assert channel not in self.held
        assert max(gpadl.pfns) < MEMORY_PAGES and 2 <= offset <= len(gpadl.pfns) - 2
        if self.devices.open_status in (0, None):
            self.held[channel] = gpadl
        return self.devices.open_status

    def closing(self, channel):
        assert channel in self.held
        if self.devices.close_now:
            del self.held[channel]
        return self.devices.close_now

    def sent(self, payload):
        message = m.decode(payload)
        match message:
            case m.GpadlTorndown():  # VA-15
                assert message.gpadl not in {gpadl.handle for gpadl in self.held.values()}
            case m.RescindChannelOffer():  # ST-8
                assert message.relid not in {channel.relid for channel in self.held}
                self.offered.remove(message.relid)
            case m.OfferChannel():
                assert message.relid not in self.offered
                self.offered.add(message.relid)
            case m.VersionResponse() | m.UnloadResponse():
                self.offered.clear()

    def run(self, kind, argument):
        match kind:
            case "post":
                for message in argument:
                    if message is None:
                        self.server.disconnect()
                        continue
                    if isinstance(message, m.RelidReleased):
                        channel = self.server._relids.find(message.relid)
                        if channel is not None and channel.state.value in ("closed", "closing"):
                            self.offered.discard(message.relid)
                    self.server.receive(message.encode())
            case "raw":
                # Not INITIATE_CONTACT, whose answer for a foreign SINT would look like a new connection here.
                if argument[:1] != b"\x0e":
                    self.server.receive(argument)
            case "offer":
                if all(c["interface_instance"] != str(scsi(argument).interface_instance) for c in self.listed()):
                    self.channels[argument - 1] = self.server.offer(scsi(argument))
            case "rescind":
                self.server.rescind(self.channels[argument - 1])
            case "opened":
                self.server.opened(self.channels[argument - 1], 0)
            case "closed":
                channel = self.channels[argument - 1]
                if channel.state.value.startswith("closing"):
                    self.held.pop(channel, None)
                    self.server.closed(channel)
            case "device":
                self.devices.open_status, self.devices.close_now = argument

    def listed(self):
        return self.server.inspect()["channels"]

    def check(self):
        state = self.server.inspect()
        assert state["gpadls"] + state["incomplete_gpadls"] <= LIMITS.gpadls
        assert state["incomplete_gpadls"] <= LIMITS.incomplete_gpadls
        assert state["gpadl_words"] <= LIMITS.gpadl_words
        assert state["relids"] <= len(state["channels"]) <= CHANNELS
        assert len(state["last_error"]) < 200
        busy = {"opening", "open", "closing", "closing, reopen", "closing, release"}
        assert {channel for channel in self.channels if channel.state.value in busy} == set(self.held)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(steps, min_size=20, max_size=60))
def test_any_sequence_of_messages_and_device_events(sequence):
    rig = Watched()
    rig.run("post", START)
    for kind, argument in sequence:
        rig.run(kind, argument)
        rig.check()
    rig.server.disconnect()
    for number in range(1, CHANNELS + 1):
        rig.run("closed", number)
    state = rig.server.inspect()
    assert state["state"] == "disconnected"
    assert (state["relids"], state["gpadls"], state["incomplete_gpadls"], state["gpadl_words"]) == (0, 0, 0, 0)
    assert not rig.held
    rig.devices.close_now = True
    rig.connect()  # and the next guest finds a working host
    assert rig.server.inspect()["state"] == "connected"


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=250), st.builds(bytes.__add__, st.integers(0, 30).map(
    lambda kind: kind.to_bytes(8, "little")), st.binary(max_size=232))), max_size=20))  # fmt: skip
def test_arbitrary_bytes_never_raise(datagrams):
    rig = Rig(scsi(), limits=LIMITS)
    rig.connect()
    for datagram in datagrams:
        rig.server.receive(datagram)
    state = rig.server.inspect()
    assert state["received"] == 2 + len(datagrams)
    assert state["gpadls"] + state["incomplete_gpadls"] <= LIMITS.gpadls


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.one_of(st.binary(max_size=250), st.builds(bytes.__add__, st.integers(0, 30).map(
    lambda kind: kind.to_bytes(8, "little")), st.binary(max_size=232))))  # fmt: skip
def test_decoding_is_stable(datagram):
    try:
        message = m.decode(datagram)
    except ProtocolError as error:
        assert str(error)
    else:
        encoded = message.encode()
        assert len(encoded) <= max(len(datagram), 8)
        assert m.decode(encoded) == message
