"""The GPADLs of one connection as its host keeps them (vmbus.md 3.12, VA-4, VA-7)."""

from array import array
from enum import Enum

from hvcore.errors import ProtocolError
from hvcore.vmbus.gparange import PAGE_BYTES, Assembly, GpaRange
from hvcore.vmbus.message import STATUS_QUOTA_EXCEEDED, STATUS_UNEXPECTED, GpadlBody, GpadlHeader


class GpadlRefused(ProtocolError):
    """A GPADL that is answered with a failing GPADL_CREATED (CM-26)."""

    def __init__(self, message: str, relid: int, gpadl: int, status: int = STATUS_UNEXPECTED) -> None:
        super().__init__(message)
        self.relid = relid
        self.gpadl = gpadl
        self.status = status


class GpadlState(Enum):
    ACCEPTED = "accepted"
    TEARING_DOWN = "tearing down"


class Gpadl:
    """A page list that the guest gave: a private copy, checked against guest memory, never read again (CM-28)."""

    __slots__ = ("handle", "ranges", "relid", "ring", "state", "words")

    def __init__(self, relid: int, handle: int, ranges: tuple[GpaRange, ...], words: int) -> None:
        self.relid = relid
        self.handle = handle
        self.ranges = ranges
        self.words = words
        self.state = GpadlState.ACCEPTED
        self.ring = False  # holds the rings of its channel, which is opening, open or closing

    @property
    def is_ring_shaped(self) -> bool:
        """One range of whole pages, as rings need it (1.1)."""
        return len(self.ranges) == 1 and not self.ranges[0].byte_offset and not self.ranges[0].byte_count % PAGE_BYTES

    @property
    def pfns(self) -> "array[int]":
        """The page frame numbers of the first range: all of them for a ring. An array("Q")."""
        return self.ranges[0].pfns


class GpadlTable:
    """Complete GPADLs by (relid, handle), incomplete ones by handle alone, because a body has no relid (CM-24).

    Bounded by the number of GPADLs, of incomplete ones, and of words in all page lists, counted as announced (VA-7).
    """

    def __init__(self, memory_pages: int, max_gpadls: int, max_incomplete: int, max_words: int) -> None:
        self._memory_pages = memory_pages
        self._max_gpadls = max_gpadls
        self._max_incomplete = max_incomplete
        self._max_words = max_words
        self._complete: dict[tuple[int, int], Gpadl] = {}
        self._incomplete: dict[int, Assembly] = {}
        self.words = 0

    def __len__(self) -> int:
        return len(self._complete)

    @property
    def incomplete(self) -> int:
        return len(self._incomplete)

    def begin(self, header: GpadlHeader) -> Gpadl | None:
        """The new GPADL, or None while bodies are missing. GpadlRefused."""
        relid, handle = header.relid, header.gpadl
        if (relid, handle) in self._complete or handle in self._incomplete:
            raise GpadlRefused(f"GPADL {handle:#x} exists already (3.12)", relid, handle)
        words = header.range_buffer_bytes // 8
        full = len(self._complete) + len(self._incomplete) >= self._max_gpadls
        if full or self.words + words > self._max_words:
            raise GpadlRefused("too many GPADLs or pages (VA-7)", relid, handle, STATUS_QUOTA_EXCEEDED)
        try:
            assembly = Assembly(header)
        except ProtocolError as error:
            raise GpadlRefused(str(error), relid, handle) from None
        if not assembly.complete and len(self._incomplete) >= self._max_incomplete:
            raise GpadlRefused("too many incomplete GPADLs (VA-7)", relid, handle, STATUS_QUOTA_EXCEEDED)
        self._incomplete[handle] = assembly
        self.words += words
        return self._finish(assembly)

    def extend(self, body: GpadlBody) -> Gpadl | None:
        """As begin(); a body for a complete or unknown handle is a plain ProtocolError (3.12: dropped)."""
        assembly = self._incomplete.get(body.gpadl)
        if assembly is None:
            raise ProtocolError(f"GPADL_BODY for {body.gpadl:#x}, which is not incomplete (3.12)")
        assembly.extend(body.words)
        return self._finish(assembly)

    def _finish(self, assembly: Assembly) -> Gpadl | None:
        if not assembly.complete:
            return None
        del self._incomplete[assembly.gpadl]
        try:
            ranges = assembly.ranges()
            for gpa in ranges:
                worst = max(gpa.pfns)
                if worst >= self._memory_pages:  # VA-4, compared in pages
                    raise ProtocolError(f"GPADL {assembly.gpadl:#x}: page {worst:#x} is not guest memory (VA-4)")
        except ProtocolError as error:
            self.words -= assembly.words_needed
            raise GpadlRefused(str(error), assembly.relid, assembly.gpadl) from None
        gpadl = Gpadl(assembly.relid, assembly.gpadl, ranges, assembly.words_needed)
        self._complete[gpadl.relid, gpadl.handle] = gpadl
        return gpadl

    def find(self, relid: int, handle: int) -> Gpadl | None:
        """A complete GPADL of this channel that is not being torn down."""
        gpadl = self._complete.get((relid, handle))
        return gpadl if gpadl is not None and gpadl.state is GpadlState.ACCEPTED else None

    def tearing_down(self, relid: int) -> list[Gpadl]:
        return [
            gpadl
            for gpadl in self._complete.values()
            if gpadl.relid == relid and gpadl.state is GpadlState.TEARING_DOWN
        ]

    def remove(self, gpadl: Gpadl) -> None:
        del self._complete[gpadl.relid, gpadl.handle]
        self.words -= gpadl.words

    def drop_incomplete(self, relid: int) -> list[int]:
        """Forgets the incomplete GPADLs of one channel; their handles."""
        handles = [handle for handle, assembly in self._incomplete.items() if assembly.relid == relid]
        for handle in handles:
            self.words -= self._incomplete.pop(handle).words_needed
        return handles

    def drop(self, relid: int) -> None:
        """Forgets all of one channel, the incomplete ones too (9.1, O 2410)."""
        self.drop_incomplete(relid)
        for gpadl in [gpadl for gpadl in self._complete.values() if gpadl.relid == relid]:
            self.remove(gpadl)
