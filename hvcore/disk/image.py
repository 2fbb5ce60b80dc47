"""Opening image files: recognise, lock, judge, and hand out the backend that reads them."""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

from hvcore.disk.file import FileDisk
from hvcore.disk.locks import in_use, lock_image
from hvcore.disk.medium import ImageFile
from hvcore.disk.ops import Backend
from hvcore.disk.probe import PROBE
from hvcore.disk.vhd.disk import VhdDisk
from hvcore.disk.vhd.footer import COOKIE, DIFFERENCING, FIXED, FOOTER_BYTES, TYPES
from hvcore.disk.vhd.layout import VhdLayout, read_footers, read_tail, read_vhd_layout
from hvcore.disk.vhdx.disk import VhdxDisk
from hvcore.disk.vhdx.layout import read_layout
from hvcore.disk.vhdx.structures import SIGNATURE
from hvcore.errors import ImageError, ParentError

FORMATS = ("raw", "vhd", "vhdx")
BLKROGET, BLKGETSIZE64 = 0x125E, 0x80081272
UNRECOGNISED = 'the format is not recognised: neither a VHDX nor a VHD; name format="raw" to open it as a raw image'


@dataclass(frozen=True)
class ImageInfo:
    """What an image says of itself. Sizes are bytes.

    type: "fixed" or "dynamic", None for raw. block_size: None where there are no blocks. parent: None, as differencing
    disks are not supported. notes: damage that could be worked around.
    """

    path: str
    format: str
    type: str | None
    size: int
    file_size: int
    sector_size: int
    physical_sector_size: int
    block_size: int | None = None
    disk_id: UUID | None = None
    parent: str | None = None
    notes: tuple[str, ...] = ()


def open_image(
    path: str | os.PathLike[str], *, mode: str = "r", format: str | None = None, sector_size: int | None = None
) -> Backend:
    """Opens a disk image; mode "r" or "r+" (reading and writing).

    format: "raw", "vhd" or "vhdx" (fixed and dynamic, mode "r" only); None recognises VHD and VHDX by content
    and refuses anything else, as whoever writes into a raw disk decides what it looks like (disk-formats.md 16).
    sector_size: 512 (default) or 4096, raw only. The image is locked (hvcore.disk.locks) until close().

    ImageError, one line with the file's name: it cannot be opened, is in use, is damaged, or of an unsupported kind.
    ValueError: the arguments make no sense.
    """
    return open_described(path, mode=mode, format=format, sector_size=sector_size)[0]


def open_described(
    path: str | os.PathLike[str],
    *,
    mode: str = "r",
    format: str | None = None,
    sector_size: int | None = None,
    parent: str | os.PathLike[str] | None = None,
) -> tuple[Backend, ImageInfo]:
    """As open_image; also what the image says of itself."""
    if mode not in ("r", "r+"):
        raise ValueError(f'mode is "r" or "r+", not {mode!r}')
    if format is not None and format not in FORMATS:
        raise ValueError(f"format is one of {', '.join(FORMATS)}, not {format!r}")
    if sector_size is not None and format != "raw":
        raise ValueError('sector_size can be chosen for format="raw" only')
    if sector_size not in (None, 512, 4096):
        raise ValueError(f"sector_size is 512 or 4096, not {sector_size}")
    name = os.fspath(path)
    with reported(name):
        file = open_file(name, mode == "r+")
        try:
            disk, info = open_locked(file, mode == "r+", format, sector_size or 512)
        except BaseException:
            file.close()
            raise
    return disk, replace(info, path=name)


def describe(path: str | os.PathLike[str], format: str | None = None) -> ImageInfo:
    """What an image says of itself. ImageError as open_image()."""
    disk, info = open_described(path, format=format)
    disk.close()
    return info


@contextmanager
def reported(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of files become ImageErrors, and ImageErrors begin with the file's name."""
    name = os.fspath(path)
    try:
        yield
    except ImageError as error:
        error.args = (f"{name}: {error}",)
        raise
    except OSError as error:
        raise named(name, os.strerror(error.errno or errno.EIO).lower(), error.errno) from None


def named(path: str, fault: str, code: int | None) -> ImageError:
    error = ImageError(f"{path}: {fault}")
    error.errno = code
    return error


def open_file(path: str, write: bool) -> ImageFile:
    """Opens a regular file or block device. Anything else is refused unopened: opening may have effects of its own."""
    mode = Path(path).stat().st_mode
    judge_kind(mode)
    flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
    if write and stat.S_ISBLK(mode):
        flags |= os.O_EXCL  # refused while it is mounted
    try:
        fd = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise in_use(write) from None
        raise
    try:
        judge_kind(os.fstat(fd).st_mode)  # the name may have changed hands since stat
        os.set_blocking(fd, True)
    except BaseException:
        os.close(fd)
        raise
    return ImageFile(fd, probe=PROBE.get(), name=path)


def judge_kind(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise ImageError("a directory, not an image file")
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise ImageError("neither a regular file nor a block device")


def measure(fd: int, write: bool) -> int:
    """The size of a file or block device in bytes."""
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return status.st_size
    if write and struct.unpack("i", fcntl.ioctl(fd, BLKROGET, bytes(4)))[0]:
        raise ImageError("the block device is read-only")
    return int(struct.unpack("Q", fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)))[0])


def open_locked(
    file: ImageFile, write: bool, format: str | None, sector_size: int
) -> tuple[FileDisk | VhdDisk | VhdxDisk, ImageInfo]:
    lock_image(file.fileno(), write=write)
    # Measured and read under the lock: a writer that keeps locks cannot change them any more.
    file_size = measure(file.fileno(), write)
    if file_size == 0:
        raise ImageError("the file is empty")
    if format is None:
        format = recognise(file, file_size)
    if format == "raw":
        return open_raw(file, file_size, write, sector_size)
    return open_vhd(file, file_size, write) if format == "vhd" else open_vhdx(file, file_size, write)


def recognise(file: ImageFile, file_size: int) -> str:
    """The format by content. Where guest data stand is never decided by guest data alone: the first sector of a fixed
    VHD and the last of a VHDX are the guest's, and a file that could be both is refused."""
    head = file.read(0, min(FOOTER_BYTES, file_size))
    vhdx = head[:8] == SIGNATURE
    try:
        footer = read_tail(file, file_size)
    except ImageError:
        # A VHDX that ends in something like a footer, but not in one; or a VHD whose footer is damaged, of which the
        # copy at the start may still tell what it is.
        if not vhdx and head[:8] != COOKIE:
            raise
        footer = None
    if vhdx and footer is not None and footer[0].disk_type == FIXED and footer[0].size == footer[1]:
        raise ImageError("it looks like a VHDX and like a fixed VHD: name the format")
    if vhdx:
        return "vhdx"
    if footer is not None or head[:8] == COOKIE:
        return "vhd"
    raise ImageError(UNRECOGNISED)


def open_raw(file: ImageFile, file_size: int, write: bool, sector_size: int) -> tuple[FileDisk, ImageInfo]:
    if file_size % sector_size:
        raise ImageError(f"its size, {file_size} bytes, is not a multiple of the sector size {sector_size}")
    disk = FileDisk(file, file_size, sector_size=sector_size, read_only=not write, can_trim=write)
    return disk, ImageInfo("", "raw", None, file_size, file_size, sector_size, sector_size)


def open_vhd(
    file: ImageFile,
    file_size: int,
    write: bool,
    *,
    find_parent: Callable[[VhdLayout], tuple[Backend, str]] | None = None,
    trust_head: bool = False,
) -> tuple[FileDisk | VhdDisk, ImageInfo]:
    """find_parent: opens the parent that a differencing disk names and judges its id; returns it and its path. The disk
    closes it. trust_head: see read_vhd_layout."""
    found = read_footers(file, file_size, trust_head=trust_head)
    if found.footer.disk_type == FIXED:
        # A fixed disk is allocated for good: its space is never given back.
        size, disk_id = found.footer.size, found.footer.disk_id
        fixed = FileDisk(file, size, read_only=not write, can_trim=False)
        return fixed, ImageInfo("", "vhd", "fixed", size, file_size, 512, 512, disk_id=disk_id)
    layout = read_vhd_layout(file, file_size, trust_head=trust_head)
    parent, path = None, None
    if layout.disk_type == DIFFERENCING:
        if find_parent is None:
            raise ParentError(f"a differencing VHD: it cannot be read without its parent, {layout.parent_name!r}")
        parent, path = find_parent(layout)
    try:
        disk = VhdDisk(file, layout, write=write, parent=parent)
    except BaseException:
        if parent is not None:
            parent.close()
        raise
    info = ImageInfo(
        "",
        "vhd",
        TYPES[layout.disk_type],
        layout.size,
        file_size,
        512,
        512,
        block_size=layout.block_size,
        disk_id=layout.disk_id,
        parent=path,
        notes=layout.notes,
    )
    return disk, info


def open_vhdx(file: ImageFile, file_size: int, write: bool) -> tuple[VhdxDisk, ImageInfo]:
    layout = read_layout(file, file_size)
    if layout.has_parent:
        raise ImageError("a differencing disk: not supported yet, open a merged copy")
    if write:
        error = ImageError("writing to a VHDX is not supported yet: open it read-only")
        error.errno = errno.EROFS
        raise error
    info = ImageInfo(
        "",
        "vhdx",
        "fixed" if layout.fixed else "dynamic",
        layout.size,
        file_size,
        layout.sector_size,
        layout.physical_sector_size,
        block_size=layout.block_size,
        disk_id=layout.disk_id,
        notes=layout.notes,
    )
    return VhdxDisk(file, layout), info
