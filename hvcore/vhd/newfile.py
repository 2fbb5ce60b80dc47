"""New files that appear under their name when they are complete and durable, or not at all."""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hvcore.disk.image import reported
from hvcore.disk.medium import ImageFile
from hvcore.disk.probe import PROBE
from hvcore.errors import ImageError


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[ImageFile]:
    """Yields an empty file, open for reading and writing, in the folder of `path`.

    When the block ends well the file is made durable and gets its name; otherwise, and whatever happens in between,
    nothing is left. An existing name is never touched. The block may close the file. ImageError, with the path: the
    file cannot be made, or exists already.
    """
    target = Path(path)
    temporary = target.parent / f".{target.name[:100]}.{uuid.uuid4().hex}"
    with reported(path):
        if os.path.lexists(target):  # only to spare the work: link() below is what decides
            raise exists()
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with ImageFile(os.dup(fd), probe=PROBE.get(), name=os.fspath(path)) as file:
            yield file
        with reported(path):
            os.fsync(fd)
            try:
                os.link(temporary, target)  # refuses an existing name, unlike rename
            except FileExistsError:
                raise exists() from None
    finally:
        os.close(fd)
        temporary.unlink()
    with reported(path):
        sync_folder(target.parent)


def exists() -> ImageError:
    error = ImageError("exists already")
    error.errno = errno.EEXIST
    return error


def sync_folder(folder: Path) -> None:
    """The names in the folder are durable."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
