"""New differencing images."""

import os
from dataclasses import replace

from hvcore.disk.chain import MAX_DEPTH, too_deep
from hvcore.disk.image import ImageInfo, Judged, describe, reported
from hvcore.disk.medium import ImageFile
from hvcore.disk.vhd.create import build_vhd
from hvcore.disk.vhdx.create import build_vhdx
from hvcore.disk.vhdx.layout import VhdxLayout, read_content
from hvcore.vhd.create import now
from hvcore.vhd.link import parent_chain, vhd_parent, vhdx_locator
from hvcore.vhd.newfile import new_file


def create_child(
    parent_path: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    parent_format: str | None = None,
    block_size: int | None = None,
) -> ImageInfo:
    """Makes a differencing image that holds what will differ from `parent_path`; returns what it is.

    It reads as its parent, whose format, size, sector sizes and disk id it has. The parent must not be written from now
    on: a VHDX child refuses a parent that was changed, a VHD child cannot tell. Its path is stored relative to the
    child's folder. parent_format: "vhdx" or "vhd", None recognises it. block_size: bytes, the parent's unless given (a
    fixed VHD has none: 2 MiB).

    The file appears under its name complete and durable, or not at all; an existing file is never touched. ImageDirty:
    the parent was not closed cleanly. ImageError: as open(); a raw image cannot be a parent.
    """
    with parent_chain(parent_path, parent_format) as chain:
        with reported(parent_path):
            if len(chain) > MAX_DEPTH:
                raise too_deep()
        parent = replace(chain[0], info=replace(chain[0].info, path=os.fspath(parent_path)))
        with new_file(path) as file, reported(path):
            make_child(file, os.fspath(path), parent, block_size or parent.info.block_size)
    return describe(path, parent.info.format)


def make_child(file: ImageFile, path: str, parent: Judged, block_size: int | None) -> None:
    """Makes the empty file a child of the open parent."""
    info, layout = parent.info, parent.layout
    if not isinstance(layout, VhdxLayout):
        stored = vhd_parent(path, parent)
        build_vhd(file, size=info.size, type="differencing", block_size=block_size, timestamp=now(), parent=stored)
        return
    build_vhdx(
        file,
        size=info.size,
        type="differencing",
        block_size=block_size,
        sector_size=info.sector_size,
        physical_sector_size=info.physical_sector_size,
        disk_id=info.disk_id,
        locator=vhdx_locator(path, info.path, layout.header.data_write_guid),
        parent_items=[
            item if item.content is not None else read_content(parent.file, layout.metadata_offset, item)
            for item in layout.items
        ],
    )
