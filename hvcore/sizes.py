"""Byte counts as people write them."""

import re

UNITS = ("", "K", "M", "G", "T")
_SIZE = re.compile(r"([0-9]+)\s*([KMGT]?)(?:iB|B)?", re.IGNORECASE | re.ASCII)


def parse_size(text: str | int) -> int:
    """Bytes of "4096", "4k", "64K", "1MiB", "2G": units are powers of 1024. ValueError for anything else."""
    if isinstance(text, int):
        if text < 0:
            raise ValueError(f"{text} is not a size: it is negative")
        return text
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size (like 512, 4k, 64K, 1M, 2G)")
    return int(match[1]) << 10 * UNITS.index(match[2].upper())


def format_size(size: int) -> str:
    """The shortest exact text: 4096 -> "4 KiB", 1000 -> "1000 bytes"."""
    unit = 0
    while size and size % 1024 == 0 and unit + 1 < len(UNITS):
        size //= 1024
        unit += 1
    return f"{size} {UNITS[unit]}iB" if unit else f"{size} bytes"
