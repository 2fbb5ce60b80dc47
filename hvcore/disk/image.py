"""Opening image files: recognise, lock, judge, and hand out the backend that reads them."""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

from hvcore.disk.chain import (
    MAX_DEPTH,
    Link,
    Search,
    candidates,
    cyclic,
    judge_identity,
    judge_root,
    judge_sectors,
    not_found,
    same_time,
    shown,
    too_deep,
    trail_of,
    vhd_link,
    vhdx_link,
)
from hvcore.disk.file import FileDisk
from hvcore.disk.locks import in_use, lock_image
from hvcore.disk.medium import ImageFile
from hvcore.disk.ops import Backend
from hvcore.disk.probe import PROBE
from hvcore.disk.vhd.disk import VhdDisk
from hvcore.disk.vhd.footer import COOKIE, DIFFERENCING, FIXED, FOOTER_BYTES, TYPES
from hvcore.disk.vhd.layout import VhdLayout, read_footers, read_tail, read_vhd_layout
from hvcore.disk.vhdx.disk import VhdxDisk
from hvcore.disk.vhdx.layout import VhdxLayout, read_header, read_layout
from hvcore.disk.vhdx.log import settle_log
from hvcore.disk.vhdx.structures import SIGNATURE
from hvcore.errors import ImageError, ImageInUse, ParentError

FORMATS = ("raw", "vhd", "vhdx")
BLKROGET, BLKGETSIZE64 = 0x125E, 0x80081272
UNRECOGNISED = 'the format is not recognised: neither a VHDX nor a VHD; name format="raw" to open it as a raw image'


@dataclass(frozen=True)
class ImageInfo:
    """What an image says of itself. Sizes are bytes.

    type: "fixed", "dynamic" or "differencing", None for raw. block_size: None where there are no blocks. parent: the
    file that a differencing disk is based on, as it was found. notes: damage that could be worked around, parents too.
    identity: what a child records of its parent (disk-formats.md 8, 15.2): in a VHDX it changes with the content
    (DataWriteGuid), in a VHD never (UniqueId).
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
    identity: UUID | None = None


@dataclass(frozen=True)
class Judged:
    """An open and locked image whose structures are sound; its disk is not made yet. link: None: it has no parent."""

    file: ImageFile
    info: ImageInfo
    layout: VhdxLayout | VhdLayout | None
    link: Link | None
    write: bool

    def disk(self, parent: Backend | None) -> FileDisk | VhdDisk | VhdxDisk:
        """The disk, which owns the file and the parent from now on."""
        if isinstance(self.layout, VhdxLayout):
            return VhdxDisk(self.file, self.layout, write=self.write, parent=parent)
        if self.layout is not None:
            return VhdDisk(self.file, self.layout, write=self.write, parent=parent)
        # A fixed VHD is allocated for good: its space is never given back.
        can_trim = self.write and self.info.format == "raw"
        size, sector_size = self.info.size, self.info.sector_size
        return FileDisk(self.file, size, sector_size=sector_size, read_only=not self.write, can_trim=can_trim)


def open_image(
    path: str | os.PathLike[str],
    *,
    mode: str = "r",
    format: str | None = None,
    sector_size: int | None = None,
    parent: str | os.PathLike[str] | None = None,
    parent_root: str | os.PathLike[str] | None = None,
    trust_head: bool = False,
) -> Backend:
    """Opens a disk image; mode "r" or "r+" (reading and writing).

    format: "raw", "vhd" or "vhdx"; None recognises VHD and VHDX by content and refuses anything else, as whoever writes
    into a raw disk decides what it looks like (disk-formats.md 16). sector_size: 512 (default) or 4096, raw only.

    A differencing disk is opened with all its parents, for reading: images of its own format with the ids that their
    children recorded. parent: the file that is its parent, wherever it says that is; it must be the right one all the
    same. parent_root: a folder that no parent may lie outside of. trust_head: a differencing VHD (not its parents)
    whose footer at the end is lost is opened by the copy at the start; only for an image that was always one, as a
    guest with a fixed disk can write that copy, and choose the parent.

    The image is locked (hvcore.disk.locks) until close(), its parents for reading. A VHDX that was not closed cleanly
    has its log replayed, for reading in memory only.

    ImageError, one line with the file's name: it cannot be opened, is in use, is damaged, or of an unsupported kind;
    for a fault of a parent with the names of all files that lead to it. ParentError: the chain is broken.
    ValueError: the arguments make no sense.
    """
    return open_described(
        path,
        mode=mode,
        format=format,
        sector_size=sector_size,
        parent=parent,
        parent_root=parent_root,
        trust_head=trust_head,
    )[0]


def open_described(
    path: str | os.PathLike[str],
    *,
    mode: str = "r",
    format: str | None = None,
    sector_size: int | None = None,
    parent: str | os.PathLike[str] | None = None,
    parent_root: str | os.PathLike[str] | None = None,
    trust_head: bool = False,
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
            search = search_of(name, parent, parent_root)
            disk, info = open_locked(file, mode == "r+", format, sector_size or 512, search, trust_head=trust_head)
        except BaseException:
            file.close()
            raise
    return disk, replace(info, path=name)


def describe(path: str | os.PathLike[str], format: str | None = None) -> ImageInfo:
    """What an image says of itself. ImageError as open_image()."""
    return describe_chain(path, format)[0]


def describe_chain(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    parent: str | os.PathLike[str] | None = None,
    parent_root: str | os.PathLike[str] | None = None,
) -> list[ImageInfo]:
    """What an image and all it is based on say of themselves, child first. Arguments and ImageError as open_image()."""
    name = os.fspath(path)
    with reported(name), open_file(name, False) as file:
        chain = judge_chain(judge(file, False, format, 512), search_of(name, parent, parent_root))
        try:
            disk = build(chain)
        except BaseException:
            close_files(chain[1:])
            raise
        disk.close()
        return [replace(chain[0].info, path=name), *(each.info for each in chain[1:])]


def search_of(path: str, parent: str | os.PathLike[str] | None, root: str | os.PathLike[str] | None) -> Search:
    return Search(path, None if parent is None else os.fspath(parent), None if root is None else os.fspath(root))


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
    file: ImageFile,
    write: bool,
    format: str | None,
    sector_size: int,
    search: Search | None = None,
    *,
    trust_head: bool = False,
) -> tuple[FileDisk | VhdDisk | VhdxDisk, ImageInfo]:
    """Locks and opens an image whose file is open. search: where its parents are; None: a differencing disk is refused.

    On an error the file stays the caller's.
    """
    chain = judge_chain(judge(file, write, format, sector_size, trust_head=trust_head), search)
    try:
        return build(chain), chain[0].info
    except BaseException:
        close_files(chain[1:])
        raise


def judge(file: ImageFile, write: bool, format: str | None, sector_size: int, *, trust_head: bool = False) -> Judged:
    lock_image(file.fileno(), write=write)
    # Measured and read under the lock: a writer that keeps locks cannot change them any more.
    file_size = measure(file.fileno(), write)
    if file_size == 0:
        raise ImageError("the file is empty")
    if format is None:
        format = recognise(file, file_size)
    if format == "raw":
        return judge_raw(file, file_size, write, sector_size)
    if format == "vhd":
        return judge_vhd(file, file_size, write, trust_head)
    return judge_vhdx(file, file_size, write)


def judge_chain(first: Judged, search: Search | None, children: Sequence[tuple[int, int]] = ()) -> list[Judged]:
    """The image and all its parents, each judged; its info and notes are completed by what the parents are.

    children: places of files that will be its children, so that none may be among its parents. A loop, as a chain may
    be deeper than Python's stack. On an error all files but the first one are closed again.
    """
    chain = [first]
    trail = {place(first.file), *children}
    paths: list[str] = []
    try:
        while (link := chain[-1].link) is not None:
            if search is None:
                raise ParentError("a differencing disk, where none is expected")
            if len(paths) >= MAX_DEPTH:
                raise too_deep()
            path, file = find_parent(paths[-1] if paths else search.path, link, search, first=not paths)
            paths.append(path)
            try:
                if place(file) in trail:
                    raise cyclic()
                trail.add(place(file))
                parent = judge_parent(file, path, link, search)
            except BaseException:
                file.close()
                raise
            chain.append(parent)
    except (ImageError, OSError) as error:
        close_files(chain[1:])
        raise prefixed(error, paths) from None
    except BaseException:
        close_files(chain[1:])
        raise
    for index in range(len(paths) - 1, -1, -1):
        child, parent = chain[index], chain[index + 1]
        notes = list(child.info.notes)
        if child.link is not None and not same_time(child.link, parent.file.fileno()):
            notes.append("the parent was modified at another time than recorded")
        notes += [f"{shown(paths[index])}: {note}" for note in parent.info.notes]
        # A deep chain's notes would repeat at each file: the child's list is the only one that is looked at.
        chain[index] = replace(child, info=replace(child.info, parent=paths[index], notes=tuple(notes)))
    return chain


def judge_parent(file: ImageFile, path: str, link: Link, search: Search) -> Judged:
    judge_root(file.fileno(), search.root)
    # The child's format, whatever the file looks like: a fixed disk's guest must not choose (disk-formats.md 16).
    parent = judge(file, False, link.format, 512)
    judge_sectors(link, parent.info.sector_size)
    judge_identity(link, parent.info.identity)
    return replace(parent, info=replace(parent.info, path=path))


def find_parent(child: str, link: Link, search: Search, *, first: bool) -> tuple[str, ImageFile]:
    """Opens the first file that may be the parent and can be opened; nothing of it is judged yet."""
    tried = []
    named = [(search.parent, "")] if first and search.parent is not None else candidates(child, link)
    for path, why in dict.fromkeys(named):
        if not why:
            try:
                return path, open_file(path, False)
            except ImageInUse:
                raise
            except ImageError as error:
                why = str(error)
            except OSError as error:
                why = os.strerror(error.errno or errno.EIO).lower()
            except ValueError:  # a NUL, or half of a surrogate pair
                why = "no name that a file can have"
        tried.append((path, why))
    raise not_found(tried)


def place(file: ImageFile) -> tuple[int, int]:
    """What tells a file from all others, whatever its names."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino


def build(chain: Sequence[Judged]) -> FileDisk | VhdDisk | VhdxDisk:
    """The first one's disk, which owns all files. On an error the caller closes them."""
    disk: FileDisk | VhdDisk | VhdxDisk | None = None
    for index in range(len(chain) - 1, -1, -1):
        try:
            disk = chain[index].disk(disk)
        except (ImageError, OSError) as error:
            raise prefixed(error, [each.info.path for each in chain[1 : index + 1]]) from None
    assert disk is not None
    return disk


def prefixed(error: OSError, paths: Sequence[str]) -> ImageError:
    """The error with the names of the parents that lead to it; those of files become ImageErrors."""
    if not isinstance(error, ImageError):
        code = error.errno
        error = ImageError(os.strerror(code or errno.EIO).lower())
        error.errno = code
    error.args = (f"{trail_of(paths)}{error}",)
    return error


def close_files(chain: Sequence[Judged]) -> None:
    for each in chain:
        each.file.close()


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


def judge_raw(file: ImageFile, file_size: int, write: bool, sector_size: int) -> Judged:
    if file_size % sector_size:
        raise ImageError(f"its size, {file_size} bytes, is not a multiple of the sector size {sector_size}")
    info = ImageInfo("", "raw", None, file_size, file_size, sector_size, sector_size)
    return Judged(file, info, None, None, write)


def judge_vhd(file: ImageFile, file_size: int, write: bool, trust_head: bool) -> Judged:
    found = read_footers(file, file_size, trust_head=trust_head)
    if found.footer.disk_type == FIXED:
        size, disk_id = found.footer.size, found.footer.disk_id
        info = ImageInfo("", "vhd", "fixed", size, file_size, 512, 512, disk_id=disk_id, identity=disk_id)
        return Judged(file, info, None, None, write)
    layout = read_vhd_layout(file, file_size, footers=found)
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
        notes=layout.notes,
        identity=layout.disk_id,
    )
    return Judged(file, info, layout, vhd_link(layout) if layout.disk_type == DIFFERENCING else None, write)


def read_vhdx(file: ImageFile, file_size: int, write: bool) -> VhdxLayout:
    """The current header comes first, then its log; only what the log's replay leaves is to be believed."""
    header, notes = settle_log(file, read_header(file, file_size), file_size, write=write)
    return read_layout(file, max(file_size, file.size()), header, notes)


def judge_vhdx(file: ImageFile, file_size: int, write: bool) -> Judged:
    layout = read_vhdx(file, file_size, write)
    info = ImageInfo(
        "",
        "vhdx",
        "differencing" if layout.has_parent else "fixed" if layout.fixed else "dynamic",
        layout.size,
        layout.file_size if write else file_size,
        layout.sector_size,
        layout.physical_sector_size,
        block_size=layout.block_size,
        disk_id=layout.disk_id,
        notes=layout.notes,
        identity=layout.header.data_write_guid,
    )
    return Judged(file, info, layout, vhdx_link(layout), write)
