"""Making a VHD larger (disk-formats.md 15.5). The format has no log: what keeps a cut harmless is order alone."""

import os
from dataclasses import replace

from hvcore.disk.image import Judged
from hvcore.disk.medium import ImageFile
from hvcore.disk.vhd.create import sectors
from hvcore.disk.vhd.footer import FOOTER_BYTES, build, resized
from hvcore.disk.vhd.header import build_header
from hvcore.disk.vhd.layout import VhdLayout, read_footers
from hvcore.errors import ImageError
from hvcore.progress import Progress
from hvcore.vhd.grow import write_zeros
from hvcore.vhd.tail import extend, replace_footers, settle

NONE = b"\xff\xff\xff\xff"  # the entry of a block that is not allocated
PIECE = 1 << 20


def grow_vhd(chain: list[Judged], size: int, progress: Progress) -> None:
    """Grows the first image of the chain, which is open for writing, and closes its file."""
    image = chain[0]
    with image.file:
        progress("growing", 0.0)
        if image.layout is None:
            grow_fixed(image.file, image.info.size, size)
        else:
            assert isinstance(image.layout, VhdLayout)
            judge_parents(chain)
            grow_dynamic(image.file, image.layout, size, progress)
    progress("growing", 1.0)


def judge_parents(chain: list[Judged]) -> None:
    above = max((each.info.size for each in chain[1:]), default=0)
    if above > chain[0].info.size:
        # Only blocks of zeros could hide it, and they would have to appear together with the size.
        raise ImageError(f"a parent has {above} bytes: what it holds behind this disk's end would appear")


def grow_fixed(file: ImageFile, old: int, size: int) -> None:
    """Not atomic: a cut may keep the longer file and lose the footer at its end, or keep both footers. `repair` finds
    the old one, as what was added is zeros."""
    footer = resized(read_footers(file, file.size()).footer, size)
    os.posix_fallocate(file.fileno(), 0, size + FOOTER_BYTES)  # a full file system is noticed now
    file.resize(size + FOOTER_BYTES)
    file.write(size, build(footer))
    file.flush()
    file.write(old, bytes(min(FOOTER_BYTES, size - old)))
    file.flush()


def grow_dynamic(file: ImageFile, layout: VhdLayout, size: int, progress: Progress) -> None:
    tail = settle(file, layout)
    clean_tail(file, layout)
    entries = -(-size // layout.block_size)
    header = layout.header
    if entries <= sectors(4 * layout.entries) // 4:
        # In the table or its padding, which mean nothing up to now.
        write_none(file, layout.table_offset + 4 * layout.blocks, entries - layout.blocks)
        file.flush()
        header = replace(header, entries=max(entries, layout.entries))
    else:
        # A copy behind the blocks, where the footer was; blocks that come later follow it.
        extend(file, sectors(tail + sectors(4 * entries)), layout.footer)
        for at in range(0, 4 * layout.blocks, PIECE):
            progress("growing", at / (4 * entries))
            file.write(tail + at, file.read(layout.table_offset + at, min(PIECE, 4 * layout.blocks - at)))
        write_none(file, tail + 4 * layout.blocks, sectors(4 * entries) // 4 - layout.blocks)
        file.flush()
        header = replace(header, entries=entries, table_offset=tail)
        tail = sectors(tail + sectors(4 * entries))
    if header != layout.header:
        # Place, entries and checksum stand in one sector: the table is the old or the new one, both hold the same.
        file.write(layout.footer.data_offset, build_header(header)[:512])
        file.flush()
    replace_footers(file, tail, resized(layout.footer, size))


def clean_tail(file: ImageFile, layout: VhdLayout) -> None:
    """The part of the last block that lies behind the disk's end holds zeros from now on, durably."""
    rest = layout.size % layout.block_size
    entry = file.read(layout.table_offset + 4 * (layout.blocks - 1), 4)
    if rest and entry != NONE:
        data = int.from_bytes(entry, "big") * 512 + layout.bitmap_bytes
        if data + layout.block_size > layout.tail_offset:
            raise ImageError("its last block is cut short: run hvcore vhd check")
        write_zeros(file, data + rest, data + layout.block_size)
        file.flush()


def write_none(file: ImageFile, offset: int, entries: int) -> None:
    end = offset + 4 * entries
    while offset < end:
        step = min(PIECE, end - offset)
        file.write(offset, NONE * (step // 4))
        offset += step
