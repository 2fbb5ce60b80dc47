"""Merging a differencing image into its parent (disk-formats.md 8)."""

import os
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from hvcore.disk.chain import Link, Search, folder_of, judge_identity, judge_sectors
from hvcore.disk.image import ImageInfo, Judged, build, close_files, describe, find_parent, reported
from hvcore.disk.ops import Backend
from hvcore.disk.vhd.disk import VhdDisk
from hvcore.disk.vhdx.create import inherited
from hvcore.disk.vhdx.disk import VhdxDisk
from hvcore.disk.vhdx.layout import VhdxLayout, read_content
from hvcore.disk.vhdx.structures import DISK_ID, PHYSICAL_SECTOR, MetadataItem
from hvcore.errors import ImageError, ParentError
from hvcore.progress import Progress, silent
from hvcore.vhd.copy import CHUNK, chunks, copy_ranges
from hvcore.vhd.family import children
from hvcore.vhd.grow import grow_vhdx
from hvcore.vhd.growvhd import grow_vhd
from hvcore.vhd.items import changed_items, locator_item
from hvcore.vhd.locked import Locked
from hvcore.vhd.newfile import sync_folder
from hvcore.vhd.rebase import place_of, rebase
from hvcore.vhd.resize import shrink_vhdx


def merge(path: str | os.PathLike[str], *, progress: Progress = silent) -> ImageInfo:
    """Writes what the differencing image at `path` holds into its parent, and deletes it; returns what the parent is.

    The parent then reads as the image did. Only the image's own data are copied. Both must be used by nobody else
    (ImageInUse), also not through other images. Images beside them that have the image as their parent get its parent;
    a parent that other images beside them have as theirs is refused (ParentError), as they would change. A VHDX parent
    takes the image's size and its metadata of the virtual disk; a VHD cannot get smaller and is refused then.

    Whatever interrupts it, and be it `progress`: the image is there and reads the same, over its half-written parent,
    until all of it is in the parent, durably; merge() again completes it. ImageError, DiskError: as open().
    """
    name = os.fspath(path)
    with Locked(name) as image:
        with reported(name):
            child = image.judge()
            child.file.close()
            if child.link is None:
                raise ImageError("not a differencing image: it has no parent to be merged into")
            parent_path, file = find_parent(name, child.link, Search(name), first=True)
            file.close()
            with Locked(parent_path, child.info.format) as parent:
                later = merge_locked(image, parent, child.link, progress)
        # From here on the parent holds all: the image is only a name that has to go, after those that lead to it.
        for each in later:
            progress("relinking", 1.0)
            rebase(each, parent_path, copy=False)
        delete(image)
    progress("merging", 1.0)
    return describe(parent_path, child.info.format)


def merge_locked(image: Locked, parent: Locked, link: Link, progress: Progress) -> list[Path]:
    """The parent reads as the image, durably; returns the image's own children."""
    folders = {folder_of(each.path).resolve() for each in (image, parent)}
    places = [place_of(each.fd) for each in (image, parent)]
    with reported(parent.path):
        chain = parent.judge_chain()
        close_files(chain)
        above = chain[0]
        judge_sectors(link, above.info.sector_size)
        judge_identity(link, above.info.identity)
    child = image.judge()
    child.file.close()
    # An earlier merge of this image was interrupted: images that it relinked already expect what it left.
    resumed = len(link.ids) == 2 and link.ids[1] == above.info.identity
    if not resumed:
        siblings = children(folders, child.info.format, places[1], above.info.identity, places)
        if siblings:
            names = ", ".join(map(str, siblings[:3])) + (" …" if len(siblings) > 3 else "")
            raise ParentError(f"its parent cannot be changed, other images have it as theirs: {names}")
    later = children(folders, child.info.format, places[0], child.info.identity, places)
    if child.info.format == "vhdx":
        merge_vhdx(image, parent, link.ids[1] if resumed else None, progress)
    else:
        merge_vhd(image, parent, progress)
    return later


def merge_vhdx(image: Locked, parent: Locked, guid: UUID | None, progress: Progress) -> None:
    """guid: the parent's, given by a merge that was interrupted."""
    judged = parent.judge()
    judged.file.close()
    child = image.judge()
    with VhdxDisk(child.file, layout_of(child), write=True) as disk:
        items = virtual_items(child)
        size = child.info.size
        with reported(parent.path):
            judge_items(parent, items)
        if guid is None:
            # Step 1: the image accepts the parent as it is and as it will be, before it is.
            guid = uuid.uuid4()
            locator = layout_of(child).locator
            assert locator is not None and judged.info.identity is not None
            locator = replace(locator, linkage=judged.info.identity, linkage2=guid)
            disk.commit(changed_items(child.file, layout_of(child), [locator_item(locator)]))
        with reported(parent.path):
            if judged.info.size < size:
                # Steps 2 and 3: with the new id.
                grow_vhdx(parent.judge_chain(), size, guid, progress)
            chain = parent.judge_chain()
            below = opened(chain)
            with below:
                assert isinstance(below, VhdxDisk)
                below.begin(guid)  # step 2
                copy_own(disk, below, judged.info.type != "fixed", progress)
                below.flush()
                changed = changed_items(chain[0].file, layout_of(chain[0]), items)
                if changed:
                    below.commit(changed)
            if judged.info.size > size:
                shrink_vhdx(parent.judge_chain(), size, True, guid, progress)


def merge_vhd(image: Locked, parent: Locked, progress: Progress) -> None:
    """A VHD's id does not change with its content, so there is nothing to announce."""
    child = image.judge()
    assert child.layout is not None and not isinstance(child.layout, VhdxLayout)
    with VhdDisk(child.file, child.layout) as disk, reported(parent.path):
        judged = parent.judge()
        judged.file.close()
        if judged.info.size > disk.size:
            raise ImageError(
                f"it has {judged.info.size} bytes, its child only {disk.size}: a VHD cannot be made smaller"
            )
        if judged.info.size < disk.size:
            grow_vhd(parent.judge_chain(), disk.size, progress)
        with opened(parent.judge_chain()) as below:
            copy_own(disk, below, judged.info.type != "fixed", progress)
            below.flush()


def opened(chain: list[Judged]) -> Backend:
    try:
        return build(chain)
    except BaseException:
        close_files(chain)
        raise


def layout_of(image: Judged) -> VhdxLayout:
    assert isinstance(image.layout, VhdxLayout)
    return image.layout


def copy_own(disk: VhdxDisk | VhdDisk, below: Backend, trims: bool, progress: Progress) -> None:
    """Writes what a child says by itself into its parent, zeros too; the rest is the parent's already.

    trims: the parent can give space back (a fixed one cannot).
    """
    size = disk.size

    def done(end: int) -> None:
        progress("merging", end / size)

    data = ((offset, length) for offset, length, state, _ in disk.extents() if state == "data")
    copy_ranges(disk, below, chunks(data, size), zeros=True, done=done)
    nothing = bytes(CHUNK)
    for offset, length, state, _ in disk.extents():
        if state != "zero":
            continue
        if trims:
            below.trim(offset, length)
            done(offset + length)
            continue
        for start, count in chunks(iter([(offset, length)]), size):
            below.write(start, memoryview(nothing)[:count])
            done(start + count)


def virtual_items(child: Judged) -> list[MetadataItem]:
    """The metadata of the virtual disk that the parent takes over (5); its size is changed as such."""
    layout = layout_of(child)
    return [
        item if item.content is not None else read_content(child.file, layout.metadata_offset, item)
        for item in layout.items
        if inherited(item) or (item.known and item.guid in (DISK_ID, PHYSICAL_SECTOR))
    ]


def judge_items(parent: Locked, items: Sequence[MetadataItem]) -> None:
    """ImageError unless the parent has room for the items: asked before anything is changed."""
    judged = parent.judge()
    with judged.file:
        changed_items(judged.file, layout_of(judged), items)


def delete(image: Locked) -> None:
    """Removes the file's name, durably, if it still is the file's."""
    path = Path(os.path.realpath(image.path))
    with reported(image.path):
        status = path.stat()
        if (status.st_dev, status.st_ino) != place_of(image.fd):
            raise ImageError("it was merged, but its name now leads to another file, which is kept")
        path.unlink()
        sync_folder(path.parent)
