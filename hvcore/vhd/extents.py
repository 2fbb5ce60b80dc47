"""Which parts of a disk are there, and in which file of its chain."""

import heapq
from collections.abc import Iterator
from typing import NamedTuple, Protocol


class Extent(NamedTuple):
    """A piece of a disk; offset and length in bytes.

    state: "data", "zero" (reads as zeros) or "parent" (this file says nothing: the parent decides). file_offset: where
    the bytes of data begin in the file that holds them, else None. depth: which file that is, 0 the image itself, 1 its
    parent; of what no file holds, the last one that was asked.
    """

    offset: int
    length: int
    state: str
    file_offset: int | None
    depth: int = 0


class Mapped(Protocol):
    """A backend that lists its own extents."""

    @property
    def size(self) -> int: ...
    def extents(self) -> Iterator[tuple[int, int, str, int | None]]: ...


def resolved(backend: Mapped, depth: int = 0) -> Iterator[Extent]:
    """The extents of a disk as it reads, parents included: no piece is left to the parent."""
    parent: Mapped | None = getattr(backend, "parent", None)
    below: Iterator[Extent] | None = None
    piece: Extent | None = None
    for offset, length, state, place in backend.extents():
        if state != "parent" or parent is None:
            yield Extent(offset, length, state, place, depth)
            continue
        if below is None:
            below = resolved(parent, depth + 1)
            piece = next(below, None)
        end = offset + length
        while offset < end:
            while piece is not None and piece.offset + piece.length <= offset:
                piece = next(below, None)
            if piece is None:  # beyond the parent's end
                yield Extent(offset, end - offset, "zero", None, depth)
                break
            stop = min(end, piece.offset + piece.length)
            held = None if piece.file_offset is None else piece.file_offset + offset - piece.offset
            yield Extent(offset, stop - offset, piece.state, held, piece.depth)
            offset = stop


def data_ranges(extents: Iterator[Extent]) -> Iterator[tuple[int, int]]:
    """(offset, length) of all that may read as something other than zeros."""
    for extent in extents:
        if extent.state != "zero":
            yield extent.offset, extent.length


def union(*ranges: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is in at least one of several lists of ranges, ascending and disjoint as they are."""
    pending: tuple[int, int] | None = None
    for start, end in heapq.merge(*(((start, start + length) for start, length in each) for each in ranges)):
        if pending is not None and start <= pending[1]:
            pending = (pending[0], max(pending[1], end))
            continue
        if pending is not None:
            yield pending[0], pending[1] - pending[0]
        pending = (start, end)
    if pending is not None:
        yield pending[0], pending[1] - pending[0]


def intersection(one: Iterator[tuple[int, int]], two: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is in both of two ascending lists of ranges."""
    left, right = next(one, None), next(two, None)
    while left is not None and right is not None:
        start, end = max(left[0], right[0]), min(left[0] + left[1], right[0] + right[1])
        if start < end:
            yield start, end - start
        if left[0] + left[1] <= right[0] + right[1]:
            left = next(one, None)
        else:
            right = next(two, None)
