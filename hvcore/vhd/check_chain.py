"""Whether the parents of a differencing disk are there and are the ones meant (disk-formats.md 8, 15.5).

Opening stops at the first fault of a chain; here each link is judged by all its rules, and the way goes on as long as
there is a file that can be read. Of a parent only what opening needs is looked at: it can be checked by itself.
"""

from hvcore.disk.chain import (
    MAX_DEPTH,
    Link,
    Search,
    cyclic,
    judge_identity,
    judge_sectors,
    same_time,
    shown,
    too_deep,
)
from hvcore.disk.image import Judged, find_parent, judge, open_file, place, reported
from hvcore.disk.medium import ImageFile
from hvcore.errors import ImageError, ImageInUse, ParentError
from hvcore.vhd.finding import Findings


def judge_parents(path: str, format: str, findings: Findings) -> None:
    """Goes up the chain from a differencing disk and lists what is wrong with it. ImageInUse: a program writes to one
    of its files."""
    try:
        with reported(path):
            file = open_file(path, False)
        child = judged(file, path, format)
    except ImageInUse:
        raise
    except ImageError as error:
        if not findings.hopeless:  # else what is wrong with the disk itself is listed already
            findings.damage("parent locator", None, f"its parent cannot be told: {error}")
        return
    try:
        seen = {place(child.file)}
        depth = 0
        while child.link is not None:
            depth += 1
            try:
                if depth > MAX_DEPTH:
                    raise too_deep()
                parent, found = parent_of(child.link, path, seen, findings)
            except ImageInUse:
                raise
            except ImageError as error:
                findings.damage("parent", None, f"{shown(path)}: {error}")
                return
            child.file.close()
            child, path = parent, found
    finally:
        child.file.close()


def parent_of(link: Link, path: str, seen: set[tuple[int, int]], findings: Findings) -> tuple[Judged, str]:
    """The parent of the disk at `path`, and its file's name. ImageError: there is none that can be followed."""
    found, file = find_parent(path, link, Search(path), first=False)
    parent = judged(file, shown(found), link.format, seen)
    try:
        judge_sectors(link, parent.info.sector_size)
    except ParentError as error:
        findings.damage("parent", None, f"{shown(path)}: {shown(found)}: {error}")
    try:
        judge_identity(link, parent.info.identity)
    except ParentError as error:
        findings.damage("parent", None, f"{shown(path)}: {shown(found)}: {error}")
    if not same_time(link, parent.file.fileno()):
        words = "was modified at another time than recorded: it may have been changed since"
        findings.warning("parent", None, f"{shown(path)}: {shown(found)} {words}")
    return parent, found


def judged(file: ImageFile, name: str, format: str, seen: set[tuple[int, int]] | None = None) -> Judged:
    """seen: the files below, which it must not be one of. On an error the file is closed."""
    try:
        with reported(name):
            if seen is not None:
                if place(file) in seen:
                    raise cyclic()
                seen.add(place(file))
            return judge(file, False, format, 512)
    except BaseException:
        file.close()
        raise
