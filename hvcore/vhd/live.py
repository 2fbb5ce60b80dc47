"""Images in use, and checkpoints of them: from one moment on all changes go to a new child."""

import contextlib
import os
from dataclasses import replace
from pathlib import Path

from hvcore.disk.chain import MAX_DEPTH, too_deep
from hvcore.disk.file import FileDisk
from hvcore.disk.image import ImageInfo, build, close_files, judge, open_described, open_file, reported
from hvcore.disk.locks import give_up_writing
from hvcore.disk.medium import ImageFile
from hvcore.disk.ops import Backend
from hvcore.disk.probe import PROBE
from hvcore.disk.switch import SwitchDisk
from hvcore.disk.vhd.disk import VhdDisk
from hvcore.disk.vhdx.disk import VhdxDisk
from hvcore.errors import ImageError
from hvcore.progress import silent
from hvcore.vhd.child import make_child
from hvcore.vhd.locked import Locked
from hvcore.vhd.newfile import new_file
from hvcore.vhd.resize import judge_size, resize_chain


def open_live(
    path: str | os.PathLike[str],
    *,
    mode: str = "r",
    format: str | None = None,
    sector_size: int | None = None,
    parent: str | os.PathLike[str] | None = None,
    trust_head: bool = False,
) -> tuple[Backend, ImageInfo]:
    """As open_described(); a dynamic or differencing disk that is open for writing can have checkpoints."""
    disk, info = open_described(
        path, mode=mode, format=format, sector_size=sector_size, parent=parent, trust_head=trust_head
    )
    if mode == "r+" and isinstance(disk, VhdDisk | VhdxDisk):
        return SwitchDisk(disk), info
    return disk, info


def checkpoint(disk: Backend, info: ImageInfo, path: str | os.PathLike[str]) -> ImageInfo:
    """Makes the new differencing image `path` on top of an image in use, of which `info` says what it is; returns what
    the new one is. The disk goes on with it: the image of before keeps what it held at one moment between requests,
    durable and closed cleanly, and is only read from then on.

    Requests wait meanwhile; none fails. When the child cannot be made (ImageError, DiskError) they go on as before.
    """
    if not isinstance(disk, SwitchDisk):
        raise ImageError(f"{info.path}: only a VHD or VHDX that is open for writing can have checkpoints, no raw image")
    made: list[ImageInfo] = []

    def switch(top: Backend) -> Backend:
        assert isinstance(top, VhdDisk | VhdxDisk)
        refuse_depth(top)
        child, child_info = make_top(top, info, path)
        made.append(child_info)
        return child

    disk.exchange(switch)
    return made[0]


def settle(disk: Backend) -> None:
    """Makes durable what an image in use holds, and its file a clean one, as closing would; requests go on then."""

    def same(top: Backend) -> Backend:
        assert isinstance(top, VhdDisk | VhdxDisk)
        top.settle()
        return top

    if isinstance(disk, SwitchDisk):
        disk.exchange(same)


def resize(disk: Backend, info: ImageInfo, size: int) -> ImageInfo:
    """Gives an image in use another size, and returns what it is then. Requests wait meanwhile; none fails but those
    behind an end that came nearer.

    ImageError, DiskError: it cannot be done, and the disk goes on with the size it had. ValueError: no such size.
    """
    judge_size(info, size)
    if isinstance(disk, FileDisk):
        if size < info.size:
            raise ImageError(f"{info.path}: a raw image in use gets no smaller")
        if info.format != "raw":
            raise ImageError(f"{info.path}: a fixed VHD is resized while nobody uses it")
        disk.resize(size)
        return replace(info, size=size)
    if not isinstance(disk, SwitchDisk):
        raise ImageError(f"{info.path}: an image that is open for reading keeps its size")
    failed: list[BaseException] = []
    made: list[ImageInfo] = []

    def switch(top: Backend) -> Backend:
        assert isinstance(top, VhdDisk | VhdxDisk)
        top.settle()
        with Locked.of_open(top.fileno(), info.path, info.format) as image, reported(info.path):
            top.close()
            chain = image.judge_chain()
            try:
                resize_chain(chain, size, False, silent)
            except Exception as error:  # the disk goes on as it is
                failed.append(error)
            finally:
                close_files(chain)
            chain = image.judge_chain()
            made.append(replace(chain[0].info, path=info.path, parent=info.parent))
            return build(chain)

    disk.exchange(switch, resize=True)
    if failed:
        raise failed[0]
    return made[0]


def refuse_depth(top: Backend) -> None:
    depth, at = 0, getattr(top, "parent", None)
    while at is not None:
        depth, at = depth + 1, getattr(at, "parent", None)
    if depth >= MAX_DEPTH:
        raise too_deep()


def make_top(
    top: VhdDisk | VhdxDisk, info: ImageInfo, path: str | os.PathLike[str]
) -> tuple[VhdDisk | VhdxDisk, ImageInfo]:
    """A child of the disk `top`, which is idle, open for writing; it owns `top`."""
    name = os.fspath(path)
    top.settle()
    # The lock is that of the open file, which the duplicate shares: nobody can come in between.
    with ImageFile(os.dup(top.fileno()), probe=PROBE.get(), name=info.path) as seen:
        with reported(info.path):
            parent = judge(seen, False, info.format, info.sector_size)
        parent = replace(parent, info=replace(parent.info, path=info.path))
        with new_file(path) as file, reported(path):
            make_child(file, name, parent, info.block_size)
    try:
        with reported(path):
            file = open_file(name, True)
            try:
                child = judge(file, True, info.format, info.sector_size)
                disk = child.disk(top)
            except BaseException:
                file.close()
                raise
    except BaseException:
        with contextlib.suppress(OSError):
            Path(path).unlink()
        raise
    give_up_writing(top.fileno())
    assert isinstance(disk, VhdDisk | VhdxDisk)
    return disk, replace(child.info, path=name, parent=info.path)
