"""The control message codec against the vectors of vmbus.md 8.2 to 8.4."""

import re
import zlib
from pathlib import Path
from uuid import UUID

import pytest

from hvcore.errors import ProtocolError
from hvcore.vmbus import message as m
from hvcore.vmbus.gparange import GpaRange, fragment
from hvcore.vmbus.synic import PostMessage, SignalEvent, SynicMessage, signal_connection

SCSI = UUID("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f")
PORT_50000 = UUID("0000c350-facb-11e6-bd58-64006a7986d3")
ENDPOINT = UUID("01020304-0506-0708-090a-0b0c0d0e0f10")
CLIENT = UUID("ceb1cd55-6a3b-41c5-9473-4dd30624c3d8")
INSTANCE = UUID("11223344-5566-7788-99aa-bbccddeeff00")
V = m.Version


def expand(word: str) -> bytes:
    byte, times = word.split("*") if "*" in word else (word, "1")
    return bytes.fromhex(byte) * int(times)


def load() -> dict[str, bytes]:
    vectors = {}
    text = (Path(__file__).parent / "control_vectors.txt").read_text()
    for entry in re.split(r"\n(?=[A-Z])", re.sub(r"^#.*\n", "", text, flags=re.M)):
        head, description, data = re.split(r" \| |\n", entry, maxsplit=2)
        name, _, size, _, crc = head.split()
        value = b"".join(expand(word) for word in data.split())
        assert (len(value), zlib.crc32(value)) == (int(size), int(crc, 16)), (name, description)
        vectors[name] = value
    return vectors


VECTORS = load()

MESSAGES = {
    "M1": m.InitiateContact(V.V2_4, interrupt_page=0x1F000, parent_to_child_page=0x20000, child_to_parent_page=0x21000),
    "M2": m.InitiateContact(V.V5_3, target_sint=2, parent_to_child_page=0x20000, child_to_parent_page=0x21000),
    "M3": m.InitiateContact(V.V6_0, 3, target_sint=2, feature_flags=0xF, client_id=CLIENT),
    "M4": m.VersionResponse(True, 0, 4),
    "M5": m.VersionResponse(True, 0, V.V4_0),
    "M6": m.VersionResponse(False),
    "M7": m.VersionResponse(True, 0, 4, 0xF),
    "M8": m.VersionResponse(True, 0, 4, 0x40, 0xFE000000, 0xFE001000),
    "M9": m.RequestOffers(),
    "M10": m.OfferChannel(SCSI, INSTANCE, 1, 0, bytes(120), 0, 0, 5, 0xFF, False, True, 0x2005),
    "M11": m.OfferChannel(
        PORT_50000,
        UUID(int=1),
        0x2010,
        0,
        (bytes(4) + b"\1").ljust(120, b"\0"),
        0,
        0,
        0x21,
        33,
        True,
        True,
        0x2021,
    ),
    "M12": m.AllOffersDelivered(),
    "M13": fragment(5, 0xE1E10, [GpaRange.whole_pages([0x8000, 0x8001, 0x8002])])[0],
    "M14": fragment(5, 0xE1E11, [GpaRange.whole_pages(range(0x9000, 0x9020))])[0],
    "M15": fragment(5, 0xE1E11, [GpaRange.whole_pages(range(0x9000, 0x9020))])[1],
    "M16": m.GpadlCreated(5, 0xE1E10, 0),
    "M17": m.OpenChannel(5, 5, 0xE1E11, 1, 16),
    "M18": m.OpenChannel(5, 5, 0xE1E11, 1, 16, bytes(120), 0x2005, 5, 0),
    "M19": m.OpenChannelResult(5, 5, 0),
    "M20": m.CloseChannel(5),
    "M21": m.GpadlTeardown(5, 0xE1E10),
    "M22": m.GpadlTorndown(0xE1E10),
    "M23": m.RescindChannelOffer(5),
    "M24": m.RelidReleased(5),
    "M25": m.Unload(),
    "M26": m.UnloadResponse(),
    "M27": m.ModifyChannel(5, 3),
    "M28": m.ModifyChannelResponse(5, 0),
    "M29": m.TlConnectRequest(ENDPOINT, PORT_50000),
    "M30": m.TlConnectResult(ENDPOINT, PORT_50000, 0xC0000236),
    "M31": m.OpenReservedChannel(7, 0, 7, 0x22, 4),
    "M32": m.CloseReservedChannel(7, 0, 7),
    "M33": m.ModifyConnection(0x30000, 0x31000),
    "M34": m.ModifyConnectionResponse(0),
}
# Size of the smallest form of each type (3.2), as a table of its own.
SIZES = {
    1: 190, 2: 12, 3: 8, 4: 8, 5: 148, 6: 20, 7: 12, 8: 20, 9: 16, 10: 20, 11: 16, 12: 12, 13: 12, 14: 40, 15: 16,
    16: 8, 17: 8, 18: 28, 19: 20, 20: 12, 21: 40, 22: 16, 23: 44, 24: 16, 25: 24, 26: 9, 27: 8, 28: 8, 29: 8,
}  # fmt: skip


def test_every_vector_is_there():
    wanted = [f"M{n}" for n in range(1, 35)] + ["H1", "H2", "S1", "S2", "S3"] + [f"N{n}" for n in range(13, 20)]
    assert sorted(VECTORS) == sorted(wanted)
    assert sorted(MESSAGES) == sorted(name for name in VECTORS if name[0] == "M")


@pytest.mark.parametrize("name", MESSAGES)
def test_vector_encodes(name):
    assert MESSAGES[name].encode() == VECTORS[name]


@pytest.mark.parametrize("name", MESSAGES)
def test_vector_decodes(name):
    assert m.decode(VECTORS[name]) == MESSAGES[name]


@pytest.mark.parametrize("kind", SIZES)
def test_shorter_than_its_form_is_an_error(kind):
    whole = kind.to_bytes(4, "little") + bytes(SIZES[kind] - 4)
    assert kind == m.decode(whole).TYPE
    if SIZES[kind] > 8:
        with pytest.raises(ProtocolError, match=f"needs {SIZES[kind]} bytes, has {SIZES[kind] - 1}"):  # CM-9
            m.decode(whole[:-1])


def test_the_table_of_types_is_complete():
    assert sorted(SIZES) == sorted(m.MESSAGES) == sorted(m.MessageType)


def test_excess_bytes_are_ignored():  # CM-9
    assert m.decode(VECTORS["M20"] + b"junk") == MESSAGES["M20"]


def test_padding_is_ignored_and_not_repeated():  # VA-16
    dirty = bytearray(VECTORS["M20"])
    dirty[4:8] = b"\xff" * 4
    assert m.decode(bytes(dirty)).encode() == VECTORS["M20"]


@pytest.mark.parametrize("name", ["N15", "N17", "N18"])
def test_negative_vector_is_dropped(name):
    with pytest.raises(ProtocolError):
        m.decode(VECTORS[name])


def test_more_than_240_bytes_is_an_error():
    with pytest.raises(ProtocolError, match="limit is 240"):
        m.decode(VECTORS["M20"] + bytes(229))


@pytest.mark.parametrize("size", range(8))
def test_no_header(size):
    with pytest.raises(ProtocolError):
        m.decode(bytes(size))


def test_the_old_offer_has_190_bytes():
    old = m.decode(VECTORS["M10"][:190])
    assert isinstance(old, m.OfferChannel)
    assert (old.relid, old.dedicated_interrupt, old.connection_id) == (5, None, None)
    assert old.encode() == VECTORS["M10"][:190]


def test_silo_form_of_tl_connect():
    message = m.TlConnectRequest(ENDPOINT, PORT_50000, CLIENT)
    assert len(message.encode()) == 56
    assert m.decode(message.encode()) == message


def test_vtl_and_features_count_from_their_version():
    raw = bytearray(VECTORS["M3"])
    for version, vtl, features, client in [(V.V5_0, 0, 0, None), (V.V5_1, 1, 0, None), (V.V6_0, 1, 0xF, CLIENT)]:
        raw[8:12] = version.to_bytes(4, "little")
        raw[17] = 1
        contact = m.decode(bytes(raw))
        assert isinstance(contact, m.InitiateContact)
        assert (contact.target_vtl, contact.feature_flags, contact.client_id) == (vtl, features, client)


@pytest.mark.parametrize(
    "message",
    [
        m.CloseChannel(1 << 32),
        m.OpenChannel(1, 1, 1, 0, 1, bytes(121)),
        m.GpadlHeader(1, 1, 8 * 28, 1, (0,) * 28),
        m.GpadlBody(0, 1, (0,) * 29),
        m.OfferChannel(SCSI, INSTANCE, 0, 0, bytes(121), 0, 0, 1, 0, False, True, 1),
    ],
)
def test_what_does_not_fit_is_a_value_error(message):
    with pytest.raises(ValueError):
        message.encode()


def test_post_message_block():
    assert PostMessage(4, VECTORS["M9"]).encode() == VECTORS["H1"]
    assert PostMessage.decode(VECTORS["H1"]) == PostMessage(4, VECTORS["M9"])


def test_signal_event_block():
    assert SignalEvent(signal_connection(5)).encode() == VECTORS["H2"]
    assert SignalEvent.decode(VECTORS["H2"]) == SignalEvent(0x2005, 0)


def test_synic_slot():
    slot = SynicMessage(1, VECTORS["M4"])
    assert slot.encode() == VECTORS["S1"]
    assert SynicMessage.decode(VECTORS["S1"]) == slot
    assert SynicMessage(1, VECTORS["M4"], pending=True).encode()[:16] == VECTORS["S2"]
    assert SynicMessage.decode(VECTORS["S2"].ljust(256, b"\0")).pending
    timer = SynicMessage.decode(VECTORS["S3"].ljust(256, b"\0"))
    assert (timer.message_type, timer.sender, timer.payload) == (0x80000010, 0, VECTORS["S3"][16:])


@pytest.mark.parametrize("codec", [PostMessage, SynicMessage])
def test_envelope_payload_over_240_is_refused(codec):
    slot = bytearray(VECTORS["H1"] if codec is PostMessage else VECTORS["S1"])
    slot[12 if codec is PostMessage else 4] = 241
    with pytest.raises(ProtocolError, match="241"):
        codec.decode(bytes(slot))
    with pytest.raises(ProtocolError):
        codec.decode(bytes(slot[:-1]))
