"""Where a file has data: its holes read as zeros and need not be read."""

import errno
import os
from collections.abc import Iterator


def next_data(fd: int, offset: int, end: int) -> int:
    """The first byte from `offset` on that may be other than zero; `end`: there is none before."""
    try:
        return min(os.lseek(fd, offset, os.SEEK_DATA), end)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return end
        return offset  # a device, or a file system without holes


def next_hole(fd: int, offset: int, end: int) -> int:
    """The first hole behind the data at `offset`; at most `end`."""
    try:
        return min(os.lseek(fd, offset, os.SEEK_HOLE), end)
    except OSError:
        return end


def data_runs(fd: int, offset: int, end: int) -> Iterator[tuple[int, int]]:
    """(offset, end) of the parts of a range of a file that may hold other than zeros."""
    while offset < end:
        offset = next_data(fd, offset, end)
        if offset < end:
            stop = max(next_hole(fd, offset, end), offset + 1)
            yield offset, stop
            offset = stop


def last_data(fd: int, end: int) -> int:
    """Every byte from here to `end`, the end of the file, is in one hole or this is near its last data."""
    low, high = 0, end
    if next_data(fd, 0, end) == end:
        return 0
    # Whether data follow an offset changes but once along the file.
    while high - low > 1 << 20:
        middle = (low + high) // 2
        low, high = (low, middle) if next_data(fd, middle, end) == end else (middle, high)
    return high
