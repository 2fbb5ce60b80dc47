"""RamDisk and NullDisk keep the contract of every backend."""

import pytest

from hvcore.disk.null import NullDisk
from hvcore.disk.ram import RamDisk
from hvcore.disk.vector import flush, readv, trim, writev

OK, RANGE, CLOSED = 0, -1, -8
SIZE = 256 << 10


@pytest.mark.parametrize("kind", [RamDisk, NullDisk])
def test_starts_as_zeros(kind: type) -> None:
    with kind(SIZE) as disk:
        assert disk.read(0, SIZE) == bytes(SIZE)
        assert (disk.size, disk.sector_size, disk.read_only) == (SIZE, 512, False)


@pytest.mark.parametrize("kind", [RamDisk, NullDisk])
def test_ranges(kind: type) -> None:
    disk = kind(SIZE, sector_size=4096)
    for offset in (SIZE - 1, SIZE + 1, (1 << 64) - 1):
        assert readv(disk, offset, [bytearray(2)]) == RANGE
        assert writev(disk, offset, [b"ab"]) == RANGE
        assert trim(disk, offset, 2) == RANGE
    assert readv(disk, 0, [bytearray(1)] * 1025) == RANGE
    assert readv(disk, SIZE, []) == flush(disk) == OK
    disk.close()
    disk.close()
    assert readv(disk, 0, []) == writev(disk, 0, []) == flush(disk) == trim(disk, 0, 0) == CLOSED


@pytest.mark.parametrize("kind", [RamDisk, NullDisk])
def test_sizes_that_make_no_sense(kind: type) -> None:
    for size, sector_size in ((0, 512), (1000, 512), (4096 + 512, 4096), (4096, 1024)):
        with pytest.raises(ValueError, match="size"):
            kind(size, sector_size=sector_size)


def test_null_drops_writes_and_overwrites_buffers() -> None:
    with NullDisk(SIZE) as disk:
        disk.write(0, b"x" * 512)
        buffers = [bytearray(b"y" * 100), bytearray(b"z" * 50)]
        assert readv(disk, 10, buffers) == OK
        assert buffers == [bytes(100), bytes(50)]


def test_memory_that_is_not_there() -> None:
    with pytest.raises(MemoryError):
        RamDisk(1 << 62)


@pytest.mark.parametrize(("offset", "length"), [(0, SIZE), (100, 5000), (4096, 4096), (1, 1), (4095, 2), (5000, 0)])
def test_trimmed_memory_is_zero(offset: int, length: int) -> None:
    with RamDisk(SIZE) as disk:
        disk.write(0, b"x" * SIZE)
        assert trim(disk, offset, length) == OK
        assert disk.read(0, SIZE) == b"x" * offset + bytes(length) + b"x" * (SIZE - offset - length)
