"""Whether two images hold the same disk."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from hvcore.progress import Progress, silent
from hvcore.vhd.copy import aligned, chunks
from hvcore.vhd.extents import data_ranges, union
from hvcore.vhd.image import Image
from hvcore.vhd.image import open as open_vhd


class Difference(NamedTuple):
    """The first difference of two disks. offset: bytes; None: they read the same as far as both go."""

    equal: bool
    offset: int | None
    sizes: tuple[int, int]


def compare(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    *,
    first_format: str | None = None,
    second_format: str | None = None,
    progress: Progress = silent,
) -> Difference:
    """Whether two disks read the same, whatever their formats. Of disks of different sizes the rest of the larger one
    must read as zeros to be equal in content; `equal` is False for them all the same.
    """
    with open_vhd(first, format=first_format) as one, open_vhd(second, format=second_format) as two:
        size = max(one.size, two.size)
        sizes = (one.size, two.size)
        pieces = chunks(aligned(present(one, two), max(one.sector_size, two.sector_size)), size)
        with ThreadPoolExecutor(1, thread_name_prefix="compare") as pool:
            for start, length in pieces:
                progress("comparing", start / size)
                other = pool.submit(content, two, start, length)
                left = content(one, start, length)
                right = other.result()
                if left != right:
                    return Difference(False, start + first_difference(left, right), sizes)
    progress("comparing", 1.0)
    return Difference(sizes[0] == sizes[1], None, sizes)


def present(one: Image, two: Image) -> Iterator[tuple[int, int]]:
    """What may not be zeros in at least one of the two, ascending and disjoint."""
    return union(*(data_ranges(image.extents(chain=True)) for image in (one, two)))


def content(image: Image, start: int, length: int) -> bytearray:
    """The bytes of a piece; zeros beyond the disk's end."""
    buffer = bytearray(length)
    inside = max(0, min(length, image.size - start))
    if inside:
        image.readinto(start, memoryview(buffer)[:inside])
    return buffer


def first_difference(left: bytearray, right: bytearray) -> int:
    """The index of the first byte that differs; there is one."""
    low, high = 0, len(left)
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] != right[low:middle]:
            high = middle
        else:
            low = middle
    return low
