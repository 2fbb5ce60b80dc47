"""Changing the size of a disk."""

import os
import stat
import struct
from collections.abc import Iterator
from uuid import UUID

from hvcore.disk.image import ImageInfo, Judged, build, close_files, describe, reported
from hvcore.disk.vhdx.disk import VhdxDisk
from hvcore.disk.vhdx.layout import MAX_DISK, VhdxLayout
from hvcore.errors import ImageError
from hvcore.progress import Progress, silent
from hvcore.vhd.copy import CHUNK
from hvcore.vhd.extents import resolved
from hvcore.vhd.grow import NOT_PRESENT, ZERO, grow_vhdx, size_place
from hvcore.vhd.growvhd import grow_vhd
from hvcore.vhd.locked import Locked, Pages


def resize(
    path: str | os.PathLike[str],
    size: int,
    *,
    format: str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> ImageInfo:
    """Makes the disk in an image larger or smaller while nobody uses it; returns what it is then.

    size: bytes, a multiple of the sector size; up to 64 TiB for VHDX, 2040 GiB for VHD. What is added reads as zeros,
    in a child too, whatever its parents hold there; a fixed image takes the space now. format: needed for raw.

    A VHDX gets smaller if what is cut off reads as zeros, or by force: the data there are lost. A raw image gets
    smaller by force only, a VHD never. Whatever interrupts it, and be it `progress`, the disk has one of both sizes.

    The children of a VHDX that changes its size refuse it from then on: their names are not known here. ImageError,
    DiskError: as open(). ValueError: there is no such size.
    """
    with Locked(path, format) as image, reported(path):
        chain = image.judge_chain()
        try:
            judge_size(chain[0].info, size)
            if size != chain[0].info.size:
                resize_chain(chain, size, force, progress)
        finally:
            close_files(chain)
    return describe(path, chain[0].info.format)


def judge_size(info: ImageInfo, size: int) -> None:
    """ValueError: no disk of this format has such a size."""
    most = {"vhdx": MAX_DISK, "vhd": 2040 << 30, "raw": 1 << 62}[info.format]
    if size <= 0 or size % info.sector_size:
        raise ValueError(f"the size is a positive multiple of {info.sector_size}, not {size}")
    if size > most:
        raise ValueError(f"a disk in this format has at most {most} bytes, not {size}")


def resize_chain(chain: list[Judged], size: int, force: bool, progress: Progress) -> None:
    """Gives the first image, which is open for writing, another size, and closes most files."""
    info = chain[0].info
    if info.format == "raw":
        resize_raw(chain[0], size, force)
    elif info.format == "vhd" and size < info.size:
        raise ImageError("a VHD cannot be made smaller, by Windows neither: convert it")
    elif info.format == "vhd":
        grow_vhd(chain, size, progress)
    elif size > info.size:
        grow_vhdx(chain, size, None, progress)
    else:
        shrink_vhdx(chain, size, force, None, progress)


def resize_raw(image: Judged, size: int, force: bool) -> None:
    if not stat.S_ISREG(os.fstat(image.file.fileno()).st_mode):
        raise ImageError("a block device has the size that it has")
    if size < image.info.size and not force:
        raise ImageError("a raw image is made smaller by force only: what is cut off is lost")
    image.file.resize(size)
    image.file.flush()


def cut_off(disk: VhdxDisk, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what may not be zeros behind a new end, in pieces of bounded size."""
    for extent in resolved(disk):
        if extent.state == "zero" or extent.offset + extent.length <= size:
            continue
        offset, end = max(extent.offset, size), extent.offset + extent.length
        while offset < end:
            yield offset, min(CHUNK, end - offset)
            offset += CHUNK


def shrink_vhdx(chain: list[Judged], size: int, force: bool, guid: UUID | None, progress: Progress) -> None:
    """First the blocks behind the new end go, then, or with them, the size changes, then the file is cut (14, rule 11).

    guid: the DataWriteGuid that it gets, None: a new one.
    """
    layout = chain[0].layout
    assert isinstance(layout, VhdxLayout)
    disk = build(chain)
    assert isinstance(disk, VhdxDisk)
    with disk:
        if not force:
            for offset, length in cut_off(disk, size):
                progress("looking for data", (offset - size) / (layout.size - size))
                if disk.read(offset, length).count(0) != length:
                    raise ImageError(
                        f"there are data behind the new end, from about {offset} on: force it to lose them"
                    )
        disk.begin(guid)
        progress("shrinking", 0.0)
        kept = -(-size // layout.block_size)
        chunk_end = min(-(-kept // layout.chunk_ratio) * layout.chunk_ratio, layout.blocks)
        # Further chunks have no entries any more once the size has changed. Until then zeros: state 0 would show what a
        # parent holds.
        disk.drop(chunk_end, layout.blocks - chunk_end, ZERO if layout.has_parent else NOT_PRESENT)
        disk.flush()
        last = Pages(chain[0].file)
        last.put(size_place(layout), struct.pack("<Q", size))
        # The rest of the last chunk keeps its entries, which are empty in a sound table (6): in one log entry with the
        # size, for which no chunk has too many.
        disk.drop(kept, chunk_end - kept, NOT_PRESENT)
        disk.commit(last.changed())
    progress("shrinking", 1.0)
