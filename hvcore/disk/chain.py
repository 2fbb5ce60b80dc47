"""The parents of a differencing disk: where they may be, and whether a file is the one meant (disk-formats.md 8, 15.5).

Everything that a child says of its parent may be written by an enemy: a name is only ever opened as an image of the
child's own format, read-only, and believed when the ids agree.
"""

import errno
import os
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from hvcore.disk.vhd.footer import EPOCH
from hvcore.disk.vhd.header import ABSOLUTE, FILE_URL, RELATIVE
from hvcore.disk.vhd.layout import VhdLayout
from hvcore.disk.vhdx.layout import VhdxLayout
from hvcore.errors import ImageError, ParentError

MAX_DEPTH = 256  # files below the first one
MAX_SHOWN = 200  # characters of a name in a message
DRIVE = re.compile(r"[A-Za-z]:")
# FAT keeps times in steps of two seconds.
SAME_TIME = 2


@dataclass(frozen=True)
class Link:
    """What a differencing disk says of its parent.

    ids: the parent has one of them. id_name: what the format calls it. paths: (kind, path as it stands there), in the
    order of trial; kinds are "relative", "absolute" and "name" (of a file beside the child). timestamp: when the parent
    was modified last, in seconds since 2000; None: not recorded.
    """

    format: str
    sector_size: int
    ids: tuple[UUID, ...]
    id_name: str
    paths: tuple[tuple[str, str], ...]
    timestamp: int | None = None


@dataclass(frozen=True)
class Search:
    """Where parents are looked for. path: the first child's file. parent: the file that is its parent, whatever the
    child says, None: where the child says. root: the folder that no parent may lie outside of; None: anywhere."""

    path: str
    parent: str | None = None
    root: str | None = None


def vhdx_link(layout: VhdxLayout) -> Link | None:
    """None: not a differencing disk. Volume paths mean nothing outside of Windows."""
    locator = layout.locator
    if locator is None:
        return None
    paths = (("relative", locator.relative_path), ("absolute", locator.absolute_win32_path))
    return Link(
        "vhdx",
        layout.sector_size,
        tuple(guid for guid in (locator.linkage, locator.linkage2) if guid is not None),
        "DataWriteGuid",
        tuple((kind, text) for kind, text in paths if text),
    )


def vhd_link(layout: VhdLayout) -> Link:
    kinds = {RELATIVE: "relative", ABSOLUTE: "absolute", FILE_URL: "absolute"}
    paths = [(kinds[code], local(text) if code == FILE_URL else text) for code, text in layout.locators]
    paths.sort(key=lambda path: path[0], reverse=True)  # relative ones first: they survive a move of both files
    paths.append(("name", layout.parent_name))
    return Link(
        "vhd",
        512,
        (layout.parent_id,),
        "unique id",
        tuple((kind, text) for kind, text in paths if text),
        layout.parent_timestamp or None,
    )


def local(url: str) -> str:
    """The path of a file URL on this machine; "": it is none."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return ""
    return urllib.parse.unquote(parts.path) if parts.scheme == "file" and parts.netloc in ("", "localhost") else ""


def folder_of(path: str) -> Path:
    """The folder that a child's relative paths count from: the one that holds the file itself, not a link to it."""
    return (Path(os.path.realpath(path)) if Path(path).is_symlink() else Path(path)).parent


def candidates(child: str, link: Link) -> Iterator[tuple[str, str]]:
    """(path, "") of each file that may be the parent, in the order of trial, or (as stored, why it is not followed)."""
    folder = folder_of(child)
    for kind, text in dict.fromkeys(link.paths):
        slashed = text.replace("\\", "/")
        if kind == "absolute":
            # Drives and volumes are names of another machine.
            yield (text, "") if text.startswith("/") else (text, "a path of Windows")
        elif slashed.startswith("/") or DRIVE.match(slashed):
            yield text, "not a relative path"
        elif kind == "name" and "/" in slashed:
            yield text, "not a file's name"
        else:
            yield os.fspath(folder / slashed), ""


def shown(name: str) -> str:
    """A name as it may stand in a message of one line."""
    if not name.isprintable():
        name = ascii(name)[1:-1]
    return name if len(name) <= MAX_SHOWN else name[:MAX_SHOWN] + "…"


def trail_of(paths: Sequence[str]) -> str:
    """The files that lead to a fault, of a deep chain only both ends."""
    if len(paths) > 6:
        paths = [*paths[:2], f"… {len(paths) - 4} more …", *paths[-2:]]
    return "".join(f"{shown(path)}: " for path in paths)


def not_found(tried: Sequence[tuple[str, str]]) -> ParentError:
    if not tried:
        words = "it names no parent that can be followed here"
    else:
        words = "its parent cannot be opened: " + "; ".join(f"{shown(path)}: {why}" for path, why in tried)
    error = ParentError(f"{words}; name it, or relink with hvcore vhd rebase")
    error.errno = errno.ENOENT
    return error


def judge_root(fd: int, root: str | None) -> None:
    """ParentError unless the open file lies in the folder. What was opened counts, not what its name led to before."""
    if root is None:
        return
    if not Path(f"/proc/self/fd/{fd}").readlink().is_relative_to(os.path.realpath(root)):
        error = ParentError(f"lies outside of {shown(root)}, where parents must be")
        error.errno = errno.EACCES
        raise error


def judge_identity(link: Link, identity: UUID | None) -> None:
    if identity in link.ids:
        return
    expected = " or ".join(str(each) for each in link.ids)
    raise ParentError(
        f"not the parent that its child was made for: its {link.id_name} is {identity}, the child expects {expected};"
        " it was changed, or it is another disk; if it is the right one, relink with hvcore vhd rebase"
    )


def judge_sectors(link: Link, sector_size: int) -> None:
    if sector_size != link.sector_size:
        raise ParentError(f"it has sectors of {sector_size} bytes, its child of {link.sector_size}")


def same_time(link: Link, fd: int) -> bool:
    """Whether the parent was last modified when its child says so; it proves nothing either way."""
    if link.timestamp is None:
        return True
    return abs(int(os.fstat(fd).st_mtime) - EPOCH - link.timestamp) <= SAME_TIME


def too_deep() -> ImageError:
    return ParentError(f"the chain has more than {MAX_DEPTH} parents")


def cyclic() -> ImageError:
    return ParentError("it is its own ancestor: the chain leads in a circle")
