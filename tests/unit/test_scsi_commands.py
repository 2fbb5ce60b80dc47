"""Every command with every bit of its CDB wrong, as REPORT SUPPORTED OPERATION CODES lists them (storvsp.md 9.1)."""

import pytest

from hvcore.disk.ram import RamDisk
from hvcore.scsi import LogicalUnit, Target

BLOCKS = 64
GOOD = (0, 0)
ALL = bytes.fromhex("a3 0c 00 00 0000 0000ffff 00 00")
# Bits without a meaning here that are refused all the same, operation code: {byte: mask}.
PROTECTION = {1: 0xE1}  # protection, RELADR
REFUSED = {
    0x03: {1: 0x01},  # DESC
    0x12: {1: 0x02},  # CMDDT
    0x15: {1: 0x01}, 0x55: {1: 0x01},  # SP
    0x16: {1: 0x10}, 0x56: {1: 0x10},  # a third party
    0x1D: {1: 0xE0},  # self-test code
    0x28: PROTECTION, 0x2A: PROTECTION, 0x88: PROTECTION, 0x8A: PROTECTION, 0xA8: PROTECTION, 0xAA: PROTECTION,
    0x2E: {1: 0xE5}, 0x8E: {1: 0xE5}, 0xAE: {1: 0xE5},  # and BYTCHK 10
    0x2F: PROTECTION, 0x8F: PROTECTION, 0xAF: PROTECTION,
    0x41: {1: 0xF7}, 0x93: {1: 0xF6},  # protection, ANCHOR, LBDATA, PBDATA, RELADR
    0x42: {1: 0x01},  # ANCHOR
    0x4D: {1: 0x01},  # SP
    0x89: {1: 0xE0},
}  # fmt: skip
# A CDB of each command that succeeds, with the bytes that the initiator sends.
LIST = bytes.fromhex("0016 0010 00000000") + bytes(16)
ZEROS = bytes(512)
GOOD_ONES = {
    0x00: ("00" * 6, b""), 0x03: ("03 00 00 00 12 00", b""), 0x04: ("04" + "00" * 5, b""),
    0x08: ("08 00 00 00 01 00", b""), 0x0A: ("0a 00 00 00 01 00", ZEROS), 0x12: ("12 00 00 00 24 00", b""),
    0x15: ("15 10 00 00 04 00", bytes(4)), 0x16: ("16" + "00" * 5, b""), 0x17: ("17" + "00" * 5, b""),
    0x1A: ("1a 00 3f 00 ff 00", b""), 0x1B: ("1b 00 00 00 01 00", b""), 0x1C: ("1c 01 00 00 10 00", b""),
    0x1D: ("1d 14 00 00 04 00", bytes(4)), 0x1E: ("1e 00 00 00 00 00", b""), 0x25: ("25" + "00" * 9, b""),
    0x28: ("28 00 00000001 00 0001 00", b""), 0x2A: ("2a 00 00000001 00 0001 00", ZEROS),
    0x2E: ("2e 00 00000001 00 0001 00", ZEROS), 0x2F: ("2f 00 00000001 00 0001 00", b""),
    0x34: ("34 00 00000001 00 0001 00", b""), 0x35: ("35 00 00000001 00 0001 00", b""),
    0x41: ("41 00 00000001 00 0001 00", ZEROS), 0x42: ("42 00 00000000 00 0018 00", LIST),
    0x4D: ("4d 00 00 00 00 0000 0010 00", b""), 0x55: ("55 10 00 00 000000 0008 00", bytes(8)),
    0x56: ("56" + "00" * 9, b""), 0x57: ("57" + "00" * 9, b""), 0x5A: ("5a 00 08 00 000000 0018 00", b""),
    0x5E: ("5e 00 00 00 000000 0018 00", b""), 0x5F: ("5f 06 00 00 00 00000018 00", bytes(24)),
    0x88: ("88 00 0000000000000001 00000001 00 00", b""), 0x89: ("89 00 0000000000000001 000000 01 00 00", bytes(1024)),
    0x8A: ("8a 00 0000000000000001 00000001 00 00", ZEROS), 0x8E: ("8e 00 0000000000000001 00000001 00 00", ZEROS),
    0x8F: ("8f 00 0000000000000001 00000001 00 00", b""), 0x90: ("90 00 0000000000000001 00000001 00 00", b""),
    0x91: ("91 00 0000000000000001 00000001 00 00", b""), 0x93: ("93 00 0000000000000001 00000001 00 00", ZEROS),
    0x9E: ("9e 10 0000000000000000 00000020 00 00", b""), 0xA0: ("a0 00 00 000000 00000010 00 00", b""),
    0xA3: ("a3 0d 00 000000 00000010 00 00", b""), 0xA8: ("a8 00 00000001 00000001 00 00", b""),
    0xAA: ("aa 00 00000001 00000001 00 00", ZEROS), 0xAE: ("ae 00 00000001 00000001 00 00", ZEROS),
    0xAF: ("af 00 00000001 00000001 00 00", b""),
}  # fmt: skip


def make(**options):
    return Target(RamDisk(BLOCKS * 512), **options)


def run(target, cdb, data=b""):
    result = target.execute(cdb, data, 0 if data else 65536)
    return result.status, result.asc << 8 | result.ascq


def reported(data):
    """(operation code, service action or None, bytes of the CDB) of all commands."""
    step = 20 if data[9] & 2 else 8
    assert int.from_bytes(data[:4]) == len(data) - 4
    for at in range(4, len(data), step):
        one = data[at : at + step]
        action = int.from_bytes(one[2:4]) if one[5] & 1 else None
        assert one[1] == one[4] == 0
        assert step == 8 or one[8:] == bytes.fromhex("000a") + bytes(10)
        yield one[0], action, int.from_bytes(one[6:8])


def usage_of(target, op, action):
    """The bytes that REPORT SUPPORTED OPERATION CODES gives for one command."""
    cdb = bytes([0xA3, 0x0C, 1 if action is None else 2, op]) + (action or 0).to_bytes(2) + b"\0\0\xff\xff\0\0"
    data = target.execute(cdb, allocation=65536).data_in
    assert data[:2] == b"\0\3"
    assert int.from_bytes(data[2:4]) == len(data) - 4
    return data[4:]


COMMANDS = list(reported(make().execute(ALL, allocation=65536).data_in))


def test_every_command_is_listed_once_and_ascending():
    keys = [(op, -1 if action is None else action) for op, action, _ in COMMANDS]
    assert keys == sorted(set(keys))
    assert {op for op, _, _ in COMMANDS} == GOOD_ONES.keys()
    assert list(reported(make().execute(b"\xa3\x0c\x80" + ALL[3:], allocation=65536).data_in)) == COMMANDS


@pytest.mark.parametrize("options", [{}, {"extensions": False}, {"discard": False}])
def test_what_is_not_listed_is_no_command(options):
    """05/20/00."""
    target = make(**options)
    listed = {0x12} if options.get("extensions") is False else {op for op, _, _ in reported(
        target.execute(ALL, allocation=65536).data_in)}  # fmt: skip
    for op in range(256):
        status = run(target, bytes([op]) + bytes(15))
        assert (op not in listed) >= (status == (2, 0x2000)), hex(op)
        if op not in GOOD_ONES:
            assert status == (2, 0x2000), hex(op)


@pytest.mark.parametrize("op", GOOD_ONES)
def test_each_command_succeeds(op):
    cdb, data = GOOD_ONES[op]
    assert run(make(), bytes.fromhex(cdb), data) == GOOD


@pytest.mark.parametrize("op, action, size", COMMANDS)
def test_usage_has_the_size_of_the_command(op, action, size):
    usage = usage_of(make(), op, action)
    assert (len(usage), usage[0]) == (size, op)
    assert action is None or usage[1] == action
    assert size == (6, 10, 10, None, 16, 12)[op >> 5]
    either = bytes([0xA3, 0x0C, 0x83, op]) + (action or 0).to_bytes(2) + b"\0\0\xff\xff\0\0"
    data = make().execute(either, allocation=65536).data_in
    assert data == b"\0\x83" + size.to_bytes(2) + usage + bytes.fromhex("000a") + bytes(10)


@pytest.mark.parametrize("op", GOOD_ONES)
def test_reserved_bits(op):
    """A bit without a meaning is ignored, but for those that ask for what is not offered."""
    text, data = GOOD_ONES[op]
    cdb = bytes.fromhex(text)
    action = cdb[1] & 0x1F if op in (0x5E, 0x5F, 0x9E, 0xA3) else None
    usage = bytearray(usage_of(make(), op, action))
    if action is not None:
        usage[1] |= 0x1F
    plain = make().execute(cdb, data, 0 if data else 65536)
    for byte in range(1, len(usage)):
        for bit in range(8):
            if usage[byte] >> bit & 1:
                continue
            wrong = bytearray(cdb)
            wrong[byte] |= 1 << bit
            result = make(id=bytes(16)).execute(wrong, data, 0 if data else 65536)
            if REFUSED.get(op, {}).get(byte, 0) >> bit & 1:
                assert (result.status, result.asc << 8 | result.ascq) == (2, 0x2400), (byte, bit)
            elif op == 0x25 and 2 <= byte <= 5:
                assert result.asc == 0x24
            else:
                assert result == plain, (byte, bit)


@pytest.mark.parametrize("op", GOOD_ONES)
@pytest.mark.parametrize("strict", [False, True])
def test_every_length(op, strict):
    """A CDB cut short reads as zeros; a buffer of any length is never exceeded."""
    text, data = GOOD_ONES[op]
    cdb = bytes.fromhex(text)
    for length in range(1, 17):
        target = make(strict_alloc=strict, id=bytes(16))
        given = cdb.ljust(16, b"\0")[:length]
        again = make(strict_alloc=strict, id=bytes(16)).execute(given.ljust(16, b"\0"), data, 0 if data else 512)
        assert target.execute(given, data, 0 if data else 512) == again
    for room in (0, 1, 3, 4, 7, 8, 11, 12, 17, 18, 23, 24, 35, 36, 511, 512, 1023, 1024, 4096):
        result = make(strict_alloc=strict).execute(cdb, data[:room] if data else b"", 0 if data else room)
        assert len(result.data_in) <= room
        assert result.transferred <= room
        assert (result.status == 0) == (result.srb_status == 1)
        assert bool(result.sense) == bool(result.srb_status & 0x80)


@pytest.mark.parametrize(
    "cdb, expected",
    [
        ("a3 0c 01 28 0000 00001000 00 00", "0003 000a 28 18 ffffffff 00 ffff 00"),
        ("a3 0c 81 00 0000 00001000 00 00", "0083 0006 000000000000 000a 00000000000000000000"),
        ("a3 0c 01 85 0000 00001000 00 00", "0001 0000"),
        ("a3 0c 02 9e 0010 00001000 00 00", "0003 0010 9e 10 ffffffffffffffff ffffffff 01 00"),
        ("a3 0c 02 9e 0011 00001000 00 00", "0001 0000"),
        ("a3 0c 03 9e 0012 00001000 00 00", "0003 0010 9e 12 ffffffffffffffff ffffffff 00 00"),
        ("a3 0c 03 28 0001 00001000 00 00", "0001 0000"),
        ("a3 0c 01 9e 0000 00001000 00 00", None),
        ("a3 0c 02 28 0000 00001000 00 00", None),
        ("a3 0d 00 00 0000 00001000 00 00", "08 00 00 00"),
        ("a3 0d 80 00 0000 00001000 00 00", "08 00 00 0c" + "00" * 12),
    ],
)
def test_one_command(cdb, expected):
    result = make().execute(bytes.fromhex(cdb), allocation=4096)
    if expected is None:
        assert (result.status, result.asc) == (2, 0x24)
    else:
        assert result.data_in == bytes.fromhex(expected)


def test_without_discard_there_is_no_unmap():
    cdb = bytes.fromhex("a3 0c 01 42 0000 00001000 00 00")
    assert make(discard=False).execute(cdb, allocation=4096).data_in == b"\0\1\0\0"
    assert make().execute(cdb, allocation=4096).data_in[1] == 3


@pytest.mark.parametrize("page", ["00", "ff"])
def test_log_and_diagnostic_pages_list_themselves(page):
    answer = make().execute(bytes.fromhex(f"4d 00 00 {page} 00 0000 00ff 00"), allocation=255).data_in
    assert answer.hex(" ") == {"00": "00 00 00 01 00", "ff": "40 ff 00 04 00 00 00 ff"}[page]
    answer = make().execute(bytes.fromhex("1c 01 00 00 ff 00"), allocation=255).data_in
    assert answer.hex(" ") == "00 00 00 01 00"


@pytest.mark.parametrize(
    "parameters, expected",
    [("00000000", GOOD), ("000000", (2, 0x1A00)), ("00000001", (2, 0x1A00)), ("01000000", (2, 0x2600)),
     ("0000000100", (2, 0x2600))],
)  # fmt: skip
def test_diagnostic_list(parameters, expected):
    parameters = bytes.fromhex(parameters)
    assert run(make(), bytes([0x1D, 0x10, 0, 0, len(parameters), 0]), parameters) == expected
    assert make().execute(bytes([0x1D, 0x10, 0, 0, 99, 0]), parameters).asc == 0x1A


# ---- write protection by MODE SELECT (SWP)

SWP_ON = bytes(4) + bytes.fromhex("0a0a 0210 0840 000000000000")
SWP_OFF = bytes(4) + bytes.fromhex("0a0a 0210 0040 000000000000")


def test_control_page():
    sense = "1a 00 {:02x} 00 ff 00"
    target = make()
    assert target.execute(bytes.fromhex(sense.format(0x0A)), allocation=255).data_in == b"\x0f\0\x10\0" + SWP_OFF[4:]
    changeable = target.execute(bytes.fromhex(sense.format(0x4A)), allocation=255).data_in
    assert changeable[4:].hex() == "0a0a00000800000000000000"
    assert target.execute(bytes.fromhex("1a 00 3f 00 ff 00"), allocation=255).data_in[16:] == SWP_OFF[4:]
    assert make(extensions=False).execute(bytes.fromhex(sense.format(0x0A)), allocation=255).asc == 0x24


@pytest.mark.parametrize("cdb, data", [(text, data) for op, (text, data) in GOOD_ONES.items()
                                       if op in (0x04, 0x0A, 0x2A, 0x2E, 0x41, 0x42, 0x89, 0x8A, 0x8E, 0x93, 0xAA, 0xAE)
                                       ])  # fmt: skip
def test_write_protection_is_of_the_unit(cdb, data):
    """Every initiator's writes are refused, and the others are told (2A/01)."""
    disk = RamDisk(BLOCKS * 512)
    unit = LogicalUnit(disk)
    one, other = Target(disk, unit=unit), Target(disk, unit=unit)
    select = bytes.fromhex("15 10 00 00 10 00")
    assert run(one, select, SWP_ON) == GOOD
    assert run(other, bytes(6)) == (2, 0x2A01)
    for target in (one, other):
        assert run(target, bytes.fromhex(cdb), data) == (2, 0x2700)
        assert (
            target.execute(bytes.fromhex("1a 00 0a 00 ff 00"), allocation=255).data_in == b"\x0f\0\x90\0" + SWP_ON[4:]
        )
        assert run(target, bytes.fromhex(GOOD_ONES[0x28][0])) == GOOD
    assert run(other, select, SWP_OFF) == GOOD
    assert run(one, bytes(6)) == (2, 0x2A01)
    assert run(one, bytes.fromhex(cdb), data) == GOOD


def test_no_page_is_acted_on_before_all_are_checked():
    target = make()
    parameters = SWP_ON + bytes.fromhex("080a0000 00000000 00000000")
    assert run(target, bytes([0x15, 0x10, 0, 0, len(parameters), 0]), parameters) == (2, 0x2600)
    assert run(target, bytes.fromhex(GOOD_ONES[0x2A][0]), ZEROS) == GOOD
