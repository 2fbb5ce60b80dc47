"""Opens VHDs for tests below hvcore.vhd, with a parent that is given rather than found."""

import os
from pathlib import Path

from hvcore.disk.file import FileDisk
from hvcore.disk.medium import ImageFile
from hvcore.disk.ops import Backend
from hvcore.disk.probe import PROBE
from hvcore.disk.vhd.create import Parent, build_vhd
from hvcore.disk.vhd.disk import VhdDisk
from hvcore.disk.vhd.layout import VhdLayout, read_vhd_layout
from tests.reference import vhd


def image_file(path: Path, flags: int = os.O_RDWR) -> ImageFile:
    return ImageFile(os.open(path, flags | os.O_CLOEXEC, 0o666), probe=PROBE.get(), name=str(path))


def opened(path: Path, *, write: bool = False, parent: Backend | None = None, trust_head: bool = False) -> VhdDisk:
    file = image_file(path, os.O_RDWR if write else os.O_RDONLY)
    try:
        layout = read_vhd_layout(file, file.size(), trust_head=trust_head)
        return VhdDisk(file, layout, write=write, parent=parent)
    except BaseException:
        file.close()
        raise


def layout_of(path: Path, *, trust_head: bool = False) -> VhdLayout:
    with image_file(path, os.O_RDONLY) as file:
        return read_vhd_layout(file, file.size(), trust_head=trust_head)


def raw_disk(path: Path) -> FileDisk:
    return FileDisk(image_file(path, os.O_RDONLY), path.stat().st_size)


def created(path: Path, size: int, *, block_size: int = 2 << 20, child: bool = False) -> None:
    path.unlink(missing_ok=True)
    with image_file(path, os.O_RDWR | os.O_CREAT) as file:
        build_vhd(
            file,
            size=size,
            type="differencing" if child else "dynamic",
            block_size=block_size,
            disk_id=vhd.CHILD_ID if child else vhd.ID,
            parent=Parent(vhd.ID, 0, "base.vhd", [("W2ru", ".\\base.vhd")]) if child else None,
        )
