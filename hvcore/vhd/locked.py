"""Images that are changed as files: locked once, opened several times; structures that are changed by whole pages."""

import os
from types import TracebackType
from typing import Self

from hvcore.disk.chain import Search
from hvcore.disk.image import Judged, judge, judge_chain, open_file, reported
from hvcore.disk.locks import lock_image
from hvcore.disk.medium import ImageFile
from hvcore.disk.probe import PROBE
from hvcore.disk.vhdx.structures import PAGE


class Locked:
    """An image that stays locked for writing while its file is opened, closed and opened again.

    ImageError, beginning with its name: it cannot be opened, or is in use.
    """

    def __init__(self, path: str | os.PathLike[str], format: str | None = None) -> None:
        self.path = os.fspath(path)
        self.format = format
        with reported(self.path), open_file(self.path, True) as file:
            lock_image(file.fileno(), write=True)
            self.fd = os.dup(file.fileno())  # keeps the lock, which belongs to what both share

    @classmethod
    def of_open(cls, fd: int, path: str, format: str) -> Self:
        """The image behind a descriptor that has the lock; the descriptor is duplicated."""
        self = cls.__new__(cls)
        self.path, self.format = path, format
        self.fd = os.dup(fd)
        return self

    def open(self) -> ImageFile:
        return ImageFile(os.dup(self.fd), probe=PROBE.get(), name=self.path)

    def judge(self) -> Judged:
        """The image as it is now, its file open for writing, not yet a disk."""
        file = self.open()
        try:
            return judge(file, True, self.format, 512)
        except BaseException:
            file.close()
            raise

    def judge_chain(self) -> list[Judged]:
        """The same with its parents, which are open for reading."""
        first = self.judge()
        try:
            return judge_chain(first, Search(self.path))
        except BaseException:
            first.file.close()
            raise

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Pages:
    """Changes of structures that a log protects, as the whole pages that its entries are made of."""

    def __init__(self, file: ImageFile) -> None:
        self.file = file
        self.pages: dict[int, bytes] = {}

    def put(self, offset: int, data: bytes) -> None:
        """data: the file's bytes from `offset` on, as they will be."""
        end = offset + len(data)
        for page in range(offset - offset % PAGE, end, PAGE):
            start, stop = max(offset, page), min(end, page + PAGE)
            content = bytearray(self.pages.get(page) or self.file.read(page, PAGE))
            content[start - page : stop - page] = data[start - offset : stop - offset]
            self.pages[page] = bytes(content)

    def changed(self) -> list[tuple[int, bytes]]:
        """The pages that differ from the file."""
        return [(page, data) for page, data in sorted(self.pages.items()) if data != self.file.read(page, PAGE)]
