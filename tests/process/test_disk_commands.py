"""What a disk's calls send beside reads and writes (storvsp.md 9), and what is said when the device cannot."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import hvcore
from hvcore.errors import DiskError, ProtocolError
from hvcore.partition.disk import Disk, Extent, _extents
from hvcore.partition.failure import disk_error
from tests.reference.vms import MIB, content, raw

BLOCK = 4096


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with hvcore.Host() as host, host.create_vm("commands", "32M", [raw(tmp_path / "disk", content(MIB))]) as vm:
        vm.start()
        with vm.attach() as guest:
            yield guest.disks[0]


def or_unsupported(call: Callable[[], object]) -> object:
    """What it returns; None when the device has no such command, which the error says."""
    try:
        return call() or True
    except DiskError as error:
        assert (error.sense_key, error.asc) == (5, 0x20), error
        assert "command not supported" in str(error)
        return None


def test_ready_and_forced_writes(disk: Disk) -> None:
    disk.ready(timeout=10)
    disk.write(BLOCK, b"f" * BLOCK, fua=True)
    assert disk.read(BLOCK, BLOCK) == b"f" * BLOCK


def test_verify(disk: Disk) -> None:
    """Longer than one command may be, and wrong at one byte."""
    data = content(MIB)
    disk.verify(0, data)
    disk.verify(BLOCK, memoryview(data)[BLOCK : 3 * BLOCK])
    disk.verify(0, b"")
    wrong = bytearray(data)
    wrong[777777] ^= 1
    with pytest.raises(DiskError, match="the data differs from what the disk holds") as caught:
        disk.verify(0, wrong)
    assert (caught.value.sense_key, caught.value.asc) == (0xE, 0x1D)
    with pytest.raises(ValueError, match="not within the disk"):
        disk.verify(MIB - 512, bytes(1024))


def test_write_zeroes(disk: Disk) -> None:
    if or_unsupported(lambda: disk.write_zeroes(BLOCK, 3 * BLOCK)):
        assert disk.read(0, 5 * BLOCK) == content(MIB)[:BLOCK] + bytes(3 * BLOCK) + content(MIB)[4 * BLOCK : 5 * BLOCK]


def test_compare_and_write(disk: Disk) -> None:
    old = content(MIB)[:512]
    with pytest.raises(ValueError, match="512 bytes are expected and 1024 are to be written"):
        disk.compare_and_write(0, old, bytes(1024))
    with pytest.raises(ValueError, match="1 to 255 sectors, not 256"):
        disk.compare_and_write(0, bytes(256 * 512), bytes(256 * 512))
    if or_unsupported(lambda: disk.compare_and_write(0, old, b"n" * 512)):
        assert disk.read(0, 512) == b"n" * 512
        assert not disk.compare_and_write(0, old, b"m" * 512)
        assert disk.read(0, 512) == b"n" * 512


def test_status(disk: Disk) -> None:
    extents = or_unsupported(disk.status)
    if extents:
        assert isinstance(extents, list)
        assert sum(extent.length for extent in extents) == MIB
        assert extents[0] == Extent(0, MIB, "mapped")
        assert disk.status(BLOCK, BLOCK) == [Extent(BLOCK, BLOCK, "mapped")]


def test_execute(disk: Disk) -> None:
    status, sense, data = disk.execute(bytes([0x12, 0, 0, 0, 36, 0]), allocation=36)
    assert (status, sense, data[8:16]) == (0, b"", b"Msft    ")
    status, sense, data = disk.execute(bytes([0xFF]) + bytes(5))
    assert (status, sense[2], sense[12], data) == (2, 5, 0x20, b"")
    assert disk.execute(bytes.fromhex("2a000000000000000100"), bytes(512))[0] == 0
    assert disk.read(0, 512) == bytes(512)
    with pytest.raises(ValueError, match="a CDB has 1 to 16 bytes, not 0"):
        disk.execute(b"")


def test_asyncio_twins(disk: Disk) -> None:
    async def calls() -> None:
        await disk.aready()
        await disk.averify(0, content(MIB)[:BLOCK])
        await disk.awrite(0, b"a" * 512, fua=True)

    asyncio.run(calls())
    assert disk.read(0, 512) == b"a" * 512


def test_reset(disk: Disk) -> None:
    """Section 12: success, and nothing is lost."""
    disk.channel.reset()
    disk.channel.reset(lun=0)
    disk.ready()


def test_extents_of_an_answer() -> None:
    """V29b, and an answer cut within a descriptor."""
    data = bytes.fromhex(
        "0000002400000000 0000000000001000 00000800 00000000 0000000000001800 00000800 01000000".replace(" ", "")
    )
    found = [Extent(0x1000 * 512, 0x100000, "mapped"), Extent(0x1800 * 512, 0x100000, "deallocated")]
    assert _extents(data, 512) == found
    assert _extents(data[:-1], 512) == found[:1]
    assert _extents(data[:8], 512) == []


@pytest.mark.parametrize(
    ("srb", "scsi", "sense", "text", "errno_name"),
    [
        (0x20, 2, "", "the disk was removed", "ENODEV"),
        (0x05, 0x28, "", "TASK SET FULL", "EBUSY"),
        (0x05, 0x08, "", "the disk is busy", "EBUSY"),
        (0x04, 0x18, "", "reservation conflict", "EBADE"),
        (0x84, 2, "70000700000000000000000027070000", "no space left", "ENOSPC"),
        (0x84, 2, "70000300000000000000000011000000", "unrecovered read error", "EIO"),
        (0x84, 2, "70000200000000000000000099000000", "sense 2/99/00", "ENOMEDIUM"),
        (0x12, 0, "", "SCSI status 0x00", "EIO"),
    ],
)
def test_errors_say_what_happened(srb: int, scsi: int, sense: str, text: str, errno_name: str) -> None:
    import errno

    error = disk_error(3, (0, srb, scsi, bytes.fromhex(sense), b""))
    assert str(error).startswith("disk 3: ") and text in str(error)
    assert error.errno == getattr(errno, errno_name)


def test_a_device_that_lists_nothing(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_command", lambda *_, **__: bytes(8))
    with pytest.raises(ProtocolError, match="does not say what is at byte 0"):
        disk.status()
