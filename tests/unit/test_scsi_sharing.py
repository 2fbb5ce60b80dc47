"""Several initiators on one unit: unit attentions, COMPARE AND WRITE, aborted commands (storvsp.md 9.11, 10, 11)."""

import threading

import pytest

from hvcore.disk.ram import RamDisk
from hvcore.scsi import LogicalUnit, Target

BLOCKS = 64
READ = bytes.fromhex("28 00 00000000 00 0001 00")
WRITE = bytes.fromhex("2a 00 00000000 00 0001 00")
READY = bytes(6)


def shared(count=2, disk=None, **options):
    disk = disk or RamDisk(BLOCKS * 512)
    unit = LogicalUnit(disk)
    return unit, *(Target(disk, unit=unit, nexus=bytes([n]) * 16, **options) for n in range(1, count + 1))


def told(target):
    """The unit attention that waits, 0: none."""
    result = target.execute(READY)
    return result.asc << 8 | result.ascq if result.sense_key == 6 else 0


def out(target, action, kind=1, key=0, action_key=0, length=24, tail=bytes(8)):
    cdb = bytes([0x5F, action, kind, 0, 0]) + length.to_bytes(4) + b"\0"
    return target.execute(cdb, key.to_bytes(8) + action_key.to_bytes(8) + tail)


def outcome(result):
    return result.status, result.srb_status, result.asc << 8 | result.ascq


# ---- unit attentions


def test_unit_attentions_come_by_importance():
    target = Target(RamDisk(512))
    for code in (0x3F0E, 0x2A09, 0x2A05, 0x2A09, 0x2A03, 0x2A04):
        target.raise_unit_attention(code >> 8, code & 0xFF)
    assert [told(target) for _ in range(6)] == [0x2A03, 0x2A04, 0x2A05, 0x2A09, 0x3F0E, 0]


def test_a_reset_is_told_alone():
    unit, one, other = shared()
    one.raise_unit_attention(0x2A, 0x09)
    unit.reset()
    one.raise_unit_attention(0x2A, 0x09)
    assert [told(one), told(one), told(other), told(other)] == [0x2900, 0, 0x2900, 0]


def test_the_least_important_is_lost_when_many_wait():
    target = Target(RamDisk(512))
    for code in range(12):
        target.raise_unit_attention(0x40, 0x80 + code)
    target.raise_unit_attention(0x2A, 0x09)
    assert [told(target) for _ in range(9)] == [0x2A09, *range(0x4080, 0x4087), 0]


def test_every_initiator_hears_of_a_new_size():
    unit, one, other = shared()
    unit.resized()
    assert [told(one), told(one), told(other), told(other)] == [0x2A09, 0, 0x2A09, 0]
    unit.raise_unit_attention(0x3F, 0x0E)
    assert told(one) == told(other) == 0x3F0E


def test_a_new_initiator_is_told_nothing():
    unit, one = shared(1)
    unit.resized()
    assert told(Target(unit.image, unit=unit)) == 0
    assert told(one) == 0x2A09


# ---- reservations


def test_lists_that_ask_for_what_is_not_offered():
    unit, one = shared(1)
    for flag in (1, 4, 8):  # APTPL, ALL_TG_PT, SPEC_I_PT
        assert outcome(out(one, 0, action_key=1, tail=bytes([0, 0, 0, 0, flag, 0, 0, 0]))) == (2, 0x86, 0x2600)
    assert unit.registrations == {}
    assert unit.generation == 0


@pytest.mark.parametrize(
    "action, kind, length, sent, expected",
    [
        (0, 0, 24, 24, 0), (0, 0xFF, 24, 24, 0), (1, 2, 24, 24, 0x2400), (1, 0x11, 24, 24, 0x2400),
        (2, 0, 24, 24, 0x2400), (4, 4, 24, 24, 0x2400), (5, 9, 24, 24, 0x2400), (0, 0, 23, 23, 0x1A00),
        (0, 0, 25, 25, 0x1A00), (0, 0, 0, 0, 0x1A00), (0, 0, 24, 23, 0x2400), (0, 0, 24, 25, 0x1A00),
        (0, 0, 24 + (1 << 16), 24, 0x1A00), (7, 0, 24, 24, 0x1A00), (8, 0, 24, 24, 0x2400), (31, 0, 24, 24, 0x2400),
    ],
)  # fmt: skip
def test_persistent_reserve_out_command(action, kind, length, sent, expected):
    cdb = bytes([0x5F, action, kind, 0, 0]) + length.to_bytes(4) + b"\0"
    result = shared(1)[1].execute(cdb, bytes(sent))
    assert result.asc << 8 | result.ascq == expected


def test_no_more_registrations_than_there_is_room_for():
    disk = RamDisk(512)
    unit = LogicalUnit(disk)
    targets = [Target(disk, unit=unit, nexus=n.to_bytes(16)) for n in range(65)]
    assert [out(target, 0, action_key=7).status for target in targets] == [0] * 64 + [2]
    assert outcome(out(targets[64], 6, action_key=7)) == (2, 0x86, 0x5504)
    status = targets[0].execute(bytes.fromhex("5e 03 00 00 000000 1000 00"), allocation=4096)
    assert len(status.data_in) == 8 + 64 * 48
    assert status.data_in[32:56] == b"\4" + bytes(23)


def test_move_of_a_wrong_form():
    _, one, other = shared()
    out(one, 6, action_key=1)
    out(one, 1, 1, key=1)
    good = bytes([0, 0, 0, 1]) + (24).to_bytes(4) + b"\4" + bytes(7) + other.nexus
    for at, value in ((1, 1), (3, 2), (7, 23), (8, 5), (8, 0x44)):
        wrong = bytearray(good)
        wrong[at] = value
        assert outcome(out(one, 7, 0, 1, 2, 48, bytes(wrong))) == (2, 0x86, 0x2600)
    assert outcome(out(one, 7, 0, 1, 2, 48, good)) == (0, 1, 0)
    assert other.execute(WRITE, bytes(512)).status == 0
    assert outcome(one.execute(WRITE, bytes(512))) == (0x18, 4, 0)


def test_everybody_preempted_ends_what_all_hold():
    unit, one, other = shared()
    out(one, 6, action_key=1)
    out(other, 6, action_key=1)
    out(one, 1, 8, key=1)
    assert out(one, 4, 8, key=1, action_key=1).status == 0
    assert (unit.registrations, unit.reservation) == ({}, None)
    assert [told(one), told(other)] == [0, 0x2A05]


def test_a_reservation_survives_its_initiator():
    unit, one, other = shared()
    out(one, 6, action_key=1)
    out(one, 1, 3, key=1)
    one.close()
    with pytest.raises(ValueError, match="the target is closed"):
        one.execute(READY)
    assert outcome(other.execute(READ, allocation=512)) == (0x18, 4, 0)
    again = Target(unit.image, unit=unit, nexus=one.nexus)
    assert again.execute(READ, allocation=512).status == 0


def test_reserve_ends_with_its_initiator():
    _, one, other = shared()
    assert one.execute(bytes.fromhex("16") + bytes(5)).status == 0
    assert outcome(other.execute(READY)) == (0x18, 4, 0)
    assert outcome(other.execute(bytes.fromhex("5e 00 00 00 000000 0018 00"), allocation=24)) == (0x18, 4, 0)
    del one
    assert other.execute(READY).status == 0


def test_conflicts_come_after_unit_attentions():
    unit, one, other = shared()
    one.execute(bytes.fromhex("16") + bytes(5))
    unit.resized()
    assert told(other) == 0x2A09
    assert outcome(other.execute(READY)) == (0x18, 4, 0)


@pytest.mark.parametrize(
    "arguments, error",
    [({"nexus": b"short"}, "nexus has 16 bytes, not 5"), ({"id": bytes(16)}, "id and serial are the logical unit's")],
)
def test_bad_arguments(arguments, error):
    unit = LogicalUnit(RamDisk(512))
    with pytest.raises(ValueError, match=error):
        Target(unit.image, unit=unit, **arguments)


def test_identity_is_the_units():
    disk = RamDisk(512)
    unit = LogicalUnit(disk, id=bytes(range(16)), serial="S")
    assert {(target.id, target.serial) for target in (Target(disk, unit=unit), Target(disk, unit=unit))} == {
        (bytes(range(16)), "S")
    }


# ---- COMPARE AND WRITE (89), VERIFY


def compare_and_write(target, lba, expected, data, bits=0):
    count = len(expected) // target.image.sector_size
    cdb = bytes([0x89, bits]) + lba.to_bytes(8) + bytes([0, 0, 0, count, 0, 0])
    return target.execute(cdb, expected + data)


@pytest.mark.parametrize("sector_size, count", [(512, 1), (512, 128), (4096, 1), (4096, 16)])
def test_compare_and_write(sector_size, count):
    target = Target(RamDisk(256 * 4096, sector_size=sector_size))
    zeros, ones = bytes(count * sector_size), b"\1" * count * sector_size
    result = compare_and_write(target, 3, zeros, ones, 0x18)
    assert (outcome(result), result.transferred) == ((0, 1, 0), 2 * len(zeros))
    assert target.image.read(3 * sector_size, len(ones)) == ones
    differs = bytearray(ones)
    differs[-5] ^= 0xFF
    result = compare_and_write(target, 3, bytes(differs), zeros)
    assert (result.status, result.srb_status, result.sense_key, result.asc) == (2, 0x84, 0xE, 0x1D)
    assert result.sense[0] == 0xF0
    assert int.from_bytes(result.sense[3:7]) == len(ones) - 5
    assert target.image.read(3 * sector_size, len(ones)) == ones


def test_compare_and_write_has_a_limit():
    target = Target(RamDisk(256 * 512))
    assert outcome(compare_and_write(target, 0, bytes(129 * 512), bytes(129 * 512))) == (2, 0x86, 0x2400)
    cdb = bytes.fromhex("89 00 0000000000000000 000000 02 00 00")
    assert outcome(target.execute(cdb, bytes(2047))) == (2, 0x86, 0x2400)
    assert outcome(target.execute(cdb, allocation=4096)) == (2, 0x86, 0x2400)


def test_compare_and_write_is_one_step_for_all_initiators():
    """Counters in one block, counted up from four threads with two initiators: none is lost."""
    disk = RamDisk(BLOCKS * 512)
    unit = LogicalUnit(disk)
    rounds, wins = 200, []

    def count_up():
        target = Target(disk, unit=unit)
        done = 0
        while done < rounds:
            before = target.execute(READ, allocation=512).data_in
            after = (int.from_bytes(before) + 1).to_bytes(512)
            done += compare_and_write(target, 0, before, after).status == 0
        wins.append(done)

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(wins) == 4 * rounds == int.from_bytes(disk.read(0, 512))


@pytest.mark.parametrize("at", [0, 511, 512, 4095, 4096, 5119])
def test_verify_says_where_the_difference_is(at):
    target = Target(RamDisk(BLOCKS * 512))
    data = bytearray(10 * 512)
    data[at] = 1
    result = target.execute(bytes.fromhex("2f 02 00000000 00 000a 00"), bytes(data))
    assert (result.sense_key, result.sense[0], int.from_bytes(result.sense[3:7])) == (0xE, 0xF0, at)
