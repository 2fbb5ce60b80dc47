"""The command, sense and error tables of storvsp.md 5.8 to 11, row by row."""

import threading

import pytest

from hvcore.disk.ram import RamDisk
from hvcore.scsi import MediaAccess, Target, absent, report_luns

BLOCKS = 64
GOOD = (0, 1, (0, 0, 0))
BAD_CDB = (2, 0x86, (5, 0x24, 0))
BAD_LBA = (2, 0x86, (5, 0x21, 0))
BAD_OPCODE = (2, 0x86, (5, 0x20, 0))
BAD_LIST = (2, 0x86, (5, 0x26, 0))
BAD_LIST_LENGTH = (2, 0x86, (5, 0x1A, 0))
PROTECTED = (2, 0x84, (7, 0x27, 0))
ATTENTION = (2, 0x84, (6, 0x2A, 9))
BLOCK = bytes(range(256)) * 2


def make(sector_size=512, read_only=False, blocks=BLOCKS, **options):
    return Target(RamDisk(blocks * sector_size, sector_size=sector_size, read_only=read_only), **options)


def outcome(result):
    """(SCSI status, SRB status, (key, ASC, ASCQ)); a failed command has moved nothing."""
    if result.status:
        assert (result.data_in, result.transferred) == (b"", 0)
    return result.status, result.srb_status, (result.sense_key, result.asc, result.ascq)


def run(text, data_out=b"", allocation=0, **options):
    return make(**options).execute(bytes.fromhex(text), data_out, allocation)


# ---- INQUIRY (9.2, 9.3)


@pytest.mark.parametrize(
    "cdb, allocation, options, expected, length",
    [
        ("12 00 00 00 24 00", 36, {}, GOOD, 36),
        ("12 00 00 00 ff 00", 255, {}, GOOD, 104),
        ("12 00 00 00 24 00", 255, {}, GOOD, 36),
        ("12 00 00 00 24 00", 35, {}, BAD_CDB, 0),
        ("12 00 00 00 24 00", 35, {"strict_alloc": False}, GOOD, 35),
        ("12 00 00 00 04 00", 36, {}, BAD_CDB, 0),
        ("12 00 00 00 04 00", 36, {"strict_alloc": False}, GOOD, 4),
        ("12 00 00 00 00 00", 0, {"strict_alloc": False}, GOOD, 0),
        ("12 00 80 00 24 00", 36, {}, BAD_CDB, 0),
        ("12 02 00 00 24 00", 36, {}, BAD_CDB, 0),
        ("12 01 80 00 04 00", 4, {}, GOOD, 4),
        ("12 01 83 00 00 00", 0, {}, GOOD, 0),
        ("12 01 83 00 ff 00", 254, {}, BAD_CDB, 0),
        ("12 01 8f 00 ff 00", 255, {}, BAD_CDB, 0),
        ("12 01 b2 00 ff 00", 255, {"discard": False}, BAD_CDB, 0),
        ("12 01 80 00 ff 00", 255, {"serial": ""}, BAD_CDB, 0),
        ("12 01 ce 00 ff 00", 255, {}, GOOD, 8),
        ("12 01 cf 00 ff 00", 255, {}, GOOD, 24),
    ],
)
def test_inquiry(cdb, allocation, options, expected, length):
    result = run(cdb, allocation=allocation, **options)
    assert outcome(result) == expected
    assert len(result.data_in) == result.transferred == length


def test_vital_pages_list_what_there_is():
    assert run("12 01 00 00 ff 00", allocation=255).data_in[4:].hex(" ") == "00 80 83 b0 b1 b2 ce cf"
    bare = run("12 01 00 00 ff 00", allocation=255, discard=False, serial="")
    assert bare.data_in[4:].hex(" ") == "00 83 b0 b1 ce cf"


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_limits_page_follows_the_configuration(sector_size):
    page = run("12 01 b0 00 40 00", allocation=64, sector_size=sector_size, max_transfer=0x40000).data_in
    assert int.from_bytes(page[8:12]) == 0x40000 // sector_size
    assert int.from_bytes(page[36:44]) == (8 << 20) // sector_size
    assert not any(run("12 01 b0 00 40 00", allocation=64, discard=False).data_in[20:36])


def test_identity_is_stable_and_configurable():
    assert make().id == make().id != make(blocks=BLOCKS * 2).id
    assert make().serial == make().id.hex()
    page = run("12 01 83 00 ff 00", allocation=255, id=bytes(range(16))).data_in
    assert page[16:32] == bytes(range(16))
    assert run("12 01 80 00 ff 00", allocation=255, serial="x" * 64).data_in[4:] == b"x" * 64


# ---- allocation lengths (5.8)


@pytest.mark.parametrize(
    "cdb, allocation, strict, expected, length",
    [
        ("25 00 00000000 0000 00 00", 8, True, GOOD, 8),
        ("25 00 00000000 0000 00 00", 512, True, GOOD, 8),
        ("25 00 00000000 0000 00 00", 7, True, (2, 0x92, (5, 0x24, 0)), 0),
        ("25 00 00000000 0000 00 00", 0, False, (2, 0x92, (5, 0x24, 0)), 0),
        ("9e 10 0000000000000000 00000020 0000", 32, True, GOOD, 32),
        ("9e 10 0000000000000000 0000000c 0000", 32, True, GOOD, 12),
        ("9e 10 0000000000000000 00000020 0000", 12, True, GOOD, 12),
        ("9e 10 0000000000000000 00000020 0000", 11, True, (2, 0x92, (5, 0x24, 0)), 0),
        ("9e 10 0000000000000000 00000000 0000", 0, True, GOOD, 0),
        ("9e 10 0000000000000000 ffffffff 0000", 64, True, GOOD, 32),
        ("1a 00 08 00 04 00", 4, True, GOOD, 4),
        ("1a 00 08 00 ff 00", 255, True, GOOD, 16),
        ("1a 00 08 00 10 00", 0, True, GOOD, 0),
        ("1a 00 08 00 10 00", 15, True, BAD_CDB, 0),
        ("1a 00 08 00 10 00", 15, False, GOOD, 15),
        ("1a 00 08 00 03 00", 16, True, BAD_CDB, 0),
        ("1a 00 08 00 03 00", 16, False, GOOD, 3),
        ("1a 00 08 00 00 00", 16, True, GOOD, 0),
        ("5a 00 3f 00 000000 0200 00", 512, True, GOOD, 32),
        ("5a 00 3f 00 000000 0007 00", 512, True, BAD_CDB, 0),
        ("03 00 00 00 12 00", 18, True, GOOD, 18),
        ("03 00 00 00 ff 00", 255, True, GOOD, 18),
        ("03 00 00 00 07 00", 18, True, BAD_CDB, 0),
        ("03 00 00 00 12 00", 17, True, BAD_CDB, 0),
        ("03 00 00 00 12 00", 17, False, GOOD, 17),
        ("03 01 00 00 12 00", 18, True, BAD_CDB, 0),
        ("a0 00 00 000000 00001000 0000", 4096, True, GOOD, 16),
        ("a0 00 02 000000 00001000 0000", 4096, True, GOOD, 16),
        ("a0 00 01 000000 00001000 0000", 4096, True, GOOD, 8),
        ("a0 00 03 000000 00001000 0000", 4096, True, BAD_CDB, 0),
        ("a0 00 00 000000 00001000 0000", 12, True, GOOD, 12),
        ("a0 00 00 000000 00001000 0000", 7, True, GOOD, 0),
        ("a0 00 00 000000 00001000 0000", 7, False, GOOD, 7),
    ],
)
def test_allocation(cdb, allocation, strict, expected, length):
    result = run(cdb, allocation=allocation, strict_alloc=strict)
    assert outcome(result) == expected
    assert len(result.data_in) == result.transferred == length


@pytest.mark.parametrize(
    "cdb",
    [
        "12 00 00 00 08 00", "25 00 00000000 0000 00 00", "9e 10 0000000000000000 00000020 0000", "1a 00 08 00 08 00",
        "03 00 00 00 08 00", "a0 00 00 000000 00001000 0000", "28 00 00000000 00 0001 00", "08 00 00 00 01 00",
        "2a 00 00000000 00 0001 00", "2e 00 00000000 00 0001 00", "2f 02 00000000 00 0001 00",
        "41 00 00000000 00 0001 00", "42 00 00000000 00 0200 00", "55 10 00000000 00 0200 00",
    ],
)  # fmt: skip
def test_direction_is_checked(cdb):
    """5.3, check 9: data must move the way the command says."""
    writes = int(cdb[:2], 16) in (0x2A, 0x2E, 0x2F, 0x41, 0x42, 0x55)
    result = run(cdb, allocation=512) if writes else run(cdb, bytes(512))
    assert outcome(result) == BAD_CDB


# ---- mode pages (9.5)


@pytest.mark.parametrize(
    "cdb, expected",
    [
        ("1a 00 3f ff ff 00", GOOD),
        ("1a 08 3f 00 ff 00", GOOD),
        ("1a 00 88 00 ff 00", GOOD),
        ("1a 00 c8 00 ff 00", (2, 0x86, (5, 0x39, 0))),
        ("1a 00 08 01 ff 00", BAD_CDB),
        ("1a 00 3f 01 ff 00", BAD_CDB),
        ("1a 00 0a 05 ff 00", BAD_CDB),
        ("1a 00 00 00 ff 00", BAD_CDB),
    ],
)
def test_mode_sense(cdb, expected):
    assert outcome(run(cdb, allocation=255)) == expected


def test_nothing_is_changeable():
    assert run("1a 00 48 00 ff 00", allocation=255).data_in.hex(" ", 4) == "0f001000 080a0000 00000000 00000000"


def test_mode_sense_header_counts_the_whole_answer():
    assert run("1a 00 08 00 04 00", allocation=4).data_in.hex() == "0f001000"


PAGE = "080a0400 00000000 00000000"


@pytest.mark.parametrize(
    "cdb, parameters, expected",
    [
        ("15 10 00 00 10 00", "00000000" + PAGE, GOOD),
        ("55 10 00 00 000000 0014 00", "0000000000000000" + PAGE, GOOD),
        ("15 10 00 00 10 00", "00000000" + "88" + PAGE[2:], GOOD),
        ("15 10 00 00 1c 00", "00000000" + PAGE + PAGE, GOOD),
        ("15 10 00 00 04 00", "00000000", GOOD),
        ("15 00 00 00 04 00", "00000000", GOOD),
        ("15 10 00 00 00 00", "", GOOD),
        ("15 00 00 00 10 00", "00000000" + PAGE, BAD_CDB),
        ("15 11 00 00 10 00", "00000000" + PAGE, BAD_CDB),
        ("15 10 00 00 0f 00", "00000000" + PAGE, BAD_LIST_LENGTH),
        ("15 10 00 00 03 00", "000000", BAD_LIST_LENGTH),
        ("15 10 00 00 05 00", "0000000008", BAD_LIST_LENGTH),
        ("15 10 00 00 0f 00", "00000000" + PAGE[:-2], BAD_LIST_LENGTH),
        ("15 10 00 00 10 00", "00000000" + "080a0000 00000000 00000000", BAD_LIST),
        ("15 10 00 00 10 00", "00000000" + "080a0401 00000000 00000000", BAD_LIST),
        ("15 10 00 00 10 00", "00000000" + "08120400 00000000 00000000", BAD_LIST),
        ("15 10 00 00 10 00", "00000000" + "0a0a0400 00000000 00000000", BAD_LIST),
        ("15 10 00 00 10 00", "00000008" + PAGE, BAD_LIST),
        ("55 10 00 00 000000 0014 00", "0000000000000100" + PAGE, BAD_LIST),
    ],
)
def test_mode_select(cdb, parameters, expected):
    parameters = bytes.fromhex(parameters)
    result = run(cdb, parameters)
    assert outcome(result) == expected
    assert result.transferred == (len(parameters) if expected == GOOD else 0)


# ---- commands without an answer (9.7)


@pytest.mark.parametrize(
    "cdb, expected",
    [
        ("00 00 00 00 00 00", GOOD),
        ("35 00 00000000 00 0000 00", GOOD),
        ("35 02 00000000 00 0040 00", GOOD),
        ("35 00 00000000 00 0041 00", BAD_LBA),
        ("35 00 00000040 00 0000 00", BAD_LBA),
        ("91 00 0000000000000000 00000000 0000", GOOD),
        ("91 00 ffffffffffffffff 00000001 0000", BAD_LBA),
        ("1b 00 00 00 00 00", GOOD),
        ("1b 00 00 00 01 00", GOOD),
        ("1b 00 00 00 32 00", GOOD),
        ("1b 01 00 00 01 00", BAD_CDB),
        ("1e 00 00 00 01 00", GOOD),
        ("04 00 00 00 00 00", GOOD),
        ("16 00 00 00 00 00", GOOD),
        ("17 00 00 00 00 00", GOOD),
        ("56 00 00000000 00 0000 00", GOOD),
        ("57 00 00000000 00 0000 00", GOOD),
        ("1d 04 00 00 00 00", GOOD),
        ("1d 20 00 00 00 00", BAD_CDB),
        ("1d 10 00 00 00 00", BAD_CDB),
        ("1d 00 00 00 01 00", BAD_CDB),
        ("1c 00 00 00 00 00", BAD_OPCODE),
        ("4d 00 00000000 00 0000 00", BAD_OPCODE),
        ("5e 00 00000000 00 0000 00", GOOD),
        ("5e 04 00000000 00 0000 00", BAD_CDB),
        ("5f 00 00000000 00 0000 00", BAD_LIST_LENGTH),
        ("5f 07 00000000 00 3000 00", BAD_CDB),
        ("5f 08 00000000 00 1800 00", BAD_CDB),
        ("a3 0c 00000000 00000000 0000", BAD_OPCODE),
        ("9e 12 0000000000000000 00000028 0000", BAD_OPCODE),
        ("9e 00 0000000000000000 00000028 0000", BAD_OPCODE),
        ("89 00 0000000000000000 00000001 0000", BAD_OPCODE),
        ("a1 00 00000000 00000000 0000", BAD_OPCODE),
        ("34 00 00000000 00 0001 00", BAD_OPCODE),
        ("90 00 0000000000000000 00000001 0000", BAD_OPCODE),
    ],
)
def test_command_without_data(cdb, expected):
    """What is known of Hyper-V's disks and of OpenVMM's."""
    assert outcome(run(cdb, extensions=False)) == expected


@pytest.mark.parametrize(
    "cdb, expected",
    [
        ("1b 01 00 00 01 00", GOOD),
        ("1b 01 00 00 00 00", GOOD),
        ("1d 10 00 00 00 00", GOOD),
        ("1d 04 00 00 01 00", BAD_CDB),
        ("1d e0 00 00 00 00", BAD_CDB),
        ("1c 00 00 00 00 00", GOOD),
        ("1c 01 01 00 00 00", BAD_CDB),
        ("4d 00 00000000 00 0000 00", GOOD),
        ("4d 01 00000000 00 0000 00", BAD_CDB),
        ("4d 00 0d000000 00 0000 00", BAD_CDB),
        ("4d 00 2f000000 00 0000 00", BAD_CDB),
        ("4d 00 00010000 00 0000 00", BAD_CDB),
        ("4d 00 00000000 01 0000 00", BAD_CDB),
        ("a3 0c 00000000 00000000 0000", GOOD),
        ("a3 0c 04000000 00000000 0000", BAD_CDB),
        ("a3 0d 00000000 00000000 0000", GOOD),
        ("a3 0a 00000000 00000000 0000", BAD_CDB),
        ("9e 12 0000000000000000 00000018 0000", BAD_CDB),
        ("9e 12 0000000000000000 00000017 0000", BAD_CDB),
        ("9e 12 0000000000000040 00000018 0000", BAD_LBA),
        ("9e 00 0000000000000000 00000028 0000", BAD_CDB),
        ("89 00 0000000000000000 00000000 0000", GOOD),
        ("89 00 0000000000000000 00000001 0000", BAD_CDB),
        ("89 20 0000000000000000 00000000 0000", BAD_CDB),
        ("89 00 0000000000000040 00000000 0000", BAD_LBA),
        ("89 00 000000000000003f 00000002 0000", BAD_LBA),
        ("34 00 00000000 00 0040 00", GOOD),
        ("34 02 0000003f 00 0001 00", GOOD),
        ("34 00 0000003f 00 0002 00", BAD_LBA),
        ("90 00 0000000000000000 00000000 0000", GOOD),
        ("90 00 ffffffffffffffff 00000001 0000", BAD_LBA),
        ("25 00 00000001 0000 00 00", (2, 0x92, (5, 0x24, 0))),
    ],
)
def test_extensions_without_data(cdb, expected):
    assert outcome(run(cdb)) == expected


@pytest.mark.parametrize("cdb", ["35 00 00000000 00 0000 00", "1b 00 00 00 00 00"])
def test_flush_reaches_the_disk(cdb):
    assert outcome(make().execute(bytes.fromhex(cdb), disk_status=-4)) == (2, 0x84, (3, 3, 0))


@pytest.mark.parametrize("cdb", ["35 00 00000000 00 0000 00", "1b 00 00 00 00 00", "1b 00 00 00 04 00"])
def test_nothing_to_flush_on_a_read_only_disk(cdb):
    assert outcome(run(cdb, read_only=True)) == GOOD


# ---- READ, WRITE, VERIFY (9.6)


def cdb_of(op, lba, count, bits=0):
    """A READ, WRITE, WRITE AND VERIFY or VERIFY CDB of the size that the operation code says."""
    if op < 0x20:
        return bytes([op, lba >> 16, lba >> 8 & 0xFF, lba & 0xFF, count & 0xFF, 0])
    if op < 0x60:
        return bytes([op, bits]) + lba.to_bytes(4) + b"\0" + count.to_bytes(2) + b"\0"
    if op < 0xA0:
        return bytes([op, bits]) + lba.to_bytes(8) + count.to_bytes(4) + b"\0\0"
    return bytes([op, bits]) + lba.to_bytes(4) + count.to_bytes(4) + b"\0\0"


READS = (0x08, 0x28, 0x88, 0xA8)
WRITES = (0x0A, 0x2A, 0x8A, 0xAA)
WRITE_VERIFIES = (0x2E, 0x8E, 0xAE)
VERIFIES = (0x2F, 0x8F, 0xAF)


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("op", WRITES + WRITE_VERIFIES)
def test_write_then_read(op, sector_size):
    target = make(sector_size)
    data = bytes(range(251)) * 64
    data = data[: 3 * sector_size]
    result = target.execute(cdb_of(op, 7, 3), data)
    assert (outcome(result), result.transferred) == (GOOD, 3 * sector_size)
    for read in READS:
        result = target.execute(cdb_of(read, 6, 5), allocation=5 * sector_size)
        assert result.data_in == bytes(sector_size) + data.ljust(3 * sector_size, b"\0") + bytes(sector_size)


@pytest.mark.parametrize("op", READS + WRITES + WRITE_VERIFIES)
@pytest.mark.parametrize(
    "lba, count, expected",
    [(63, 1, GOOD), (0, 64, GOOD), (64, 1, BAD_LBA), (63, 2, BAD_LBA), (1, 64, BAD_LBA), (0x1FFFFF, 1, BAD_LBA)],
)
def test_range(op, lba, count, expected):
    if op in READS:
        result = make().execute(cdb_of(op, lba, count), allocation=count * 512)
    else:
        result = make().execute(cdb_of(op, lba, count), bytes(count * 512))
    assert outcome(result) == expected


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("lba", [2**64 - 1, 2**64 - 8, 2**63, 2**55, 2**52, 2**32])
@pytest.mark.parametrize("count", [0, 1, 8, 2**32 - 1])
@pytest.mark.parametrize("op", [0x88, 0x8A, 0x8E, 0x8F, 0x91, 0x93])
def test_range_near_the_end_of_arithmetic(op, count, lba, sector_size):
    """13: the last addresses do not wrap into the disk."""
    assert outcome(make(sector_size).execute(cdb_of(op, lba, count), bytes(8 * 512))) == BAD_LBA


@pytest.mark.parametrize("op", READS[1:] + WRITES[1:] + WRITE_VERIFIES + VERIFIES)
@pytest.mark.parametrize("lba, expected", [(0, GOOD), (63, GOOD), (64, BAD_LBA)])
def test_no_blocks(op, lba, expected):
    assert outcome(make().execute(cdb_of(op, lba, 0), allocation=512)) == expected


@pytest.mark.parametrize("op", [0x08, 0x0A])
def test_no_blocks_in_six_bytes_are_256(op):
    target = make(blocks=256)
    result = target.execute(cdb_of(op, 0, 0), bytes(0x20000) if op == 0x0A else b"", 0 if op == 0x0A else 0x20000)
    assert (outcome(result), result.transferred) == (GOOD, 0x20000)
    assert outcome(target.execute(cdb_of(op, 1, 0), bytes(0x20000))) == BAD_LBA


def test_upper_bits_of_six_byte_commands_are_no_address():
    assert outcome(make().execute(bytes.fromhex("08 e0 00 00 01 00"), allocation=512)) == GOOD


@pytest.mark.parametrize("op", READS[1:] + WRITES[1:] + WRITE_VERIFIES + VERIFIES)
@pytest.mark.parametrize("bits, expected", [(0x01, BAD_CDB), (0x20, BAD_CDB), (0x80, BAD_CDB), (0x18, GOOD)])
def test_option_bits(op, bits, expected):
    sent = op in WRITES + WRITE_VERIFIES
    result = make().execute(cdb_of(op, 0, 1, bits), bytes(512) if sent else b"", 0 if sent else 512)
    assert outcome(result) == expected


@pytest.mark.parametrize("op", READS + WRITES + WRITE_VERIFIES)
def test_transfer_beyond_the_buffer(op):
    """5.8: nothing moves."""
    target = make()
    sent = op not in READS
    result = target.execute(cdb_of(op, 0, 2), b"x" * 1023 if sent else b"", 0 if sent else 1023)
    assert outcome(result) == BAD_LBA
    assert target.image.read(0, 1024) == bytes(1024)


@pytest.mark.parametrize("op", READS + WRITES)
def test_transfer_within_a_larger_buffer(op):
    target = make()
    sent = op in WRITES
    result = target.execute(cdb_of(op, 0, 1), b"x" * 1024 if sent else b"", 0 if sent else 1024)
    assert (outcome(result), result.transferred) == (GOOD, 512)
    assert target.image.read(512, 512) == bytes(512)


def test_max_transfer():
    """5.3, check 6."""
    target = make(max_transfer=4096)
    assert outcome(target.execute(cdb_of(0x28, 0, 8), allocation=4096)) == GOOD
    assert outcome(target.execute(cdb_of(0x28, 0, 8), allocation=4608)) == BAD_CDB
    assert outcome(target.execute(cdb_of(0x28, 0, 9), allocation=4096)) == BAD_LBA
    assert outcome(target.execute(cdb_of(0x2F, 0, 9, 6), BLOCK)) == BAD_LBA


@pytest.mark.parametrize(
    "cdb, data",
    [(cdb_of(op, 0, 1), BLOCK) for op in WRITES + WRITE_VERIFIES]
    + [
        (cdb_of(0x41, 0, 1), BLOCK),
        (cdb_of(0x93, 0, 1, 1), b""),
        (cdb_of(0x93, 0, 1, 8), BLOCK),
        (bytes.fromhex("42 00 00000000 00 0018 00"), bytes(24)),
        (bytes.fromhex("42 00 00000000 00 0000 00"), b""),
        (bytes.fromhex("04 00 00 00 00 00"), b""),
    ],
)
def test_write_protection(cdb, data):
    target = make(read_only=True)
    assert outcome(target.execute(cdb, data)) == PROTECTED
    assert target.image.read(0, 512) == bytes(512)


@pytest.mark.parametrize("op", VERIFIES)
@pytest.mark.parametrize(
    "bits, data, expected",
    [
        (0, b"", GOOD),
        (2, BLOCK + BLOCK, GOOD),
        (2, BLOCK + BLOCK[::-1], (2, 0x84, (0xE, 0x1D, 0))),
        (2, BLOCK, BAD_LBA),
        (6, BLOCK, GOOD),
        (6, BLOCK[::-1], (2, 0x84, (0xE, 0x1D, 0))),
        (4, BLOCK, BAD_CDB),
    ],
)
def test_verify(op, bits, data, expected):
    target = make()
    target.image.write(512, BLOCK + BLOCK)
    assert outcome(target.execute(cdb_of(op, 1, 2, bits), data)) == expected


def test_verify_compares_every_byte_of_long_ranges():
    target = make(blocks=256)
    data = bytearray(bytes(range(255)) * 600)[: 256 * 512]
    target.image.write(0, data)
    assert outcome(target.execute(cdb_of(0x2F, 0, 256, 2), data)) == GOOD
    for position in (0, 4095, 4096, 70000, len(data) - 1):
        data[position] ^= 1
        assert outcome(target.execute(cdb_of(0x2F, 0, 256, 2), data)) == (2, 0x84, (0xE, 0x1D, 0))
        data[position] ^= 1


@pytest.mark.parametrize("op", WRITE_VERIFIES)
@pytest.mark.parametrize("bits, expected", [(0, GOOD), (2, GOOD), (4, BAD_CDB), (6, BAD_CDB)])
def test_write_and_verify_compare_bits(op, bits, expected):
    assert outcome(make().execute(cdb_of(op, 0, 1, bits), BLOCK)) == expected


@pytest.mark.parametrize(
    "cdb, to_guest, expected",
    [
        (cdb_of(0x28, 3, 2), True, MediaAccess("read", 1536, 1024)),
        (cdb_of(0x28, 3, 2, 0x10), True, MediaAccess("read", 1536, 1024)),
        (cdb_of(0x88, 3, 2, 0x08), True, MediaAccess("read", 1536, 1024, fua=True)),
        (cdb_of(0x0A, 3, 2), False, MediaAccess("write", 1536, 1024)),
        (cdb_of(0x2A, 3, 2), False, MediaAccess("write", 1536, 1024)),
        (cdb_of(0x2A, 3, 2, 0x08), False, MediaAccess("write", 1536, 1024, fua=True)),
        (cdb_of(0xAA, 3, 2, 0x18), False, MediaAccess("write", 1536, 1024, fua=True)),
        (cdb_of(0x2E, 3, 2), False, MediaAccess("write", 1536, 1024, fua=True)),
        (cdb_of(0xAE, 3, 2), False, MediaAccess("write", 1536, 1024, fua=True)),
        (cdb_of(0x8F, 3, 2, 2), False, MediaAccess("verify", 1536, 1024)),
        (cdb_of(0x8F, 3, 2), False, None),
        (cdb_of(0x35, 0, 0), True, MediaAccess("flush")),
        (cdb_of(0x91, 3, 2), True, MediaAccess("flush")),
        (bytes.fromhex("1b 00 00 00 00 00"), True, MediaAccess("flush")),
        (bytes.fromhex("1b 00 00 00 04 00"), True, None),
        (cdb_of(0x41, 3, 2), False, MediaAccess("write same", 1536, 1024)),
        (bytes.fromhex("42 00 00000000 00 0400 00"), False, MediaAccess("parameters")),
        (cdb_of(0x28, 63, 2), True, None),
        (bytes(6), True, None),
    ],
)
def test_media_access(cdb, to_guest, expected):
    """FUA makes a write durable before it completes, as WRITE AND VERIFY always is."""
    target = make()
    target.raise_unit_attention(0x2A, 9)
    assert target.media_access(cdb, 1024, to_guest=to_guest) == expected
    assert outcome(target.execute(bytes(6))) == ATTENTION


def test_nothing_is_flushed_for_a_read_of_a_read_only_disk():
    assert make(read_only=True).media_access(cdb_of(0x28, 0, 1, 8), 512) == MediaAccess("read", 0, 512)


# ---- UNMAP and WRITE SAME (9.8, 9.9)


def unmap_list(*extents, data_length=None, extent_length=None):
    body = b"".join(lba.to_bytes(8) + count.to_bytes(4) + bytes(4) for lba, count in extents)
    data_length = len(body) + 6 if data_length is None else data_length
    extent_length = len(body) if extent_length is None else extent_length
    return data_length.to_bytes(2) + extent_length.to_bytes(2) + bytes(4) + body


@pytest.mark.parametrize(
    "parameters, expected, gone",
    [
        (unmap_list((1, 2)), GOOD, {1, 2}),
        (unmap_list((0, 1), (63, 1)), GOOD, {0, 63}),
        (unmap_list((99, 0), (5, 1)), GOOD, {5}),
        (unmap_list(), GOOD, set()),
        (unmap_list((3, 1), (63, 2)), BAD_LBA, set()),
        (unmap_list((2**64 - 1, 2**32 - 1)), BAD_LBA, set()),
        (unmap_list((1, 1), data_length=21), BAD_CDB, set()),
        (unmap_list((1, 1), extent_length=15), BAD_LIST, set()),
        (unmap_list((1, 1), extent_length=32), BAD_LIST, set()),
    ],
)
def test_unmap(parameters, expected, gone):
    target = make()
    target.image.write(0, b"\1" * 512 * BLOCKS)
    cdb = b"\x42" + bytes(6) + len(parameters).to_bytes(2) + b"\0"
    result = target.execute(cdb, parameters)
    assert outcome(result) == expected
    assert result.transferred == (len(parameters) if expected == GOOD else 0)
    assert {n for n in range(BLOCKS) if target.image.read(512 * n, 512) == bytes(512)} == gone


@pytest.mark.parametrize(
    "cdb, sent, options, expected",
    [
        ("42 00 00000000 00 0000 00", 0, {}, GOOD),
        ("42 01 00000000 00 0018 00", 24, {}, BAD_CDB),
        ("42 00 00000000 00 0018 00", 25, {}, BAD_CDB),
        ("42 00 00000000 00 0007 00", 7, {}, BAD_CDB),
        ("42 00 00000000 00 0018 00", 24, {"discard": False}, BAD_OPCODE),
    ],
)
def test_unmap_command(cdb, sent, options, expected):
    assert outcome(run(cdb, unmap_list((0, 1)).ljust(32, b"\0")[:sent], **options)) == expected


def test_unmap_of_as_many_ranges_as_fit():
    """13: overlapping ranges of the whole disk are no more work than the list is long."""
    target = make()
    target.image.write(0, b"\1" * 512 * BLOCKS)
    parameters = unmap_list(*[(0, BLOCKS)] * 4095)
    result = target.execute(b"\x42" + bytes(6) + len(parameters).to_bytes(2) + b"\0", parameters)
    assert outcome(result) == GOOD
    assert target.image.read(0, 512 * BLOCKS) == bytes(512 * BLOCKS)


def test_discard_is_a_hint():
    """9.8: a backend that cannot discard is no error."""
    cdb = bytes.fromhex("42 00 00000000 00 0018 00")
    assert outcome(make().execute(cdb, unmap_list((0, 1)), disk_status=-7)) == GOOD


@pytest.mark.parametrize(
    "cdb, data, expected, moved",
    [
        (cdb_of(0x41, 2, 3), BLOCK, GOOD, 512),
        (cdb_of(0x93, 2, 3), BLOCK + b"more", GOOD, 512),
        (cdb_of(0x93, 2, 3, 1), b"", GOOD, 0),
        (cdb_of(0x41, 2, 3, 1), BLOCK, BAD_CDB, 0),
        (cdb_of(0x41, 2, 3, 8), BLOCK, GOOD, 512),
        (cdb_of(0x93, 2, 3, 8), BLOCK, GOOD, 512),
        (cdb_of(0x93, 2, 3, 9), b"", GOOD, 0),
        (cdb_of(0x93, 2, 3, 16), BLOCK, BAD_CDB, 0),
        (cdb_of(0x93, 2, 3, 2), BLOCK, BAD_CDB, 0),
        (cdb_of(0x93, 2, 3, 32), BLOCK, BAD_CDB, 0),
        (cdb_of(0x41, 2, 3), BLOCK[:-1], BAD_CDB, 0),
        (cdb_of(0x41, 62, 3), BLOCK, BAD_LBA, 0),
    ],
)
def test_write_same(cdb, data, expected, moved):
    target = make()
    target.image.write(0, b"\1" * 512 * BLOCKS)
    result = target.execute(cdb, data)
    assert (outcome(result), result.transferred) == (expected, moved)
    written = bytes(512) if cdb[0] == 0x93 and cdb[1] & 1 else BLOCK
    middle = written * 3 if expected == GOOD else b"\1" * 1536
    assert target.image.read(512, 2560) == b"\1" * 512 + middle + b"\1" * 512


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_write_same_to_the_end_within_its_limit(sector_size):
    most = (8 << 20) // sector_size
    target = make(sector_size, blocks=most + 1)
    block = bytes(range(256)) * (sector_size // 256)
    assert outcome(target.execute(cdb_of(0x93, 0, 0), block)) == BAD_CDB
    assert outcome(target.execute(cdb_of(0x93, 0, most + 1), block)) == BAD_CDB
    assert outcome(target.execute(cdb_of(0x93, 1, 0), block)) == GOOD
    assert target.image.read(0, 2 * sector_size) == bytes(sector_size) + block
    assert target.image.read(most * sector_size, sector_size) == block


# ---- what the disk says (10)


@pytest.mark.parametrize(
    "status, expected",
    [
        (-1, (2, 0x84, (5, 0x21, 0))),
        (-2, PROTECTED),
        (-3, (2, 0x84, (3, 0x11, 0))),
        (-4, (2, 0x84, (3, 3, 0))),
        (-5, (2, 0x84, (7, 0x27, 7))),
        (-7, (2, 0x84, (3, 0, 0))),
        (-8, (2, 0x84, (3, 0, 0))),
        (-99, (2, 0x84, (3, 0, 0))),
        (1, (2, 0x84, (0xE, 0x1D, 0))),
    ],
)
@pytest.mark.parametrize("op", [0x28, 0x2A])
def test_disk_status(op, status, expected):
    target = make()
    cdb = cdb_of(op, 0, 1)
    result = target.execute(cdb, BLOCK if op == 0x2A else b"", 0 if op == 0x2A else 512, disk_status=status)
    assert outcome(result) == expected
    assert len(result.sense) == 18


@pytest.mark.parametrize(
    "lba, count, information",
    [(5, 1, bytes.fromhex("f0000300000005")), (5, 2, bytes.fromhex("70000300000000")),
     (2**32 - 1, 1, bytes.fromhex("f00003ffffffff")), (2**32, 1, bytes.fromhex("70000300000000"))],
)  # fmt: skip
def test_information_is_the_bad_block_where_it_is_known(lba, count, information):
    target = make(blocks=2**32 + 8)
    result = target.execute(cdb_of(0x88, lba, count), allocation=512 * count, disk_status=-3)
    assert result.sense[:7] == information


def test_closed_disk_fails_commands_on_the_medium():
    target = make()
    target.image.close()
    assert outcome(target.execute(cdb_of(0x28, 0, 1), allocation=512)) == (2, 0x84, (3, 0, 0))
    assert outcome(target.execute(bytes(6))) == GOOD


# ---- unit attention (11)


def attentive():
    target = make()
    target.raise_unit_attention(0x2A, 0x09)
    return target


@pytest.mark.parametrize("cdb", [bytes(6), cdb_of(0x2A, 0, 1), b"\x85" + bytes(15), bytes.fromhex("25") + bytes(9)])
def test_unit_attention_is_reported_once_instead_of_the_command(cdb):
    target = attentive()
    assert outcome(target.execute(cdb, BLOCK)) == ATTENTION
    assert target.image.read(0, 512) == bytes(512)
    assert outcome(target.execute(bytes(6))) == GOOD


@pytest.mark.parametrize("cdb", ["12 00 00 00 24 00", "a0 00 00 000000 00001000 0000"])
def test_unit_attention_stays_for_other_commands(cdb):
    target = attentive()
    assert outcome(target.execute(bytes.fromhex(cdb), allocation=4096)) == GOOD
    assert outcome(target.execute(bytes(6))) == ATTENTION


def test_request_sense_takes_the_unit_attention():
    target = attentive()
    cdb = bytes.fromhex("03 00 00 00 12 00")
    assert outcome(target.execute(cdb, allocation=17)) == BAD_CDB
    assert target.execute(cdb, allocation=18).data_in.hex() == "700006000000000a000000002a0900000000"
    assert target.execute(cdb, allocation=18).data_in.hex() == "700000000000000a00000000000000000000"
    assert outcome(target.execute(bytes(6))) == GOOD


def test_unit_attention_of_higher_priority_is_kept():
    target = make()
    target.raise_unit_attention(0x29, 0)
    target.raise_unit_attention(0x2A, 9)
    assert outcome(target.execute(bytes(6))) == (2, 0x84, (6, 0x29, 0))
    target.raise_unit_attention(0x2A, 9)
    target.raise_unit_attention(0x29, 0)
    assert outcome(target.execute(bytes(6))) == (2, 0x84, (6, 0x29, 0))
    assert outcome(target.execute(bytes(6))) == GOOD


def test_unit_attention_is_reported_to_one_of_many():
    target = attentive()
    start = threading.Barrier(4)
    seen = []

    def ask():
        start.wait()
        seen.extend(outcome(target.execute(bytes(6))) for _ in range(100))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (seen.count(ATTENTION), seen.count(GOOD)) == (1, 399)


# ---- absent LUNs and REPORT LUNS (7)


@pytest.mark.parametrize(
    "cdb, lun, allocation, expected, length",
    [
        ("12 00 00 00 24 00", 9, 36, GOOD, 36),
        ("12 00 00 00 ff 00", 255, 255, GOOD, 104),
        ("12 00 00 00 05 00", 1, 36, GOOD, 5),
        ("12 00 00 00 04 00", 1, 36, BAD_CDB, 0),
        ("12 00 00 00 25 00", 1, 36, BAD_CDB, 0),
        ("12 01 00 00 24 00", 1, 36, BAD_CDB, 0),
        ("12 00 80 00 24 00", 1, 36, BAD_CDB, 0),
        ("03 00 00 00 12 00", 1, 18, (2, 0x20, (0, 0, 0)), 0),
        ("00 00 00 00 00 00", 1, 0, (2, 0x20, (0, 0, 0)), 0),
        ("28 00 00000000 00 0001 00", 1, 512, (2, 0x20, (0, 0, 0)), 0),
    ],
)
def test_absent_lun(cdb, lun, allocation, expected, length):
    result = absent(bytes.fromhex(cdb), lun, allocation)
    assert outcome(result) == expected
    assert len(result.data_in) == length
    assert result.data_in[:1] in (b"", b"\x7f")


def test_absent_lun_zero_keeps_its_names():
    inquiry = bytes.fromhex("12 00 00 00 24 00")
    assert absent(inquiry, 0, 36).data_in == bytes.fromhex("7f00050263000000") + b"Msft    Virtual Disk    1.0 "


def test_report_luns_lists_ascending():
    data = report_luns([200, 3], bytes.fromhex("a0 00 00 000000 00001000 0000"), 4096).data_in
    assert data.hex() == "0000001000000000" + "0003000000000000" + "00c8000000000000"
    everything = report_luns(range(256), bytes.fromhex("a0 00 00 000000 00001000 0000"), 4096).data_in
    assert list(everything[9::8]) == list(range(256))


@pytest.mark.parametrize("alloc, buffer, length", [(4096, 20, 20), (20, 4096, 20), (0, 4096, 0), (7, 64, 0)])
def test_report_luns_is_truncated(alloc, buffer, length):
    cdb = bytes.fromhex("a0 00 00 000000") + alloc.to_bytes(4) + b"\0\0"
    assert len(report_luns([0, 1], cdb, buffer).data_in) == length


# ---- arguments


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: Target(object()), TypeError, "image must be a hvcore.disk backend, not object"),
        (lambda: Target(None), TypeError, "not NoneType"),
        (lambda: make(id=b"short"), ValueError, "id has 16 bytes, not 5"),
        (lambda: make(id=16), TypeError, "bytes-like"),
        (lambda: make(serial="x" * 65), ValueError, "at most 64 ASCII"),
        (lambda: make(serial="é"), ValueError, "at most 64 ASCII"),
        (lambda: make().execute(b""), ValueError, "1 to 16 bytes, not 0"),
        (lambda: make().execute(bytes(17)), ValueError, "1 to 16 bytes, not 17"),
        (lambda: make().execute(6), TypeError, "bytes-like"),
        (lambda: make().execute(bytes(6), "text"), TypeError, "bytes-like"),
        (lambda: make().execute(bytes(6), b"x", 1), ValueError, "one way"),
        (lambda: absent(bytes(6), 256), ValueError, "a LUN is 0 to 255, not 256"),
        (lambda: report_luns([-1], bytes(12), 8), ValueError, "a LUN is 0 to 255, not -1"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_short_cdb_reads_as_zeros():
    """5.3, check 4: a READ(10) of six bytes asks for no blocks."""
    result = make().execute(bytes.fromhex("28 00 00 00 00 00"), allocation=512)
    assert (outcome(result), result.data_in) == (GOOD, b"")
