"""Copying an image into a new one of any format."""

import os

from hvcore.disk.image import ImageInfo, describe, open_locked, reported
from hvcore.progress import Progress, silent
from hvcore.vhd.copy import CHUNK, aligned, chunks, copy_ranges
from hvcore.vhd.create import judge_kind, make
from hvcore.vhd.extents import data_ranges
from hvcore.vhd.image import open as open_vhd
from hvcore.vhd.newfile import new_file

RAW_GRAIN = 64 << 10  # holes of a sparse file that are worth it


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    format: str = "vhdx",
    type: str = "dynamic",
    *,
    source_format: str | None = None,
    block_size: int | None = None,
    sector_size: int | None = None,
    preallocate: bool = True,
    progress: Progress = silent,
) -> ImageInfo:
    """Copies what the disk `source` holds, its parents included, into a new image; returns what that is.

    format, type, block_size, preallocate: as create(). sector_size: that of the source unless given; a VHD of a disk
    with sectors of 4096 bytes must be asked for with sector_size=512, as its partition table would be misread.
    Whatever reads as zeros takes no space in a dynamic image.

    The destination appears under its name complete and durable, or not at all, whatever interrupts the copy; an
    existing file is never touched. Memory does not grow with the image. ImageError, DiskError, ValueError: as open()
    and create().
    """
    judge_kind(format, type, block_size)
    with open_vhd(source, format=source_format) as image:
        sector_size = sector_size or image.sector_size
        if format == "vhd" and sector_size != 512:
            raise ValueError(f"a VHD has sectors of 512 bytes, the source of {sector_size}: name sector_size=512")
        with new_file(destination) as file:
            with reported(destination):
                make(file, image.size, format, type, block_size, sector_size, preallocate)
                disk, made = open_locked(file, True, format, sector_size)
            with disk:
                # A sector of either disk is read and written as a whole.
                present = aligned(data_ranges(image.extents(chain=True)), max(sector_size, image.sector_size))
                pieces = chunks(present, image.size)
                grain = min(made.block_size or RAW_GRAIN, CHUNK)

                def done(end: int) -> None:
                    progress("copying", end / image.size)

                copy_ranges(image, disk, pieces, zeros=False, done=done, grain=grain)
    progress("copying", 1.0)
    return describe(destination, format)
