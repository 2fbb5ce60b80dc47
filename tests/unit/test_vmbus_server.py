"""The host side of a connection: every message in every state of vmbus.md 6.2 and 6.3, and the attempts of 6.4."""

import pytest

from hvcore.errors import Error
from hvcore.vmbus import message as m
from hvcore.vmbus.gparange import GpaRange, fragment
from hvcore.vmbus.server import Limits
from tests.reference.control import MEMORY_PAGES, RING, SCSI, Rig, in_state, scsi

V = m.Version
RESULT = m.OpenChannelResult
SUPPORTED = [V.V2_4, V.V3_0, V.V4_0, V.V4_1, V.V5_0, V.V5_1, V.V5_2, V.V5_3]
STATES = ["closed", "opening", "open", "closing", "closing, reopen", "revoked", "reoffered", "closing, release"]
UNEXPECTED = 0x8000FFFF


def contact(version=V.V5_3, **fields):
    return m.InitiateContact(version, **({"target_sint": 2} if version >= V.V5_0 else {}) | fields)


# 6.3, and "released" for an id that the guest gave up: (message, state) -> (what happens, the next state).
# "drop" is an error without answer, "ignore" a message that crossed with RESCIND.
OPEN, CLOSE, RELEASE = m.OpenChannel(1, 9, RING, 0, 4), m.CloseChannel(1), m.RelidReleased(1)
MODIFY, HEADER = m.ModifyChannel(1, 2), fragment(1, 0xBEEF, [GpaRange.whole_pages([7])])[0]
TEARDOWN = m.GpadlTeardown(1, RING)
RING_OPEN = ("open", 1, list(range(100, 108)), 4)
MODIFY_FAILED = m.ModifyChannelResponse(1, m.STATUS_UNSUCCESSFUL)
CELLS = {
    (OPEN, "closed"): ([RING_OPEN, RESULT(1, 9, 0)], "open"),
    (OPEN, "opening"): ("drop", "opening"),
    (OPEN, "open"): ("drop", "open"),
    (OPEN, "closing"): ([], "closing, reopen"),
    (OPEN, "closing, reopen"): ("drop", "closing, reopen"),
    (OPEN, "revoked"): ("ignore", "revoked"),
    (OPEN, "reoffered"): ("ignore", "reoffered"),
    (OPEN, "closing, release"): ("drop", "closing, release"),
    (CLOSE, "closed"): ("drop", "closed"),
    (CLOSE, "opening"): ("drop", "opening"),
    (CLOSE, "open"): ([("close", 1)], "closing"),
    (CLOSE, "closing"): ("drop", "closing"),
    (CLOSE, "closing, reopen"): ("drop", "closing, reopen"),
    (CLOSE, "revoked"): ("ignore", "revoked"),
    (CLOSE, "reoffered"): ("ignore", "reoffered"),
    (CLOSE, "closing, release"): ("drop", "closing, release"),
    (RELEASE, "closed"): ([], "released"),
    (RELEASE, "opening"): ("drop", "opening"),
    (RELEASE, "open"): ("drop", "open"),
    (RELEASE, "closing"): ([], "closing, release"),
    (RELEASE, "closing, reopen"): ("drop", "closing, reopen"),
    (RELEASE, "revoked"): ([], "released"),
    (RELEASE, "reoffered"): (["offer"], "closed"),
    (RELEASE, "closing, release"): ("drop", "closing, release"),
    **{(MODIFY, state): ([MODIFY_FAILED], state) for state in STATES if state != "open"},
    (MODIFY, "open"): ([("retarget", 1, 2), m.ModifyChannelResponse(1, 0)], "open"),
    **{(HEADER, state): ([m.GpadlCreated(1, 0xBEEF, 0)], state) for state in STATES if state != "closing, release"},
    (HEADER, "closing, release"): (["created", UNEXPECTED], "closing, release"),
    **{(TEARDOWN, state): ([m.GpadlTorndown(RING)], state) for state in ("closed", "revoked", "reoffered")},
    **{(TEARDOWN, state): ([], state) for state in ("opening", "open", "closing", "closing, reopen")},
    (TEARDOWN, "closing, release"): ("drop", "closing, release"),
}
assert {state for _, state in CELLS} == set(STATES) and len(CELLS) == 6 * len(STATES)


@pytest.mark.parametrize(
    ("message", "state"), CELLS, ids=[f"{message.TYPE.name} in {state}" for message, state in CELLS]
)
def test_message_in_state(message, state):
    wanted, following = CELLS[message, state]
    rig, channel = in_state(state)
    before = rig.server.inspect()
    happened = rig.says(message)
    after = rig.server.inspect()
    if wanted == ["offer"]:
        wanted = [channel.message()]
    if wanted == ["created", UNEXPECTED]:
        wanted = [m.GpadlCreated(1, 0xBEEF, UNEXPECTED)]
        assert after["dropped"] == before["dropped"] + 1
    elif wanted == "drop":
        assert after["dropped"] == before["dropped"] + 1
        wanted = []
    else:
        assert after["dropped"] == before["dropped"]
        assert after["ignored"] == before["ignored"] + (wanted == "ignore")
        wanted = [] if wanted == "ignore" else wanted
    assert happened == wanted
    assert channel.state.value == following


@pytest.mark.parametrize(
    ("state", "status", "wanted", "following"),
    [
        ("opening", 0, [RESULT(1, 77, 0)], "open"),
        ("opening", 0xC0000001, [RESULT(1, 77, 0xC0000001)], "closed"),
        *((state, 0, [], state) for state in STATES if state != "opening"),
    ],
)
def test_device_open_done(state, status, wanted, following):
    rig, channel = in_state(state)
    rig.server.opened(channel, status)
    assert (rig.take(), channel.state.value) == (wanted, following)


@pytest.mark.parametrize(
    ("state", "wanted", "following"),
    [
        ("closing", [], "closed"),
        ("closing, reopen", [RING_OPEN, RESULT(1, 78, 0)], "open"),
        ("closing, release", [], "released"),
        *((state, [], state) for state in ("closed", "opening", "open", "revoked", "reoffered")),
    ],
)
def test_device_close_done(state, wanted, following):
    rig, channel = in_state(state)
    assert (rig.closed(channel), channel.state.value) == (wanted, following)


@pytest.mark.parametrize("state", STATES)
def test_device_revoked(state):  # ST-7, ST-8: the device is stopped before RESCIND
    rig, channel = in_state(state)
    rig.devices.close_now = False
    rig.server.rescind(channel)
    busy = state in ("opening", "open", "closing", "closing, reopen")
    rescind = [m.RescindChannelOffer(1)]
    happened = rig.take()
    if busy:
        assert happened == ([("close", 1)] if state in ("opening", "open") else [])
        assert rig.closed(channel) == rescind
    else:
        assert happened == (rescind if state == "closed" else [])
    if state == "closing, release":
        rig.closed(channel)
        assert rig.server.inspect()["channels"] == []
    else:
        assert channel.state.value == "revoked"
        rig.server.rescind(channel)  # idempotent
        assert rig.take() == []
        rig.says(m.RelidReleased(1))
        assert rig.server.inspect()["channels"] == []
    assert rig.server.inspect()["relids"] == rig.server.inspect()["gpadls"] == 0


@pytest.mark.parametrize("end", [m.Unload(), contact(), None])
@pytest.mark.parametrize("state", STATES)
def test_disconnect_in_state(state, end):  # 6.2: close everything, then the answer, and nothing else
    rig, channel = in_state(state)
    rig.devices.close_now = False
    rig.gpadl(1, 0xABC, pages=3)
    rig.says(fragment(1, 0xABD, [GpaRange.whole_pages(range(40))])[0])
    if end is None:
        rig.server.disconnect()
        happened = rig.take()
    else:
        happened = rig.says(end)
    answer = {m.Unload(): [m.UnloadResponse()], contact(): [m.VersionResponse(True, 0, 4)], None: []}[end]
    if state in ("opening", "open", "closing", "closing, reopen", "closing, release"):
        assert happened == ([("close", 1)] if state in ("opening", "open") else [])
        assert rig.server.inspect()["state"] == "disconnecting"
        assert rig.says(m.RequestOffers(), m.Unload(), m.CloseChannel(1)) == []
        assert rig.closed(channel) == answer
    else:
        assert happened == answer
    after = rig.server.inspect()
    assert after["state"] == ("connected" if end == contact() else "disconnected")
    assert (after["relids"], after["gpadls"], after["incomplete_gpadls"], after["gpadl_words"]) == (0, 0, 0, 0)
    assert not rig.devices.holds
    if state == "revoked":
        assert after["channels"] == []
    else:
        assert channel.state.value == "released"


@pytest.mark.parametrize("version", SUPPORTED)
def test_version_is_accepted(version):  # CM-14, CM-15
    rig = Rig()
    assert rig.says(contact(version)) == [m.VersionResponse(True, 0, 4 if version >= V.V5_0 else version)]
    assert rig.server.version == version


@pytest.mark.parametrize("version", [0, V.V0_13, V.V1_1, 0x00020003, 0x00050004, V.V6_0, 0xFFFFFFFF])
def test_version_is_rejected(version):  # CM-16: 16 bytes, all zero but the type
    rig = Rig()
    assert rig.says(m.InitiateContact(version, target_sint=2 if version >= V.V5_0 else 0)) == [m.VersionResponse(False)]
    assert len(m.VersionResponse(False).encode()) == 16
    assert rig.server.inspect()["state"] == "disconnected"


def test_a_rejected_version_ends_the_old_connection():  # CM-16
    rig, channel = in_state("open")
    rig.devices.close_now = True
    assert rig.says(contact(V.V6_0)) == [("close", 1), m.VersionResponse(False)]
    assert channel.state.value == "released"


@pytest.mark.parametrize("fields", [{"target_sint": 3}, {"target_sint": 0}, {"target_vtl": 2}])
def test_foreign_sint_leaves_the_connection(fields):  # CM-16a, 6.4 #27
    rig, channel = in_state("open")
    assert rig.says(contact(**fields)) == [m.VersionResponse(False)]
    assert channel.state.value == "open"


def test_sint_counts_only_on_the_multiclient_connection():  # CM-11
    rig = Rig()
    rig.server.receive(contact(target_sint=0).encode(), 1)
    assert rig.take() == [m.VersionResponse(True, 0, 4)]


@pytest.mark.parametrize(
    ("pages", "state"),
    [
        ((0, 0), 0),
        ((0x20000, 0x21000), 0),
        ((0, 0x21000), 2),  # N16
        ((0x20000, 0), 2),
        ((0x20001, 0x21000), 2),
        ((0x20000, MEMORY_PAGES * 4096), 2),  # VA-12
        (((1 << 64) - 4096, 0x21000), 2),
    ],
)
def test_monitor_pages(pages, state):
    rig = Rig()
    answer = m.VersionResponse(True, state, 0 if state else 4)
    assert rig.says(contact(parent_to_child_page=pages[0], child_to_parent_page=pages[1])) == [answer]
    assert rig.server.inspect()["state"] == ("disconnected" if state else "connected")


def test_target_vp_must_exist_from_3_0():  # VA-11
    rig = Rig()
    assert rig.says(contact(V.V3_0, target_vp=4)) == [m.VersionResponse(True, 2, 0)]
    assert rig.says(contact(V.V2_4, target_vp=4)) == [m.VersionResponse(True, 0, V.V2_4)]
    assert rig.server.target_vp == 0
    rig.says(contact(V.V3_0, target_vp=3))
    assert rig.server.target_vp == 3


G2H = [
    m.RequestOffers(), OPEN, CLOSE, HEADER, m.GpadlBody(0, 0xBEEF, (1,)), TEARDOWN, RELEASE, m.Unload(),
    m.OpenReservedChannel(1, 0, 2, RING, 4), m.CloseReservedChannel(1, 0, 2), m.TlConnectRequest(SCSI, SCSI), MODIFY,
    m.ModifyConnection(0, 0), m.Pause(), m.Resume(),
]  # fmt: skip
H2G = [
    m.RescindChannelOffer(1), m.AllOffersDelivered(), RESULT(1, 1, 0), m.GpadlCreated(1, RING, 0),
    m.GpadlTorndown(RING), m.VersionResponse(True), m.UnloadResponse(), m.CloseReservedResponse(1),
    m.TlConnectResult(SCSI, SCSI, 0), m.ModifyChannelResponse(1, 0), m.ModifyConnectionResponse(0), m.PauseResponse(),
    m.OfferChannel(SCSI, SCSI, 0, 0, bytes(120), 0, 0, 1, 0, False, True, 1),
]  # fmt: skip


@pytest.mark.parametrize("message", G2H + H2G, ids=lambda message: message.TYPE.name)
def test_nothing_before_initiate_contact(message):  # 6.4 #1, N19
    rig = Rig(scsi())
    assert (rig.says(message), rig.dropped) == ([], 1)


@pytest.mark.parametrize("state", STATES)
def test_host_to_guest_types_are_dropped(state):  # CM-8, 6.4 #2
    rig, channel = in_state(state)
    before = rig.dropped
    assert (rig.says(*H2G), rig.dropped - before) == ([], len(H2G))
    assert channel.state.value == state


@pytest.mark.parametrize("message", [m.Pause(), m.Resume(), m.ModifyConnection(0, 0), *G2H[8:10]])
def test_messages_beyond_this_host_are_dropped(message):  # CM-10, 6.4 #21
    rig, _ = in_state("closed")
    before = rig.dropped
    assert (rig.says(message), rig.dropped - before) == ([], 1)


def test_garbage_is_dropped():  # CM-9, N15, N17, N18
    rig, channel = in_state("open")
    before = rig.dropped
    n18 = m.InitiateContact(V.V6_0, target_sint=2, feature_flags=8).encode()
    garbage = [b"", b"\1", bytes(8), bytes(241), OPEN.encode()[:20], (30).to_bytes(8, "little"), n18]
    for message in garbage:
        rig.server.receive(message)
    assert (rig.take(), rig.dropped - before, channel.state.value) == ([], len(garbage), "open")


def test_offers_are_sorted_and_delivered_once():  # ST-12, 6.4 #4
    rig = Rig(scsi(3), scsi(1), scsi(2))
    rig.says(contact())
    happened = rig.says(m.RequestOffers())
    assert [offer.interface_instance.int for offer in happened[:-1]] == [1, 2, 3]
    assert [(offer.relid, offer.connection_id) for offer in happened[:-1]] == [(1, 0x2001), (2, 0x2002), (3, 0x2003)]
    assert all(offer.dedicated_interrupt and not offer.monitor_allocated for offer in happened[:-1])
    assert happened[-1] == m.AllOffersDelivered()
    assert (rig.says(m.RequestOffers()), rig.dropped) == ([], 1)


def test_later_offers_come_at_once():  # ST-13
    rig = Rig()
    rig.says(contact())
    early = rig.server.offer(scsi(1))
    assert rig.take() == []
    rig.says(m.RequestOffers())
    late = rig.server.offer(scsi(2))
    assert rig.take() == [late.message()]
    assert (early.relid, late.relid) == (1, 2)


def test_an_offer_is_made_once():
    rig = Rig(scsi())
    with pytest.raises(ValueError, match="offered already"):
        rig.server.offer(scsi())


def test_channel_ids_run_out():  # ST-6: a rescinded id stays the guest's
    rig = Rig(*(scsi(number) for number in range(2047)))
    rig.connect()
    rig.server.rescind(rig.channels[6])
    with pytest.raises(Error, match="channel ids"):
        rig.server.offer(scsi(3000))
    freed = rig.channels[6].relid
    rig.says(m.RelidReleased(freed))
    assert rig.server.offer(scsi(3000)).relid == freed


@pytest.mark.parametrize(
    ("handle", "offset", "vp", "status"),
    [
        (RING, 2, 0, 0),
        (RING, 6, 3, 0),
        (RING, 4, 0xFFFFFFFF, 0),
        (RING, 0, 0, m.STATUS_INVALID_PARAMETER),  # 6.4 #8
        (RING, 1, 0, m.STATUS_INVALID_PARAMETER),
        (RING, 7, 0, m.STATUS_INVALID_PARAMETER),
        (RING, 8, 0, m.STATUS_INVALID_PARAMETER),
        (RING, 0xFFFFFFFF, 0, m.STATUS_INVALID_PARAMETER),
        (RING, 4, 4, m.STATUS_INVALID_PARAMETER),  # VA-11
        (RING + 1, 4, 0, m.STATUS_NOT_FOUND),  # 6.4 #7, CM-29
    ],
)
def test_open_is_checked(handle, offset, vp, status):
    rig, channel = in_state("closed")
    happened = rig.open(1, handle, offset, vp)
    assert happened[-1] == RESULT(1, 77, status)
    assert len(happened) == (2 if status == 0 else 1)
    assert channel.state.value == ("open" if status == 0 else "closed")


@pytest.mark.parametrize(
    "ranges",
    [
        [GpaRange.whole_pages([1, 2, 3, 4]), GpaRange.whole_pages([5])],
        [GpaRange(4 * 4096, 8, GpaRange.whole_pages([1, 2, 3, 4, 5]).pfns)],
        [GpaRange(4 * 4096 + 8, 0, GpaRange.whole_pages([1, 2, 3, 4, 5]).pfns)],
    ],
)
def test_a_ring_is_one_range_of_whole_pages(ranges):  # 1.1
    rig, _ = in_state("closed")
    assert rig.says(*fragment(1, 5, ranges)) == [m.GpadlCreated(1, 5, 0)]
    assert rig.open(1, 5, 2) == [RESULT(1, 77, m.STATUS_INVALID_PARAMETER)]


def test_a_foreign_or_incomplete_gpadl_opens_nothing():  # 6.4 #7
    rig = Rig(scsi(1), scsi(2))
    rig.connect()
    rig.gpadl(2)
    rig.says(fragment(1, 9, [GpaRange.whole_pages(range(30))])[0])
    assert rig.open(1) == rig.open(1, 9) == [RESULT(1, 77, m.STATUS_NOT_FOUND)]


def test_unknown_channels_get_only_what_has_an_answer():  # VA-9, 6.4 #5, #19, CM-26
    rig, _ = in_state("closed")
    before = rig.dropped
    for relid in (0, 2, 2047, 2048, 0xFFFFFFFF):
        lost = [m.OpenChannel(relid, 1, RING, 0, 4), m.CloseChannel(relid), m.RelidReleased(relid)]
        assert rig.says(*lost, m.GpadlTeardown(relid, RING)) == []
        assert rig.gpadl(relid, 3) == [m.GpadlCreated(relid, 3, UNEXPECTED)]
        assert rig.says(m.ModifyChannel(relid, 0)) == [m.ModifyChannelResponse(relid, m.STATUS_UNSUCCESSFUL)]
    assert rig.dropped - before == 5 * 5


@pytest.mark.parametrize("version", [V.V4_0, V.V4_1, V.V5_2])
def test_modify_channel_is_silent_before_5_3(version):  # CM-10, 6.4 #19
    rig, _ = in_state("open", version)
    assert rig.says(m.ModifyChannel(1, 3)) == ([("retarget", 1, 3)] if version >= V.V4_1 else [])
    before = rig.dropped
    assert (rig.says(m.ModifyChannel(1, 0xFFFFFFFF)), rig.dropped - before) == ([], 1)


def test_modify_channel_to_no_vp_fails():  # 6.4 #19
    rig, _ = in_state("open")
    failed = m.ModifyChannelResponse(1, m.STATUS_INVALID_PARAMETER)
    assert rig.says(m.ModifyChannel(1, 0xFFFFFFFF)) == rig.says(m.ModifyChannel(1, 4)) == [failed]


def test_hvsock_is_refused():
    request = m.TlConnectRequest(SCSI, SCSI)
    assert in_state("closed")[0].says(request) == [m.TlConnectResult(SCSI, SCSI, 0xC0000236)]
    assert in_state("closed", V.V4_0)[0].says(request) == []


def test_ring_teardown_waits_for_the_close():  # 6.4 #11, VA-15
    rig, channel = in_state("open")
    rig.devices.close_now = True
    assert rig.says(TEARDOWN) == []
    assert rig.says(TEARDOWN) == []  # 6.4 #12
    assert rig.says(CLOSE) == [("close", 1), m.GpadlTorndown(RING)]
    assert rig.open(1) == [RESULT(1, 77, m.STATUS_NOT_FOUND)]
    assert channel.state.value == "closed"


def test_teardown_of_a_ring_whose_open_fails():
    rig, channel = in_state("opening")
    assert rig.says(TEARDOWN) == []
    rig.server.opened(channel, 5)
    assert rig.take() == [RESULT(1, 77, 5), m.GpadlTorndown(RING)]


def test_teardown_before_the_reopen_fails_it():
    rig, channel = in_state("closing, reopen")
    rig.says(TEARDOWN)
    assert rig.closed(channel) == [m.GpadlTorndown(RING), RESULT(1, 78, m.STATUS_NOT_FOUND)]
    assert channel.state.value == "closed"


def test_teardown_waits_for_the_device():
    rig, channel = in_state("open")
    rig.gpadl(1, 0xB0)
    rig.devices.in_use = {0xB0}
    assert rig.says(m.GpadlTeardown(1, 0xB0)) == []
    rig.server.gpadl_released(channel)
    assert rig.take() == []
    rig.devices.in_use = set()
    rig.server.gpadl_released(channel)
    assert rig.take() == [m.GpadlTorndown(0xB0)]
    rig.gpadl(1, 0xB1)
    rig.devices.in_use = {0xB1}
    rig.says(m.GpadlTeardown(1, 0xB1), CLOSE)
    assert rig.closed(channel) == [m.GpadlTorndown(0xB1)]  # a closed device uses none


def test_revoke_ends_what_is_pending():  # ST-7: TORNDOWN and failures first, no OPEN_RESULT
    rig, channel = in_state("opening")
    rig.says(TEARDOWN, fragment(1, 9, [GpaRange.whole_pages(range(30))])[0])
    rig.devices.close_now = True
    rig.server.rescind(channel)
    failed = m.GpadlCreated(1, 9, UNEXPECTED)
    assert rig.take() == [("close", 1), m.GpadlTorndown(RING), failed, m.RescindChannelOffer(1)]
    rig.server.opened(channel, 0)
    assert rig.take() == []


def test_messages_while_revoking():
    rig, channel = in_state("open")
    rig.server.rescind(channel)
    rig.take()
    assert rig.says(OPEN, CLOSE) == []
    assert rig.server.inspect()["ignored"] == 2
    assert rig.closed(channel) == [m.RescindChannelOffer(1)]


def test_a_device_that_comes_back_while_closing():
    rig, channel = in_state("open")
    rig.server.rescind(channel)
    assert rig.server.offer(scsi()) is channel
    rig.take()
    assert rig.closed(channel) == [m.RescindChannelOffer(1)]
    assert channel.state.value == "reoffered"
    assert rig.says(RELEASE) == [channel.message()]
    assert channel.relid == 1


def test_released_while_closing_then_offered_anew():
    rig, channel = in_state("closing, release")
    rig.server.rescind(channel)
    rig.server.offer(scsi())
    rig.take()
    assert rig.closed(channel) == [channel.message()]


def test_a_reoffered_device_may_go_again():
    rig, channel = in_state("reoffered")
    rig.server.rescind(channel)
    assert (rig.take(), channel.state.value) == ([], "revoked")
    assert rig.says(RELEASE) == []
    assert rig.server.inspect()["channels"] == []


def test_released_ids_are_reused_only_after_the_device_closed():  # ST-6
    rig, channel = in_state("closing, release")
    other = rig.server.offer(scsi(2))
    assert other.relid == 2
    rig.closed(channel)
    assert rig.server.offer(scsi(3)).relid == 1


def test_rescind_of_what_nobody_was_told():
    rig = Rig(scsi())
    rig.server.rescind(rig.channels[0])
    assert (rig.take(), rig.server.inspect()["channels"]) == ([], [])


def test_the_last_contact_wins():  # 6.2: replaces a pending UNLOAD answer or contact
    rig, channel = in_state("open")
    rig.says(m.Unload(), contact(V.V4_0), contact(V.V3_0))
    assert rig.closed(channel) == [m.VersionResponse(True, 0, V.V3_0)]


def test_disconnect_forgets_the_pending_answer():
    rig, channel = in_state("open")
    rig.says(m.Unload())
    rig.server.disconnect()
    assert rig.closed(channel) == []
    assert rig.server.inspect()["state"] == "disconnected"
    rig.server.disconnect()
    assert rig.says(contact()) == [m.VersionResponse(True, 0, 4)]


def test_devices_may_call_back_from_within():
    rig, channel = in_state("open")

    def close(closing):
        rig.devices.holds.discard(closing)
        rig.server.closed(closing)
        return False

    rig.devices.close_channel = close
    assert rig.says(TEARDOWN, CLOSE) == [m.GpadlTorndown(RING)]
    rig.gpadl(1)
    rig.devices.open_channel = lambda opening, gpadl, offset: rig.server.rescind(opening) or 0
    assert rig.open(1) == [m.RescindChannelOffer(1)]
    assert channel.state.value == "revoked"


def test_a_guest_that_leaves_hears_nothing_more():  # 3.7: nothing is rescinded on the wire
    rig = Rig(scsi(1), scsi(2))
    rig.connect()
    rig.gpadl(1)
    rig.open(1)
    rig.devices.close_channel = lambda closing: rig.server.rescind(rig.channels[1]) or True
    assert rig.says(m.Unload()) == [m.UnloadResponse()]
    assert len(rig.server.inspect()["channels"]) == 1


@pytest.mark.parametrize("state", ["open", "closing, release"])
def test_a_device_that_goes_again_while_closing(state):
    rig, channel = in_state(state)
    rig.server.rescind(channel)
    rig.server.offer(scsi())
    rig.server.rescind(channel)
    rig.take()
    assert rig.closed(channel) == ([m.RescindChannelOffer(1)] if state == "open" else [])
    assert len(rig.server.inspect()["channels"]) == (1 if state == "open" else 0)
    assert channel.state.value == ("revoked" if state == "open" else "released")


def test_the_ring_of_an_earlier_open_is_free():
    rig, _ = in_state("open")
    rig.devices.close_now = True
    rig.says(CLOSE)
    rig.gpadl(1, 0xB0)
    rig.open(1, 0xB0)
    assert rig.says(TEARDOWN) == [m.GpadlTorndown(RING)]


def test_duplicate_gpadls_fail():  # 3.12 acceptance
    rig = Rig(scsi(1), scsi(2))
    rig.connect()
    assert rig.gpadl(1) == [m.GpadlCreated(1, RING, 0)]
    assert rig.gpadl(1) == [m.GpadlCreated(1, RING, UNEXPECTED)]
    assert rig.gpadl(2) == [m.GpadlCreated(2, RING, 0)]  # another channel's handle
    header, body = fragment(1, 9, [GpaRange.whole_pages(range(30))])
    assert rig.says(header) == []
    assert rig.gpadl(2, 9) == [m.GpadlCreated(2, 9, UNEXPECTED)]  # the old one stays (CM-24)
    assert rig.says(m.GpadlTeardown(1, 9)) == []  # 6.4 #13: goes on assembling
    assert rig.says(body) == [m.GpadlCreated(1, 9, 0)]
    before = rig.dropped
    assert (rig.says(body), rig.dropped - before) == ([], 1)


@pytest.mark.parametrize("pfn", [MEMORY_PAGES, 1 << 52, (1 << 64) - 1])
def test_pages_must_be_guest_memory(pfn):  # VA-4
    rig, _ = in_state("closed")
    assert rig.says(*fragment(1, 9, [GpaRange.whole_pages([0, pfn, 1])])) == [m.GpadlCreated(1, 9, UNEXPECTED)]
    assert rig.gpadl(1, 9, 1, MEMORY_PAGES - 1) == [m.GpadlCreated(1, 9, 0)]


@pytest.mark.parametrize("name", ["N13", "N14"])
def test_bad_gpadl_header_fails(name):
    words, ranges = {"N13": ((4096,), 1), "N14": ((), 0)}[name]
    rig, _ = in_state("closed")
    header = m.GpadlHeader(1, 9, len(words) * 8, ranges, words)
    assert rig.says(header) == [m.GpadlCreated(1, 9, UNEXPECTED)]


def test_gpadl_caps():  # VA-7, 6.4 #16
    rig = Rig(scsi(), limits=Limits(gpadls=3, incomplete_gpadls=2, gpadl_words=50))
    rig.connect()
    quota = [m.GpadlCreated(1, 9, m.STATUS_QUOTA_EXCEEDED)]
    assert rig.gpadl(1, 9, pages=50) == quota  # words
    half = m.GpadlHeader(1, 1, 32, 1, (4096 * 3, 1))
    assert rig.says(half, m.GpadlHeader(1, 2, 32, 1, (4096 * 3, 1))) == []
    assert rig.says(m.GpadlHeader(1, 9, 32, 1, (4096 * 3, 1))) == quota  # incomplete
    assert rig.gpadl(1, 3, pages=1) == [m.GpadlCreated(1, 3, 0)]
    assert rig.gpadl(1, 9, pages=1) == quota  # number
    assert rig.says(m.GpadlBody(0, 1, (2, 3))) == [m.GpadlCreated(1, 1, 0)]
    assert rig.says(m.GpadlTeardown(1, 3), m.GpadlTeardown(1, 1)) == [m.GpadlTorndown(3), m.GpadlTorndown(1)]
    assert rig.gpadl(1, 4, pages=40) == [m.GpadlCreated(1, 4, 0)]
    assert rig.server.inspect()["gpadl_words"] == 41 + 4
    assert rig.says(m.Unload()) == [m.UnloadResponse()]
    assert rig.server.inspect()["gpadl_words"] == 0


def test_a_failed_list_gives_its_words_back():
    rig, _ = in_state("closed")
    before = rig.server.inspect()["gpadl_words"]
    rig.gpadl(1, 9, 3, MEMORY_PAGES - 1)
    assert rig.server.inspect()["gpadl_words"] == before
