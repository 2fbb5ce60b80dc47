"""Whether the parents of a differencing disk are there and are the ones meant (disk-formats.md 8, 15.5).

A parent is looked at only as far as its child depends on it: where it says who it is, and whose child it is itself.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from hvcore.disk.image import measure, open_file, reported
from hvcore.disk.locks import lock_image
from hvcore.disk.medium import ImageFile
from hvcore.disk.vhd.footer import DIFFERENCING
from hvcore.disk.vhd.header import ABSOLUTE, FILE_URL, RELATIVE
from hvcore.disk.vhd.layout import read_footers, read_vhd_layout
from hvcore.disk.vhdx.layout import read_header, read_layout
from hvcore.disk.vhdx.log import settle_log
from hvcore.errors import ImageError
from hvcore.vhd.finding import Findings

MAX_DEPTH = 256


@dataclass(frozen=True)
class Link:
    """A disk in a chain. ids: that its child may know it by. parents: ids that its own parent may have; empty: it has
    none. relative, absolute: paths that lead to the parent, as stored."""

    key: tuple[int, int]
    ids: frozenset[UUID]
    sector_size: int
    parents: frozenset[UUID] = frozenset()
    relative: tuple[str, ...] = ()
    absolute: tuple[str, ...] = ()


def judge_chain(path: str, format: str, findings: Findings) -> None:
    """Goes up the chain from a differencing disk and lists what is wrong with it. A chain has one format."""
    try:
        link = read_link(path, format)
    except ImageError as error:
        if not findings.hopeless:
            findings.damage("parent locator", None, f"its parent cannot be told: {error}")
        return  # what is wrong with the disk itself is listed already
    seen = {link.key: path}
    depth = 0
    while link.parents:
        depth += 1
        if depth > MAX_DEPTH:
            findings.damage("parent", None, f"{path}: more than {MAX_DEPTH} parents")
            return
        found = next((each for each in candidates(path, link) if os.path.lexists(each)), None)
        if found is None:
            paths = ", ".join((*link.relative, *link.absolute)) or "no path that can be followed here"
            findings.damage("parent", None, f"{path}: the parent is not there: {paths}")
            return
        try:
            parent = read_link(found, format)
        except ImageError as error:
            findings.damage("parent", None, f"the parent cannot be read: {error}")
            return
        if parent.key in seen:
            findings.damage("parent", None, f"{path}: its parent {found} is based on itself")
            return
        if link.parents.isdisjoint(parent.ids):
            known = " or ".join(sorted(map(str, link.parents)))
            words = f"{path}: {found} is not the parent meant, or was changed since: it should be {known}"
            findings.damage("parent", None, words)
        if link.sector_size != parent.sector_size:
            words = f"{path}: sectors of {link.sector_size} bytes over a parent with sectors of {parent.sector_size}"
            findings.damage("parent", None, words)
        path, link = found, parent
        seen[link.key] = path


def candidates(path: str, link: Link) -> list[str]:
    """Where the parent may be: beside the child before anywhere else, so that a chain may be moved."""
    folder = Path(path).parent
    found = [str(folder / each.replace("\\", "/")) for each in link.relative]
    for each in link.absolute:
        place = each.removeprefix("\\\\?\\").replace("\\", "/")
        if place.startswith("/"):  # a drive letter leads nowhere here
            found.append(place)
    return found


def read_link(path: str, format: str) -> Link:
    """ImageError: the file cannot be read as a disk of the chain; the message begins with its name."""
    with reported(path), open_file(path, False) as file:
        lock_image(file.fileno(), write=False)
        status = os.fstat(file.fileno())
        key = (status.st_dev, status.st_ino)
        size = measure(file.fileno(), False)
        return vhdx_link(file, size, key) if format == "vhdx" else vhd_link(file, size, key)


def vhdx_link(file: ImageFile, size: int, key: tuple[int, int]) -> Link:
    header, _ = settle_log(file, read_header(file, size), size, write=False)
    layout = read_layout(file, max(size, file.size()), header)
    ids = frozenset({header.data_write_guid})
    locator = layout.locator
    if locator is None:
        return Link(key, ids, layout.sector_size)
    return Link(
        key,
        ids,
        layout.sector_size,
        frozenset(each for each in (locator.linkage, locator.linkage2) if each is not None),
        tuple(filter(None, [locator.relative_path])),
        tuple(filter(None, [locator.absolute_win32_path])),
    )


def vhd_link(file: ImageFile, size: int, key: tuple[int, int]) -> Link:
    footer = read_footers(file, size, trust_head=True).footer
    ids = frozenset({footer.disk_id})
    if footer.disk_type != DIFFERENCING:
        return Link(key, ids, 512)
    layout = read_vhd_layout(file, size, trust_head=True)
    relative = [text for code, text in layout.locators if code == RELATIVE]
    absolute = [text for code, text in layout.locators if code == ABSOLUTE]
    absolute += [text.removeprefix("file://") for code, text in layout.locators if code == FILE_URL]
    if layout.parent_name:
        relative.append(layout.parent_name.rpartition("\\")[2])
    return Link(key, ids, 512, frozenset({layout.parent_id}), tuple(relative), tuple(absolute))
