"""The SCSI target under arbitrary commands, and against a bytearray."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hvcore.disk.ram import RamDisk
from hvcore.scsi import Target
from hvcore.storage import protocol
from hvcore.storage.packet import Packet, ScsiRequest

SETTINGS = settings(derandomize=True, deadline=None, max_examples=200)
BLOCKS = 48
MEDIUM = bytes(range(1, 256)) * 97
OPCODES = [
    0x00, 0x03, 0x04, 0x08, 0x0A, 0x12, 0x15, 0x16, 0x17, 0x1A, 0x1B, 0x1D, 0x1E, 0x25, 0x28, 0x2A, 0x2E, 0x2F, 0x35,
    0x41, 0x42, 0x55, 0x56, 0x57, 0x5A, 0x1C, 0x34, 0x4D, 0x5E, 0x5F,
    0x88, 0x89, 0x8A, 0x8E, 0x8F, 0x91, 0x90, 0x93, 0x9E, 0xA0, 0xA3, 0xA8, 0xAA, 0xAE, 0xAF,
]  # fmt: skip
WRITING = {0x0A, 0x2A, 0x8A, 0xAA, 0x2E, 0x8E, 0xAE, 0x41, 0x93, 0x42, 0x89}

# Bytes that are mostly small reach further into the commands than uniform ones.
field = st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 255))
commands = st.one_of(
    st.binary(min_size=1, max_size=16),
    st.builds(lambda op, rest: bytes([op, *rest]), st.sampled_from(OPCODES), st.lists(field, max_size=15)),
)
lengths = st.sampled_from([0, 1, 4, 8, 12, 24, 36, 255, 511, 512, 1024, 4096, 4097, BLOCKS * 512])


def medium(sector_size=512, read_only=False):
    size = BLOCKS * 512
    if not read_only:
        disk = RamDisk(size, sector_size=sector_size)
        disk.write(0, MEDIUM[:size])
        return disk
    return RamDisk(size, sector_size=sector_size, read_only=True)


def consistent(result):
    """What holds of every answer (5.9, 6, checklist 8)."""
    assert (result.status == 0) == (result.srb_status == 1)
    assert bool(result.srb_status & 0x80) == bool(result.sense)
    if result.sense:
        assert len(result.sense) == 18
        assert result.sense[0] & 0x7F == 0x70
    if result.status:
        assert (result.data_in, result.transferred) == (b"", 0)
    if result.data_in:
        assert result.transferred == len(result.data_in)


@SETTINGS
@given(commands, lengths, st.booleans(), st.sampled_from([512, 4096]))
def test_answers_fit_and_change_nothing_unless_asked(cdb, allocation, strict, sector_size):
    disk = medium(sector_size)
    result = Target(disk, strict_alloc=strict).execute(cdb, allocation=allocation)
    consistent(result)
    assert len(result.data_in) <= allocation
    if cdb[0] != 0x93:  # WRITE SAME of zeros needs no data
        assert disk.read(0, disk.size) == MEDIUM[: disk.size]


@SETTINGS
@given(commands, lengths, st.integers(0, 255), st.booleans(), st.sampled_from([512, 4096]))
def test_only_writing_commands_write(cdb, length, filler, strict, sector_size):
    disk = medium(sector_size)
    data = bytes([filler]) * length
    result = Target(disk, strict_alloc=strict).execute(cdb, data)
    consistent(result)
    assert result.transferred <= length
    if result.status or cdb[0] not in WRITING:
        assert disk.read(0, disk.size) == MEDIUM[: disk.size]


@SETTINGS
@given(commands, lengths, st.booleans())
def test_read_only_disk_is_never_changed(cdb, length, sending):
    disk = medium(read_only=True)
    result = Target(disk).execute(cdb, b"\xff" * length if sending else b"", 0 if sending else length)
    consistent(result)
    assert disk.read(0, disk.size) == bytes(disk.size)


@SETTINGS
@given(st.binary(min_size=52, max_size=52), commands, lengths, st.sampled_from([48, 56, 64]))
@example(b"\xff" * 52, b"\x00", 0, 64)
def test_any_request_gets_a_well_formed_response(union, cdb, length, size):
    scsi = ScsiRequest.decode(union)
    request = bytearray(Packet(3, 1, union=union).encode())
    request[24:28] = length.to_bytes(4, "little")  # the buffer is the transport's affair
    request[28 : 28 + len(cdb)] = cdb
    sent = b"" if scsi.data_in else bytes(length)
    reply, data = protocol.execute(Target(medium()), request[:size], sent)
    packet = Packet.decode(reply)
    answer = ScsiRequest.decode(packet.union)
    assert (len(reply), packet.operation, packet.flags) == (size, 1, 0)
    assert (answer.path_id, answer.target_id, answer.lun) == (scsi.path_id, scsi.target_id, scsi.lun)
    assert answer.data_transfer_length <= length
    assert len(data) <= length
    assert (answer.scsi_status == 0) == (answer.srb_status == 1)
    assert not packet.status or answer.scsi_status
    if not answer.srb_status & 0x80:
        assert answer.payload == bytes(20)


SIZES = {6: (0x08, 0x0A), 10: (0x28, 0x2A), 12: (0xA8, 0xAA), 16: (0x88, 0x8A)}


def command(size, write, lba, count, bits):
    op = SIZES[size][write]
    if size == 6:
        return bytes([op]) + lba.to_bytes(3) + bytes([count & 0xFF, 0])
    if size == 10:
        return bytes([op, bits]) + lba.to_bytes(4) + b"\0" + count.to_bytes(2) + b"\0"
    if size == 12:
        return bytes([op, bits]) + lba.to_bytes(4) + count.to_bytes(4) + b"\0\0"
    return bytes([op, bits]) + lba.to_bytes(8) + count.to_bytes(4) + b"\0\0"


steps = st.lists(
    st.tuples(
        st.sampled_from(sorted(SIZES)), st.booleans(), st.integers(0, BLOCKS + 1), st.integers(1, 12),
        st.sampled_from([0, 0x08, 0x10, 0x18]), st.integers(0, 255),
    ),
    max_size=25,
)  # fmt: skip


@pytest.mark.parametrize("sector_size", [512, 4096])
@settings(SETTINGS, max_examples=100)
@given(steps)
def test_reads_and_writes_match_a_bytearray(sector_size, steps):
    disk = RamDisk(BLOCKS * sector_size, sector_size=sector_size)
    target = Target(disk)
    model = bytearray(disk.size)
    for size, write, lba, count, bits, seed in steps:
        start, end = lba * sector_size, (lba + count) * sector_size
        data = bytes((seed + i) & 0xFF for i in range(251)) * (count * sector_size // 251 + 1)
        data = data[: count * sector_size]
        cdb = command(size, write, lba, count, bits)
        result = target.execute(cdb, data if write else b"", 0 if write else len(data))
        if lba + count > BLOCKS:
            assert (result.status, result.sense_key, result.asc) == (2, 5, 0x21)
        else:
            assert (result.status, result.transferred) == (0, len(data))
            if write:
                model[start:end] = data
            else:
                assert result.data_in == model[start:end]
    assert disk.read(0, disk.size) == model
