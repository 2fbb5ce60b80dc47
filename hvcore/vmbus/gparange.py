"""Page lists of GPADLs (vmbus.md 2.4, 3.12): ranges to GPADL messages and back.

All arithmetic is on Python integers, so no sum of guest-chosen counts can wrap (VA-3).
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hvcore.errors import ProtocolError
from hvcore.vmbus.message import BODY_WORDS, HEADER_WORDS, GpadlBody, GpadlHeader

PAGE_BYTES = 4096
MAX_RANGE_BUFFER = 65528  # CM-21: the length field is a u16, in whole words
MAX_PAGES = MAX_RANGE_BUFFER // 8 - 1  # of a GPADL with one range: 8190


def page_count(byte_offset: int, byte_count: int) -> int:
    """Pages that `byte_count` bytes touch from `byte_offset` in the first one."""
    return (byte_offset + byte_count + PAGE_BYTES - 1) // PAGE_BYTES


@dataclass(frozen=True, slots=True)
class GpaRange:
    """byte_count bytes from byte_offset of the first page of pfns (an array of u64 page frame numbers)."""

    byte_count: int
    byte_offset: int
    pfns: "array[int]"

    @classmethod
    def whole_pages(cls, pfns: Iterable[int]) -> "GpaRange":
        pages = array("Q", pfns)
        return cls(len(pages) * PAGE_BYTES, 0, pages)


def fragment(relid: int, gpadl: int, ranges: Sequence[GpaRange]) -> list[GpadlHeader | GpadlBody]:
    """The messages that create a GPADL: one header, then as many bodies as needed (CM-21, CM-22).

    ValueError when the list does not fit, or a range does not name exactly its pages.
    """
    words: list[int] = []
    for gpa in ranges:
        if not gpa.byte_count or len(gpa.pfns) != page_count(gpa.byte_offset, gpa.byte_count):
            raise ValueError(f"{len(gpa.pfns)} pages for {gpa.byte_count} bytes at offset {gpa.byte_offset}")
        words.append(gpa.byte_offset << 32 | gpa.byte_count)
        words.extend(gpa.pfns)
    if not words or len(words) * 8 > MAX_RANGE_BUFFER:
        raise ValueError(f"a page list of {len(words) * 8} bytes; 8 to {MAX_RANGE_BUFFER} fit in one GPADL (CM-21)")
    header = GpadlHeader(relid, gpadl, len(words) * 8, len(ranges), tuple(words[:HEADER_WORDS]))
    bodies = [
        GpadlBody(0, gpadl, tuple(words[start : start + BODY_WORDS]))
        for start in range(HEADER_WORDS, len(words), BODY_WORDS)
    ]
    return [header, *bodies]


class Assembly:
    """One GPADL on its way in: a stream of words, complete by count and not by message number (CM-23)."""

    __slots__ = ("gpadl", "range_count", "relid", "words", "words_needed")

    def __init__(self, header: GpadlHeader) -> None:
        """ProtocolError when the header cannot begin a page list (3.12 acceptance)."""
        if header.gpadl == 0:
            raise ProtocolError("GPADL handle 0 (3.12)")
        if header.range_count == 0:
            raise ProtocolError(f"GPADL {header.gpadl:#x} without ranges (3.12)")
        if header.range_buffer_bytes % 8:
            raise ProtocolError(f"GPADL {header.gpadl:#x}: length {header.range_buffer_bytes} is not in words (3.12)")
        self.relid = header.relid
        self.gpadl = header.gpadl
        self.range_count = header.range_count
        self.words_needed = header.range_buffer_bytes // 8
        if self.words_needed < 2 * header.range_count:
            raise ProtocolError(f"GPADL {header.gpadl:#x}: too few words for {header.range_count} ranges (3.12)")
        self.words: array[int] = array("Q")
        self.extend(header.words)

    def extend(self, words: Sequence[int]) -> None:
        """Words beyond the announced number are dropped (CM-23, 6.4 #17)."""
        self.words.extend(words[: self.words_needed - len(self.words)])

    @property
    def complete(self) -> bool:
        return len(self.words) == self.words_needed

    def ranges(self) -> tuple[GpaRange, ...]:
        """The ranges of a complete list; ProtocolError when they are not well formed. Leftover words are ignored."""
        ranges, at = [], 0
        for _ in range(self.range_count):
            if at == len(self.words):
                raise ProtocolError(f"GPADL {self.gpadl:#x}: too few words for its ranges (3.12)")
            byte_offset, byte_count = divmod(self.words[at], 1 << 32)
            if byte_count == 0 or byte_offset >= PAGE_BYTES:
                raise ProtocolError(f"GPADL {self.gpadl:#x}: range of {byte_count} bytes at {byte_offset} (3.12)")
            pages = page_count(byte_offset, byte_count)
            if pages > len(self.words) - at - 1:
                raise ProtocolError(f"GPADL {self.gpadl:#x}: too few words for {pages} pages (3.12)")
            ranges.append(GpaRange(byte_count, byte_offset, self.words[at + 1 : at + 1 + pages]))
            at += 1 + pages
        return tuple(ranges)
