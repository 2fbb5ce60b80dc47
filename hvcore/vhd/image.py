"""Images as Python objects."""

import os
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from hvcore.disk.image import ImageInfo, describe, describe_chain
from hvcore.disk.ops import Backend
from hvcore.vhd.extents import Extent, resolved
from hvcore.vhd.live import checkpoint, open_live


class Image:
    """An open disk image. Offsets and lengths are bytes, multiples of sector_size (else ValueError).

    All calls but close() may run at the same time from several threads. hvcore.errors.DiskError: the medium failed.
    """

    def __init__(self, backend: Backend, description: ImageInfo) -> None:
        self.backend = backend
        self.info = description

    @property
    def size(self) -> int:
        return self.info.size

    @property
    def sector_size(self) -> int:
        return self.info.sector_size

    @property
    def block_size(self) -> int | None:
        """Bytes that are allocated together; None where there are no blocks (raw, fixed VHD)."""
        return self.info.block_size

    @property
    def format(self) -> str:
        """ "raw", "vhd" or "vhdx"."""
        return self.info.format

    @property
    def parent(self) -> str | None:
        """The file that a differencing disk is based on, as it was found; None for any other disk."""
        return self.info.parent

    @property
    def read_only(self) -> bool:
        return self.backend.read_only

    def read(self, offset: int, length: int) -> bytes:
        return self.backend.read(offset, length)

    def readinto(self, offset: int, buffer: object) -> None:
        """Fills a writable buffer."""
        self.backend.readinto(offset, buffer)

    def write(self, offset: int, data: object) -> None:
        """Writes a buffer; durable after the next flush() or close()."""
        self.backend.write(offset, data)

    def flush(self) -> None:
        """Every write and trim that completed before is durable when this returns."""
        self.backend.flush()

    def trim(self, offset: int, length: int) -> None:
        """The range reads as zeros afterwards; its space is given back where the format can (not in fixed disks)."""
        self.backend.trim(offset, length)

    def extents(self, *, chain: bool = False) -> Iterator[Extent]:
        """The whole disk in pieces, in order and without gaps. chain: ask the parents for what is theirs."""
        if chain:
            return resolved(self.backend)  # type: ignore[arg-type]
        return (Extent(*piece) for piece in self.backend.extents())  # type: ignore[attr-defined]

    def checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Goes on with the new differencing image `path` on top of this one, which keeps what it holds now, durable and
        closed cleanly, and is only read from here on. Other threads' requests wait meanwhile; none fails.

        ImageError: the child cannot be made, and the disk goes on as before; raw, fixed VHD and read-only images have
        no checkpoints.
        """
        self.info = checkpoint(self.backend, self.info, path)

    def close(self) -> None:
        """Makes durable what was written, closes the file cleanly and ends its lock. Idempotent.

        DiskError: the medium failed; the file is closed all the same, and what an earlier flush() promised is kept.
        """
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open(
    path: str | os.PathLike[str],
    mode: str = "r",
    format: str | None = None,
    *,
    sector_size: int | None = None,
    parent: str | os.PathLike[str] | None = None,
    trust_head: bool = False,
) -> Image:
    """Opens an image; mode "r" or "r+". See hvcore.disk.image.open_image for the arguments and errors."""
    return Image(
        *open_live(path, mode=mode, format=format, sector_size=sector_size, parent=parent, trust_head=trust_head)
    )


def info(path: str | os.PathLike[str], format: str | None = None) -> ImageInfo:
    """What an image says of itself. ImageError as open()."""
    return describe(path, format)


def chain(path: str | os.PathLike[str], format: str | None = None) -> list[ImageInfo]:
    """The image and all it is based on, child first. ImageError as open()."""
    return describe_chain(path, format)
