"""Which differencing images in some folders have a given image as their parent."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from uuid import UUID

from hvcore.disk.chain import Link, candidates
from hvcore.disk.image import judge, open_file
from hvcore.errors import DiskError, ImageError

SUFFIXES = {"vhdx": (".vhdx", ".avhdx"), "vhd": (".vhd", ".avhd")}
Place = tuple[int, int]


def images(folders: Iterable[Path], format: str) -> Iterator[Path]:
    """Files that are called like images of the format, each once."""
    seen = set()
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in SUFFIXES[format] and path.is_file():
                status = path.stat()
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    yield path


def children(
    folders: Iterable[Path], format: str, parent: Place, identity: UUID | None, known: Iterable[Place]
) -> list[Path]:
    """The images that name the file `parent` and expect its id, except those in `known`.

    Files that cannot be read are none: a disk that is in use has its parents locked.
    """
    found = []
    for path in images(folders, format):
        status = path.stat()
        if (status.st_dev, status.st_ino) in known:
            continue
        try:
            with open_file(os.fspath(path), False) as file:
                link = judge(file, False, format, 512).link
        except (ImageError, DiskError, OSError):
            continue
        if link is not None and identity in link.ids and leads_to(path, link, parent):
            found.append(path)
    return found


def leads_to(child: Path, link: Link, parent: Place) -> bool:
    for path, why in candidates(os.fspath(child), link):
        if why:
            continue
        try:
            status = Path(path).stat()
        except (OSError, ValueError):
            continue
        if (status.st_dev, status.st_ino) == parent:
            return True
    return False
