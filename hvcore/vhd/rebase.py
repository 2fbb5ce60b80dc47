"""Giving a differencing image another parent."""

import os
from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID

from hvcore.disk.chain import MAX_DEPTH, judge_sectors, too_deep
from hvcore.disk.image import ImageInfo, Judged, build, close_files, describe, reported
from hvcore.disk.ops import Backend
from hvcore.disk.vhd.create import Parent
from hvcore.disk.vhd.disk import VhdDisk
from hvcore.disk.vhdx.disk import VhdxDisk
from hvcore.disk.vhdx.layout import VhdxLayout
from hvcore.errors import ImageError
from hvcore.progress import Progress, silent
from hvcore.vhd.copy import chunks
from hvcore.vhd.extents import Mapped, data_ranges, intersection, resolved, union
from hvcore.vhd.items import changed_items, locator_item
from hvcore.vhd.link import parent_chain, relative_path, vhd_parent
from hvcore.vhd.locked import Locked
from hvcore.vhd.relink import relink_vhd

Stored = Parent | tuple[UUID, str]
"""What a child stores: for VHDX the parent's DataWriteGuid and its relative path."""


def rebase(
    path: str | os.PathLike[str], parent: str | os.PathLike[str], *, copy: bool = True, progress: Progress = silent
) -> ImageInfo:
    """Makes `parent` the parent of the differencing image at `path`; returns what that is then.

    copy: the disk reads as before: what it takes from its old parents, and the new one holds differently, is written
    into it first. Needs the old parents. Without copy only the link changes: right after a parent was moved, or where
    it is known to hold the same; a disk that is written over the wrong parent is ruined.

    The new parent has the same format and sector size and was closed cleanly (ImageDirty). Whatever interrupts it, and
    be it `progress`, the image has the old parent or the new one, and with copy reads the same at every moment. Its
    own children stay valid. ImageError, ParentError, DiskError: as open().
    """
    with Locked(path) as image:
        with reported(path):
            child = image.judge()
            child.file.close()
            if child.link is None:
                raise ImageError("not a differencing image: it has no parent to be replaced")
        with parent_chain(parent, child.info.format, (place_of(image.fd),)) as chain:
            with reported(parent):
                judge_sectors(child.link, chain[0].info.sector_size)
                if len(chain) > MAX_DEPTH:
                    raise too_deep()
                stored = to_store(path, replace(chain[0], info=replace(chain[0].info, path=os.fspath(parent))))
                if copy:
                    new = build(chain)
            with reported(path):
                if copy:
                    # The new parents stay locked until the image says that they are its own.
                    with new:
                        copy_difference(image, new, progress)
                        relink(image, stored)
                else:
                    relink(image, stored)
    progress("relinking", 1.0)
    return describe(path, child.info.format)


def place_of(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def to_store(path: str | os.PathLike[str], parent: Judged) -> Stored:
    """What the image at `path` has to store of the open parent, whose path its info says."""
    if isinstance(parent.layout, VhdxLayout):
        return parent.layout.header.data_write_guid, relative_path(path, parent.info.path)
    return vhd_parent(path, parent)


def relink(image: Locked, stored: Stored, second: UUID | None = None) -> None:
    """Stores another parent; nothing else changes, the content's ids neither. second: a VHDX parent's coming id."""
    child = image.judge()
    if isinstance(stored, Parent):
        relink_vhd(child, stored)
        return
    assert isinstance(child.layout, VhdxLayout) and child.layout.locator is not None
    with VhdxDisk(child.file, child.layout, write=True) as disk:
        locator = replace(
            child.layout.locator,
            linkage=stored[0],
            linkage2=second,
            relative_path=stored[1],
            volume_path=None,
            absolute_win32_path=None,
        )
        if changed := changed_items(child.file, child.layout, [locator_item(locator)]):
            disk.commit(changed)


def copy_difference(image: Locked, new: Backend, progress: Progress) -> None:
    """Writes into the image what its disk would lose with the parent `new`, durably."""
    chain = image.judge_chain()
    try:
        disk = build(chain)
    except BaseException:
        close_files(chain)
        raise
    with disk:
        assert isinstance(disk, VhdxDisk | VhdDisk) and disk.parent is not None
        if isinstance(disk, VhdxDisk):
            # Nothing that anyone can see changes: its children stay its children.
            disk.begin(disk.data_write_guid)
        size = disk.size
        left = ((offset, length) for offset, length, state, _ in disk.extents() if state == "parent")
        there = union(data_ranges(resolved(mapped(disk.parent))), data_ranges(resolved(mapped(new))))
        for offset, length in chunks(intersection(left, there), size):
            progress("copying", offset / size)
            before, after = content(disk, offset, length), content(new, offset, length)
            for start, end in differing(before, after, disk.sector_size):
                if any(memoryview(before)[start:end]):
                    disk.write(offset + start, memoryview(before)[start:end])
                else:
                    disk.trim(offset + start, end - start)
        disk.flush()
    progress("copying", 1.0)


def mapped(backend: Backend) -> Mapped:
    """Every backend of an image lists its extents."""
    return backend  # type: ignore[return-value]


def content(disk: Backend, offset: int, length: int) -> bytearray:
    """The bytes of a piece; zeros beyond the disk's end."""
    buffer = bytearray(length)
    inside = max(0, min(length, disk.size - offset))
    if inside:
        disk.readinto(offset, memoryview(buffer)[:inside])
    return buffer


def differing(one: bytearray, two: bytearray, sector: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the runs of sectors that differ."""
    if one == two:
        return
    start = None
    for at in range(0, len(one), sector):
        if one[at : at + sector] != two[at : at + sector]:
            start = at if start is None else start
        elif start is not None:
            yield start, at
            start = None
    if start is not None:
        yield start, len(one)
