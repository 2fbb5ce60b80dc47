"""What a child stores of its parent, and parents that are about to be stored."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from hvcore.disk.chain import Search, cyclic, folder_of
from hvcore.disk.image import Judged, close_files, judge, judge_chain, open_file, place, reported
from hvcore.disk.vhd.create import Parent
from hvcore.disk.vhd.footer import EPOCH
from hvcore.disk.vhd.header import NAME_BYTES, RELATIVE
from hvcore.disk.vhd.layout import TAIL, VhdLayout
from hvcore.disk.vhdx.layout import read_header
from hvcore.disk.vhdx.locator import ParentLocator
from hvcore.disk.vhdx.structures import NO_GUID
from hvcore.errors import ImageDirty, ImageError, ParentError


def relative_path(child: str | os.PathLike[str], parent: str | os.PathLike[str]) -> str:
    """The parent's path from the child's folder, as it is stored: `.\\base.vhdx`. ParentError: it cannot be."""
    parent = Path(parent)
    real = Path(os.path.realpath(parent.parent)) / parent.name
    path = os.path.relpath(real, os.path.realpath(folder_of(os.fspath(child))))
    if "\\" in path or not path.isprintable() or len(path) > 32000:
        raise ParentError("its path cannot be stored in a child: a backslash, a control character, or too long")
    try:
        path.encode("utf-16-le")
    except UnicodeEncodeError:
        raise ParentError("its path cannot be stored in a child: it is not Unicode") from None
    return (path if path.startswith("../") else f"./{path}").replace("/", "\\")


def vhdx_locator(child: str | os.PathLike[str], parent: str | os.PathLike[str], identity: UUID) -> ParentLocator:
    return ParentLocator(identity, relative_path=relative_path(child, parent))


def vhd_parent(child: str | os.PathLike[str], parent: Judged) -> Parent:
    """What a VHD stores of the open parent, whose path its info says."""
    path = parent.info.path
    assert parent.info.identity is not None
    relative = relative_path(child, path)
    name = Path(path).name
    if len(name.encode("utf-16-be")) > NAME_BYTES - 2:
        raise ParentError(f"its name is too long to be stored in a child: more than {NAME_BYTES // 2 - 1} characters")
    modified = max(0, int(os.fstat(parent.file.fileno()).st_mtime) - EPOCH) & 0xFFFFFFFF
    return Parent(parent.info.identity, modified, name, ((RELATIVE, relative),))


def judge_clean(image: Judged) -> None:
    """ImageDirty unless the image was closed cleanly: its children would rely on what a repair may change."""
    if image.info.format == "vhdx":
        dirty = read_header(image.file, image.info.file_size).log_guid != NO_GUID
    else:
        dirty = isinstance(image.layout, VhdLayout) and image.layout.footer_state != TAIL
    if dirty:
        raise ImageDirty("it was not closed cleanly: open it once for writing, or run hvcore vhd repair")


@contextmanager
def parent_chain(
    path: str | os.PathLike[str], format: str | None, children: Sequence[tuple[int, int]] = ()
) -> Iterator[list[Judged]]:
    """Opens what is to be a parent, with its own parents, all for reading, and closes them.

    children: places of files (hvcore.disk.image.place) that must not be among them. ImageError, beginning with its
    name: it cannot be a parent.
    """
    name = os.fspath(path)
    with reported(name):
        file = open_file(name, False)
        try:
            if place(file) in children:
                raise cyclic()
            first = judge(file, False, format, 512)
            if first.info.format == "raw":
                raise ImageError("a raw image cannot have children: convert it to VHDX first")
            judge_clean(first)
            chain = judge_chain(first, Search(name), children)
        except BaseException:
            file.close()
            raise
    try:
        yield chain
    finally:
        close_files(chain)
