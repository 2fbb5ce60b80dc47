"""Changing metadata items of a VHDX: the pages that one log entry replaces (disk-formats.md 5, 9.5)."""

import struct
from collections.abc import Sequence
from dataclasses import replace

from hvcore.disk.medium import ImageFile
from hvcore.disk.vhdx.layout import VhdxLayout
from hvcore.disk.vhdx.locator import ParentLocator
from hvcore.disk.vhdx.structures import (
    ITEM_LAYOUT,
    MAX_ENTRIES,
    MAX_ITEM,
    METADATA_TABLE_BYTES,
    PARENT_LOCATOR,
    REQUIRED,
    MetadataItem,
)
from hvcore.errors import ImageError
from hvcore.vhd.locked import Pages

MAX_PAGES = 252  # of one log entry


def changed_items(file: ImageFile, layout: VhdxLayout, changes: Sequence[MetadataItem]) -> list[tuple[int, bytes]]:
    """The pages that put these items, which have their contents, in the place of those with the same ids, or add them.

    ImageError: they do not fit. The others keep their places, known or not.
    """
    items = list(layout.items)
    pages = Pages(file)
    for change in changes:
        content = change.content or b""
        index = next(
            (at for at, item in enumerate(items) if (item.guid, item.user) == (change.guid, change.user)), None
        )
        others = [item for at, item in enumerate(items) if at != index and item.length]
        at = 0
        if content:
            at = items[index].offset if index is not None else 0
            if not at or not free(others, at, len(content)):
                at = max([METADATA_TABLE_BYTES, *(item.offset + item.length for item in others)])
        if len(content) > MAX_ITEM or at + len(content) > layout.metadata_length:
            raise ImageError("its metadata region is too small for what has to be stored there")
        placed = replace(change, offset=at, length=len(content))
        if index is None:
            index = len(items)
            items.append(placed)
        items[index] = placed
        if index >= MAX_ENTRIES:
            raise ImageError("its metadata table is full")
        fields = (placed.guid.bytes_le, placed.offset, placed.length, placed.flags, placed.reserved)
        pages.put(layout.metadata_offset + 32 + 32 * index, ITEM_LAYOUT.pack(*fields))
        if content:
            pages.put(layout.metadata_offset + at, content)
    pages.put(layout.metadata_offset + 10, struct.pack("<H", len(items)))
    changed = pages.changed()
    if len(changed) > MAX_PAGES:
        raise ImageError("what has to be stored in its metadata is too much for its log")
    return changed


def free(items: Sequence[MetadataItem], offset: int, length: int) -> bool:
    return all(item.offset + item.length <= offset or offset + length <= item.offset for item in items)


def locator_item(locator: ParentLocator) -> MetadataItem:
    return MetadataItem(PARENT_LOCATOR, REQUIRED, 0, 0, locator.build())
