"""Vectors of storvsp.txt: what the SCSI target and the vstor codecs make of them, bit for bit."""

from dataclasses import replace
from pathlib import Path

import pytest

from hvcore.disk.ram import RamDisk
from hvcore.errors import ProtocolError
from hvcore.scsi import LogicalUnit, ScsiResult, Target, absent, report_luns
from hvcore.storage import packet, protocol
from hvcore.storage.packet import (
    FibreChannelData,
    Operation,
    Packet,
    PacketFlag,
    Properties,
    PropertyFlag,
    ScsiRequest,
    SubChannels,
    Version,
    VersionQuery,
)

ID = bytes.fromhex("00112233445566778899aabbccddeeff")
DISK_RANGE = -1
DISK_READ_ERROR = -3


def unhex(text):
    words = text.split()
    return b"".join(bytes(int(word[4:])) if word.startswith("+00x") else bytes.fromhex(word) for word in words)


def load():
    found = {}
    for line in Path(__file__).with_name("storvsp.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, size, text = line.split(" | ")
            found[name] = unhex(text)
            assert len(found[name]) == int(size), name
    return found


VECTORS = load()


def target(size=32 << 30, **options):
    disk = {name: options.pop(name) for name in ("read_only", "physical_sector_size") if name in options}
    return Target(RamDisk(size, **disk), id=ID, serial="0123456789ABCDEF", **options)


def request(cdb, buffer, data_in=1, **fields):
    """An EXECUTE_SRB packet as a Linux guest fills it."""
    scsi = ScsiRequest(cdb, cdb_length=len(cdb), data_in=data_in, data_transfer_length=buffer, **fields)
    return Packet(Operation.EXECUTE_SRB, PacketFlag.REQUEST_COMPLETION, union=scsi.encode()).encode()


# ---- data of single commands


@pytest.mark.parametrize(
    "cdb, vector",
    [
        ("12 00 00 00 68 00", "V11"),
        ("12 01 00 00 0c 00", "V22a"),
        ("12 01 80 00 14 00", "V22b"),
        ("12 01 83 00 34 00", "V22c"),
        ("12 01 b0 00 40 00", "V22d"),
        ("12 01 b1 00 40 00", "V22e"),
        ("12 01 b2 00 08 00", "V22f"),
    ],
)
def test_inquiry_answers(cdb, vector):
    result = target(extensions=False).execute(bytes.fromhex(cdb), allocation=4096)
    assert (result.status, result.srb_status) == (0, 1)
    assert result.data_in == VECTORS[vector]


@pytest.mark.parametrize(
    "cdb, vector, changes",
    [
        ("12 00 00 00 68 00", "V11", {}),
        ("12 01 00 00 0c 00", "V22a", {}),
        ("12 01 b0 00 40 00", "V22d", {5: 128}),
        ("12 01 b2 00 08 00", "V22f", {5: 0xE4}),
        ("9e 10 0000000000000000 00000020 0000", "V15b", {14: 0xC0}),
    ],
)
def test_extensions_change_these_bytes_alone(cdb, vector, changes):
    expected = bytearray(VECTORS[vector])
    for at, value in changes.items():
        expected[at] = value
    assert target(physical_sector_size=4096).execute(bytes.fromhex(cdb), allocation=4096).data_in == expected


def test_capacity_answers():
    cdb, data = VECTORS["V14"][:10], VECTORS["V14"][10:]
    assert target().execute(cdb, allocation=8).data_in == data
    assert target((2 << 40) + 1024).execute(cdb, allocation=8).data_in == VECTORS["V14b"]
    long = target(physical_sector_size=4096, extensions=False)
    assert long.execute(VECTORS["V15a"], allocation=32).data_in == VECTORS["V15b"]


def test_capacity_clamps_only_above_32_bits():
    last = target(1 << 41)
    assert last.execute(VECTORS["V14"][:10], allocation=8).data_in == VECTORS["V14b"]
    assert target((1 << 41) - 512).execute(VECTORS["V14"][:10], allocation=8).data_in[:4] == b"\xff\xff\xff\xfe"


def test_mode_answers():
    assert target().execute(VECTORS["V19a"], allocation=16).data_in == VECTORS["V19b"]
    assert target(read_only=True).execute(VECTORS["V19a"], allocation=16).data_in == VECTORS["V19c"]
    ten = bytes.fromhex("5a 00 08 00 00 00 00 00 14 00")
    assert target().execute(ten, allocation=20).data_in == VECTORS["V19d"]


def test_report_luns_answer():
    assert report_luns([5, 0, 1], VECTORS["V20a"], 4096).data_in == VECTORS["V20b"]


def test_unmap_discards():
    disk = RamDisk(64 << 20)
    disk.write(0x2000 * 512, b"a" * 512)
    disk.write((0x2000 + 0x800) * 512, b"b" * 512)
    result = Target(disk).execute(VECTORS["V21a"], VECTORS["V21b"])
    assert (result.status, result.transferred) == (0, 24)
    assert disk.read(0x2000 * 512, 512) == bytes(512)
    assert disk.read((0x2000 + 0x800) * 512, 512) == b"b" * 512


def test_write_same_with_unmap():
    """V28: zeros are discarded, all else is written; without the extensions it is refused."""
    disk = RamDisk(4 << 20)
    disk.write(0x800 * 512, b"a" * 0x80000)
    result = Target(disk).execute(VECTORS["V28"], bytes(512))
    assert (result.status, result.transferred) == (0, 512)
    assert disk.read(0x800 * 512, 0x80000) == bytes(0x80000)
    assert disk.status(0x800 * 512, 0x80000) == (0x80000, False)
    assert Target(disk).execute(VECTORS["V28"], b"b" * 512).status == 0
    assert disk.read(0x800 * 512, 0x80000) == b"b" * 0x80000
    result = target(extensions=False).execute(VECTORS["V28"], bytes(512))
    assert (result.status, result.sense) == (2, VECTORS["V23e"])


def test_lba_status():
    """V29."""
    disk = RamDisk(0x2000 * 512)
    disk.write(0x1000 * 512, b"a" * 0x100000)
    result = Target(disk).execute(VECTORS["V29a"], allocation=40)
    assert (result.status, result.transferred) == (0, 40)
    assert result.data_in == VECTORS["V29b"]
    result = target(extensions=False).execute(VECTORS["V29a"], allocation=40)
    assert (result.status, result.sense) == (2, VECTORS["V23f"])


def test_absent_lun_answers_inquiry():
    assert absent(bytes.fromhex("12 00 00 00 24 00"), 9, 36).data_in == VECTORS["V24a"]


# ---- sense


def sense_of(case):
    if case == "V23a":
        disk = target()
        disk.raise_unit_attention(0x2A, 0x09)
        return disk.execute(bytes(6))
    if case == "V23b":
        return target(read_only=True).execute(bytes.fromhex("2a 00 00000000 00 0001 00"), bytes(512))
    if case == "V23c":
        cdb = bytes.fromhex("28 00 00001234 00 0002 00")
        return target().execute(cdb, allocation=1024, disk_status=DISK_READ_ERROR)
    if case == "V23d":
        return target().execute(bytes.fromhex("28 00 00001234 00 0001 00"), allocation=512, disk_status=DISK_READ_ERROR)
    if case == "V23e":
        return target().execute(bytes.fromhex("12 00 01 00 24 00"), allocation=36)
    if case == "V23f":
        return target().execute(bytes.fromhex("85") + bytes(15))
    return target().execute(bytes.fromhex("15 10 00 00 10 00"), bytes(15))


@pytest.mark.parametrize("vector", ["V23a", "V23b", "V23c", "V23d", "V23e", "V23f", "V23g"])
def test_sense(vector):
    result = sense_of(vector)
    assert result.status == 2
    assert result.sense == VECTORS[vector]


# ---- whole packets


def test_inquiry_packet():
    """V09, V10 and V12: both forms of the descriptor carry the same request."""
    assert (
        VECTORS["V09"][-64:]
        == VECTORS["V10"][-64:]
        == request(
            bytes.fromhex("120000002400"), 36, queue_tag=0xFF, queue_action=0x20, srb_flags=0x14A, timeout_seconds=60
        )
    )
    answer, data = protocol.execute(target(), VECTORS["V09"][-64:])
    assert answer == VECTORS["V12"][16:]
    assert data == VECTORS["V11"][:36]


def test_test_unit_ready_packet():
    assert protocol.execute(target(), VECTORS["V13a"][16:]) == (VECTORS["V13b"], b"")


def test_read_packet():
    disk = RamDisk(32 << 20)
    disk.write(0x1000 * 512, bytes(range(256)) * 16)
    answer, data = protocol.execute(Target(disk), VECTORS["V16a"][48:])
    assert answer == VECTORS["V16b"][16:]
    assert data == bytes(range(256)) * 16


def test_out_of_range_packets():
    packet = request(VECTORS["V17a"], 4096)
    assert protocol.execute(target(), packet) == (VECTORS["V17b"], b"")
    found_late = target(64 << 30).execute(VECTORS["V17a"], allocation=4096, disk_status=DISK_RANGE)
    assert protocol.complete(packet, found_late) == VECTORS["V17c"]


def test_write_packet_beyond_32_bits():
    disk = RamDisk((1 << 41) + 8192)
    answer, _ = protocol.execute(Target(disk), VECTORS["V18"], b"fua!" * 2048)
    assert Packet.decode(answer).status == 0
    assert ScsiRequest.decode(Packet.decode(answer).union).data_transfer_length == 8192
    assert disk.read(1 << 41, 8192) == b"fua!" * 2048


def test_absent_lun_packet():
    packet = request(bytes(6), 0, data_in=2, lun=9)
    assert protocol.complete(packet, absent(bytes(6), 9)) == VECTORS["V24b"]


def test_windows_7_packet():
    disk = RamDisk(1 << 20)
    disk.write(0, b"7" * 512)
    answer, data = protocol.execute(Target(disk), VECTORS["V26"], version=Version.WIN7)
    assert len(answer) == 48
    assert data == b"7" * 512
    scsi = ScsiRequest.decode(Packet.decode(answer).union)
    assert (scsi.length, scsi.srb_status, scsi.data_transfer_length) == (0x34, 1, 512)


def test_reservation_conflict_packet():
    """V30."""
    disk = RamDisk(1 << 20)
    unit = LogicalUnit(disk)
    owner, other = Target(disk, unit=unit), Target(disk, unit=unit)
    key = bytes(7) + b"\1"
    assert owner.execute(bytes.fromhex("5f 06 00 0000 00000018 00"), bytes(8) + key + bytes(8)).status == 0
    assert owner.execute(bytes.fromhex("5f 01 03 0000 00000018 00"), key + bytes(16)).status == 0
    packet = request(bytes.fromhex("28 00 00000000 00 0001 00"), 512, lun=0)
    assert protocol.execute(other, packet) == (VECTORS["V30"], b"")
    assert protocol.complete(packet, ScsiResult(0x18, srb_status=0x04)) == VECTORS["V30"]


def test_overrun_packet():
    assert protocol.execute(target(), request(VECTORS["V14"][:10], 4))[0] == VECTORS["V31"]


def test_short_inquiry_packet():
    answer, data = protocol.execute(target(), request(bytes.fromhex("12000000ff00"), 255))
    assert answer == VECTORS["V32"]
    assert data == VECTORS["V11"]


# ---- negative vectors: one change each to the vstor packet of V09


@pytest.mark.parametrize(
    "position, value, scsi",
    [
        (10, 0, ("data_out", b"")),
        (20, 0xFF, None),
        (8, 17, None),
        (8, 0, None),
    ],
    ids=["N11", "N12", "N15", "no CDB"],
)
def test_bad_requests_fail_the_srb(position, value, scsi):
    packet = bytearray(VECTORS["V09"][-64:])
    packet[12 + position] = value
    answer, data = protocol.execute(target(), packet, bytes(36) if scsi else b"")
    found = ScsiRequest.decode(Packet.decode(answer).union)
    assert (found.srb_status, found.scsi_status, found.payload[:18]) == (0x86, 2, VECTORS["V23e"])
    assert (found.data_transfer_length, data) == (0, b"")


def test_allocation_beyond_the_buffer_is_truncated_when_not_strict():
    """N12."""
    packet = bytearray(VECTORS["V09"][-64:])
    packet[12 + 20] = 0xFF
    answer, data = protocol.execute(target(strict_alloc=False), packet)
    assert answer == VECTORS["V12"][16:]
    assert data == VECTORS["V11"][:36]


def test_inquiry_of_an_absent_lun():
    """N13."""
    packet = bytearray(VECTORS["V09"][-64:])
    packet[12 + 7] = 9
    answer = protocol.complete(packet, absent(bytes.fromhex("120000002400"), 9, 36))
    found = ScsiRequest.decode(Packet.decode(answer).union)
    assert (found.srb_status, found.scsi_status, found.data_transfer_length, found.lun) == (1, 0, 36, 9)


@pytest.mark.parametrize("size", [0, 11, 47])
def test_short_requests_are_refused(size):
    with pytest.raises(ProtocolError, match="at least 48 bytes"):
        protocol.execute(target(), VECTORS["V13a"][16:][:size])


def test_other_operations_are_refused():
    with pytest.raises(ProtocolError, match="operation is 99"):
        protocol.execute(target(), Packet(99).encode())


@pytest.mark.parametrize("length, version", [(0, 0x0600), (0x23, 0x0402), (0x24, 0x0501), (0xFFFF, 0x0602)])
def test_bad_block_length(length, version):
    """5.3, check 3."""
    packet = request(bytes(6), 0, data_in=2, length=length)
    answer = Packet.decode(protocol.execute(target(), packet, version=version)[0])
    scsi = ScsiRequest.decode(answer.union)
    assert (answer.status, scsi.srb_status, scsi.scsi_status, scsi.payload) == (0xC0000010, 0x15, 2, bytes(20))


@pytest.mark.parametrize("size, reply", [(48, 48), (56, 56), (64, 64), (72, 64)])
def test_reply_has_the_size_of_the_request(size, reply):
    """3.3."""
    packet = request(bytes(6), 0, data_in=2).ljust(72, b"\xee")[:size]
    assert len(protocol.execute(target(), packet)[0]) == reply


@pytest.mark.parametrize(
    "sense_length, flags, srb, bytes_back",
    [(20, 0, 0x86, 18), (18, 0, 0x86, 18), (8, 0, 0x86, 8), (255, 0, 0x86, 18), (0, 0, 0x06, 0), (20, 0x20, 0x06, 0)],
)
def test_sense_is_capped(sense_length, flags, srb, bytes_back):
    """5.3: the request's sense length is a cap; without sense bit 0x80 is clear."""
    packet = request(b"\x85" + bytes(15), 0, data_in=2, sense_length=sense_length, srb_flags=flags)
    scsi = ScsiRequest.decode(Packet.decode(protocol.execute(target(), packet)[0]).union)
    assert (scsi.srb_status, scsi.scsi_status) == (srb, 2)
    assert scsi.payload == VECTORS["V23f"][:bytes_back].ljust(20, b"\0")


@pytest.mark.parametrize(
    "srb, status",
    [
        (0x01, 0x00000000), (0x05, 0x80000011), (0x20, 0xC00000C0), (0x21, 0xC00000C0), (0x08, 0xC00000C0),
        (0x11, 0xC00000C0), (0x09, 0xC00000B5), (0x0B, 0xC00000B5), (0x0A, 0xC000009D), (0x15, 0xC0000010),
        (0x22, 0xC0000010), (0x12, 0x80000005), (0x92, 0x80000005), (0x16, 0xC0000001), (0x02, 0xC0000120),
        (0x82, 0xC0000120), (0x04, 0xC0000185), (0x84, 0xC0000185), (0x06, 0xC0000185), (0x30, 0xC0000185),
    ],
)  # fmt: skip
def test_ntstatus_of_each_srb_status(srb, status):
    """5.5."""
    sense = VECTORS["V23e"] if srb & 0x80 else b""
    answer = protocol.complete(request(bytes(6), 0), ScsiResult(2, b"", sense, srb))
    assert Packet.decode(answer).status == status


def test_response_never_claims_more_than_the_buffer():
    answer = protocol.complete(request(bytes(6), 36), ScsiResult(0, transferred=37))
    assert ScsiRequest.decode(Packet.decode(answer).union).data_transfer_length == 36


def test_response_echoes_the_address():
    packet = request(bytes(6), 0, path_id=3, target_id=1, lun=7, port=4)
    scsi = ScsiRequest.decode(Packet.decode(protocol.execute(target(), packet)[0]).union)
    assert (scsi.path_id, scsi.target_id, scsi.lun, scsi.port) == (3, 1, 7, 0)


# ---- the Python codec


def test_interface_guids():
    """Section 1."""
    expected = {
        "scsi": bytes.fromhex("d96361ba a104 294d b605 72e2ffb1dc7f"),
        "ide": bytes.fromhex("32264132 cb86 a244 9b5c 50d1417354f5"),
        "fibre channel": bytes.fromhex("4acc9b2f 6900 f34a b76b 6fd0be528cda"),
    }
    assert expected == protocol.INTERFACES
    uuids = (packet.SCSI_INTERFACE, packet.IDE_INTERFACE, packet.FIBRE_CHANNEL_INTERFACE)
    assert [uuid.bytes_le for uuid in uuids] == list(expected.values())


WAITING = PacketFlag.REQUEST_COMPLETION


@pytest.mark.parametrize(
    "vector, packet, body",
    [
        ("V03a", Packet(Operation.QUERY_PROTOCOL_VERSION, WAITING), VersionQuery(Version.WIN10)),
        ("V03b", Packet(Operation.COMPLETE_IO, 0, 0xC0000059), VersionQuery(Version.WIN10)),
        ("V04a", Packet(Operation.QUERY_PROTOCOL_VERSION, WAITING), VersionQuery(Version.WIN8_1)),
        ("V04b", Packet(Operation.COMPLETE_IO), VersionQuery(Version.WIN8_1)),
        ("V05a", Packet(Operation.QUERY_PROPERTIES, WAITING), None),
        ("V05b", Packet(Operation.COMPLETE_IO), Properties(3, PropertyFlag.MULTI_CHANNEL, 0x40000)),
        ("V06", Packet(Operation.END_INITIALIZATION, WAITING), None),
        ("V07a", Packet(Operation.CREATE_SUB_CHANNELS, WAITING), SubChannels(3)),
        ("V07b", Packet(Operation.COMPLETE_IO, 0, 0xC000000D), None),
        ("V08", Packet(Operation.COMPLETE_IO, 0, 0xC0000184), None),
        ("V27", Packet(Operation.RESET_BUS, WAITING), None),
    ],
)
def test_codec(vector, packet, body):
    raw = VECTORS[vector]
    whole = replace(packet, union=body.encode() if body else b"")
    assert whole.encode() == raw
    found = Packet.decode(raw)
    assert (found.operation, found.flags, found.status) == (packet.operation, packet.flags, packet.status)
    if body:
        assert type(body).decode(found.union) == body


@pytest.mark.parametrize("vector", ["V13b", "V17b", "V17c", "V18", "V24b", "V26", "V30", "V31", "V32"])
def test_codec_of_scsi_requests(vector):
    raw = VECTORS[vector]
    found = Packet.decode(raw)
    scsi = ScsiRequest.decode(found.union)
    assert replace(found, union=scsi.encode()).encode(len(raw)) == raw


def test_codec_of_fibre_channel_data():
    data = FibreChannelData(0xC003FF0000010001, 0xC003FF0000010000)
    assert data.encode() == VECTORS["V33"]
    assert FibreChannelData.decode(VECTORS["V33"]) == data


def test_packet_size_of_each_version():
    assert {version.name: version.packet_bytes for version in Version} == {
        "WIN6": 48, "WIN7": 48, "WIN8": 64, "WIN8_1": 64, "WIN10": 64,
    }  # fmt: skip


def test_codec_refuses_what_is_too_short_or_too_long():
    with pytest.raises(ProtocolError, match="at least 12"):
        Packet.decode(bytes(11))
    with pytest.raises(ProtocolError, match="at least 36"):
        ScsiRequest.decode(bytes(35))
    with pytest.raises(ValueError, match="at most 52"):
        Packet(3, union=bytes(53)).encode()
    with pytest.raises(ValueError, match="at most 20"):
        ScsiRequest(bytes(21)).encode()
