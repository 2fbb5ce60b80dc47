"""hvcore.vhd.convert: the same disk in another format, whole or not at all."""

import errno
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hvcore.disk.medium import Probe
from hvcore.disk.probe import probing
from hvcore.disk.ram import RamDisk
from hvcore.errors import DiskError, ImageError
from hvcore.vhd import Extent, compare, convert, create, info
from hvcore.vhd import open as open_vhd
from hvcore.vhd.copy import AHEAD, CHUNK, PIECE, aligned, chunks, copy_ranges, filled
from tests.reference.hostile import Seed, seeds, written
from tests.reference.vhdx import pattern

MIB = 1 << 20
SEEDS = {f"{seed.format} {seed.name}": seed for seed in seeds() if seed.name != "large"}
WANTED = [
    ("raw", "dynamic"),
    ("raw", "fixed"),
    ("vhdx", "dynamic"),
    ("vhdx", "fixed"),
    ("vhd", "dynamic"),
    ("vhd", "fixed"),
]


class Interrupted(Exception):
    pass


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def sparse(path: Path, size: int, *pieces: tuple[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for at, data in pieces:
            file.seek(at)
            file.write(data)
    return path


def content(path: Path, format: str | None = None) -> bytes:
    with open_vhd(path, format=format) as image:
        return image.read(0, image.size)


def data(path: Path, format: str | None = None) -> list[Extent]:
    with open_vhd(path, format=format) as image:
        return [extent for extent in image.extents() if extent.state == "data"]


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(("format", "type"), WANTED)
@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_any_image_to_any_other(tmp_path: Path, seed: Seed, format: str, type: str) -> None:
    """Chains, partial blocks, both sector sizes, logs to be replayed: what it reads as is what is copied."""
    source = written(tmp_path, seed, [])
    before = source.read_bytes()
    with open_vhd(source) as image:
        expected, sector_size = image.read(0, image.size), image.sector_size
    made = convert(
        source, tmp_path / "new", format, type, sector_size=512 if format == "vhd" else None, preallocate=False
    )
    assert content(tmp_path / "new", format) == expected
    assert (made.format, made.size, made.parent) == (format, len(expected), None)
    assert made.sector_size == (512 if format in ("vhd", "raw") else sector_size)
    assert source.read_bytes() == before
    assert compare(source, tmp_path / "new", second_format=format).equal


@pytest.mark.parametrize("size", [512, CHUNK - 512, CHUNK, CHUNK + 512, 3 * CHUNK + 4096 + 512])
@pytest.mark.parametrize(("format", "type"), WANTED)
def test_sizes_around_the_pieces(tmp_path: Path, size: int, format: str, type: str) -> None:
    source = sparse(tmp_path / "s", size, (0, pattern(1, size)))
    assert convert(source, tmp_path / "d", format, type, source_format="raw", preallocate=False).size == size
    assert content(tmp_path / "d", format) == pattern(1, size)


def test_holes_and_zeros_take_no_space(tmp_path: Path) -> None:
    """Zeros that the source stores are left out block by block, not by the pieces of the copy."""
    source = sparse(tmp_path / "s", 64 * MIB, (5 * MIB, bytes(6 * MIB) + b"x" * 512), (40 * MIB, b"y" * 1024))
    convert(source, tmp_path / "d.vhdx", "vhdx", source_format="raw", block_size=MIB)
    assert [(extent.offset, extent.length) for extent in data(tmp_path / "d.vhdx")] == [
        (11 * MIB, MIB),
        (40 * MIB, MIB),
    ]
    convert(tmp_path / "d.vhdx", tmp_path / "d.vhd", "vhd", block_size=64 << 10)
    assert [extent.offset for extent in data(tmp_path / "d.vhd")] == [11 * MIB, 40 * MIB]
    convert(tmp_path / "d.vhd", tmp_path / "d.raw", "raw")
    assert (tmp_path / "d.raw").stat().st_blocks * 512 <= 4 * (64 << 10)
    assert content(tmp_path / "d.raw", "raw") == content(source, "raw")


def test_blocks_lie_in_the_order_of_the_disk(tmp_path: Path) -> None:
    source = sparse(tmp_path / "s", 40 * MIB, (0, pattern(3, 40 * MIB)))
    convert(source, tmp_path / "d.vhdx", "vhdx", source_format="raw", block_size=MIB)
    assert len(data(tmp_path / "d.vhdx")) == 1


@pytest.mark.parametrize("target", ["vhdx", "vhd", "raw"])
def test_interrupted_at_any_call_leaves_nothing(tmp_path: Path, target: str) -> None:
    source = sparse(tmp_path / "s", 9 * MIB, (0, pattern(1, 9 * MIB)))
    seen: list[float] = []
    convert(source, tmp_path / "whole", target, source_format="raw", progress=lambda text, part: seen.append(part))
    assert seen == sorted(seen) and seen[-1] == 1.0 and len(seen) >= 5
    for stop in range(len(seen)):
        calls = iter(range(len(seen)))

        def progress(text: str, part: float, calls: Iterator[int] = calls, stop: int = stop) -> None:
            if next(calls) == stop:
                raise Interrupted

        if stop == len(seen) - 1:  # the last call comes when the file is complete
            continue
        with pytest.raises(Interrupted):
            convert(source, tmp_path / "d", target, source_format="raw", progress=progress)
        assert names(tmp_path) == ["s", "whole"]
    assert threading.active_count() == 1


@pytest.mark.parametrize("target", ["vhdx", "vhd", "raw"])
def test_fault_at_any_call_leaves_all_or_nothing(tmp_path: Path, target: str) -> None:
    source = sparse(tmp_path / "s", 5 * MIB, (0, pattern(1, 5 * MIB)))
    probe = Probe()
    with probing(probe):
        convert(source, tmp_path / "whole", target, source_format="raw")
    calls = probe.calls
    refused = 0
    for at in range(1, calls + 1):
        probe = Probe()
        probe.fail(at, errno.EIO)
        with probing(probe):
            with suppress(DiskError, ImageError):
                convert(source, tmp_path / "d", target, source_format="raw")
                refused -= 1
            refused += 1
        if (tmp_path / "d").exists():  # the fault met the look at the finished file, or a call of no importance
            assert content(tmp_path / "d", target) == content(source, "raw")
            (tmp_path / "d").unlink()
        assert names(tmp_path) == ["s", "whole"]
    assert refused > 5


@pytest.mark.parametrize(("format", "type"), WANTED)
def test_no_space_leaves_nothing(tmp_path: Path, format: str, type: str) -> None:
    source = sparse(tmp_path / "s", 12 * MIB, (0, pattern(1, 12 * MIB)))
    with file_limit(6 * MIB), pytest.raises((DiskError, ImageError)) as caught:
        convert(source, tmp_path / "d", format, type, source_format="raw")
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert names(tmp_path) == ["s"]


def test_source_is_the_destination(tmp_path: Path) -> None:
    source = tmp_path / "s.vhd"
    create(source, MIB, "vhd")
    with pytest.raises(ImageError, match="exists already"):
        convert(source, source)
    assert info(source).size == MIB


def test_destination_in_no_folder(tmp_path: Path) -> None:
    create(tmp_path / "s.vhd", MIB, "vhd")
    with pytest.raises(ImageError, match="d: no such file"):
        convert(tmp_path / "s.vhd", tmp_path / "no" / "d")
    assert names(tmp_path) == ["s.vhd"]


def test_no_source(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="gone: no such file"):
        convert(tmp_path / "gone", tmp_path / "d")
    assert names(tmp_path) == []


def test_vhd_of_large_sectors_must_be_asked_for(tmp_path: Path) -> None:
    create(tmp_path / "s.vhdx", 4 * MIB, sector_size=4096)
    with pytest.raises(ValueError, match="sector_size=512"):
        convert(tmp_path / "s.vhdx", tmp_path / "d", "vhd")
    assert convert(tmp_path / "s.vhdx", tmp_path / "d", "vhd", sector_size=512).sector_size == 512


def test_smaller_sectors_than_the_destination(tmp_path: Path) -> None:
    """Pieces of 512 bytes become whole sectors of 4096."""
    seed = SEEDS["vhdx differencing"]
    source = written(tmp_path, seed, [])
    convert(source, tmp_path / "d.vhdx", sector_size=4096)
    assert content(tmp_path / "d.vhdx") == content(source)
    assert info(tmp_path / "d.vhdx").sector_size == 4096
    assert compare(source, tmp_path / "d.vhdx").equal


@pytest.mark.parametrize(
    ("ranges", "step", "found"),
    [
        ([], 512, []),
        ([(0, 512), (512, 512), (2048, 1)], 512, [(0, 1024), (2048, 512)]),
        ([(512, 512), (1536, 512), (5120, 512)], 4096, [(0, 8192)]),
        ([(512, 512), (12288, 4096)], 4096, [(0, 4096), (12288, 4096)]),
        ([(4096, 8192), (12288, 512)], 4096, [(4096, 12288)]),
    ],
)
def test_ranges_in_whole_sectors(ranges: list[tuple[int, int]], step: int, found: list[tuple[int, int]]) -> None:
    assert list(aligned(iter(ranges), step)) == found


def test_ranges_in_pieces() -> None:
    found = list(chunks(iter([(1, 2), (3, 9), (14, 2), (30, 20)]), 40, 8))
    assert found == [(1, 7), (8, 4), (14, 2), (30, 2), (32, 8)]


@pytest.mark.parametrize(
    ("buffer", "offset", "found"),
    [
        (bytes(16), 0, []),
        (b"x" + bytes(15), 0, [(0, 4)]),
        (bytes(15) + b"x", 0, [(12, 16)]),
        (bytes(5) + b"xx" + bytes(9), 0, [(4, 8)]),
        (bytes(7) + b"xx" + bytes(7), 0, [(4, 12)]),
        (bytes(3) + b"x" + bytes(12), 2, [(2, 6)]),
        (b"x" + bytes(8) + b"x", 3, [(0, 1), (9, 10)]),
        (b"", 0, []),
    ],
)
def test_grains_that_are_not_zeros(buffer: bytes, offset: int, found: list[tuple[int, int]]) -> None:
    assert list(filled(bytearray(buffer), offset, 4)) == found


class Watched:
    """A source that counts the buffers which wait to be written."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.read = self.most = self.finished = 0

    def readinto(self, offset: int, buffer: bytearray) -> None:
        buffer[:] = b"d" * len(buffer)
        with self.lock:
            self.read += 1
            self.most = max(self.most, self.read - self.finished)


class Noted:
    """A destination that notes the ranges written."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def write(self, offset: int, data: memoryview) -> None:
        self.ranges.append((offset, len(data)))


@pytest.mark.parametrize("zeros", [True, False])
def test_writes_are_small(zeros: bool) -> None:
    noted, pieces = Noted(), [(512, PIECE), (CHUNK, CHUNK), (2 * CHUNK, PIECE + 512)]
    copy_ranges(Watched(), noted, iter(pieces), zeros=zeros, done=lambda end: None)  # type: ignore[arg-type]
    assert all(0 < length <= PIECE for _, length in noted.ranges)
    assert list(chunks(iter(noted.ranges), 3 * CHUNK)) == pieces


def test_memory_is_bounded() -> None:
    source, ends = Watched(), []
    with RamDisk(64 * MIB) as disk:

        def done(end: int) -> None:
            ends.append(end)
            source.finished += 1

        pieces = list(chunks(iter([(0, 64 * MIB)]), 64 * MIB))
        assert copy_ranges(source, disk, iter(pieces), zeros=False, done=done) == 64 * MIB
        assert disk.read(0, 64 * MIB) == b"d" * 64 * MIB
    assert source.most <= AHEAD
    assert ends == [start + length for start, length in pieces]
