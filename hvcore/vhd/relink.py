"""Storing another parent in a VHD (disk-formats.md 15.2, 15.5)."""

from dataclasses import replace

from hvcore.disk.image import Judged
from hvcore.disk.vhd.create import Parent, sectors
from hvcore.disk.vhd.footer import FOOTER_BYTES, build
from hvcore.disk.vhd.header import (
    EMPTY,
    HEADER_BYTES,
    LOCATORS,
    DynamicHeader,
    Locator,
    build_header,
    encode_locator,
    encode_name,
)
from hvcore.disk.vhd.layout import VhdLayout
from hvcore.vhd.tail import cut, extend, settle


def relink_vhd(child: Judged, parent: Parent) -> None:
    """Closes the file.

    The dynamic header is two sectors, of which a cut could keep one. So a second header, complete and durable, takes
    its place at the end of the file while the first one is rewritten. One sector says which of the two counts: the
    footer at the end; its copy at the start is taken away for as long, as it must not say otherwise.
    """
    layout, file = child.layout, child.file
    assert isinstance(layout, VhdLayout)
    with file:
        ((code, text),) = parent.locators
        raw = encode_locator(code, text)
        tail = settle(file, layout)
        second = tail + sectors(len(raw))
        place = old_place(layout, len(raw)) or tail
        end = sectors(second + HEADER_BYTES)
        extend(file, end, layout.footer)
        file.write(tail, raw)
        file.write(second, build_header(linked(layout, parent, code, len(raw), tail)))
        file.flush()
        file.write(0, bytes(FOOTER_BYTES))
        file.flush()
        file.write(end, build(replace(layout.footer, data_offset=second)))  # from here on: the new parent
        file.flush()
        file.write(place, raw)
        file.write(layout.footer.data_offset, build_header(linked(layout, parent, code, len(raw), place)))
        file.flush()
        for at in (end, 0):
            file.write(at, build(layout.footer))
            file.flush()
        cut(file, tail if place != tail else second, end, layout.footer)


def linked(layout: VhdLayout, parent: Parent, code: str, length: int, place: int) -> DynamicHeader:
    locator = Locator(code.encode(), sectors(length), length, place)
    return replace(
        layout.header,
        parent_id=parent.disk_id,
        parent_timestamp=parent.timestamp,
        name=encode_name(parent.name),
        locators=(locator, *[EMPTY] * (LOCATORS - 1)),
    )


def old_place(layout: VhdLayout, length: int) -> int | None:
    """Where an old locator leaves room enough, in the sectors that it fills."""
    for each in layout.header.locators:
        others = [used for used in layout.used if used[0] != each.offset]
        space = sectors(each.length)
        apart = all(at + size <= each.offset or each.offset + space <= at for at, size in others)
        if each.code != bytes(4) and each.offset % 512 == 0 and length <= space and apart:
            return each.offset
    return None
