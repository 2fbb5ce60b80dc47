"""New images."""

import os
import time

from hvcore.disk.image import ImageInfo, describe, reported
from hvcore.disk.medium import ImageFile
from hvcore.disk.vhd.create import build_vhd
from hvcore.disk.vhd.footer import EPOCH
from hvcore.disk.vhdx.create import build_vhdx
from hvcore.vhd.newfile import new_file

FORMATS = ("vhdx", "vhd", "raw")
TYPES = ("dynamic", "fixed")


def create(
    path: str | os.PathLike[str],
    size: int,
    format: str = "vhdx",
    type: str = "dynamic",
    block_size: int | None = None,
    sector_size: int = 512,
    *,
    preallocate: bool = True,
) -> ImageInfo:
    """Makes a new image of zeros: "vhdx", "vhd" or "raw", type "dynamic" or "fixed".

    size: bytes, a positive multiple of sector_size (512 or, VHDX and raw only, 4096); at most 64 TiB for VHDX, 2040 GiB
    for VHD. block_size: bytes, a power of two: 1 to 256 MiB for VHDX (default: 2 MiB up to 1 TiB, 8 MiB up to 16 TiB,
    else 32 MiB), 4 KiB to 256 MiB for VHD (default 2 MiB), dynamic only. A fixed image takes all its space now, so that
    the file system cannot run full later, unless preallocate=False; a dynamic raw image is a sparse file.

    The file appears under its name complete and durable, or not at all; an existing file is never touched (ImageError).
    ValueError: the arguments make no sense.
    """
    judge_kind(format, type, block_size)
    if format == "vhd" and sector_size != 512:
        raise ValueError(f"a VHD has sectors of 512 bytes, not {sector_size}")
    with new_file(path) as file, reported(path):
        make(file, size, format, type, block_size, sector_size, preallocate)
    return describe(path, format)


def judge_kind(format: str, type: str, block_size: int | None) -> None:
    """ValueError unless there are such images."""
    if format not in FORMATS:
        raise ValueError(f"format is one of {', '.join(FORMATS)}, not {format!r}")
    if type not in TYPES:
        raise ValueError(f"type is one of {', '.join(TYPES)}, not {type!r}")
    if block_size is not None and (format == "raw" or (format == "vhd" and type == "fixed")):
        raise ValueError(f"a {type} {format} image has no blocks: block_size cannot be chosen")


def make(
    file: ImageFile, size: int, format: str, type: str, block_size: int | None, sector_size: int, preallocate: bool
) -> None:
    """Makes the empty file an image of zeros; not yet durable."""
    if format == "vhdx":
        build_vhdx(file, size=size, type=type, block_size=block_size, sector_size=sector_size, preallocate=preallocate)
    elif format == "vhd":
        build_vhd(file, size=size, type=type, block_size=block_size, timestamp=now(), preallocate=preallocate)
    else:
        if sector_size not in (512, 4096):
            raise ValueError(f"sector_size is 512 or 4096, not {sector_size}")
        if size <= 0 or size % sector_size:
            raise ValueError(f"the size is a positive multiple of {sector_size}, not {size}")
        if type == "fixed" and preallocate:
            os.posix_fallocate(file.fileno(), 0, size)
        file.resize(size)


def now() -> int:
    """Seconds since 2000, as VHD counts them (disk-formats.md 15.1)."""
    return max(0, int(time.time()) - EPOCH) & 0xFFFFFFFF
