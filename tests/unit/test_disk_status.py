"""What of a disk takes space, in each format and through chains; GET LBA STATUS on top (storvsp.md 9.10)."""

import os

import pytest

from hvcore import vhd
from hvcore.disk.file import FileDisk
from hvcore.disk.image import open_image
from hvcore.disk.medium import ImageFile
from hvcore.disk.null import NullDisk
from hvcore.disk.ram import RamDisk
from hvcore.disk.switch import SwitchDisk
from hvcore.scsi import Target

MIB = 1 << 20


def pieces(disk):
    """[(offset, length, mapped)] of the whole disk, equal neighbours joined."""
    found, at = [], 0
    while at < disk.size:
        length, mapped = disk.status(at, disk.size - at)
        assert 0 < length <= disk.size - at
        if found and found[-1][2] == mapped:
            found[-1] = (found[-1][0], found[-1][1] + length, mapped)
        else:
            found.append((at, length, mapped))
        at += length
    return found


def lba_status(disk, lba=0, room=4096):
    """The same in blocks, from GET LBA STATUS."""
    cdb = b"\x9e\x12" + lba.to_bytes(8) + room.to_bytes(4) + b"\0\0"
    result = Target(disk).execute(cdb, allocation=room)
    assert result.status == 0
    data = result.data_in
    assert int.from_bytes(data[:4]) == len(data) - 4
    return [
        (int.from_bytes(data[at : at + 8]), int.from_bytes(data[at + 8 : at + 12]), data[at + 12] == 0)
        for at in range(8, len(data), 16)
    ]


def test_null_disk_has_nothing():
    assert pieces(NullDisk(3 << 40)) == [(0, 3 << 40, False)]
    assert lba_status(NullDisk(3 << 40)) == [(0, 2**32 - 1, False), (2**32 - 1, (3 << 40) // 512 - 2**32 + 1, False)]


def test_ram_disk_has_what_is_not_zeros():
    disk = RamDisk(4 * MIB)
    disk.write(MIB, b"\1" * 8192)
    disk.write(2 * MIB, bytes(4096))
    assert pieces(disk) == [(0, MIB, False), (MIB, 8192, True), (MIB + 8192, 3 * MIB - 8192, False)]
    disk.trim(MIB, 8192)
    assert pieces(disk) == [(0, 4 * MIB, False)]


def test_raw_file_has_no_holes(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(8 * MIB)
    with FileDisk(ImageFile(os.open(path, os.O_RDWR)), 8 * MIB, read_only=False, can_trim=True) as disk:
        assert pieces(disk) == [(0, 8 * MIB, False)]
        disk.write(2 * MIB, b"\1" * MIB)
        disk.flush()
        assert pieces(disk) == [(0, 2 * MIB, False), (2 * MIB, MIB, True), (3 * MIB, 5 * MIB, False)]
        with SwitchDisk(disk) as switch:
            assert lba_status(switch, 4096) == [(4096, 2048, True), (6144, 10240, False)]
            assert lba_status(switch, 4097, 24) == [(4097, 2047, True)]
            assert lba_status(switch, 0, 39) == [(0, 4096, False)]


@pytest.mark.parametrize("format", ["vhdx", "vhd"])
def test_blocks_through_a_chain(tmp_path, format):
    parent, child = tmp_path / f"parent.{format}", tmp_path / f"child.{format}"
    block = 2 * MIB
    vhd.create(parent, 16 * MIB, format=format, block_size=block)
    with vhd.open(parent, "r+") as image:
        image.write(block, b"\1" * 512)
    vhd.create_child(parent, child)
    with open_image(child, mode="r+") as disk:
        size = disk.size
        assert pieces(disk) == [(0, block, False), (block, block, True), (2 * block, size - 2 * block, False)]
        disk.write(3 * block, b"\2" * 512)
        found = pieces(disk)
        assert (0, block, False) in found
        assert any(at <= 3 * block < at + length and mapped for at, length, mapped in found)
        if format == "vhdx":
            disk.trim(block, block)
            assert disk.status(block, block) == (block, False)
            assert disk.read(block, 512) == bytes(512)


def test_ranges_are_checked():
    disk = RamDisk(4096)
    assert disk.status(0, 0) == (0, False)
    for offset, length in ((0, 8192), (4096, 512), (1, 512)):
        with pytest.raises(ValueError):
            disk.status(offset, length)
