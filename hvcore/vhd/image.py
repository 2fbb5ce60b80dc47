"""Images as Python objects, and making new ones."""

import errno
import os
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from hvcore.disk.file import FileDisk
from hvcore.disk.image import ImageInfo, named, open_described
from hvcore.disk.vhd.footer import EPOCH, MAX_SIZE, build_fixed
from hvcore.disk.vhdx.disk import VhdxDisk


class Extent(NamedTuple):
    """A piece of a disk. file_offset: where its bytes begin in the image file; None: it reads as zeros."""

    offset: int
    length: int
    file_offset: int | None


class Image:
    """An open disk image. Offsets and lengths are bytes, multiples of sector_size (else ValueError).

    All calls but close() may run at the same time from several threads. hvcore.errors.DiskError: the medium failed.
    """

    def __init__(self, backend: FileDisk | VhdxDisk, description: ImageInfo) -> None:
        self.backend = backend
        self.info = description

    @property
    def size(self) -> int:
        return self.info.size

    @property
    def sector_size(self) -> int:
        return self.info.sector_size

    @property
    def block_size(self) -> int | None:
        """Bytes that are allocated together; None where there are no blocks (raw, fixed VHD)."""
        return self.info.block_size

    @property
    def format(self) -> str:
        return self.info.format

    @property
    def parent(self) -> str | None:
        return self.info.parent

    @property
    def read_only(self) -> bool:
        return self.backend.read_only

    def read(self, offset: int, length: int) -> bytes:
        return self.backend.read(offset, length)

    def readinto(self, offset: int, buffer: object) -> None:
        """Fills a writable buffer."""
        self.backend.readinto(offset, buffer)

    def write(self, offset: int, data: object) -> None:
        """Writes a buffer; durable after the next flush()."""
        self.backend.write(offset, data)

    def flush(self) -> None:
        self.backend.flush()

    def trim(self, offset: int, length: int) -> None:
        """Gives the range's space back (raw images only); it reads as zeros afterwards."""
        self.backend.trim(offset, length)

    def extents(self) -> list[Extent]:
        """The whole disk in pieces that are present or not, in order and without gaps."""
        return [Extent(*piece) for piece in self.backend.extents()]

    def close(self) -> None:
        """Ends the use of the file and its lock. Does not flush. Idempotent."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open(path: str | os.PathLike[str], mode: str = "r", format: str | None = None) -> Image:
    """Opens an image; mode "r" or "r+". See hvcore.disk.image.open_image for formats and errors."""
    return Image(*open_described(path, mode=mode, format=format))


def info(path: str | os.PathLike[str], format: str | None = None) -> ImageInfo:
    """What an image says of itself. ImageError as open()."""
    backend, description = open_described(path, format=format)
    backend.close()
    return description


def create(
    path: str | os.PathLike[str], size: int, format: str = "vhd", type: str = "fixed", *, preallocate: bool = True
) -> None:
    """Makes a new image of zeros: format "vhd" or "raw", type "fixed".

    size: bytes, a positive multiple of 512; a VHD has at most 2040 GiB (else ValueError). preallocate: reserve the
    space now, so that the file system cannot run full later. The file appears under its name complete and durable, or
    not at all; an existing file is never touched (ImageError).
    """
    if format not in ("raw", "vhd") or type != "fixed":
        raise ValueError(f'cannot create {type} {format}: format "vhd" or "raw" and type "fixed" are supported')
    if size <= 0 or size % 512:
        raise ValueError(f"the size is a positive multiple of 512, not {size}")
    if format == "vhd" and size > MAX_SIZE:
        raise ValueError(f"a VHD has at most {MAX_SIZE} bytes (2040 GiB), not {size}")
    tail = b""
    if format == "vhd":
        tail = build_fixed(size, uuid.uuid4(), max(0, int(time.time()) - EPOCH) & 0xFFFFFFFF)
    target = Path(path)
    try:
        if os.path.lexists(target):  # only to spare the work: link() below is what decides
            raise FileExistsError
        fill(target, size, tail, preallocate)
    except FileExistsError:
        raise named(os.fspath(path), "exists already", errno.EEXIST) from None
    except OSError as error:
        raise named(os.fspath(path), os.strerror(error.errno or errno.EIO).lower(), error.errno) from None


def fill(target: Path, size: int, tail: bytes, preallocate: bool) -> None:
    temporary = target.parent / f".{target.name[:100]}.{uuid.uuid4().hex}"
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        if preallocate:
            os.posix_fallocate(fd, 0, size + len(tail))
        else:
            os.truncate(fd, size + len(tail))
        if os.pwrite(fd, tail, size) != len(tail):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(fd)
        os.link(temporary, target)  # refuses an existing name, unlike rename
    finally:
        os.close(fd)
        temporary.unlink()
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
