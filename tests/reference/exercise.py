"""Doing to an image, whatever it is, all that hvcore offers: it is refused with one line or it behaves like a disk."""

import errno
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from hvcore.errors import DiskError, ImageError
from hvcore.vhd import Extent, Image, chain
from hvcore.vhd import open as open_vhd

MIB = 1 << 20
WHOLE = 8 * MIB  # a disk up to this size is read from end to end
AT_ONCE = MIB + 4096
PIECES = 64  # extents of a larger one that are looked into
STALE = b"\xc3\x5a\x3c\xa5" * 128  # what buffers hold before they are read into; in no image


class Broken(AssertionError):
    """hvcore broke a promise over an image."""


def need(truth: object, *what: object) -> None:
    if not truth:
        raise Broken(" ".join(map(str, what)))


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """The errors that a bad image may cause: an ImageError of one line that begins with a file's name, a DiskError of
    one line, and ValueError for what cannot be asked of such an image."""
    try:
        yield
    except ImageError as error:
        text = str(error)
        need("\n" not in text and text.startswith(str(path.parent)), "message:", text)
    except DiskError as error:
        need("\n" not in str(error), "message:", error)
    except ValueError:
        pass


def exercise(path: Path, format: str | None) -> bool:
    """Opens, reads, lists, checks; then opens a copy for writing, writes, trims and closes it. Whether it opened."""
    opened = read_all(path, format)
    with refusals(path):
        chain(path, format)
    if check is not None:
        with refusals(path):
            check(path, format)
    copies = path.parent / "copies"
    copies.mkdir(exist_ok=True)
    for file in path.parent.iterdir():
        if file.is_file():
            sparse_copy(file, copies / file.name)
    write_some(copies / path.name, format)
    return opened


def checker() -> Callable[..., Any] | None:
    """hvcore.vhd.check.check."""
    if importlib.util.find_spec("hvcore.vhd.check") is None:
        return None
    module = importlib.import_module("hvcore.vhd.check")
    return module.check  # type: ignore[no-any-return]


check = checker()


def sparse_copy(source: Path, target: Path) -> None:
    """The same bytes and holes."""
    with source.open("rb") as file, target.open("wb") as copy:
        size = os.fstat(file.fileno()).st_size
        copy.truncate(size)
        end = 0
        while end < size:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError as error:
                need(error.errno == errno.ENXIO, error)  # only a hole is left
                return
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            while start < end:
                data = os.pread(file.fileno(), min(end - start, MIB), start)
                os.pwrite(copy.fileno(), data, start)
                start += len(data)


def read_all(path: Path, format: str | None) -> bool:
    with refusals(path), open_vhd(path, "r", format) as image:
        judge_numbers(image)
        places = [0, image.size - image.sector_size]
        if image.size <= WHOLE:
            for start in range(0, image.size, AT_ONCE):
                read_range(image, start, min(AT_ONCE, image.size - start))
        for extent in judged_extents(image, path.stat().st_size):
            places += [extent.offset - image.sector_size, extent.offset, extent.offset + extent.length // 2]
        for place in sorted(set(places)):
            start = max(0, place // image.sector_size * image.sector_size)
            read_range(image, start, min(2 * image.sector_size, image.size - start))
        for offset, length in (
            (image.size, image.sector_size),
            (0, image.size + image.sector_size),
            ((1 << 64) - 512, 512),
        ):
            try:
                image.read(offset, length)
            except (ValueError, OverflowError, MemoryError):
                continue
            raise Broken(f"read {length} bytes at {offset} of a disk of {image.size}")
        return True
    return False


def judge_numbers(image: Image) -> None:
    info = image.info
    need(0 < image.size <= 64 << 40 and image.size % image.sector_size == 0, "size", image.size)
    need(image.sector_size in (512, 4096) and info.physical_sector_size in (512, 4096), "sectors")
    need(info.block_size is None or info.block_size & (info.block_size - 1) == 0, "block size", info.block_size)
    need((info.parent is not None) == (info.type == "differencing"), "type", info.type, info.parent)
    need(all("\n" not in note for note in info.notes), "notes", info.notes)


def read_range(image: Image, offset: int, length: int) -> None:
    """A read that succeeds leaves nothing of what was in the buffer; one that fails is a DiskError."""
    buffer = bytearray(STALE * -(-length // len(STALE)))[:length]
    try:
        image.readinto(offset, buffer)
    except DiskError:
        return
    need(STALE not in buffer, "read", length, "at", offset, "leaves the buffer as it was")


def judged_extents(image: Image, file_size: int) -> list[Extent]:
    """The first of them, all judged: in order, without gaps, in the file and behind its header."""
    end = 0
    kept = []
    for extent in image.extents():
        need(extent.offset == end and extent.length > 0, "extents have a gap", extent)
        need(extent.state in ("data", "zero", "parent"), "state", extent)
        need((extent.file_offset is not None) == (extent.state == "data"), "place", extent)
        if extent.file_offset is not None:
            # The last block may be cut short where the disk ends; a log that waits for its replay may add to the file.
            need(
                extent.file_offset + extent.length <= max(file_size, image.info.file_size) + 64 * MIB, "beyond", extent
            )
            need(image.format != "vhdx" or extent.file_offset >= MIB, "in the header", extent)
        end += extent.length
        if len(kept) < PIECES:
            kept.append(extent)
    need(end == image.size, "extents end at", end)
    for left, right in pairwise(kept):
        joined = left.file_offset is None or right.file_offset == left.file_offset + left.length
        need(left.state != right.state or not joined, "not joined", left, right)
    for extent in islice(image.extents(chain=True), PIECES):
        need(extent.state != "parent", "left to the parent", extent)
    return kept


def write_some(path: Path, format: str | None) -> None:
    """What is written and closed without an error is there when the image is opened again, and that must succeed."""
    expected: dict[int, bytes] = {}
    closed = False
    with refusals(path):
        with open_vhd(path, "r+", format) as image:
            step = image.sector_size
            for number, place in enumerate((0, image.size // 2, image.size - step)):
                start = place // step * step
                expected[start] = bytes([number + 1]) * step
                image.write(start, expected[start])
                need(image.read(start, step) == expected[start], "not what was written at", start)
            image.flush()
            block = image.block_size or step
            first = -(-step // block) * block
            if image.size - first >= 2 * block:
                try:
                    image.trim(first, block)
                except DiskError:
                    pass
                else:
                    expected = {at: data for at, data in expected.items() if not first <= at < first + block}
                    need(not any(image.read(first, step)), "not zeros after a trim at", first)
            judged_extents(image, 1 << 60)
        closed = True
    if not closed:
        return
    with open_vhd(path, "r", format) as image:
        for start, data in expected.items():
            need(image.read(start, len(data)) == data, "lost at", start)
        judged_extents(image, path.stat().st_size)
